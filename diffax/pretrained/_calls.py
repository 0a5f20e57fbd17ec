"""Step grids by the number of denoiser calls, for samplers by name.

`sample` over n entries makes n - 1 moves and one call at the end.
"""

import math
from typing import Any

import jax.numpy as jnp

from diffax import flow_maps, samplers, times
from diffax._checks import check_count
from diffax.samplers import Sampler
from diffax.typing import Grid, PerExample, Schedule

# The sampler `restart` goes back once, from sigma / alpha = 0.06 to 0.3, and down again in two steps (Xu et al. 2023,
# their first interval for CIFAR-10).
RESTART = {"sigma_min": 0.06, "sigma_max": 0.3, "num_restarts": 1, "num_steps": 2}


def by_name(name: str, schedule: Schedule, noise: PerExample | None = None) -> Sampler:
    """As `samplers.by_name`, with "jump" for `flow_maps.jump`, whose noise level is gamma."""
    if name == "jump":
        return flow_maps.jump(schedule, gamma=0.0 if noise is None else noise)
    return samplers.by_name(name, schedule, noise)


def spent(name: str, schedule: Schedule, entries: int) -> int:
    """Denoiser calls of `sample` over a grid of so many entries, including the moves after a restart."""
    sampler = by_name(name, schedule)
    if entries < 2:
        return entries
    moves = entries - 1 + (int(RESTART["num_restarts"] * RESTART["num_steps"]) if sampler.renoises else 0)
    return int(sampler.calls * moves + sampler.start_calls + 1)


def entries(name: str, schedule: Schedule, calls: int) -> int:
    """The largest number of grid entries that `calls` denoiser calls suffice for; at least 1, for the last call.

    Raises:
      ValueError: if calls is not an int >= 1.

    >>> import diffax
    >>> [entries(name, diffax.Linear(), 8) for name in ("ddim", "heun", "dpm_solver")]
    [8, 4, 3]
    """
    check_count("num_steps", calls)
    return max(n for n in range(1, calls + 1) if spent(name, schedule, n) <= calls)


def moves(name: str, schedule: Schedule, calls: int) -> int:
    """The largest number of moves that `calls` denoiser calls suffice for, with `integrate`.

    Raises:
      ValueError: if they do not suffice for one move.

    >>> import diffax
    >>> moves("ddim", diffax.Linear(), 8), moves("heun", diffax.Linear(), 9)
    (8, 4)
    """
    sampler = by_name(name, schedule)
    count = (calls - sampler.start_calls) // sampler.calls
    if count < 1:
        raise ValueError(f"num_steps must be >= {sampler.calls + sampler.start_calls} for {name}, got {calls}")
    return int(count)


def step_grid(name: str, grid: str, schedule: Schedule, count: int) -> Grid:
    """A named grid of `count` entries; for the sampler `restart` with its turns."""
    points: Any = times.CATALOGUE[grid].build(schedule, count)
    if name != "restart" or count < 2:
        return points
    low, high = (schedule.inverse(-2 * math.log(RESTART[key])) for key in ("sigma_min", "sigma_max"))
    # If the grid ends above the interval, as `trailing` may, the interval begins at the end of the grid, with the same
    # ratio of noise levels.
    above = points[-1] > low
    ratio = RESTART["sigma_max"] / RESTART["sigma_min"]
    low = jnp.where(above, points[-1], low)
    high = jnp.where(above, schedule.inverse(schedule.log_snr(low) - 2 * math.log(ratio)), high)
    counts = {key: int(RESTART[key]) for key in ("num_restarts", "num_steps")}
    return times.restart(schedule, points, low, high, **counts)
