r"""Single-step samplers: every step makes its own intermediate calls and keeps no history.

In a form of `diffax.samplers.engines.forms` (integrand f, carry, gain, moments M_j), with an intermediate point at the
fraction r of the way in lambda = log(alpha / sigma):

    x_r = carry_r x_t + gain_r M_0(h_r) f_t                                    f_r = f(x_r)
    x_s = carry_s x_t + gain_s M_0(h) (f_t + (f_r - f_t) / (2 r))              order 2

    sampler      form   r     calls
    heun         rho    1     2         Karras et al. 2022, algorithm 1
    dpm2         rho    1/2   2         Karras et al. 2022, algorithm 3; k-diffusion
    dpmpp_2s     x0     1/2   2         Lu et al. 2022b, algorithm 1
    dpm_solver   eps    1/2   1, 2, 3   Lu et al. 2022, algorithms 1 and 2
    dpmpp_sde    x0     1/2   2         k-diffusion

Euler in rho is `ddim` with eta = 0, and its ancestral form is `ddim` with eta.
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
    """The time at a fraction of the way from t to s in lambda."""
    return schedule.inverse(level_t.log_snr + fraction * (level_s.log_snr - level_t.log_snr))


def in_rho(schedule: Schedule, t: Times, level_t: Level, s: Times, level_s: Level, fraction: Scalar) -> Any:
    """The time at a fraction of the way from t to s in rho = sigma / alpha."""
    step = jnp.expm1((level_t.log_snr - level_s.log_snr) / 2)
    return schedule.inverse(level_t.log_snr - 2 * jnp.log1p(fraction * step))


def in_time(schedule: Schedule, t: Times, level_t: Level, s: Times, level_s: Level, fraction: Scalar) -> Any:
    """The time at a fraction of the way from t to s."""
    return t + fraction * (s - t)


# The weight of f_r - f_t in the integral.
RULES: dict[str, Callable[..., Any]] = {
    "half": lambda h, h_r, m0, m1: _over(m0 * h, 2 * h_r),
    "midpoint": lambda h, h_r, m0, m1: m0,
    "exact": lambda h, h_r, m0, m1: _over(m1, h_r),
}


SPACES = {"rho": in_rho, "time": in_time}


def two_stage(
    schedule: Schedule, form: str, r: Scalar, *, place: Callable[..., Any] = in_lambda, rule: str = "half"
) -> Sampler:
    """The second-order step at the head of this module; `rule` is a key of `RULES`."""
    check_schedule(schedule)
    shape = FORMS[form]
    at_end = isinstance(r, (int, float)) and r == 1

    def step(key: Keys, denoise: Denoiser, state: SamplerState, t: Times, s: Times) -> SamplerState:
        level_t, level_s = schedule(t), schedule(s)
        t_r = s if at_end else place(schedule, t, level_t, s, level_s, r)
        level_r = level_s if at_end else schedule(t_r)
        h, h_r = (shape.length(t, level_t, u, v) for u, v in ((s, level_s), (t_r, level_r)))
        f = evaluate(shape, schedule, denoise, state.x, t, level_t)
        x_r = _stage(shape, level_t, level_r, h_r, state.x, f)
        f_r = evaluate(shape, schedule, denoise, x_r, t_r, level_r)
        m0, m1 = shape.moments(h, 2, 1.0)
        weight = higher_order(schedule, t, RULES[rule](h, h_r, m0, m1))
        return State(_stage(shape, level_t, level_s, h, state.x, f, (weight, f_r), (-weight, f)))

    return Sampler(init, step, order=2, calls=2, schedule=schedule)


def three_stage(schedule: Schedule, form: Form, place: Callable[..., Any], taylor: bool) -> Sampler:
    """The third-order step of `dpm_solver`, with intermediate points at 1/3 and 2/3 of the way."""

    def step(key: Keys, denoise: Denoiser, state: SamplerState, t: Times, s: Times) -> SamplerState:
        x, level_t, level_s = state.x, schedule(t), schedule(s)
        t_1, t_2 = (place(schedule, t, level_t, s, level_s, r) for r in (1 / 3, 2 / 3))
        level_1, level_2 = schedule(t_1), schedule(t_2)
        h_1, h_2, h = (form.length(t, level_t, u, v) for u, v in ((t_1, level_1), (t_2, level_2), (s, level_s)))

        f = evaluate(form, schedule, denoise, x, t, level_t)
        f_1 = evaluate(form, schedule, denoise, _stage(form, level_t, level_1, h_1, x, f), t_1, level_1)
        slope = _over(form.moments(h_2, 2, 1.0)[1], h_1)
        x_2 = _stage(form, level_t, level_2, h_2, x, f, (slope, f_1), (-slope, f))
        f_2 = evaluate(form, schedule, denoise, x_2, t_2, level_2)
        _, m1, m2 = form.moments(h, 3, 1.0)
        if not taylor:
            slope = higher_order(schedule, t, _over(m1, h_2))
            return State(_stage(form, level_t, level_s, h, x, f, (slope, f_2), (-slope, f)))
        # The quadratic through all three points: f_t + d1 u + d2 u (u - h_1).
        first, second = _over(m1, h_1), _over(_over(m2 - h_1 * m1, h_2), h_2 - h_1)
        first, second = (higher_order(schedule, t, weight) for weight in (first, second))
        of_1 = first - second * jnp.where(h_1 == 0, 0.0, h_2 / jnp.where(h_1 == 0, 1.0, h_1))
        return State(_stage(form, level_t, level_s, h, x, f, (of_1, f_1), (second, f_2), (-of_1 - second, f)))

    return Sampler(init, step, order=3, calls=3, schedule=schedule)


def _stage(
    form: Form, level_t: Level, level_s: Level, h: PerExample, x: Tree, f: Tree, *slopes: tuple[Any, Any]
) -> Any:
    """carry x + gain (M_0(h) f + sum_i weight_i slope_i)."""
    carry, gain = form.carry(level_t, level_s), form.gain(level_s)
    m0 = form.moments(h, 1, 1.0)[0]
    return combine((carry, x), (gain * m0, f), *((gain * w, v) for w, v in slopes))


def _over(weight: PerExample, length: PerExample) -> Any:
    return jnp.where(length == 0, 0.0, weight / jnp.where(length == 0, 1.0, length))
