"""The sampler of flow maps: one call moves from t to s, however far apart they are."""

import jax.numpy as jnp

from diffax import random
from diffax._checks import check, check_per_example, check_schedule, interval
from diffax._pytrees import as_float, combine, is_zero
from diffax.samplers._base import Sampler, State, init, unless_still
from diffax.samplers.engines.forms import cross
from diffax.schedules import transition
from diffax.typing import Denoiser, Keys, PerExample, SamplerState, Schedule, Times, Tree


def jump(schedule: Schedule, *, gamma: PerExample = 0.0) -> Sampler:
    """A jump to s' = (1 - gamma) s by the flow map, then noise up to s.

        x_s' = sigma_s' / sigma_t x_t + (alpha_s' - alpha_t sigma_s' / sigma_t) x0,   x0 = denoise(x_t, t, s')
        x_s  = alpha_s / alpha_s' x_s' + std z,   std^2 = sigma_s^2 - (alpha_s / alpha_s')^2 sigma_s'^2

    The denoiser has three arguments (`flow_maps.map_denoiser`). With the exact map any grid gives the exact solution at
    gamma = 0, and the exact distribution at any gamma. `sample` ends with a jump from times[-1] to t = 0. With
    `flow_maps.of_denoiser` it is `ddim` (gamma = 0) and `tcd`. One call a step.

    Args:
      schedule: noise schedule.
      gamma: () or (B,) in [0, 1], may be traced; default 0, without noise. 1 is multistep consistency sampling.

    Raises:
      ValueError: if gamma is known to be outside [0, 1].

    Source: Song et al. 2023, algorithm 1 (gamma = 1); Kim et al. 2024, section 4 (gamma).

    >>> import jax, diffax
    >>> schedule = diffax.Flow()
    >>> exact = lambda x, t, s: 0 * x  # all data at 0: x_s = sigma_s / sigma_t x_t
    >>> times = jnp.array([1.0, 0.5])
    >>> diffax.sample(jax.random.key(0), jump(schedule), exact, jnp.ones((1, 1)), times).tolist()
    [[0.0]]
    """
    check_schedule(schedule)
    check("gamma", gamma, interval("[0, 1]"))

    def step(key: Keys, denoise: Denoiser, state: SamplerState, t: Times, s: Times) -> SamplerState:
        check_per_example(state.x, gamma=gamma)
        lower = as_float(s) if is_zero(gamma) else (1 - gamma) * as_float(s)
        level_t, level_s = schedule(t), schedule(lower)
        c_x, c_x0 = level_s.sigma / level_t.sigma, -cross(level_t, level_s) / level_t.sigma
        x0 = denoise(state.x, t, lower)
        if is_zero(gamma):
            return State(unless_still(t, s, combine((c_x, state.x), (c_x0, x0)), state.x))
        scale, std = transition(schedule, s, lower)
        noise = random.noise(key, state.x)
        x = combine((scale * c_x, state.x), (scale * c_x0, x0), (std, noise))
        return State(unless_still(t, s, x, state.x))

    def finish(key: Keys, denoise: Denoiser, state: SamplerState, t: Times) -> Tree:
        return denoise(state.x, t, jnp.zeros_like(as_float(t)))

    return Sampler(init, step, order=0, calls=1, finish=finish, noisy=not is_zero(gamma), schedule=schedule)
