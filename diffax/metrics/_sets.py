"""Sets of features, (N, D): shared checks, and iteration in blocks of rows to bound the memory."""

from collections.abc import Iterator

import numpy as np

from diffax.typing import Examples, Float

BLOCK = 2**24  # maximum number of entries of a temporary array, 128 MiB in float64


def feature_set(name: str, value: Examples, *, least: int = 1) -> Float[np.ndarray, "n d"]:
    """`value` as a float64 array on the host.

    Raises:
      ValueError: if the shape is not (N, D) with N >= least and D >= 1, or an entry is not finite. The message shows
        the first such entry.

    >>> feature_set("first", [[0.0, float("nan")]])
    Traceback (most recent call last):
    ...
    ValueError: first must be finite, got nan at [0, 1]
    """
    array = np.asarray(value, np.float64)
    if array.ndim != 2 or len(array) < least or not array.shape[1]:
        raise ValueError(f"{name} must have shape (N, D) with N >= {least}, got {array.shape}")
    check_finite(name, array)
    return array


def check_finite(name: str, array: np.ndarray) -> None:
    """Raise `ValueError` if an entry is not finite; the message shows the first one, in C order."""
    finite = np.isfinite(array)
    if not finite.all():
        index = np.unravel_index(np.argmin(finite), finite.shape)
        raise ValueError(f"{name} must be finite, got {array[index]} at {[int(i) for i in index]}")


def feature_sets(*, least: int = 1, **values: Examples) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "m d"]]:
    """`feature_set` of two sets, given by argument name, which must have the same D."""
    (name, first), (other, second) = ((k, feature_set(k, v, least=least)) for k, v in values.items())
    check_width(name, first.shape[1], other, second.shape[1])
    return first, second


def check_width(name: str, width: int, other: str, other_width: int) -> None:
    """Raise `ValueError` unless both sets have the same number of features."""
    if width != other_width:
        raise ValueError(f"{other} must have {width} features, as {name} has, got {other_width}")


def blocks(count: int, width: int) -> Iterator[slice]:
    """Slices of `count` rows of `width` entries, in blocks of at most `BLOCK` entries but at least one row."""
    rows = max(1, BLOCK // width)
    return (slice(start, start + rows) for start in range(0, count, rows))


def squared_distances(
    first: Float[np.ndarray, "n d"], second: Float[np.ndarray, "m d"]
) -> Iterator[tuple[slice, Float[np.ndarray, "rows m"]]]:
    """|x_i - y_j|^2 in blocks of rows: yields (the slice of rows i, the (rows, M) distances).

    Computed as |x|^2 + |y|^2 - 2 x.y after a shift of the origin to y_0. The result is exact for integer features, and
    the shift avoids cancellation for features far from zero.
    """
    first, second = first - second[0], second - second[0]
    norms = np.einsum("nd,nd->n", second, second)
    for rows in blocks(len(first), len(second)):
        x = first[rows]
        distances = np.einsum("nd,nd->n", x, x)[:, None] + norms
        distances -= 2 * (x @ second.T)
        yield rows, np.maximum(distances, 0, out=distances)
