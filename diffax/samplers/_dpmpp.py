"""DPM-Solver++, single-step and multistep, for the ODE and the SDE."""

from typing import Any

from diffax import random
from diffax._checks import check, check_per_example, check_schedule, choose, interval, non_negative
from diffax._pytrees import combine, is_zero
from diffax.samplers._base import Sampler, State, init
from diffax.samplers.engines.adams import adams
from diffax.samplers.engines.forms import higher_order
from diffax.samplers.engines.stages import in_lambda, two_stage
from diffax.samplers.wrappers._ancestral import ancestral, ancestral_levels
from diffax.typing import Denoiser, Keys, Level, PerExample, SamplerState, Scalar, Schedule, Solver, Times, Tree


def dpmpp_2s(schedule: Schedule) -> Sampler:
    """DPM-Solver++(2S) (Lu et al. 2022b, algorithm 1 with r = 1/2), order 2, two calls a step.

        x_m = sigma_m / sigma_t x_t - alpha_m expm1(-h / 2) x0(x_t, t),   lambda_m = (lambda_t + lambda_s) / 2
        x_s = sigma_s / sigma_t x_t - alpha_s expm1(-h) x0(x_m, m)

    h = lambda_s - lambda_t, lambda = log(alpha / sigma); m is a time between t and s.
    """
    return two_stage(schedule, "x0", 0.5)


def dpmpp_2s_ancestral(schedule: Schedule, *, eta: PerExample = 1.0, noise_scale: PerExample = 1.0) -> Sampler:
    """The ancestral form of `dpmpp_2s`: a step to a level below s, then noise up to s; arguments as for `ancestral`."""
    return ancestral(dpmpp_2s(schedule), schedule, eta=eta, noise_scale=noise_scale)


def dpmpp_sde(schedule: Schedule, *, eta: PerExample = 1.0, noise_scale: PerExample = 1.0, r: Scalar = 0.5) -> Sampler:
    """DPM-Solver++ SDE (k-diffusion): `dpmpp_2s` with two ancestral stages, two calls and two draws a step.

    The first stage ends at the time m with lambda_m = lambda_t + r (lambda_s - lambda_t), lambda = log(alpha / sigma).
    With rho = sigma / alpha, and (rho_d, rho_u) the `ancestral` levels of the stage from t to m,

        x_m = alpha_m (rho_d / rho_t x_t / alpha_t + (1 - rho_d / rho_t) x0 + noise_scale rho_u z)

    The stage from t to s has the same form, with x0 + (x0_m - x0) / (2 r) in place of x0. Order 2 for eta = 0, weak
    order 1 otherwise.

    Args:
      schedule: noise schedule.
      eta: noise level, () or (B,) in [0, 1], may be traced. Default 1.
      noise_scale: factor of the noise, >= 0.
      r: fraction of the step in lambda at which the second call is made, in (0, 1]. Default 1/2.

    Raises:
      ValueError: if eta, r or noise_scale is known to be outside its range.
    """
    check_schedule(schedule)
    check("eta", eta, interval("[0, 1]"))
    check("r", r, interval("(0, 1]"))
    check("noise_scale", noise_scale, non_negative)

    def stage(key: Keys, level_t: Level, level_s: Level, x: Tree, *terms: tuple[Any, Any]) -> Any:
        """An ancestral step from t to s for the prediction sum_i w_i x0_i, where the weights sum to 1."""
        rho_d, rho_u = ancestral_levels(level_t, level_s, eta)
        ratio = rho_d * level_t.alpha / level_t.sigma
        x0_terms = [(level_s.alpha * (1 - ratio) * w, x0) for w, x0 in terms]
        noise_term = (level_s.alpha * rho_u * noise_scale, random.noise(key, x))
        return combine((level_s.alpha / level_t.alpha * ratio, x), *x0_terms, noise_term)

    def step(key: Keys, denoise: Denoiser, state: SamplerState, t: Times, s: Times) -> SamplerState:
        check_per_example(state.x, eta=eta, noise_scale=noise_scale, r=r)
        level_t, level_s = schedule(t), schedule(s)
        t_m = in_lambda(schedule, t, level_t, s, level_s, r)
        x0 = denoise(state.x, t)
        x_m = stage(random.fold_in(key, 0), level_t, schedule(t_m), state.x, (1.0, x0))
        x0_m = denoise(x_m, t_m)
        weight = higher_order(schedule, t, 1 / (2 * r))
        return State(stage(random.fold_in(key, 1), level_t, level_s, state.x, (1 - weight, x0), (weight, x0_m)))

    return Sampler(init, step, order=1 + is_zero(eta), calls=2, noisy=not is_zero(eta), schedule=schedule)


