r"""Single-step samplers: every step makes its own intermediate calls and keeps no history.

In a form of `diffax.samplers.forms` (integrand f, carry, gain, moments M_j), with an intermediate point at the fraction
r of the way in lambda = log(alpha / sigma):

    x_r = carry_r x_t + gain_r M_0(h_r) f_t                                    f_r = f(x_r)
    x_s = carry_s x_t + gain_s M_0(h) (f_t + (f_r - f_t) / (2 r))              order 2

    sampler      form   r     calls
    heun         rho    1     2         Karras et al. 2022, algorithm 1
    dpm2         rho    1/2   2         Karras et al. 2022, algorithm 3; k-diffusion
    dpmpp_2s     x0     1/2   2         Lu et al. 2022b, algorithm 1
    dpm_solver   eps    1/2   1, 2, 3   Lu et al. 2022, algorithms 1 and 2
    dpmpp_sde    x0     1/2   2         k-diffusion

Euler in rho is `ddim` with eta = 0, and its ancestral form is `ddim` with eta: `euler` and `euler_ancestral` are names.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from diffax import random
from diffax._pytrees import check, check_per_example, choose, combine
from diffax.samplers.base import Sampler, State, init
from diffax.samplers.ddim import ddim
from diffax.samplers.forms import FORMS, Form, check_order, evaluate, higher_order
from diffax.samplers.wrappers import ancestral, ancestral_levels, check_churn, churn
from diffax.typing import Schedule, check_schedule


def _in_lambda(schedule, t, level_t, s, level_s, fraction):
    """The time at a fraction of the way from t to s in lambda."""
    return schedule.inverse(level_t.log_snr + fraction * (level_s.log_snr - level_t.log_snr))


def _in_rho(schedule, t, level_t, s, level_s, fraction):
    step = jnp.expm1((level_t.log_snr - level_s.log_snr) / 2)
    return schedule.inverse(level_t.log_snr - 2 * jnp.log1p(fraction * step))


def _in_time(schedule, t, level_t, s, level_s, fraction):
    return t + fraction * (s - t)


# The weight of f_r - f_t in the integral.
RULES: dict[str, Callable] = {
    "half": lambda h, h_r, m0, m1: _over(m0 * h, 2 * h_r),
    "midpoint": lambda h, h_r, m0, m1: m0,
    "exact": lambda h, h_r, m0, m1: _over(m1, h_r),
}
SPACES = {"rho": _in_rho, "time": _in_time}


def _stage(form: Form, level_t, level_s, h, x, f, *slopes):
    """carry x + gain (M_0(h) f + sum_i weight_i slope_i)."""
    carry, gain = form.carry(level_t, level_s), form.gain(level_s)
    m0 = form.moments(h, 1, 1.0)[0]
    return combine((carry, x), (gain * m0, f), *((gain * w, v) for w, v in slopes))


def two_stage(schedule: Schedule, form: str, r: Any, *, place: Callable = _in_lambda, rule: str = "half") -> Sampler:
    """The second-order step at the head of this module; `rule` is a key of `RULES`."""
    check_schedule(schedule)
    shape = FORMS[form]
    at_end = isinstance(r, (int, float)) and r == 1

    def step(key, denoise, state, t, s):
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


def _over(weight, length):
    return jnp.where(length == 0, 0.0, weight / jnp.where(length == 0, 1.0, length))


def euler(
    schedule: Schedule,
    *,
    space: str = "rho",
    s_churn: Any = 0.0,
    s_tmin: Any = 0.0,
    s_tmax: Any = jnp.inf,
    s_noise: Any = 1.0,
) -> Sampler:
    """Euler's method, order 1: in rho = sigma / alpha it is `ddim`; for a flow schedule it is the same in time.

        x_s / alpha_s = x_t / alpha_t + (rho_s - rho_t) eps

    Args:
      schedule: noise schedule.
      space: "rho", or "time" for Euler in t on dx / dt = alpha' x0 + sigma' eps.
      s_churn: with s_tmin, s_tmax and s_noise, see `diffax.samplers.churn`.
      s_tmin: lowest rho that is churned.
      s_tmax: highest rho that is churned.
      s_noise: factor of the noise.

    Raises:
      ValueError: for another space.
    """
    choose("space", space, SPACES)
    check_schedule(schedule)
    base = ddim(schedule) if space == "rho" else _euler_in_time(schedule)
    return _churned(base, schedule, s_churn, s_tmin, s_tmax, s_noise)


def _euler_in_time(schedule):
    form = FORMS["time"]

    def step(key, denoise, state, t, s):
        f = evaluate(form, schedule, denoise, state.x, t, schedule(t))
        return State(combine((1.0, state.x), (s - t, f)))

    return Sampler(init, step, order=1, calls=1, schedule=schedule)


def _churned(base, schedule, s_churn, s_tmin, s_tmax, s_noise):
    check_churn(s_churn, s_tmin, s_tmax, s_noise)
    if isinstance(s_churn, (int, float)) and s_churn == 0:
        return base
    return churn(base, schedule, s_churn, s_tmin=s_tmin, s_tmax=s_tmax, s_noise=s_noise)


def euler_ancestral(schedule: Schedule, *, eta: Any = 1.0) -> Sampler:
    """k-diffusion's Euler ancestral: another name of `ddim(schedule, eta=eta)`, which it equals for every eta."""
    return ddim(schedule, eta=eta)


