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

    Let t_i be the first entry of `times` that is at most t_min. After t_i the grid jumps to t_max and falls to t_i
    again in `num_steps` steps uniform in log-SNR; it does this `num_restarts` times. For several intervals, call the
    function again on its result. A restart costs num_steps sampler steps; the jump costs nothing. With num_restarts = 0
    the grid is unchanged.

    Args:
      schedule: noise schedule; its log-SNR spaces the steps.
      times: (n,) from noise to data, may be traced.
      t_min: () time to jump from, may be traced. If no entry is at most a traced t_min, t_i is the last entry.
      t_max: () time to jump to, may be traced.
      num_restarts: K in the paper, an int >= 0.
      num_steps: steps from t_max down to t_i, an int >= 1.

    Raises:
      ValueError: for other counts, or if t_min >= t_max, t_max > 1 or t_min is below the whole grid. Traced values are
        not checked.

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
    t_max_value, times_value = concrete(t_max), concrete(times)
    if t_max_value is not None:
        check("t_min", t_min, below(t_max_value, "t_max"))
    if times_value is not None:
        lowest = times_value.min()
        check("t_min", t_min, Condition(f">= the last of times, {lowest:g}", lambda v: v >= lowest))
    times = as_float(times)
    n, extra = len(times), num_restarts * (num_steps + 1)
    reached = times <= t_min
    first = jnp.where(reached.any(), jnp.argmax(reached), n - 1)
    steps_down = path(schedule, num_steps + 1, t_max, times[first])
    j = jnp.arange(n + extra)
    inside = (j > first) & (j <= first + extra)
    outer = times[jnp.clip(jnp.where(j > first + extra, j - extra, j), 0, n - 1)]
    return jnp.where(inside, steps_down[(j - first - 1) % (num_steps + 1)], outer)


def jumps(times: Values, *, length: int = 10, repeats: int = 10) -> Any:
    """The grid of RePaint: at every `length`-th entry from the end it jumps back by `length` entries.

    Each turning point is used `repeats` - 1 times. The entry with u entries after it is a turning point for
    u = 0, length, 2 length, ... < n - length. With `sample`, whose last denoiser call returns the clean image, these
    are the jumps of the paper. `repeats=1` returns the grid unchanged.

    Source: Lugmayr et al. 2022, section 4.2 and appendix B; T = 250, length = 10, repeats = 10.

    Args:
      times: (n, ...), a monotone grid; may be traced.
      length: the paper's j, an int >= 1 and < n.
      repeats: the paper's r, an int >= 1.

    Returns:
      (n + 2 length (repeats - 1) ceil((n - length) / length), ...).

    Raises:
      ValueError: for a length or repeats outside its range.

    >>> jumps(jnp.array([4, 3, 2, 1]), length=2, repeats=2).tolist()
    [4, 3, 2, 1, 2, 3, 2, 1]
    """
    n = np.shape(times)[0]
    check_count("length", length)
    check_count("repeats", repeats)
    if length > n - 1:
        raise ValueError(f"length must be at most n - 1 = {n - 1}, got {length}")
    jumps_left = dict.fromkeys(range(0, n - length, length), repeats - 1)
    remaining, u = [n - 1], n - 1  # u is the number of entries after the current one; `remaining` lists it in order
    while u > 0 or jumps_left[0] > 0:
        if jumps_left.get(u, 0) > 0:
            jumps_left[u] -= 1
            remaining += range(u + 1, u + length + 1)
            u += length
        u -= 1
        remaining.append(u)
    return jnp.asarray(times)[n - 1 - np.array(remaining)]
