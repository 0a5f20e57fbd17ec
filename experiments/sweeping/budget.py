"""From a budget of denoiser calls to the points of a grid, by what the samplers' steps cost."""

from typing import Any

from diffax._checks import check_count
from experiments.models import samplers


def points(name: str, schedule: Any, calls: int) -> int:
    """The most points of a grid that `calls` pay for.

    Raises:
      ValueError: if they pay for no move.

    >>> import diffax
    >>> points("ddim", diffax.Linear(), 8), points("heun", diffax.Linear(), 8)
    (8, 4)
    """
    check_count("config.calls", calls)
    found = samplers.entries(name, schedule, calls)
    if found < 2:
        raise ValueError(f"config.calls must pay for a step of {name} and one call at the end, got {calls}")
    return found
