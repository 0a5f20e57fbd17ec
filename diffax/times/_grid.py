"""What all grids share: checks, ends, the entries between."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from diffax._checks import above, check, check_count, check_schedule, interval
from diffax._pytrees import as_float, concrete, promoted
from diffax.times._ends import SIGMA_MAX, data_end, default_ends, noise_end
from diffax.typing import Array, Float, Leaf, Schedule, Times, Values


def check_grid(times: Values, *, may_turn: bool = False) -> None:
    """Raises `ValueError` for a grid that is known now to leave [0, 1] or, unless it may, to turn back.

    times: (n, ...), n >= 1; a grid may repeat a point.
    """
    if np.ndim(times) < 1 or np.shape(times)[0] < 1:
        raise ValueError(f"times must have shape (n, ...) with n >= 1, got {np.shape(times)}")
    known = concrete(times)
    if known is None:
        return
    bad = ~((known >= 0) & (known <= 1))
    if bad.any():
        raise ValueError(f"times must lie in [0, 1], got {known[bad].flat[0]:g}")
    if may_turn:
        return
    moves = np.diff(known, axis=0)
    turns = (moves > 0).any(0) & (moves < 0).any(0)
    if turns.any():
        raise ValueError(f"times must be monotone, got {_short(known)}")


def _short(grid: np.ndarray) -> str:
    return np.array2string(grid, precision=4, threshold=8, edgeitems=3).replace("\n", "")


def entries(
    schedule: Schedule, n: int, t_max: Times | None, t_min: Times | None, inner: Callable[[Any, Any, Any], Any]
) -> Float[Array, " n"]:
    """Times from t_max to t_min, None for the default ends. Both ends are exact; powers and logs are smooth between.

    inner: (first, last, ramp) -> times between the ends; ramp: evenly spaced in (0, 1).
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

    # With zero terminal SNR: t = 1, and the others from sigma / alpha = 80.
    return grid(zero) if isinstance(zero, bool) else jnp.where(zero, grid(True), grid(False))


def between(first: Leaf, last: Leaf, n: int, inner: Callable[[Any, Any, Any], Any]) -> Array:
    """Times from `first` to `last`, `inner` between them, cut to n entries."""
    dtype = promoted(first, last)
    parts = first[None], inner(first, last, jnp.linspace(0.0, 1.0, n)[1:-1]), last[None]
    return jnp.concatenate([v.astype(dtype) for v in parts])[:n]
