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

        u_r = u_t + r (rho_s - rho_t) eps_t                                                         r = `alpha`
        u_s = u_t + (rho_s - rho_t) ((1 - 1 / (2 r)) eps_t + 1 / (2 r) eps_r)

    with u = x / alpha and rho = sigma / alpha of the schedule, not the argument `alpha`. At the default r = 1 the
    second call is made at s, after an Euler step, and both slopes have the weight 1/2.

    Args:
      schedule: noise schedule.
      space: "rho", or "time" for the same method in t on dx / dt = alpha' x0 + sigma' eps, as in flow matching.
      alpha: the fraction of the step at which the second call is made, in (0, 1]: 1 is Heun's method, 1/2 the midpoint
        method, 2/3 Ralston's (eq. 35 of Karras et al.'s appendix).
      s_churn: S_churn, see `diffax.samplers.churn`; 0 is deterministic.
      s_tmin: S_min, lowest rho that is churned.
      s_tmax: S_max, highest rho that is churned.
      s_noise: S_noise, factor of the noise.

    Raises:
      ValueError: for another space, or an alpha that is known to be outside (0, 1].

    >>> import diffax
    >>> heun(diffax.EDM()).calls
    2
    """
    base = two_stage(schedule, space, alpha, place=choose("space", space, SPACES))
    check("alpha", alpha, interval("(0, 1]"))
    return with_churn(base, schedule, s_churn, s_tmin, s_tmax, s_noise)
