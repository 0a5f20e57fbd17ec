"""The ancestral form of a sampler: a step below the next level, and noise back to it.

With rho = sigma / alpha, u = x / alpha and z standard normal:

    rho_u = eta rho_s sqrt(1 - rho_s^2 / rho_t^2),   rho_d^2 = rho_s^2 - rho_u^2
    the step from rho_t to rho_d,   then u_s = u_d + rho_u z
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
    """Steps below s and adds noise back to s, the ancestral form of any single-step sampler (k-diffusion).

    eta = 0 is the bare sampler; around `ddim` it is `ddim(eta=eta)`. The order in law is that of the wrapped sampler:
    where its step is exact, noise takes the exact marginal at rho_d to that at rho_s.

    Args:
      sampler: what to wrap, without memory.
      schedule: its schedule.
      eta: in [0, 1], () or (B,), may be traced.
      noise_scale: factor of the noise (k-diffusion's s_noise).

    Raises:
      ValueError: if eta is known to lie outside [0, 1] or noise_scale to be negative, or the sampler has a memory.
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
        down, up = ancestral_levels(level_t, level_s, eta)
        lower = schedule.inverse(-2 * jnp.log(down))
        lower = jnp.where(up > 0, lower, s)
        below = schedule(lower)
        state = sampler.step(random.fold_in(key, 0), denoise, state, t, lower)
        # What was really stepped to, whatever the inverse rounded, is completed to rho_s.
        added = level_s.sigma * safe_sqrt(-jnp.expm1(2 * log_step(below, level_s)))
        added = jnp.where(up > 0, added, 0.0)
        drawn = random.noise(random.fold_in(key, 1), state.x)
        return state._replace(x=combine((level_s.alpha / below.alpha, state.x), (noise_scale * added, drawn)))

    return sampler._replace(step=step, noisy=True)


def ancestral_levels(level_t: Level, level_s: Level, eta: PerExample) -> tuple[Any, Any]:
    """(rho_d, rho_u): how far down to step and how much noise to add back. Towards noise no noise is added."""
    h = jnp.minimum(-2 * log_step(level_t, level_s), 0.0)
    rho, eta2 = level_s.sigma / level_s.alpha, jnp.where(h < 0, jnp.square(eta), 0.0)
    # Not 1 less the share of noise: at eta = 1 a long step leaves exp(h), however small.
    return rho * safe_sqrt(1 - eta2 + eta2 * jnp.exp(h)), rho * safe_sqrt(-eta2 * jnp.expm1(h))
