r"""Single-step samplers: each step makes its own intermediate calls and keeps no history.

A form of `diffax.samplers.engines.forms` gives the integrand f, carry, gain and the moments M_j. With an intermediate
point at a fraction r of the step in lambda = log(alpha / sigma), and h_r, h the lengths of the way to it and to s:

    x_r = carry_r x_t + gain_r M_0(h_r) f_t                                    f_r = f(x_r)
    x_s = carry_s x_t + gain_s M_0(h) (f_t + (f_r - f_t) / (2 r))              order 2

    sampler      form   r     calls
    heun         rho    1     2         Karras et al. 2022, algorithm 1
    dpm2         rho    1/2   2         Karras et al. 2022, algorithm 3; k-diffusion
    dpmpp_2s     x0     1/2   2         Lu et al. 2022b, algorithm 1
    dpm_solver   eps    1/2   1, 2, 3   Lu et al. 2022, algorithms 1 and 2
    dpmpp_sde    x0     1/2   2         k-diffusion

Euler's method in rho is `ddim` with eta = 0; its ancestral form is `ddim` with eta > 0.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from diffax._checks import check_schedule
from diffax._pytrees import combine
from diffax.samplers._base import Sampler, State, init
from diffax.samplers.engines.forms import FORMS, Form, evaluate, higher_order
from diffax.typing import Denoiser, Keys, Level, PerExample, SamplerState, Scalar, Schedule, Times, Tree


def in_lambda(schedule: Schedule, t: Times, level_t: Level, s: Times, level_s: Level, fraction: Scalar) -> Any:
    """The time at a fraction of the step from t to s, measured in lambda = log(alpha / sigma)."""
    return schedule.inverse(level_t.log_snr + fraction * (level_s.log_snr - level_t.log_snr))


def in_rho(schedule: Schedule, t: Times, level_t: Level, s: Times, level_s: Level, fraction: Scalar) -> Any:
    """The time at a fraction of the step from t to s, measured in rho = sigma / alpha."""
    step = jnp.expm1((level_t.log_snr - level_s.log_snr) / 2)
    return schedule.inverse(level_t.log_snr - 2 * jnp.log1p(fraction * step))


def in_time(schedule: Schedule, t: Times, level_t: Level, s: Times, level_s: Level, fraction: Scalar) -> Any:
    """The time at a fraction of the step from t to s, measured in t."""
    return t + fraction * (s - t)


# (h, h_r, M_0, M_1) -> the weight of f_r - f_t in the integral.
RULES: dict[str, Callable[..., Any]] = {
    "half": lambda h, h_r, m0, m1: _over(m0 * h, 2 * h_r),
    "midpoint": lambda h, h_r, m0, m1: m0,
    "exact": lambda h, h_r, m0, m1: _over(m1, h_r),
}


SPACES = {"rho": in_rho, "time": in_time}


def two_stage(
    schedule: Schedule, form: str, r: Scalar, *, place: Callable[..., Any] = in_lambda, rule: str = "half"
) -> Sampler:
    """The second-order step at the head of this module.

    Args:
      schedule: noise schedule.
      form: a key of `FORMS`.
      r: the fraction of the step at which the intermediate call is made, in (0, 1].
      place: function that computes its time: `in_lambda`, `in_rho` or `in_time`.
      rule: the weight of f_r - f_t, a key of `RULES`.
    """
    check_schedule(schedule)
    ode = FORMS[form]
    at_end = isinstance(r, (int, float)) and r == 1

    def step(key: Keys, denoise: Denoiser, state: SamplerState, t: Times, s: Times) -> SamplerState:
        level_t, level_s = schedule(t), schedule(s)
        t_r = s if at_end else place(schedule, t, level_t, s, level_s, r)
        level_r = level_s if at_end else schedule(t_r)
        h, h_r = (ode.length(t, level_t, u, v) for u, v in ((s, level_s), (t_r, level_r)))
        f_t = evaluate(ode, schedule, denoise, state.x, t, level_t)
        x_r = _stage(ode, level_t, level_r, h_r, state.x, f_t)
        f_r = evaluate(ode, schedule, denoise, x_r, t_r, level_r)
        m0, m1 = ode.moments(h, 2, 1.0)
        weight = higher_order(schedule, t, RULES[rule](h, h_r, m0, m1))
        return State(_stage(ode, level_t, level_s, h, state.x, f_t, (weight, f_r), (-weight, f_t)))

    return Sampler(init, step, order=2, calls=2, schedule=schedule)


def three_stage(schedule: Schedule, form: Form, place: Callable[..., Any], taylor: bool) -> Sampler:
    """The third-order step of `dpm_solver`, with intermediate points at 1/3 and 2/3 of the step.

    Args:
      schedule: noise schedule.
      form: the form in which the integrand is interpolated.
      place: function that computes the times of the intermediate points, as for `two_stage`.
      taylor: True integrates the quadratic through f_t, f_1 and f_2, False the line through f_t and f_2.
    """

    def step(key: Keys, denoise: Denoiser, state: SamplerState, t: Times, s: Times) -> SamplerState:
        x, level_t, level_s = state.x, schedule(t), schedule(s)
        t_1, t_2 = (place(schedule, t, level_t, s, level_s, r) for r in (1 / 3, 2 / 3))
        level_1, level_2 = schedule(t_1), schedule(t_2)
        h_1, h_2, h = (form.length(t, level_t, u, v) for u, v in ((t_1, level_1), (t_2, level_2), (s, level_s)))

        f_t = evaluate(form, schedule, denoise, x, t, level_t)
        x_1 = _stage(form, level_t, level_1, h_1, x, f_t)
        f_1 = evaluate(form, schedule, denoise, x_1, t_1, level_1)
        weight = _over(form.moments(h_2, 2, 1.0)[1], h_1)
        x_2 = _stage(form, level_t, level_2, h_2, x, f_t, (weight, f_1), (-weight, f_t))
        f_2 = evaluate(form, schedule, denoise, x_2, t_2, level_2)
        _, m1, m2 = form.moments(h, 3, 1.0)
        if not taylor:
            weight = higher_order(schedule, t, _over(m1, h_2))
            return State(_stage(form, level_t, level_s, h, x, f_t, (weight, f_2), (-weight, f_t)))
        # The quadratic through the three points is f_t + d_1 u + d_2 u (u - h_1), with divided differences d_1, d_2.
        linear, quadratic = _over(m1, h_1), _over(_over(m2 - h_1 * m1, h_2), h_2 - h_1)
        linear, quadratic = (higher_order(schedule, t, weight) for weight in (linear, quadratic))
        c_1 = linear - quadratic * jnp.where(h_1 == 0, 0.0, h_2 / jnp.where(h_1 == 0, 1.0, h_1))
        c_2, c_t = quadratic, -c_1 - quadratic
        return State(_stage(form, level_t, level_s, h, x, f_t, (c_1, f_1), (c_2, f_2), (c_t, f_t)))

    return Sampler(init, step, order=3, calls=3, schedule=schedule)


def _stage(
    form: Form, level_t: Level, level_s: Level, h: PerExample, x: Tree, f: Tree, *slopes: tuple[Any, Any]
) -> Any:
    """One stage of length h: carry x + gain (M_0(h) f + sum_i w_i f_i), for the pairs (w_i, f_i) in `slopes`."""
    carry, gain = form.carry(level_t, level_s), form.gain(level_s)
    m0 = form.moments(h, 1, 1.0)[0]
    return combine((carry, x), (gain * m0, f), *((gain * w, v) for w, v in slopes))


def _over(weight: PerExample, length: PerExample) -> Any:
    """The quotient weight / length, 0 for length 0, with finite gradients."""
    return jnp.where(length == 0, 0.0, weight / jnp.where(length == 0, 1.0, length))
