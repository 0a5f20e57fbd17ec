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

    x_s = sigma_s / sigma_t x_t - alpha_s expm1(-h) x0(x_r, r),   lambda_r = (lambda_t + lambda_s) / 2
    """
    return two_stage(schedule, "x0", 0.5)


def dpmpp_2s_ancestral(schedule: Schedule, *, eta: PerExample = 1.0, noise_scale: PerExample = 1.0) -> Sampler:
    """`dpmpp_2s` to a lower level, then noise back to s: see `ancestral`."""
    return ancestral(dpmpp_2s(schedule), schedule, eta=eta, noise_scale=noise_scale)


def dpmpp_sde(schedule: Schedule, *, eta: PerExample = 1.0, noise_scale: PerExample = 1.0, r: Scalar = 0.5) -> Sampler:
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
    check("eta", eta, interval("[0, 1]"))
    check("r", r, interval("(0, 1]"))
    check("noise_scale", noise_scale, non_negative)

    def stage(key: Keys, level_t: Level, level_s: Level, x: Tree, *terms: tuple[Any, Any]) -> Any:
        """An ancestral step from t to s with data sum_i w_i x0_i, the w_i summing to 1."""
        down, up = ancestral_levels(level_t, level_s, eta)
        ratio = down * level_t.alpha / level_t.sigma
        toward = [(level_s.alpha * (1 - ratio) * w, x0) for w, x0 in terms]
        noisy = (level_s.alpha * up * noise_scale, random.noise(key, x))
        return combine((level_s.alpha / level_t.alpha * ratio, x), *toward, noisy)

    def step(key: Keys, denoise: Denoiser, state: SamplerState, t: Times, s: Times) -> SamplerState:
        check_per_example(state.x, eta=eta, noise_scale=noise_scale, r=r)
        level_t, level_s = schedule(t), schedule(s)
        t_r = in_lambda(schedule, t, level_t, s, level_s, r)
        x0 = denoise(state.x, t)
        x_r = stage(random.fold_in(key, 0), level_t, schedule(t_r), state.x, (1.0, x0))
        x0_r = denoise(x_r, t_r)
        weight = higher_order(schedule, t, 1 / (2 * r))
        return State(stage(random.fold_in(key, 1), level_t, level_s, state.x, (1 - weight, x0), (weight, x0_r)))

    return Sampler(init, step, order=1 + is_zero(eta), calls=2, noisy=not is_zero(eta), schedule=schedule)


SOLVERS = {"midpoint": "bh2", "heun": "exact"}


def dpmpp_2m(schedule: Schedule, *, solver: Solver = "midpoint", lower_order_final: bool = False) -> Sampler:
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2), order 2.

        x_s = sigma_s / sigma_t x_t - alpha_s expm1(-h) (x0 + h / (2 h_prev) (x0 - x0_prev))        midpoint

    h = lambda_s - lambda_t. "heun" takes the weight of the slope exactly (dpm-solver's `taylor`). The first step is
    that of `ddim`.

    Args:
      schedule: noise schedule.
      solver: "midpoint" or "heun".
      lower_order_final: whether the last move is of order 1.

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

    Released codes lack a factor 2 in the last term and converge at order 2. A cold start would do the same; by default
    the first two steps are corrected once the next x0 is known, which keeps order 3 and costs no call.

    Args:
      schedule: noise schedule.
      start: "corrected" or "cold".
      lower_order_final: whether the last moves are of order 2 and 1.

    Raises:
      ValueError: for another start.
    """
    starts: dict[str, bool | str] = {"corrected": "start", "cold": False}
    mended = choose("start", start, starts)
    return adams(schedule, form="x0", order=3, corrected=mended, lower_order_final=lower_order_final)


def dpmpp_2m_sde(
    schedule: Schedule, *, eta: PerExample = 1.0, noise_scale: PerExample = 1.0, solver: Solver = "midpoint"
) -> Sampler:
    """DPM-Solver++(2M) SDE (Lu et al. 2022b, algorithm 4; k-diffusion), eta = 0 being `dpmpp_2m`.

        x_s = e^(-eta h) sigma_s / sigma_t x_t - alpha_s expm1(-(1 + eta) h) (x0 + h / (2 h_prev) (x0 - x0_prev))
              + sigma_s sqrt(1 - e^(-2 eta h)) z

    Order 2, in law where eta > 0.

    Args:
      schedule: noise schedule.
      eta: >= 0, may be traced; () or (B,).
      noise_scale: factor of the noise (k-diffusion's s_noise).
      solver: "midpoint" or "heun".

    Raises:
      ValueError: for another solver or a negative eta.
    """
    rule = choose("solver", solver, SOLVERS)
    return adams(schedule, form="x0", order=2, rule=rule, eta=eta, noise_scale=noise_scale)


def dpmpp_3m_sde(schedule: Schedule, *, eta: PerExample = 1.0, noise_scale: PerExample = 1.0) -> Sampler:
    """DPM-Solver++(3M) SDE (k-diffusion, with the phi_3 term in full); eta = 0 is `dpmpp_3m`. As `dpmpp_2m_sde`."""
    return adams(schedule, form="x0", order=3, corrected="start", eta=eta, noise_scale=noise_scale)
