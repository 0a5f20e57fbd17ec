"""Step grids: (n,) times that fall from noise to data.

A grid is an ordinary array: write your own, differentiate through it, reverse it for inversion.
`sample` over n entries costs n denoiser calls of a one-call sampler.

    continuous   uniform, uniform_log_snr
    discrete     leading, trailing, linspace: timestep i of T is t = (i + 1) / T

The names of the discrete ones are those of Lin et al. 2024, table 2, and of the diffusers library.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from diffax.pytrees import as_float, check, concrete
from diffax.typing import Array, Float, Schedule


def check_grid(times: Any, *, may_turn: bool = False) -> None:
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


def _check_count(n: int, most: int | None = None) -> None:
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1:
        raise ValueError(f"n must be an int >= 1, got {n!r}")
    if most is not None and n > most:
        raise ValueError(f"n must be at most num_train_steps = {most}, got {n}")


def uniform(n: int, *, t_max: Any = 1.0, t_min: Any = 1e-3) -> Float[Array, " n"]:
    """(n,) times evenly spaced from t_max to t_min, both included.

    The default t_min = 1e-3 is that of Song et al. 2021: the last denoiser call makes up for the rest.
    """
    _check_count(n)
    for name, value in (("t_max", t_max), ("t_min", t_min)):
        check(name, value, "in [0, 1]", lambda v: (v >= 0) & (v <= 1))
    return jnp.linspace(as_float(t_max), as_float(t_min), n)


def uniform_log_snr(schedule: Schedule, n: int, *, t_max: Any = 1.0, t_min: Any = 1e-3) -> Float[Array, " n"]:
    """(n,) times from t_max to t_min, evenly spaced in log-SNR. Lu et al. 2022, section 3.4."""
    ends = uniform(2, t_max=t_max, t_min=t_min)
    _check_count(n)
    first, last = schedule.log_snr(ends)
    inner = schedule.inverse(jnp.linspace(first, last, n)[1:-1])
    return jnp.concatenate([ends[:1], inner, ends[1:]])[:n]


def leading(num_train_steps: int, n: int, *, offset: int = 0) -> Float[Array, " n"]:
    """(n,) times of timesteps i = offset + k floor(T / n), k = n - 1 .. 0. DDPM, DDIM and most of their heirs."""
    _check_count(n, num_train_steps)
    steps = np.arange(n)[::-1] * (num_train_steps // n) + offset
    if steps[-1] < 0 or steps[0] >= num_train_steps:
        raise ValueError(f"offset must keep timesteps in [0, {num_train_steps - 1}], got {offset}")
    return _discrete(steps, num_train_steps)


def trailing(num_train_steps: int, n: int) -> Float[Array, " n"]:
    """(n,) times of timesteps i = round(T - k T / n) - 1, k = 0 .. n - 1: starts at pure noise. Lin et al. 2024."""
    _check_count(n, num_train_steps)
    return _discrete(np.round(num_train_steps * (1 - np.arange(n) / n)) - 1, num_train_steps)


def linspace(num_train_steps: int, n: int) -> Float[Array, " n"]:
    """(n,) times of timesteps i evenly spaced from T - 1 to 0, both included. Nichol & Dhariwal 2021."""
    _check_count(n, num_train_steps)
    return _discrete(np.round(np.linspace(num_train_steps - 1, 0, n)), num_train_steps)


def _discrete(steps: np.ndarray, num_train_steps: int) -> Array:
    return jnp.asarray((steps + 1) / num_train_steps, dtype=float)
