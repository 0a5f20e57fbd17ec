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

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffax import random
from diffax._checks import check, check_per_example, check_schedule, interval
from diffax._pytrees import combine, expand, is_zero, safe_sqrt
from diffax.samplers._base import Sampler, State, init
from diffax.samplers._ddim import ddim
from diffax.samplers.engines.forms import begins_in_noise
from diffax.sde import coefficients
from diffax.typing import Denoiser, Keys, PerExample, SamplerState, Schedule, Times, Tree


def _drift(schedule: Schedule, x0: Tree, x: Tree, t: Times, h: PerExample, eta: PerExample) -> Any:
    """The drift at (x, t), where the denoiser gives x0, of the SDE that a step of length h solves."""
    (f, g2), (alpha, sigma, _) = coefficients(schedule, t), schedule(t)
    k = (1 - jnp.sign(h) * jnp.square(eta)) / 2 * g2 / jnp.square(sigma)
    return combine((f + k, x), (-k * alpha, x0))


def _step(schedule: Schedule, eta: PerExample, plain: Callable[..., Any]) -> Callable[..., Any]:
    """The step `plain`, which takes x0 at (x, t) too; from noise alone that of `ddim`, since f and g^2 jump there."""
    jump = ddim(schedule, eta=eta)

    def step(key: Keys, denoise: Denoiser, state: SamplerState, t: Times, s: Times) -> SamplerState:
        x0, first = denoise(state.x, t), begins_in_noise(schedule, t)
        new = plain(key, denoise, x0, state.x, t, s)
        if first is not False:
            jumped = jump.step(key, lambda x, t: x0, state, t, s).x
            new = jax.tree.map(lambda u, v: jnp.where(expand(first, u), u, v), jumped, new)
        return State(new)

    return step


def euler_maruyama(schedule: Schedule, *, eta: PerExample = 1.0) -> Sampler:
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
    check("eta", eta, interval("[0, 1]"))

    def plain(key: Keys, denoise: Denoiser, x0: Tree, x: Tree, t: Times, s: Times) -> Any:
        check_per_example(x, eta=eta)
        h = s - t
        drift, g2 = _drift(schedule, x0, x, t, h, eta), coefficients(schedule, t).diffusion2
        std = jnp.asarray(eta) * safe_sqrt(jnp.abs(h) * g2)
        return combine((1.0, x), (h, drift), (std, random.noise(key, x)))

    return Sampler(init, _step(schedule, eta, plain), order=1, calls=1, noisy=not is_zero(eta), schedule=schedule)


def stochastic_heun(schedule: Schedule, *, eta: PerExample = 1.0) -> Sampler:
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
    check("eta", eta, interval("[0, 1]"))

    def plain(key: Keys, denoise: Denoiser, x0: Tree, x: Tree, t: Times, s: Times) -> Any:
        check_per_example(x, eta=eta)
        h = s - t
        g2 = (coefficients(schedule, t).diffusion2 + coefficients(schedule, s).diffusion2) / 2
        noise = (jnp.asarray(eta) * safe_sqrt(jnp.abs(h) * g2), random.noise(key, x))
        first = _drift(schedule, x0, x, t, h, eta)
        ahead = combine((1.0, x), (h, first), noise)
        second = _drift(schedule, denoise(ahead, s), ahead, s, h, eta)
        return combine((1.0, x), (h / 2, first), (h / 2, second), noise)

    return Sampler(init, _step(schedule, eta, plain), order=2, calls=2, noisy=not is_zero(eta), schedule=schedule)
