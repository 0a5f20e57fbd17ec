"""Heun's method."""

import jax.numpy as jnp

from diffax._checks import check, choose, interval
from diffax.samplers._base import Sampler
from diffax.samplers.engines.stages import SPACES, two_stage
from diffax.samplers.wrappers._churn import with_churn
from diffax.typing import PerExample, Scalar, Schedule, Space


def heun(
    schedule: Schedule,
    *,
    space: Space = "rho",
    alpha: Scalar = 1.0,
    s_churn: PerExample = 0.0,
    s_tmin: PerExample = 0.0,
    s_tmax: PerExample = jnp.inf,
    s_noise: PerExample = 1.0,
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
    check("alpha", alpha, interval("(0, 1]"))
    return with_churn(base, schedule, s_churn, s_tmin, s_tmax, s_noise)
