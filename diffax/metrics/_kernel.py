"""The kernel distance (KID): the squared maximum mean discrepancy of two sets of features.

    MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y),   k(x, y) = (x.y / D + 1)^3

The means over different examples of a set are unbiased, so that the estimate is zero on average for two sets of one
law, at any count, and below zero half of the time or more.
"""

import math
from typing import NamedTuple

import jax
import numpy as np

from diffax._checks import check_count
from diffax.metrics._sets import blocks, feature_sets
from diffax.typing import Examples, Float, Key


class KernelEstimate(NamedTuple):
    """Mean over disjoint subsets, standard deviation among them, standard error of the mean, how many there were."""

    mean: float
    std: float
    stderr: float
    subsets: int


def kernel_distance(first: Examples, second: Examples) -> float:
    """sum_(i != j) k(x_i, x_j) / N(N-1) + sum_(i != j) k(y_i, y_j) / M(M-1) - 2 sum_ij k(x_i, y_j) / NM.

    Args:
      first: (N, D) features, N >= 2.
      second: (M, D) features, M >= 2.

    Raises:
      ValueError: for other shapes, or features that are not finite.

    Source: Gretton et al. 2012, eq. 3; Binkowski et al. 2018, section 4.

    >>> kernel_distance([[0.0], [1.0]], [[1.0], [0.0]])
    -3.5
    """
    return _mmd2(*feature_sets(first=first, second=second, least=2))


def kernel_distance_subsets(key: Key, first: Examples, second: Examples, *, size: int = 1000) -> KernelEstimate:
    """`kernel_distance` of as many disjoint pairs of subsets as there are, with its standard error.

    Disjoint subsets are independent, so that std / sqrt(subsets) is the error of the mean. Published tables draw 100
    subsets of 1,000 that overlap: the same mean and std on average, but their std / 10 is not the error.

    Args:
      key: shape (); deals the examples out to the subsets.
      first: (N, D) features.
      second: (M, D) features.
      size: examples of each set in a subset.

    Raises:
      ValueError: for bad features, a size below 2, or fewer than 2 size examples in a set.

    Source: Binkowski et al. 2018, section 4; Zaremba et al. 2013 (disjoint blocks).
    """
    first, second = feature_sets(first=first, second=second)
    check_count("size", size, 2)
    for name, value in (("first", first), ("second", second)):
        if len(value) < 2 * size:
            raise ValueError(f"{name} must have at least 2 subsets of size = {size} examples, got {len(value)}")
    subsets = min(len(first), len(second)) // size
    orders = [
        np.asarray(jax.random.permutation(k, len(x)))[: subsets * size].reshape(subsets, size)
        for k, x in zip(jax.random.split(key), (first, second), strict=True)
    ]
    values = [_mmd2(first[i], second[j]) for i, j in zip(*orders, strict=True)]
    std = float(np.std(values, ddof=1))
    return KernelEstimate(float(np.mean(values)), std, std / math.sqrt(subsets), subsets)


def _cube(products: np.ndarray, width: int) -> np.ndarray:
    k = products / width + 1
    return k * k * k


def _sum(first: Float[np.ndarray, "n d"], second: Float[np.ndarray, "m d"]) -> float:
    width = first.shape[1]
    return math.fsum(_cube(first[rows] @ second.T, width).sum() for rows in blocks(len(first), len(second)))


def _mean_of_different(x: Float[np.ndarray, "n d"]) -> float:
    own = _cube(np.einsum("nd,nd->n", x, x), x.shape[1]).sum()
    return (_sum(x, x) - float(own)) / (len(x) * (len(x) - 1))


def _mmd2(first: Float[np.ndarray, "n d"], second: Float[np.ndarray, "m d"]) -> float:
    cross = _sum(first, second) / (len(first) * len(second))
    return _mean_of_different(first) + _mean_of_different(second) - 2 * cross