SOLVERS = {"midpoint": "bh2", "heun": "exact"}


def dpmpp_2m(schedule: Schedule, *, solver: Solver = "midpoint", lower_order_final: bool = False) -> Sampler:
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2), order 2.

        x_s = sigma_s / sigma_t x_t - alpha_s expm1(-h) (x0 + h / (2 h_prev) (x0 - x0_prev))        midpoint

    h = lambda_s - lambda_t, lambda = log(alpha / sigma). "heun" uses the exact weight of the slope (dpm-solver's
    `taylor`). The first step is the one of `ddim`. One call a step.

    Args:
      schedule: noise schedule.
      solver: "midpoint" or "heun".
      lower_order_final: whether the last move has order 1.

    Raises:
      ValueError: for another solver.

    >>> import diffax
    >>> dpmpp_2m(diffax.Cosine()).order
    2
    """
    rule = choose("solver", solver, SOLVERS)
    return adams(schedule, form="x0", order=2, rule=rule, lower_order_final=lower_order_final)


def dpmpp_3m(schedule: Schedule, *, start: str = "corrected", lower_order_final: bool = False) -> Sampler:
    """DPM-Solver++ multistep of order 3 (Lu et al. 2022b, appendix B.5), the quadratic through x0 integrated exactly.

        x_s = sigma_s / sigma_t x_t + alpha_s (M_0 x0 + M_1 f[t, 1] + (M_2 - d_1 M_1) f[t, 1, 2])

    M_j are the moments of `engines.forms`, f[..] the divided differences of x0 at lambda_t and the two previous nodes,
    d_1 = lambda_1 - lambda_t. One call a step. Released codes have M_2 / 2 in place of M_2, so they converge at
    order 2. A cold start also lowers the order to 2. By default the first two steps are therefore corrected when the
    next x0 is known, which gives order 3 without an extra call.

    Args:
      schedule: noise schedule.
      start: "corrected" or "cold".
      lower_order_final: whether the last moves have order 2 and 1.

    Raises:
      ValueError: for another start.
    """
    starts: dict[str, bool | str] = {"corrected": "start", "cold": False}
    corrected = choose("start", start, starts)
    return adams(schedule, form="x0", order=3, corrected=corrected, lower_order_final=lower_order_final)


def dpmpp_2m_sde(
    schedule: Schedule, *, eta: PerExample = 1.0, noise_scale: PerExample = 1.0, solver: Solver = "midpoint"
) -> Sampler:
    """DPM-Solver++(2M) SDE (Lu et al. 2022b, algorithm 4; k-diffusion).

        x_s = e^(-eta h) sigma_s / sigma_t x_t - alpha_s expm1(-(1 + eta) h) (x0 + h / (2 h_prev) (x0 - x0_prev))
              + noise_scale sigma_s sqrt(1 - e^(-2 eta h)) z

    h = lambda_s - lambda_t, lambda = log(alpha / sigma). The case eta = 0 is `dpmpp_2m`. Order 2 (weak if eta > 0), one
    call a step.

    Args:
      schedule: noise schedule.
      eta: noise level, () or (B,), >= 0, may be traced. Default 1.
      noise_scale: factor of the noise, >= 0 (k-diffusion's s_noise).
      solver: "midpoint" or "heun", as for `dpmpp_2m`.

    Raises:
      ValueError: for another solver, or a negative eta or noise_scale.
    """
    rule = choose("solver", solver, SOLVERS)
    return adams(schedule, form="x0", order=2, rule=rule, eta=eta, noise_scale=noise_scale)


def dpmpp_3m_sde(schedule: Schedule, *, eta: PerExample = 1.0, noise_scale: PerExample = 1.0) -> Sampler:
    """DPM-Solver++(3M) SDE (k-diffusion), weak order 2 if eta > 0, one call a step.

        x_s = e^(-eta h) sigma_s / sigma_t x_t + alpha_s (M_0 x0 + M_1 f[t, 1] + (M_2 - d_1 M_1) f[t, 1, 2])
              + noise_scale sigma_s sqrt(1 - e^(-2 eta h)) z

    The moments M_j are those with a = 1 + eta in `engines.forms`; the other symbols are those of `dpmpp_3m`.
    M_2 has the factor 2 that other codes omit. The case eta = 0 is `dpmpp_3m`.

    Args:
      schedule: noise schedule.
      eta: noise level, () or (B,), >= 0, may be traced. Default 1.
      noise_scale: factor of the noise, >= 0 (k-diffusion's s_noise).

    Raises:
      ValueError: for a negative eta or noise_scale.
    """
    return adams(schedule, form="x0", order=3, corrected="start", eta=eta, noise_scale=noise_scale)