def heun(
    schedule: Schedule,
    *,
    space: str = "rho",
    alpha: Any = 1.0,
    s_churn: Any = 0.0,
    s_tmin: Any = 0.0,
    s_tmax: Any = jnp.inf,
    s_noise: Any = 1.0,
) -> Sampler:
    """Heun's method of EDM (Karras et al. 2022, algorithm 1; with churn algorithm 2), order 2, two calls a step.

        x' = Euler step from t to s,   x_s / alpha_s = x_t / alpha_t + (rho_s - rho_t) (eps_t + eps_s(x')) / 2

    Args:
      schedule: noise schedule.
      space: "rho", or "time" for Heun in t on dx / dt = alpha' x0 + sigma' eps, as flow matching does.
      alpha: where the second call is made, as a fraction of the step: 1 is Heun, 1/2 midpoint, 2/3 Ralston (eq. 35 of
        Karras et al.'s appendix: weights 1 - 1 / (2 alpha) and 1 / (2 alpha)).
      s_churn: S_churn, see `diffax.samplers.churn`; 0 is deterministic.
      s_tmin: S_min, lowest rho that is churned.
      s_tmax: S_max, highest rho that is churned.
      s_noise: S_noise, factor of the noise.

    Raises:
      ValueError: for another space.

    >>> import diffax
    >>> heun(diffax.EDM()).calls
    2
    """
    base = two_stage(schedule, space, alpha, place=choose("space", space, SPACES))
    check("alpha", alpha, "in (0, 1]", lambda v: (v > 0) & (v <= 1))
    return _churned(base, schedule, s_churn, s_tmin, s_tmax, s_noise)


def dpm2(
    schedule: Schedule, *, s_churn: Any = 0.0, s_tmin: Any = 0.0, s_tmax: Any = jnp.inf, s_noise: Any = 1.0
) -> Sampler:
    """The midpoint method in rho with the midpoint in log rho (Karras et al. 2022, appendix; k-diffusion), order 2.

        x_s / alpha_s = x_t / alpha_t + (rho_s - rho_t) eps(x_r, r),   rho_r = sqrt(rho_t rho_s)

    s_churn, s_tmin, s_tmax and s_noise are those of `heun`.
    """
    return _churned(two_stage(schedule, "rho", 0.5, rule="midpoint"), schedule, s_churn, s_tmin, s_tmax, s_noise)


def dpm2_ancestral(schedule: Schedule, *, eta: Any = 1.0, noise_scale: Any = 1.0) -> Sampler:
    """`dpm2` to a lower level, then noise back to s: see `ancestral`."""
    return ancestral(dpm2(schedule), schedule, eta=eta, noise_scale=noise_scale)


def dpmpp_2s(schedule: Schedule) -> Sampler:
    """DPM-Solver++(2S) (Lu et al. 2022b, algorithm 1 with r = 1/2), order 2, two calls a step.

    x_s = sigma_s / sigma_t x_t - alpha_s expm1(-h) x0(x_r, r),   lambda_r = (lambda_t + lambda_s) / 2
    """
    return two_stage(schedule, "x0", 0.5)


def dpmpp_2s_ancestral(schedule: Schedule, *, eta: Any = 1.0, noise_scale: Any = 1.0) -> Sampler:
    """`dpmpp_2s` to a lower level, then noise back to s: see `ancestral`."""
    return ancestral(dpmpp_2s(schedule), schedule, eta=eta, noise_scale=noise_scale)


