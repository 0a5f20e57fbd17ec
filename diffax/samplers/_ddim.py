r"""DDIM: the first-order sampler between the probability-flow ODE and ancestral sampling.

    h = lambda_t - lambda_s,   lambda = log(alpha^2 / sigma^2)
    tau = eta sigma_s sqrt(1 - exp(h))
    x_s = alpha_s x0 + sqrt(sigma_s^2 - tau^2) eps + tau z,   x0 = denoise(x_t, t), eps = (x_t - alpha_t x0) / sigma_t

With eps eliminated, no term is divided by a small sigma_t, and a step of length zero changes nothing:

    q^2 = 1 - eta^2 + eta^2 exp(h)
    x_s = q sigma_s / sigma_t x_t + alpha_s (1 - exp(h / 2) q) x0 + tau z
    1 - exp(h / 2) q = -expm1(h) (1 + eta^2 exp(h)) / (1 + exp(h / 2) q)

For eta = 0, q = 1 and x_s = sigma_s / sigma_t x_t + (alpha_s - alpha_t sigma_s / sigma_t) x0.
"""

import jax.numpy as jnp

from diffax import random
from diffax._checks import check, check_per_example, check_schedule, interval
from diffax._pytrees import combine, is_zero, safe_sqrt
from diffax.samplers._base import Sampler, State, init
from diffax.samplers.engines.forms import cross, log_step
from diffax.typing import Denoiser, Keys, PerExample, SamplerState, Schedule, Times


def ddim(schedule: Schedule, *, eta: PerExample = 0.0) -> Sampler:
    """DDIM (Song, Meng & Ermon 2021, eq. 12 and 16), for any schedule and scaling.

        x_s = alpha_s x0 + sqrt(sigma_s^2 - tau^2) eps + tau z,   tau = eta sigma_s sqrt(1 - exp(lambda_t - lambda_s))

    with lambda the log-SNR. The head of this module has the form that is computed. Order 1, one denoiser call a step.
    eta = 0 is the exponential Euler step for the probability-flow ODE (DPM-Solver-1, and Euler in sigma / alpha);
    eta = 1 is `ddpm` with its small variance. A step towards noise (inversion) adds no noise for any eta.

    Args:
      schedule: noise schedule.
      eta: noise level, () or (B,) in [0, 1], may be traced. Default 0.

    Raises:
      ValueError: if eta is known to be outside [0, 1].

    >>> import jax, diffax
    >>> schedule = diffax.Cosine()
    >>> sampler = ddim(schedule)
    >>> state = sampler.step(jax.random.key(0), lambda x, t: 0 * x, sampler.init(jnp.ones((1, 1)), None), 1.0, 0.5)
    >>> round(float(state.x[0, 0]), 4)  # sigma(0.5) / sigma(1)
    0.7071
    """
    check_schedule(schedule)
    check("eta", eta, interval("[0, 1]"))

    def step(key: Keys, denoise: Denoiser, state: SamplerState, t: Times, s: Times) -> SamplerState:
        check_per_example(state.x, eta=eta)
        level_t, level_s = schedule(t), schedule(s)
        if is_zero(eta):
            c_x, c_x0 = level_s.sigma / level_t.sigma, -cross(level_t, level_s) / level_t.sigma
            return State(combine((c_x, state.x), (c_x0, denoise(state.x, t))))
        h = -2 * log_step(level_t, level_s)
        eta2 = jnp.where(h < 0, jnp.square(eta), 0.0)
        q = safe_sqrt(1 - eta2 + eta2 * jnp.exp(h))
        c_x = q * level_s.sigma / level_t.sigma
        c_x0 = -level_s.alpha * jnp.expm1(h) * (1 + eta2 * jnp.exp(h)) / (1 + jnp.exp(h / 2) * q)
        tau = jnp.asarray(eta) * level_s.sigma * safe_sqrt(-jnp.expm1(h))
        return State(combine((c_x, state.x), (c_x0, denoise(state.x, t)), (tau, random.noise(key, state.x))))

    return Sampler(init, step, order=1, calls=1, noisy=not is_zero(eta), schedule=schedule)
