"""Sets of features, (N, D): the checks that all metrics share, and blocks of rows that bound their memory."""

from collections.abc import Iterator

import numpy as np

from diffax.typing import Examples, Float

BLOCK = 2**24  # entries of the largest temporary array: 128 MiB in float64


def feature_set(name: str, value: Examples, *, least: int = 1) -> Float[np.ndarray, "n d"]:
    """`value` as a float64 array on the host.

    Raises:
      ValueError: unless it is (N, D) with N >= least, and finite; names the first entry that is not.

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
    """Raises `ValueError` with the first entry, in C order, that is not finite."""
    finite = np.isfinite(array)
    if not finite.all():
        index = np.unravel_index(np.argmin(finite), finite.shape)
        raise ValueError(f"{name} must be finite, got {array[index]} at {[int(i) for i in index]}")


def feature_sets(*, least: int = 1, **values: Examples) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "m d"]]:
    """Two sets by the names of their arguments, checked as `feature_set` does and for the same D."""
    (name, first), (other, second) = ((k, feature_set(k, v, least=least)) for k, v in values.items())
    check_width(name, first.shape[1], other, second.shape[1])
    return first, second


def check_width(name: str, width: int, other: str, found: int) -> None:
    """Raises `ValueError` unless both sets have as many features."""
    if width != found:
        raise ValueError(f"{other} must have {width} features, as {name} has, got {found}")


def blocks(count: int, width: int) -> Iterator[slice]:
    """Slices over `count` rows, each of at most `BLOCK` entries where a row takes `width`."""
    rows = max(1, BLOCK // width)
    return (slice(start, start + rows) for start in range(0, count, rows))


def squared_distances(
    first: Float[np.ndarray, "n d"], second: Float[np.ndarray, "m d"]
) -> Iterator[tuple[slice, Float[np.ndarray, "rows m"]]]:
    """|x_i - y_j|^2 in blocks of rows: (the rows, (rows, M)).

    By the product x y^T, from an origin at y_0: exact for integers, and sound far from zero.
    """
    first, second = first - second[0], second - second[0]
    norms = np.einsum("nd,nd->n", second, second)
    for rows in blocks(len(first), len(second)):
        x = first[rows]
        found = np.einsum("nd,nd->n", x, x)[:, None] + norms
        found -= 2 * (x @ second.T)
        yield rows, np.maximum(found, 0, out=found)
