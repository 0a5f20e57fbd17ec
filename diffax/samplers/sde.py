r"""Solvers of the SDE of `diffax.sde` in t: Euler-Maruyama, and a stochastic Heun scheme of order 2.

    drift(x, t) = f x - (1 +- eta^2) / 2 g^2 score(x, t)        + where t falls (h < 0), - where it rises
                = (f + k) x - k alpha x0,                       k = (1 +- eta^2) / 2 g^2 / sigma^2

With h = s - t and z ~ N(0, I),

    Euler-Maruyama    x_s = x_t + h drift(x_t, t) + eta sqrt(|h|) g_t z
    stochastic Heun   w = eta sqrt(|h| (g_t^2 + g_s^2) / 2) z
                      x' = x_t + h drift(x_t, t) + w
                      x_s = x_t + h / 2 (drift(x_t, t) + drift(x', s)) + w

These are the plain schemes, in t and in x, that analyses are written about. They take small steps to be of use, and
where f and g^2 grow without bound (`Cosine`, `Flow` at t = 1) the grid must start a little later. Samplers that solve
the linear part exactly (`ddpm`, `dpmpp_sde`, `dpmpp_2m_sde`) need far fewer.
"""

from typing import Any

import jax.numpy as jnp

from diffax import random
from diffax.pytrees import check, check_per_example, combine, safe_sqrt
from diffax.samplers.base import Sampler, State
from diffax.sde import coefficients
from diffax.typing import Schedule, check_schedule


def _drift(schedule, denoise, x, t, h, eta):
    """The drift at (x, t) of the SDE that a step of length h solves."""
    (f, g2), (alpha, sigma, _) = coefficients(schedule, t), schedule(t)
    k = (1 - jnp.sign(h) * jnp.square(eta)) / 2 * g2 / jnp.square(sigma)
    return combine((f + k, x), (-k * alpha, denoise(x, t)))


def _init(x, times):
    return State(x)


def euler_maruyama(schedule: Schedule, *, eta: Any = 1.0) -> Sampler:
    """Euler-Maruyama, order 1 in law, one denoiser call a step.

    Over a rising grid with eta = 1 it simulates the forward SDE, whatever the denoiser. eta = 0 is Euler's method for
    the probability-flow ODE, in t and x (not `euler`, which solves it in sigma / alpha or in t for the velocity).

    Args:
      schedule: noise schedule, with any scaling.
      eta: noise level, () or (B,), in [0, 1] between the probability-flow ODE and the reverse SDE; may be traced.

    Raises:
      ValueError: if eta is known to lie outside [0, 1].

    Source: Song et al. 2021, appendix D ("Euler-Maruyama").

    >>> import diffax
    >>> sampler = euler_maruyama(diffax.Linear())
    >>> sampler.order, sampler.calls
    (1, 1)
    """
    check_schedule(schedule)
    check("eta", eta, "in [0, 1]", lambda v: (v >= 0) & (v <= 1))

    def step(key, denoise, state, t, s):
        check_per_example(state.x, eta=eta)
        h = s - t
        drift, g2 = _drift(schedule, denoise, state.x, t, h, eta), coefficients(schedule, t).diffusion2
        std = jnp.asarray(eta) * safe_sqrt(jnp.abs(h) * g2)
        return State(combine((1.0, state.x), (h, drift), (std, random.noise(key, state.x))))

    return Sampler(_init, step, order=1, calls=1)


def stochastic_heun(schedule: Schedule, *, eta: Any = 1.0) -> Sampler:
    """Heun's method with one draw of noise in both stages, order 2 in law, two denoiser calls a step.

    For additive noise, as here, that is enough for weak order 2. eta = 0 is Heun's method for the probability-flow ODE.

    Args:
      schedule: noise schedule, with any scaling.
      eta: as for `euler_maruyama`.

    Raises:
      ValueError: if eta is known to lie outside [0, 1].

    Source: Platen's simplified weak scheme of order 2 for additive noise, Kloeden & Platen 1992, section 14.2.

    >>> import diffax
    >>> sampler = stochastic_heun(diffax.Linear())
    >>> sampler.order, sampler.calls
    (2, 2)
    """
    check_schedule(schedule)
    check("eta", eta, "in [0, 1]", lambda v: (v >= 0) & (v <= 1))

    def step(key, denoise, state, t, s):
        check_per_example(state.x, eta=eta)
        h, x = s - t, state.x
        g2 = (coefficients(schedule, t).diffusion2 + coefficients(schedule, s).diffusion2) / 2
        noise = (jnp.asarray(eta) * safe_sqrt(jnp.abs(h) * g2), random.noise(key, x))
        first = _drift(schedule, denoise, x, t, h, eta)
        ahead = combine((1.0, x), (h, first), noise)
        second = _drift(schedule, denoise, ahead, s, h, eta)
        return State(combine((1.0, x), (h / 2, first), (h / 2, second), noise))

    return Sampler(_init, step, order=2, calls=2)
