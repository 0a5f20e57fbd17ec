"""Functions that all grids share: the checks, the ends and the entries between them."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from diffax._checks import above, check, check_count, check_schedule, interval
from diffax._pytrees import as_float, concrete, promoted
from diffax.times._ends import SIGMA_MAX, data_end, default_ends, noise_end
from diffax.typing import Array, Float, Leaf, Schedule, Times, Values


def check_grid(times: Values, *, may_turn: bool = False) -> None:
    """Raise `ValueError` if a grid leaves [0, 1] or turns back. The values of a traced grid are not checked.

    Args:
      times: (n, ...), n >= 1; a point may be repeated.
      may_turn: whether the grid may turn back.
    """
    if np.ndim(times) < 1 or np.shape(times)[0] < 1:
        raise ValueError(f"times must have shape (n, ...) with n >= 1, got {np.shape(times)}")
    values = concrete(times)
    if values is None:
        return
    bad = ~((values >= 0) & (values <= 1))
    if bad.any():
        raise ValueError(f"times must be in [0, 1], got {values[bad].flat[0]:g}")
    if may_turn:
        return
    moves = np.diff(values, axis=0)
    turns = (moves > 0).any(0) & (moves < 0).any(0)
    if turns.any():
        raise ValueError(f"times must be monotone, got {short(values)}")


def short(grid: np.ndarray) -> str:
    """The entries of a grid for an error, without the middle of a long grid."""
    return np.array2string(grid, precision=4, threshold=8, edgeitems=3).replace("\n", "")


def entries(
    schedule: Schedule, n: int, t_max: Times | None, t_min: Times | None, inner: Callable[[Any, Any, Any], Any]
) -> Float[Array, " n"]:
    """(n,) times from t_max to t_min; an end that is None is the default end.

    Both ends are returned exactly. `inner` computes only the times between them, so that its powers and logs are not
    differentiated at an end where they are not smooth.

    Args:
      schedule: noise schedule.
      n: entries, an int >= 1.
      t_max: () first time in [0, 1], or None.
      t_min: () last time in [0, 1], or None.
      inner: (first, last, ramp) -> times between the ends; ramp is evenly spaced in (0, 1).
    """
    check_schedule(schedule)
    check_count("n", n)
    for name, value in (("t_max", t_max), ("t_min", t_min)):
        if value is not None:
            check(name, value, interval("[0, 1]"))
            if np.ndim(value):
                raise ValueError(f"{name} must have shape (), got {np.shape(value)}")
    if t_min is None:
        t_min = data_end(schedule)
    zero = t_max is None and n > 1 and getattr(schedule, "zero_terminal_snr", False)
    if t_max is None:
        t_max = noise_end(schedule, SIGMA_MAX) if n > 1 else default_ends(schedule)[0]
    low = concrete(t_min)
    if n > 1 and low is not None:
        check("t_max", t_max, above(low, "t_min"))

    def grid(from_noise: bool) -> Array:
        times = between(as_float(t_max), as_float(t_min), n - from_noise, inner)
        return jnp.concatenate([jnp.ones(1, times.dtype), times]) if from_noise else times

    # With zero terminal SNR the grid is t = 1, followed by n - 1 entries that start at sigma / alpha = 80.
    return grid(zero) if isinstance(zero, bool) else jnp.where(zero, grid(True), grid(False))


def between(first: Leaf, last: Leaf, n: int, inner: Callable[[Any, Any, Any], Any]) -> Array:
    """(n,) times: `first`, the times of `inner`, and `last`; only `first` for n = 1."""
    dtype = promoted(first, last)
    parts = first[None], inner(first, last, jnp.linspace(0.0, 1.0, n)[1:-1]), last[None]
    return jnp.concatenate([v.astype(dtype) for v in parts])[:n]
