"""Samplers of data with a noise floor.

Data x0 = y + floor n, n ~ N(0, I), are diffused centres y: x_t = alpha y + sigma' n with sigma'^2 = sigma^2 + alpha^2
floor^2, and E[y | x_t] = x0 + alpha floor^2 score(x_t). `noise_floor` has any sampler solve for y instead, under the
schedule (alpha, sigma') whose log-SNR is finite at t = 0: it ends there, with neither a truncation nor a denoising
step, and is exact from order 1 on for N(m, floor^2 I) whatever m is. `diffax.times.arctan` is a grid for it.
"""

from collections.abc import Callable

from diffax._checks import check, non_negative
from diffax.denoisers import centres
from diffax.samplers._base import Sampler, check_sampler
from diffax.schedules._noise_floor import NoiseFloor
from diffax.typing import Denoiser, Keys, PerExample, SamplerState, Schedule, Times


def noise_floor(make: Callable[[Schedule], Sampler], schedule: Schedule, std: PerExample) -> Sampler:
    """Any sampler, made to diffuse the centres y of data x0 = y + std n: see the head of this module.

    The ODE that it solves is the same; so are order and calls, and x means what it did. What changes is what the
    sampler takes to be simple: under its linear part the noise of the data is noise. Made for `integrate` down to
    t = 0, where x is the sample. std = 0 is the sampler as it was.

    Args:
      make: schedule -> sampler, such as `functools.partial(unipc, order=2, form="x0")`.
      schedule: noise schedule; `make` is called with `NoiseFloor(schedule, std)`.
      std: standard deviation of the finest structure of the data, the smallest of a mixture's; >= 0, may be traced.
        Near t = 0 errors of the denoiser count (alpha std / sigma)^2 times, so that the last call wants sigma >= alpha
        std or so. Above the true value a stochastic sampler has no law to be right for; the ODE remains what it is.

    Wrappers that compare the denoiser's answer with an x0 (`cfg_plus_plus`, `guidance_momentum`, `inverse.dps`,
    `inverse.replacement`, `inverse.repaint`) go around it: `cfg_plus_plus(noise_floor(..), schedule, ..)`. Inside
    `make` they are refused, since there the answer is a centre.

    Raises:
      ValueError: if std is known to be negative, or `make` does not make a `Sampler`; while stepping, if the sampler
        compares centres with an x0.

    >>> import diffax, jax
    >>> import jax.numpy as jnp
    >>> schedule, point = diffax.Linear(), jnp.array([0.7, -0.4])
    >>> law = diffax.analytic.Gaussian.from_covariance(point, 0.3**2)
    >>> sampler = noise_floor(diffax.ddim, schedule, 0.3)  # exact in one step, whatever the mean
    >>> x = jnp.array([[0.5, -1.0]])
    >>> state = diffax.integrate(jax.random.key(0), sampler, law.denoiser(schedule), x, jnp.array([0.9, 0.0]))
    >>> bool(jnp.allclose(state.x, law.flow(x, schedule(0.9), schedule(0.0)), rtol=1e-5))
    True
    """
    check("std", std, non_negative)
    inner = make(NoiseFloor(schedule, std))
    check_sampler(inner)

    def step(key: Keys, denoise: Denoiser, state: SamplerState, t: Times, s: Times) -> SamplerState:
        of_y = centres(denoise, schedule, std)
        of_y.of_centres = True  # type: ignore[attr-defined]
        return inner.step(key, of_y, state, t, s)

    return inner._replace(step=step)
