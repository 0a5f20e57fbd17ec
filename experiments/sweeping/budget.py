"""From a budget of denoiser calls to the points of a grid, by what the samplers' steps cost.

Where the network is guided it works on both branches in one call, so each costs twice as much.
"""

from typing import Any

from diffax.pytrees import check_count
from experiments import build

START = {"pndm": 1}  # calls that its start costs more than its steps


def spent(name: str, schedule: Any, points: int) -> int:
    """Calls of `sample` over a grid of so many points: its moves, and one at the end."""
    moves = points - 1
    return build.SAMPLERS[name](schedule, 0.0).calls * moves + (START.get(name, 0) if moves else 0) + 1


def points(name: str, schedule: Any, calls: int) -> int:
    """The most points of a grid that `calls` pay for.

    Raises:
      ValueError: if they pay for no move.

    >>> import diffax
    >>> points("ddim", diffax.Linear(), 8), points("heun", diffax.Linear(), 8)
    (8, 4)
    """
    check_count("config.calls", calls)
    found = max((n for n in range(1, calls + 1) if spent(name, schedule, n) <= calls), default=0)
    if found < 2:
        raise ValueError(f"config.calls must pay for a step of {name} and one call at the end, got {calls}")
    return found
