r"""Consistency samplers: jump to data by a consistency function f, add noise, and repeat.

    f(x_t, t) = x at the end of the probability-flow path through x_t; `denoise` is f

    consistency   x_s = alpha_s / alpha_0 f + std z,   std^2 = sigma_s^2 - (alpha_s / alpha_0)^2 sigma_0^2
    lcm           x_s = alpha_s f + sigma_s z
    tcd           x_s' = sigma_s' / sigma_t x_t + (alpha_s' - alpha_t sigma_s' / sigma_t) x0,   s' = (1 - gamma) s
                  x_s  = alpha_s / alpha_s' x_s' + std z,   std^2 = sigma_s^2 - (alpha_s / alpha_s')^2 sigma_s'^2

In `consistency` f ends at the level t_0, sigma_min in the paper; in `lcm` it ends at clean data. `sample` over n
entries costs n calls of f, the last one at times[-1]: a grid of one entry is one-step generation. These functions make
an f with f(x, t_0) = x from a network:

    consistency_function          f = c_skip x + c_out F(x, t)
    latent_consistency_function   f = c_skip x + c_out denoise(x, t)
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from diffax import random
from diffax._checks import check, check_count, check_per_example, check_schedule, interval
from diffax._pytrees import as_float, combine, is_zero
from diffax.samplers._base import Sampler, State, init, unless_still
from diffax.schedules import transition
from diffax.typing import Denoiser, Keys, PerExample, SamplerState, Scalar, Schedule, Times


def _sampler(
    schedule: Schedule,
    coefficients: Callable[[Any, Any], Any],
    order: int = 0,
    noisy: bool = True,
    **per_example: PerExample,
) -> Sampler:
    """The sampler x_s = c_x x + c_f f + c_noise z for coefficients (t, s) -> (c_x, c_f, c_noise); x_s = x if t = s."""
    check_schedule(schedule)

    def step(key: Keys, denoise: Denoiser, state: SamplerState, t: Times, s: Times) -> SamplerState:
        check_per_example(state.x, **per_example)
        c_x, c_f, c_noise = coefficients(t, s)
        x = combine((c_x, state.x), (c_f, denoise(state.x, t)), (c_noise, random.noise(key, state.x)))
        return State(unless_still(t, s, x, state.x))

    return Sampler(init, step, order=order, calls=1, noisy=noisy, schedule=schedule)


def consistency(schedule: Schedule, *, t_min: Times = 0.0) -> Sampler:
    """Multistep consistency sampling: x_s is a draw from q(x_s | x_(t_min)) at x_(t_min) = f(x_t, t).

        x_s = alpha_s / alpha_0 f + std z,   std^2 = sigma_s^2 - (alpha_s / alpha_0)^2 sigma_0^2   (0: at t_min)

    With an exact f each x_s has exactly the distribution of its level, for any number of steps. With a posterior mean
    in place of f the samples do not have the distribution of the data. One call a step. Order 0: nothing is integrated;
    more steps only reduce the effect of errors of f.

    Args:
      schedule: noise schedule; in the paper `LogLinear` or `EDM` from 0.002 to 80.
      t_min: the time at which f ends, () or (B,) in [0, 1]; in the paper t = 0, where sigma is sigma_min. A step to
        s < t_min ends at t_min.

    Raises:
      ValueError: if t_min is known to be outside [0, 1].

    Source: Song et al. 2023, algorithm 1; consistency_models of diffusers (CMStochasticIterativeScheduler).

    >>> import jax
    >>> from diffax.schedules import LogLinear
    >>> step = consistency(LogLinear(0.002, 80.0)).step
    >>> step(jax.random.key(0), lambda x, t: 0.5 * x, State(jnp.ones((1, 1))), 1.0, 0.0).x.tolist()  # ends at f
    [[0.5]]
    """
    check("t_min", t_min, interval("[0, 1]"))

    def coefficients(t: Times, s: Times) -> Any:
        return 0.0, *transition(schedule, jnp.maximum(s, t_min), t_min)

    return _sampler(schedule, coefficients, t_min=t_min)


def lcm(schedule: Schedule) -> Sampler:
    """Multistep latent consistency sampling: x_s = alpha_s f(x_t, t) + sigma_s z. One call a step, order 0.

    This is `consistency` for an f that ends at clean data, and `tcd` with gamma = 1. `diffax.times.lcm` is the grid on
    which the released models were distilled.

    Source: Luo et al. 2023, algorithm 3; LCMScheduler of diffusers.

    >>> import jax
    >>> from diffax.schedules import Cosine
    >>> lcm(Cosine()).step(jax.random.key(0), lambda x, t: 0 * x, State(jnp.ones((2, 3))), 1.0, 0.5).x.shape
    (2, 3)
    """

    def coefficients(t: Times, s: Times) -> Any:
        level = schedule(s)
        return 0.0, level.alpha, level.sigma

    return _sampler(schedule, coefficients)


def tcd(schedule: Schedule, *, gamma: Scalar = 0.3, num_train_steps: int | None = None) -> Sampler:
    """Strategic stochastic sampling of trajectory consistency models: a step to s' = (1 - gamma) s, then noise up to s.

        x_s' = sigma_s' / sigma_t x_t + (alpha_s' - alpha_t sigma_s' / sigma_t) x0
        x_s  = alpha_s / alpha_s' x_s' + std z,   std^2 = sigma_s^2 - (alpha_s / alpha_s')^2 sigma_s'^2

    gamma = 0 is `ddim` without noise, gamma = 1 is `lcm` (up to sigma(0)). One call a step. Order 1 for a literal
    gamma = 0, otherwise 0, as the part of the step below s does not shrink with the number of steps.

    Args:
      schedule: noise schedule.
      gamma: () or (B,) in [0, 1], may be traced; `eta` in diffusers. Default 0.3.
      num_train_steps: T of a table; s is then timestep i of T, s = (i + 1) / T, and s' is timestep
        floor((1 - gamma) i), as in the released code. Its last step goes to timestep 0, s = 1 / T.

    Raises:
      ValueError: if gamma is known to be outside [0, 1], or num_train_steps is not an int >= 1.

    Source: Zheng et al. 2024, algorithm 2 and eq. 14; TCDScheduler of diffusers.

    >>> import jax
    >>> from diffax.schedules import Cosine
    >>> step = tcd(Cosine(), gamma=0.0).step
    >>> x = step(jax.random.key(0), lambda x, t: 0 * x, State(jnp.ones((1, 1))), 1.0, 0.5).x
    >>> round(float(x[0, 0]), 4)  # sigma(0.5) / sigma(1)
    0.7071
    """
    check("gamma", gamma, interval("[0, 1]"))
    if num_train_steps is not None:
        check_count("num_train_steps", num_train_steps)

    def coefficients(t: Times, s: Times) -> Any:
        s = as_float(s)
        if num_train_steps is None:
            lower = (1 - gamma) * s
        else:
            lower = (jnp.floor((1 - gamma) * jnp.round(s * num_train_steps - 1)) + 1) / num_train_steps
            lower = jnp.minimum(lower, s)
        level_t, level_lower = schedule(t), schedule(lower)
        scale, std = transition(schedule, s, lower)
        c_x0 = -level_lower.alpha * jnp.expm1((level_t.log_snr - level_lower.log_snr) / 2)
        return scale * level_lower.sigma / level_t.sigma, scale * c_x0, std

    return _sampler(schedule, coefficients, order=int(is_zero(gamma)), noisy=not is_zero(gamma), gamma=gamma)
