"""The ancestral form of a sampler: a step to a level below the next one, then noise up to it.

With rho = sigma / alpha, u = x / alpha and z standard normal:

    rho_u = eta rho_s sqrt(1 - rho_s^2 / rho_t^2),   rho_d^2 = rho_s^2 - rho_u^2
    u_d   = the sampler's step from rho_t to rho_d
    u_s   = u_d + noise_scale rho_u z
"""

from typing import Any

import jax.numpy as jnp

from diffax import random
from diffax._checks import check, check_per_example, check_schedule, interval, non_negative
from diffax._pytrees import combine, is_zero, safe_sqrt
from diffax.samplers._base import Sampler, check_single_step
from diffax.samplers.engines.forms import log_step
from diffax.typing import Denoiser, Keys, Level, PerExample, SamplerState, Schedule, Times


def ancestral(sampler: Sampler, schedule: Schedule, *, eta: PerExample = 1.0, noise_scale: PerExample = 1.0) -> Sampler:
    """The ancestral form of any single-step sampler (k-diffusion): a step to a level below s, then noise up to s.

    eta = 0 is the sampler itself; around `ddim` it is `ddim(eta=eta)`. The weak order is the order of the wrapped
    sampler: if its step is exact, the noise takes the exact marginal at rho_d to the exact marginal at rho_s.

    Args:
      sampler: a single-step sampler.
      schedule: its schedule.
      eta: noise level, () or (B,) in [0, 1], may be traced. Default 1.
      noise_scale: factor of the noise, >= 0 (k-diffusion's s_noise).

    Raises:
      ValueError: if eta is known to be outside [0, 1] or noise_scale to be negative, or for a multistep sampler.
    """
    check_schedule(schedule)
    check("eta", eta, interval("[0, 1]"))
    check("noise_scale", noise_scale, non_negative)
    check_single_step(sampler)
    if is_zero(eta):
        return sampler

    def step(key: Keys, denoise: Denoiser, state: SamplerState, t: Times, s: Times) -> SamplerState:
        check_per_example(state.x, eta=eta, noise_scale=noise_scale)
        level_t, level_s = schedule(t), schedule(s)
        rho_d, rho_u = ancestral_levels(level_t, level_s, eta)
        lower = schedule.inverse(-2 * jnp.log(rho_d))
        lower = jnp.where(rho_u > 0, lower, s)
        level_d = schedule(lower)
        state = sampler.step(random.fold_in(key, 0), denoise, state, t, lower)
        # `inverse` rounds, so compute the noise from the level actually reached and not from rho_u.
        std = level_s.sigma * safe_sqrt(-jnp.expm1(2 * log_step(level_d, level_s)))
        std = jnp.where(rho_u > 0, std, 0.0)
        z = random.noise(random.fold_in(key, 1), state.x)
        return state._replace(x=combine((level_s.alpha / level_d.alpha, state.x), (noise_scale * std, z)))

    return sampler._replace(step=step, noisy=True)


def ancestral_levels(level_t: Level, level_s: Level, eta: PerExample) -> tuple[Any, Any]:
    """The level (rho_d) to step to and the noise (rho_u) to add there; a step towards noise adds none, rho_u = 0."""
    h = jnp.minimum(-2 * log_step(level_t, level_s), 0.0)
    rho, eta2 = level_s.sigma / level_s.alpha, jnp.where(h < 0, jnp.square(eta), 0.0)
    # Not 1 - noise share: at eta = 1 that cancels to 0 in a long step, where the exact value is exp(h).
    return rho * safe_sqrt(1 - eta2 + eta2 * jnp.exp(h)), rho * safe_sqrt(-eta2 * jnp.expm1(h))
