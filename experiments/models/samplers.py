"""The samplers and step grids that a config names, and the grid entries that a number of denoiser calls pays for.

`sample` over n entries makes n - 1 moves and one call at the end. Where the network is guided it evaluates both
branches in one call, which costs twice as much.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

import diffax
from diffax._checks import check_count, choose

# name -> (schedule, eta) -> sampler; eta = None is the sampler's own noise level.
SAMPLERS: dict[str, Callable[[Any, Any], diffax.Sampler]] = {
    name: functools.partial(diffax.samplers.by_name, name) for name in diffax.samplers.names()
}
WITH_ETA = {name for name, row in diffax.samplers.CATALOGUE.items() if row.noise}
GRIDS: dict[str, Callable[[Any, int], Any]] = {name: row.build for name, row in diffax.times.CATALOGUE.items()}

# The sampler `restart` goes back once, from sigma / alpha = 0.06 to 0.3, and down again in two steps (Xu et al. 2023,
# their first interval for CIFAR-10).
RESTART = {"sigma_min": 0.06, "sigma_max": 0.3, "num_restarts": 1, "num_steps": 2}


def check_sampler(name: str, value: Any) -> None:
    """Raises `ValueError` for the name of a sampler that is unknown, with what it is here if another library has it."""
    _check_name(name, value, SAMPLERS, diffax.samplers.suggestion)


def check_grid(name: str, value: Any) -> None:
    """Raises `ValueError` for the name of a step grid that is unknown, as `check_sampler`."""
    _check_name(name, value, GRIDS, diffax.times.suggestion)


def _check_name(name: str, value: Any, known: dict[str, Any], suggestion: Callable[[str], str | None]) -> None:
    ours = suggestion(value) if isinstance(value, str) and value not in known else None
    if ours:
        raise ValueError(f"{name} must be a name of diffax, got {value!r}, which is {ours!r} here")
    choose(name, value, known)


def check_eta(name: str, of: str, eta: Any) -> None:
    """Raises `ValueError` unless eta is a noise level that this sampler has, or None for its own."""
    if eta is None:
        return
    if not 0 <= eta < math.inf:
        raise ValueError(f"{name} must be >= 0, got {eta}")
    if eta and of not in WITH_ETA:
        raise ValueError(f"{name} must be 0 for {of}, which has none, got {eta}")


def draws_noise(name: str, eta: float | None) -> bool:
    """Whether a sampler draws noise at this eta; ddim does not at its default, 0."""
    return SAMPLERS[name](diffax.Linear(), eta).noisy


def spent(name: str, schedule: Any, entries: int) -> int:
    """Denoiser calls of `sample` over a grid of so many entries, the moves after a restart included."""
    sampler = SAMPLERS[name](schedule, None)
    if entries < 2:
        return entries
    moves = entries - 1 + (RESTART["num_restarts"] * RESTART["num_steps"] if sampler.renoises else 0)
    return int(sampler.calls * moves + sampler.start_calls + 1)


def entries(name: str, schedule: Any, calls: int) -> int:
    """The most entries of a grid that `calls` denoiser calls pay for; at least 1, the call at the end.

    >>> [entries(name, diffax.Linear(), 8) for name in ("ddim", "heun", "dpm_solver")]
    [8, 4, 3]
    """
    check_count("num_steps", calls)
    return max(n for n in range(1, calls + 1) if spent(name, schedule, n) <= calls)


def moves(name: str, schedule: Any, calls: int) -> int:
    """The most moves that `calls` denoiser calls pay for where `integrate` ends without another.

    Raises:
      ValueError: if they pay for none.

    >>> moves("ddim", diffax.Linear(), 8), moves("heun", diffax.Linear(), 9)
    (8, 4)
    """
    sampler = SAMPLERS[name](schedule, None)
    count = (calls - sampler.start_calls) // sampler.calls
    if count < 1:
        raise ValueError(f"num_steps must be >= {sampler.calls + sampler.start_calls} for {name}, got {calls}")
    return count


def step_grid(name: str, grid: str, schedule: Any, count: int) -> Any:
    """The times of a named grid of `count` entries, with the turns of the sampler `restart`."""
    times = GRIDS[grid](schedule, count)
    if name != "restart" or count < 2:
        return times
    low, high = (schedule.inverse(-2 * math.log(RESTART[key])) for key in ("sigma_min", "sigma_max"))
    # A grid that ends above the interval, `trailing` for one: the interval begins at its end, with the same ratio.
    above = times[-1] > low
    ratio = RESTART["sigma_max"] / RESTART["sigma_min"]
    low = jnp.where(above, times[-1], low)
    high = jnp.where(above, schedule.inverse(schedule.log_snr(low) - 2 * math.log(ratio)), high)
    counts = {key: int(RESTART[key]) for key in ("num_restarts", "num_steps")}
    return diffax.times.restart(schedule, times, low, high, **counts)


def report_rounding(name: str, schedule: Any, calls: int, made: int | None = None) -> None:
    """Prints a line if fewer calls are made than num_steps; made: None for what `entries` pays for."""
    made = spent(name, schedule, entries(name, schedule, calls)) if made is None else made
    if made < calls:
        print(f"num_steps = {calls} is rounded down to {made}, the denoiser calls of whole steps of {name}")
