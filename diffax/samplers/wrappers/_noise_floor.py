"""Samplers of data with a noise floor.

Data x0 = y + std n, n ~ N(0, I), are diffused centres y:

    x_t = alpha y + sigma' n,   sigma'^2 = sigma^2 + alpha^2 std^2
    E[y | x_t] = x0 + alpha std^2 score(x_t)

`noise_floor` makes a sampler solve for y instead of x0, with the schedule (alpha, sigma'). The log-SNR of this schedule
is finite at t = 0, so the sampler ends there, without truncation and without a final denoising step. Every sampler of
order 1 or more is then exact for N(m, std^2 I) with any m. `diffax.times.arctan` is a grid for it.
"""

from collections.abc import Callable

from diffax._checks import check, non_negative
from diffax.denoisers import centres
from diffax.samplers._base import Sampler, check_sampler
from diffax.schedules._noise_floor import NoiseFloor
from diffax.typing import Denoiser, Keys, PerExample, SamplerState, Schedule, Times


def noise_floor(make: Callable[[Schedule], Sampler], schedule: Schedule, std: PerExample) -> Sampler:
    """A sampler for the centres y of data x0 = y + std n: see the head of this module.

    The ODE, the order, the calls and the meaning of x do not change. The linear part of the sampler's step, which is
    exact, now includes the noise of the data. Use `integrate` down to t = 0, where x is the sample. std = 0 is the
    sampler without the wrapper.

    Wrappers that compare the output of the denoiser with an x0 (`cfg_plus_plus`, `guidance_momentum`, `inverse.dps`,
    `inverse.replacement`, `inverse.repaint`) must be outside: `cfg_plus_plus(noise_floor(..), schedule, ..)`. Inside
    `make` the output of the denoiser is a centre, so they raise an error.

    Args:
      make: schedule -> sampler, such as `functools.partial(unipc, order=2, form="x0")`.
      schedule: noise schedule; `make` is called with `NoiseFloor(schedule, std)`.
      std: standard deviation of the finest structure of the data, for a mixture the smallest one; >= 0, may be traced.
        Near t = 0 errors of the denoiser are multiplied by (alpha std / sigma)^2, so the last call should have sigma
        of about alpha std or more. If std is above the true value, the ODE is still correct, but no distribution of
        centres exists, so a stochastic sampler is not.

    Raises:
      ValueError: if std is known to be negative, or `make` does not make a `Sampler`; while stepping, if the sampler
        compares centres with an x0.

    >>> import diffax, jax
    >>> import jax.numpy as jnp
    >>> schedule, mean = diffax.Linear(), jnp.array([0.7, -0.4])
    >>> data = diffax.analytic.Gaussian.from_covariance(mean, 0.3**2)
    >>> sampler = noise_floor(diffax.ddim, schedule, 0.3)  # exact in one step for any mean
    >>> x = jnp.array([[0.5, -1.0]])
    >>> state = diffax.integrate(jax.random.key(0), sampler, data.denoiser(schedule), x, jnp.array([0.9, 0.0]))
    >>> bool(jnp.allclose(state.x, data.flow(x, schedule(0.9), schedule(0.0)), rtol=1e-5))
    True
    """
    check("std", std, non_negative)
    inner = make(NoiseFloor(schedule, std))
    check_sampler(inner)

    def step(key: Keys, denoise: Denoiser, state: SamplerState, t: Times, s: Times) -> SamplerState:
        denoise_centres = centres(denoise, schedule, std)
        denoise_centres.of_centres = True  # type: ignore[attr-defined]
        return inner.step(key, denoise_centres, state, t, s)

    return inner._replace(step=step)