def dpmpp_sde(schedule: Schedule, *, eta: Any = 1.0, noise_scale: Any = 1.0, r: Any = 0.5) -> Sampler:
    """DPM-Solver++ SDE (k-diffusion): both stages of `dpmpp_2s` ancestral, two calls and two draws a step.

    With (rho_d, rho_u) the ancestral split of the way to the stage's own level,

        x_r = alpha_r (rho_d / rho_t x_t / alpha_t + (1 - rho_d / rho_t) x0 + rho_u z)
        x_s likewise with x0 + (x0_r - x0) / (2 r)

    Order 2 for eta = 0, order 1 in law otherwise.

    Args:
      schedule: noise schedule.
      eta: in [0, 1], may be traced.
      noise_scale: factor of the noise.
      r: fraction of the way in lambda.

    Raises:
      ValueError: if eta, r or noise_scale is known to lie outside its range.
    """
    check_schedule(schedule)
    check("eta", eta, "in [0, 1]", lambda v: (v >= 0) & (v <= 1))
    check("r", r, "in (0, 1]", lambda v: (v > 0) & (v <= 1))
    check("noise_scale", noise_scale, ">= 0", lambda v: v >= 0)

    def stage(key, level_t, level_s, x, *terms):
        """An ancestral step from t to s with data sum_i w_i x0_i, the w_i summing to 1."""
        down, up = ancestral_levels(level_t, level_s, eta)
        ratio = down * level_t.alpha / level_t.sigma
        toward = [(level_s.alpha * (1 - ratio) * w, x0) for w, x0 in terms]
        noisy = (level_s.alpha * up * noise_scale, random.noise(key, x))
        return combine((level_s.alpha / level_t.alpha * ratio, x), *toward, noisy)

    def step(key, denoise, state, t, s):
        check_per_example(state.x, eta=eta, noise_scale=noise_scale, r=r)
        level_t, level_s = schedule(t), schedule(s)
        t_r = _in_lambda(schedule, t, level_t, s, level_s, r)
        x0 = denoise(state.x, t)
        x_r = stage(random.fold_in(key, 0), level_t, schedule(t_r), state.x, (1.0, x0))
        x0_r = denoise(x_r, t_r)
        weight = higher_order(schedule, t, 1 / (2 * r))
        return State(stage(random.fold_in(key, 1), level_t, level_s, state.x, (1 - weight, x0), (weight, x0_r)))

    return Sampler(init, step, order=1 + (isinstance(eta, (int, float)) and eta == 0), calls=2, schedule=schedule)


def dpm_solver(
    schedule: Schedule, *, order: int = 3, form: str = "eps", space: str = "log_snr", taylor: bool = False
) -> Sampler:
    """Single-step DPM-Solver of order 1, 2 or 3 (Lu et al. 2022, algorithms 1 and 2), or in form x0 its ++ version.

    Order 2 has its intermediate point at r = 1/2, order 3 at 1/3 and 2/3 of the way in lambda:

        x_1 = carry_1 x_t + gain_1 M_0(h / 3) f_t
        x_2 = carry_2 x_t + gain_2 (M_0(2 h / 3) f_t + M_1(2 h / 3) 3 / h (f_1 - f_t))
        x_s = carry_s x_t + gain_s (M_0(h) f_t + M_1(h) 3 / (2 h) (f_2 - f_t))

    Args:
      schedule: noise schedule.
      order: 1 (`ddim`), 2 or 3; also the number of calls a step.
      form: "eps", or "x0" (DPM-Solver++).
      space: "log_snr" places the intermediate points evenly in lambda, "time" in t, as dpm-solver does on such a grid.
      taylor: the exact weights of dpm-solver's solver_type="taylor".

    Raises:
      ValueError: for another order or form.

    >>> import diffax
    >>> dpm_solver(diffax.Linear()).calls
    3
    """
    check_schedule(schedule)
    choose("form", form, ("eps", "x0"))
    place = choose("space", space, {"log_snr": _in_lambda, "time": _in_time})
    if check_order(order, 3) == 1:
        return ddim(schedule)
    if order == 2:
        return two_stage(schedule, form, 0.5, place=place, rule="exact" if taylor else "half")
    return _three_stage(schedule, FORMS[form], place, taylor)


def _three_stage(schedule, form, place, taylor):
    def step(key, denoise, state, t, s):
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
