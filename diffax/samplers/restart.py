r"""Restart: a sampler that jumps back to noise and runs the last stretch again.

    s > t, a jump:   x_s = alpha_s / alpha_t x_t + S std z,   std^2 = sigma_s^2 - (alpha_s / alpha_t)^2 sigma_t^2
    s <= t:          the wrapped sampler's step

The jump draws from q(x_s | x_t), so it costs no denoiser call and errors made above t_max are forgotten by the share of
noise that it adds, while the steps down again are those of the wrapped sampler. The grid says where to jump:

    T ... t_min | t_max ... t_min | t_max ... t_min | ... 0
"""

from typing import Any

import jax
import jax.numpy as jnp

from diffax import random
from diffax._pytrees import as_float, check, check_count, check_per_example, combine, concrete, expand
from diffax.samplers.base import Sampler, check_sampler
from diffax.schedules import transition
from diffax.times import path
from diffax.typing import Array, Schedule, check_schedule


def restart(sampler: Sampler, schedule: Schedule, *, noise_scale: Any = 1.0) -> Sampler:
    """Sampler -> sampler: steps towards noise add noise; its grid, e.g. from `restart_times`, may turn back.

    Order and calls are those of the sampler; over a grid without turns it is the sampler. A jump makes no denoiser
    call where t and s are scalars; with a grid for each example it makes those of the sampler and drops their result.
    A multistep sampler starts afresh behind a jump.
    Since every step towards noise is random, a reversed grid does not invert here.

    Args:
      sampler: what takes the steps towards data; in the paper a deterministic one, `heun`.
      schedule: noise schedule of the jumps.
      noise_scale: S, () or (B,) >= 0, a factor on the noise of the jumps, may be traced.

    Raises:
      ValueError: if noise_scale is known to be negative.

    Source: Xu et al. 2023, eq. 3 and 4, algorithm 1; S is S_noise of their appendix.

    >>> from diffax.samplers.ddim import ddim
    >>> from diffax.schedules import Cosine
    >>> restart(ddim(Cosine()), Cosine()).renoises
    True
    """
    check_sampler(sampler)
    check_schedule(schedule)
    check("noise_scale", noise_scale, ">= 0", lambda v: v >= 0)

    def step(key, denoise, state, t, s):
        check_per_example(state.x, noise_scale=noise_scale)
        t, s = as_float(t), as_float(s)
        up = s > t

        def jump(state):
            scale, std = transition(schedule, jnp.maximum(s, t), t)
            z = random.noise(key, state.x)
            return state._replace(x=combine((scale, state.x), (noise_scale * std, z)))

        def base(state, s):
            return sampler.step(key, denoise, state, t, s)

        if up.ndim == 0:
            return jax.lax.cond(up, jump, lambda state: base(state, s), state)
        # Whoever jumps takes a step of length zero, which leaves no trace in what the sampler remembers.
        jumped, new = jump(state), base(state, jnp.where(up, t, s))
        return new._replace(x=jax.tree.map(lambda a, b: jnp.where(expand(up, a), a, b), jumped.x, new.x))

    return sampler._replace(step=step, renoises=True)


def restart_times(
    schedule: Schedule, times: Any, t_min: Any, t_max: Any, *, num_restarts: int = 1, num_steps: int = 5
) -> Array:
    """A grid with one restart interval: (n + num_restarts (num_steps + 1),) times for (n,) times.

    Where `times` first falls to t_min or below, say to t_i, the grid goes `num_restarts` times back to t_max and
    down to t_i again, in `num_steps` steps uniform in log-SNR. For several intervals call it again on its result.
    A restart costs num_steps steps of the sampler, the jump is free. With num_restarts = 0 the grid is unchanged.

    Args:
      schedule: whose log-SNR the steps divide.
      times: (n,) from noise to data, may be traced.
      t_min: () where to jump from, may be traced; the nearest grid point below is taken, the last one if there is none.
      t_max: () where to jump to, may be traced.
      num_restarts: K in the paper, an int >= 0.
      num_steps: steps of each way down, an int >= 1.

    Raises:
      ValueError: for other counts; if t_min >= t_max, t_max > 1 or t_min below the whole grid is known.

    Source: Xu et al. 2023, algorithm 1 (their intervals are in sigma and divided as in Karras et al. 2022).

    >>> from diffax.schedules import Cosine
    >>> grid = restart_times(Cosine(), jnp.array([1.0, 0.5, 0.2]), 0.5, 0.8, num_restarts=1, num_steps=1)
    >>> [round(float(t), 2) for t in grid]
    [1.0, 0.5, 0.8, 0.5, 0.2]
    """
    check_schedule(schedule)
    for name, value, least in (("num_restarts", num_restarts, 0), ("num_steps", num_steps, 1)):
        check_count(name, value, least)
    if jnp.ndim(times) != 1 or not len(times):
        raise ValueError(f"times must have shape (n,) with n >= 1, got {jnp.shape(times)}")
    check("t_max", t_max, "in [0, 1]", lambda v: (v >= 0) & (v <= 1))
    known_t_max, known_times = concrete(t_max), concrete(times)
    if known_t_max is not None:
        check("t_min", t_min, f"< t_max = {known_t_max}", lambda v: v < known_t_max)
    if known_times is not None:
        check("t_min", t_min, f">= the last of times, {known_times.min():g}", lambda v: v >= known_times.min())
    times = as_float(times)
    n, extra = len(times), num_restarts * (num_steps + 1)
    below = times <= t_min
    first = jnp.where(below.any(), jnp.argmax(below), n - 1)
    way = path(schedule, num_steps + 1, t_max, times[first])
    j = jnp.arange(n + extra)
    inside = (j > first) & (j <= first + extra)
    outer = times[jnp.clip(jnp.where(j > first + extra, j - extra, j), 0, n - 1)]
    return jnp.where(inside, way[(j - first - 1) % (num_steps + 1)], outer)
