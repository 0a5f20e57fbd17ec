"""Step grids that turn back towards noise, for samplers that renoise."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from diffax._checks import Condition, below, check, check_count, check_schedule, interval
from diffax._pytrees import as_float, concrete
from diffax.times._in_noise import path
from diffax.typing import Array, Schedule, Times, Values


def restart(
    schedule: Schedule, times: Values, t_min: Times, t_max: Times, *, num_restarts: int = 1, num_steps: int = 5
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
    >>> grid = restart(Cosine(), jnp.array([1.0, 0.5, 0.2]), 0.5, 0.8, num_restarts=1, num_steps=1)
    >>> [round(float(t), 2) for t in grid]
    [1.0, 0.5, 0.8, 0.5, 0.2]
    """
    check_schedule(schedule)
    for name, value, least in (("num_restarts", num_restarts, 0), ("num_steps", num_steps, 1)):
        check_count(name, value, least)
    if np.ndim(times) != 1 or not len(times):
        raise ValueError(f"times must have shape (n,) with n >= 1, got {np.shape(times)}")
    check("t_max", t_max, interval("[0, 1]"))
    known_t_max, known_times = concrete(t_max), concrete(times)
    if known_t_max is not None:
        check("t_min", t_min, below(known_t_max, "t_max"))
    if known_times is not None:
        check(
            "t_min", t_min, Condition(f">= the last of times, {known_times.min():g}", lambda v: v >= known_times.min())
        )
    times = as_float(times)
    n, extra = len(times), num_restarts * (num_steps + 1)
    reached = times <= t_min
    first = jnp.where(reached.any(), jnp.argmax(reached), n - 1)
    way = path(schedule, num_steps + 1, t_max, times[first])
    j = jnp.arange(n + extra)
    inside = (j > first) & (j <= first + extra)
    outer = times[jnp.clip(jnp.where(j > first + extra, j - extra, j), 0, n - 1)]
    return jnp.where(inside, way[(j - first - 1) % (num_steps + 1)], outer)


def jumps(times: Values, *, length: int = 10, repeats: int = 10) -> Any:
    """RePaint's grid: at every `length`-th entry from the end, back by `length` entries, `repeats` - 1 times.

    The entry with u entries after it is a turning point for u = 0, length, 2 length, ... < n - length. With `sample`,
    whose last call makes the clean image, these are the paper's jumps. `repeats=1` is the grid itself.

    Source: Lugmayr et al. 2022, section 4.2 and appendix B; T = 250, length = 10, repeats = 10.

    Args:
      times: (n, ...), a monotone grid; may be traced.
      length: the paper's j, an int >= 1 and < n.
      repeats: the paper's r, an int >= 1.

    Returns:
      (n + 2 length (repeats - 1) ceil((n - length) / length), ...).

    Raises:
      ValueError: for another length or repeats.

    >>> jumps(jnp.array([4, 3, 2, 1]), length=2, repeats=2).tolist()
    [4, 3, 2, 1, 2, 3, 2, 1]
    """
    n = np.shape(times)[0]
    check_count("length", length)
    check_count("repeats", repeats)
    if length > n - 1:
        raise ValueError(f"length must be at most n - 1 = {n - 1}, got {length}")
    left = dict.fromkeys(range(0, n - length, length), repeats - 1)
    path, u = [n - 1], n - 1  # in entries to go
    while u > 0 or left[0] > 0:
        if left.get(u, 0) > 0:
            left[u] -= 1
            path += range(u + 1, u + length + 1)
            u += length
        u -= 1
        path.append(u)
    return jnp.asarray(times)[n - 1 - np.array(path)]
