"""Positional embeddings of tokens on a grid with one or more axes.

With the position p = 0, 1, .. on an axis and the frequencies w_k = 10000^(-k / K), k = 0 .. K - 1:

    sincos  (sin p w_0, .., sin p w_{K-1}, cos p w_0, .., cos p w_{K-1}), concatenated over the axes, added to the token
    rope    rotates channels (k, k + K) of queries and keys by the angle p w_k: scores depend on differences of p only
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from diffax.nn.checks import per_axis
from diffax.typing import Array, Float


def sincos(grid: tuple[int, ...], dim: int, *, base: int | tuple[int, ...] | None = None) -> Float[Array, "n {dim}"]:
    """The fixed sine-cosine embedding of each grid position.

    Args:
      grid: number of positions along each axis.
      dim: number of channels, even, at least 2 per axis.
      base: the range of p, one int or one for each axis: position i of n has p = i base / n. None for p = i.

    Returns:
      (n, dim), positions in row-major order. The channels of the last axis come first.

    Raises:
      ValueError: if dim is odd or less than 2 per axis, or base does not match the axes.

    Source: MAE and DiT for two axes (He et al. 2022; Peebles & Xie 2023).
    """
    tables, bases = [], _bases(base, len(grid))
    counts = _frequency_counts("channels", dim, len(grid))
    for axis, count in zip(reversed(range(len(grid))), counts, strict=True):
        angles = _angles(grid[axis], count, bases[axis])
        table = np.concatenate([np.sin(angles), np.cos(angles)], -1)
        tables.append(_expand(table, axis, grid))
    return jnp.concatenate(tables, -1).reshape(-1, dim)


def rotary_angles(
    grid: tuple[int, ...], dim: int, *, base: int | tuple[int, ...] | None = None
) -> Float[Array, "n half"]:
    """The rotation angles of each grid position, for `rotate`.

    Args:
      grid: number of positions along each axis.
      dim: number of channels of a head, even, at least 2 per axis. They are divided among the axes, the first axis
        first.
      base: as of `sincos`.

    Returns:
      (n, dim / 2), positions in row-major order.

    Raises:
      ValueError: if dim is odd or less than 2 per axis, or base does not match the axes.

    Source: Su et al. 2021.
    """
    tables, bases = [], _bases(base, len(grid))
    counts = _frequency_counts("channels of a head", dim, len(grid))
    for axis, (size, count) in enumerate(zip(grid, counts, strict=True)):
        tables.append(_expand(_angles(size, count, bases[axis]), axis, grid))
    return jnp.concatenate(tables, -1).reshape(-1, dim // 2)


def rotate(x: Float[Array, "batch n heads d"], angles: Float[Array, "n half"]) -> Float[Array, "batch n heads d"]:
    """Rotate channels (k, k + d/2) of each head by the angles of the token.

    Computed in float32; the result has the dtype of x.
    """
    cos, sin = jnp.cos(angles)[None, :, None], jnp.sin(angles)[None, :, None]
    a, b = jnp.split(x.astype(jnp.float32), 2, -1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1).astype(x.dtype)


def _frequency_counts(name: str, dim: int, axes: int) -> list[int]:
    """The number of frequencies of each axis, dim / 2 in total; the first axes get the remainder of the division."""
    if dim % 2 or dim < 2 * axes:
        raise ValueError(f"{name} must be even and at least {2 * axes} for positions on {axes} axes, got {dim}")
    count, remainder = divmod(dim // 2, axes)
    return [count + (i < remainder) for i in range(axes)]


def _bases(base: int | tuple[int, ...] | None, axes: int) -> tuple[int | None, ...]:
    return (None,) * axes if base is None else per_axis("base", base, axes)


def _angles(size: int, count: int, base: int | None) -> np.ndarray:
    """p w_k, (size, count), in float64."""
    positions = np.arange(size) * (1.0 if base is None else base / size)
    return np.outer(positions, 10_000.0 ** -(np.arange(count) / count))


def _expand(table: np.ndarray, axis: int, grid: tuple[int, ...]) -> Any:
    """Broadcast the table (size, k) of one axis to all grid positions, (*grid, k)."""
    shape = [1] * len(grid) + [table.shape[-1]]
    shape[axis] = grid[axis]
    return jnp.broadcast_to(jnp.asarray(table, jnp.float32).reshape(shape), (*grid, table.shape[-1]))
