"""Where a token lies on a grid of one or more axes, told to a transformer.

With the place p = 0, 1, .. on an axis and the frequencies w_k = 10000^(-k / K), k = 0 .. K - 1:

    sincos  (sin p w_0, .., sin p w_{K-1}, cos p w_0, .., cos p w_{K-1}), the axes side by side, added to the token
    rope    channels (k, k + K) of a query or key are turned by the angle p w_k: scores depend on differences of p alone
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from diffax.nn.checks import per_axis
from diffax.typing import Array, Float


def sincos(grid: tuple[int, ...], dim: int, *, base: int | tuple[int, ...] | None = None) -> Float[Array, "n {dim}"]:
    """The fixed embedding of each place of the grid, in row-major order; the last axis comes first in the channels.

    On two axes it is the published one of MAE and DiT (He et al. 2022; Peebles & Xie 2023). base: places run over
    `base` units however many there are, p = i base / n, one for all axes or one for each; None for p = i.

    Raises:
      ValueError: if dim is odd or has no two channels for each axis, or base does not fit the axes.
    """
    tables, bases = [], _bases(base, len(grid))
    for axis, count in zip(reversed(range(len(grid))), _shares("channels", dim, len(grid)), strict=True):
        angles = _angles(grid[axis], count, bases[axis])
        table = np.concatenate([np.sin(angles), np.cos(angles)], -1)
        tables.append(_along(table, axis, grid))
    return jnp.concatenate(tables, -1).reshape(-1, dim)


def rotary_angles(
    grid: tuple[int, ...], dim: int, *, base: int | tuple[int, ...] | None = None
) -> Float[Array, "n half"]:
    """The (n, dim / 2) angles of each place of the grid, in row-major order, for `rotate` (Su et al. 2021).

    The dim channels of a head are shared out among the axes, the first axis first. base: as of `sincos`.

    Raises:
      ValueError: if dim is odd or has no two channels for each axis, or base does not fit the axes.
    """
    tables, bases = [], _bases(base, len(grid))
    for axis, (size, count) in enumerate(zip(grid, _shares("channels of a head", dim, len(grid)), strict=True)):
        tables.append(_along(_angles(size, count, bases[axis]), axis, grid))
    return jnp.concatenate(tables, -1).reshape(-1, dim // 2)


def rotate(x: Float[Array, "batch n heads d"], angles: Float[Array, "n half"]) -> Float[Array, "batch n heads d"]:
    """Channels (k, k + d/2) of each head, turned by the angles of the token; in float32, result in the dtype of x."""
    cos, sin = jnp.cos(angles)[None, :, None], jnp.sin(angles)[None, :, None]
    a, b = jnp.split(x.astype(jnp.float32), 2, -1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1).astype(x.dtype)


def _shares(what: str, dim: int, axes: int) -> list[int]:
    """How many of the dim / 2 frequencies each axis has; what is left over goes to the first."""
    if dim % 2 or dim < 2 * axes:
        raise ValueError(f"{what} must be even and at least {2 * axes} for positions on {axes} axes, got {dim}")
    least, more = divmod(dim // 2, axes)
    return [least + (i < more) for i in range(axes)]


def _bases(base: int | tuple[int, ...] | None, axes: int) -> tuple[int | None, ...]:
    return (None,) * axes if base is None else per_axis("base", base, axes)


def _angles(size: int, count: int, base: int | None) -> np.ndarray:
    """p w_k, (size, count), in float64."""
    places = np.arange(size) * (1.0 if base is None else base / size)
    return np.outer(places, 10_000.0 ** -(np.arange(count) / count))


def _along(table: np.ndarray, axis: int, grid: tuple[int, ...]) -> Any:
    """A table (size, k) of one axis at each place of the grid, (*grid, k)."""
    shape = [1] * len(grid) + [table.shape[-1]]
    shape[axis] = grid[axis]
    return jnp.broadcast_to(jnp.asarray(table, jnp.float32).reshape(shape), (*grid, table.shape[-1]))
