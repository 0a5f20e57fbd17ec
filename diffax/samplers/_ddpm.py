"""DDPM: ancestral sampling, a draw from q(x_s | x_t, x0) with x0 = denoise(x_t, t).

h = lambda_t - lambda_s,   lambda = log(alpha^2 / sigma^2)
x_s = exp(h / 2) sigma_s / sigma_t x_t - alpha_s expm1(h) x0 + std z

small   std^2 = -sigma_s^2 expm1(h)     beta-tilde, exact for data at a point
large   std^2 = -sigma_t^2 expm1(h)     beta, exact for data ~ N(0, I) under a vp scaling
learned std^2 = -(sigma_t^v sigma_s^(1 - v))^2 expm1(h), the network predicts v for each dimension
"""

import jax
import jax.numpy as jnp

from diffax import random
from diffax._checks import check_schedule, choose
from diffax._pytrees import combine, expand, safe_sqrt
from diffax.denoisers import moments_of
from diffax.samplers._base import Sampler, State, init
from diffax.samplers.engines.forms import log_step
from diffax.typing import Denoiser, Keys, SamplerState, Schedule, Times

VARIANCES = {
    "small": lambda level_t, level_s: level_s.sigma,
    "large": lambda level_t, level_s: level_t.sigma,
    "learned": lambda level_t, level_s: level_s.sigma,  # the step multiplies z by (sigma_t / sigma_s)^v
}


def ddpm(schedule: Schedule, *, variance: str = "small") -> Sampler:
    """Ancestral sampling (Ho et al. 2020, eq. 6, 7 and 11; Kingma et al. 2021, eq. 25 of appendix A).

        x_s ~ q(x_s | x_t, x0),   x0 = denoise(x_t, t)

    The head of this module has its mean and variance. Weak order 1, one denoiser call a step. `variance="small"` equals
    `ddim(schedule, eta=1)`. A step towards noise (a reversed grid) draws from the forward transition q(x_s | x_t).

    Args:
      schedule: noise schedule, with any scaling.
      variance: "small" (beta-tilde) or "large" (beta), the two fixed choices of Ho et al., section 3.2; or "learned",
        between the two, for a denoiser that returns `Moments` (Nichol & Dhariwal 2021, eq. 15). beta and beta-tilde are
        those of the step from t to s, so a step may skip levels of a table.

    Raises:
      ValueError: for another variance; while stepping, for a learned one if the denoiser does not return `Moments`.

    >>> import jax, diffax
    >>> sampler = ddpm(diffax.Cosine())
    >>> state = sampler.init(jnp.ones((2, 3)), jnp.array([1.0, 0.5]))
    >>> sampler.step(jax.random.key(0), lambda x, t: 0 * x, state, 1.0, 0.5).x.shape
    (2, 3)
    """
    check_schedule(schedule)
    scale = choose("variance", variance, VARIANCES)

    def step(key: Keys, denoise: Denoiser, state: SamplerState, t: Times, s: Times) -> SamplerState:
        level_t, level_s = schedule(t), schedule(s)
        h = -2 * log_step(level_t, level_s)
        back = h <= 0  # towards data
        down, up = jnp.minimum(h, 0.0), jnp.maximum(h, 0.0)
        c_posterior = jnp.exp(down / 2) * level_s.sigma / level_t.sigma
        c_x = jnp.where(back, c_posterior, level_s.alpha / level_t.alpha)
        c_x0 = -level_s.alpha * jnp.expm1(down)
        std = jnp.where(
            back,
            scale(level_t, level_s) * safe_sqrt(-jnp.expm1(down)),
            level_s.sigma * safe_sqrt(-jnp.expm1(-up)),
        )
        output, z = denoise(state.x, t), random.noise(key, state.x)
        if variance != "learned":
            return State(combine((c_x, state.x), (c_x0, output), (std, z)))
        x0, v = moments_of(output)
        log_ratio = jnp.where(back, jnp.log(level_t.sigma) - jnp.log(level_s.sigma), 0.0)
        z = jax.tree.map(lambda n, v: (n * jnp.exp(v * expand(log_ratio, v))).astype(n.dtype), z, v)
        return State(combine((c_x, state.x), (c_x0, x0), (std, z)))

    return Sampler(init, step, order=1, calls=1, noisy=True, schedule=schedule)
