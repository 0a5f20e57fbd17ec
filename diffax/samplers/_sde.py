r"""Solvers of the SDE of `diffax.sde` in t: Euler-Maruyama, and a stochastic Heun scheme of order 2.

    drift(x, t) = f x - (1 +- eta^2) / 2 g^2 score(x, t)        + if t decreases (h < 0), - if it increases
                = (f + k) x - k alpha x0,                       k = (1 +- eta^2) / 2 g^2 / sigma^2

With h = s - t and z ~ N(0, I),

    Euler-Maruyama    x_s = x_t + h drift(x_t, t) + eta sqrt(|h|) g_t z
    stochastic Heun   w = eta sqrt(|h| (g_t^2 + g_s^2) / 2) z
                      x' = x_t + h drift(x_t, t) + w
                      x_s = x_t + h / 2 (drift(x_t, t) + drift(x', s)) + w

These are the plain schemes in t and x that theoretical analyses use. They need small steps. Where f and g^2 are not
bounded (`Cosine`, `Flow` at t = 1) the grid must start at a slightly smaller t. Samplers that solve the linear part
exactly (`ddpm`, `dpmpp_sde`, `dpmpp_2m_sde`) need far fewer steps.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from diffax import random
from diffax._checks import check, check_per_example, check_schedule, interval
from diffax._pytrees import combine, is_zero, safe_sqrt, select
from diffax.samplers._base import Sampler, State, init
from diffax.samplers._ddim import ddim
from diffax.samplers.engines.forms import begins_in_noise
from diffax.sde import coefficients
from diffax.typing import Denoiser, Keys, PerExample, SamplerState, Schedule, Times, Tree


def _drift(schedule: Schedule, x0: Tree, x: Tree, t: Times, h: PerExample, eta: PerExample) -> Any:
    """The drift at (x, t) of the SDE that a step of length h solves; x0 = denoise(x, t)."""
    (f, g2), (alpha, sigma, _) = coefficients(schedule, t), schedule(t)
    k = (1 - jnp.sign(h) * jnp.square(eta)) / 2 * g2 / jnp.square(sigma)
    return combine((f + k, x), (-k * alpha, x0))


def _step(schedule: Schedule, eta: PerExample, plain: Callable[..., Any]) -> Callable[..., Any]:
    """The step of a sampler: (key, denoise, x0, x, t, s) -> x of `plain`, or `ddim` where `begins_in_noise`.

    f and g^2 are discontinuous at pure noise, so a scheme in t cannot start there; `ddim` does not use them.
    """
    ddim_step = ddim(schedule, eta=eta).step

    def step(key: Keys, denoise: Denoiser, state: SamplerState, t: Times, s: Times) -> SamplerState:
        x0, in_noise = denoise(state.x, t), begins_in_noise(schedule, t)
        x = plain(key, denoise, x0, state.x, t, s)
        if in_noise is not False:
            x_ddim = ddim_step(key, lambda x, t: x0, state, t, s).x
            x = select(in_noise, x_ddim, x)
        return State(x)

    return step


def euler_maruyama(schedule: Schedule, *, eta: PerExample = 1.0) -> Sampler:
    """Euler-Maruyama, weak order 1, one denoiser call a step.

        x_s = x_t + h drift(x_t, t) + eta sqrt(|h|) g_t z,   h = s - t

    Over an increasing grid with eta = 1 it simulates the forward SDE, for any denoiser. eta = 0 is Euler's method for
    the probability-flow ODE in t and x; `euler` solves the same ODE in sigma / alpha, or in t for the velocity.

    Args:
      schedule: noise schedule, with any scaling.
      eta: noise level, () or (B,), in [0, 1] between the probability-flow ODE and the reverse SDE; may be traced.

    Raises:
      ValueError: if eta is known to be outside [0, 1].

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
        c_noise = jnp.asarray(eta) * safe_sqrt(jnp.abs(h) * g2)
        return combine((1.0, x), (h, drift), (c_noise, random.noise(key, x)))

    return Sampler(init, _step(schedule, eta, plain), order=1, calls=1, noisy=not is_zero(eta), schedule=schedule)


def stochastic_heun(schedule: Schedule, *, eta: PerExample = 1.0) -> Sampler:
    """Heun's method with the same draw of noise in both stages, weak order 2, two denoiser calls a step.

        w = eta sqrt(|h| (g_t^2 + g_s^2) / 2) z,   h = s - t
        x' = x_t + h drift(x_t, t) + w
        x_s = x_t + h / 2 (drift(x_t, t) + drift(x', s)) + w

    The noise is additive, so one draw suffices for weak order 2. eta = 0 is Heun's method for the probability-flow ODE.

    Args:
      schedule: noise schedule, with any scaling.
      eta: as for `euler_maruyama`.

    Raises:
      ValueError: if eta is known to be outside [0, 1].

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
        w = (jnp.asarray(eta) * safe_sqrt(jnp.abs(h) * g2), random.noise(key, x))
        drift_t = _drift(schedule, x0, x, t, h, eta)
        x_euler = combine((1.0, x), (h, drift_t), w)
        drift_s = _drift(schedule, denoise(x_euler, s), x_euler, s, h, eta)
        return combine((1.0, x), (h / 2, drift_t), (h / 2, drift_s), w)

    return Sampler(init, _step(schedule, eta, plain), order=2, calls=2, noisy=not is_zero(eta), schedule=schedule)
