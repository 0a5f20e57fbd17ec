"""DPM2: the midpoint method in sigma / alpha."""

import jax.numpy as jnp

from diffax.samplers._base import Sampler
from diffax.samplers.engines.stages import two_stage
from diffax.samplers.wrappers._ancestral import ancestral
from diffax.samplers.wrappers._churn import with_churn
from diffax.typing import PerExample, Schedule


def dpm2(
    schedule: Schedule,
    *,
    s_churn: PerExample = 0.0,
    s_tmin: PerExample = 0.0,
    s_tmax: PerExample = jnp.inf,
    s_noise: PerExample = 1.0,
) -> Sampler:
    """The midpoint method in rho with the midpoint in log rho (Karras et al. 2022, appendix; k-diffusion), order 2.

        x_s / alpha_s = x_t / alpha_t + (rho_s - rho_t) eps(x_r, r),   rho_r = sqrt(rho_t rho_s)

    Two calls a step.

    Args:
      schedule: noise schedule.
      s_churn: with s_tmin, s_tmax and s_noise, see `diffax.samplers.churn`; 0 is deterministic.
      s_tmin: lowest rho that is churned.
      s_tmax: highest rho that is churned.
      s_noise: factor of the noise.
    """
    return with_churn(two_stage(schedule, "rho", 0.5, rule="midpoint"), schedule, s_churn, s_tmin, s_tmax, s_noise)


def dpm2_ancestral(schedule: Schedule, *, eta: PerExample = 1.0, noise_scale: PerExample = 1.0) -> Sampler:
    """The ancestral form of `dpm2`: a step to a level below s, then noise up to s; arguments as for `ancestral`."""
    return ancestral(dpm2(schedule), schedule, eta=eta, noise_scale=noise_scale)
