"""The kernel distance (KID): the squared maximum mean discrepancy (MMD) of two sets of features.

    MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y),   k(x, y) = (x.y / D + 1)^3

Within a set the mean excludes the pairs (x_i, x_i), so the estimate is unbiased: for two sets from one distribution it
is zero on average at any count, and negative in half of the cases or more.
"""

import math
from typing import NamedTuple

import jax
import numpy as np

from diffax._checks import check_count
from diffax.metrics._sets import blocks, feature_sets
from diffax.typing import Examples, Float, Key


class KernelEstimate(NamedTuple):
    """An estimate from disjoint subsets.

    mean: average over the subsets; std: standard deviation over them; stderr: standard error of the mean;
    subsets: their number.
    """

    mean: float
    std: float
    stderr: float
    subsets: int


def kernel_distance(first: Examples, second: Examples) -> float:
    """The unbiased estimate of MMD^2 from all examples.

        sum_(i != j) k(x_i, x_j) / N(N-1) + sum_(i != j) k(y_i, y_j) / M(M-1) - 2 sum_ij k(x_i, y_j) / NM

    Args:
      first: (N, D) features, N >= 2.
      second: (M, D) features, M >= 2.

    Raises:
      ValueError: if a shape is wrong, or a feature is not finite.

    Source: Gretton et al. 2012, eq. 3; Binkowski et al. 2018, section 4.

    >>> kernel_distance([[0.0], [1.0]], [[1.0], [0.0]])
    -3.5
    """
    return _mmd2(*feature_sets(first=first, second=second, least=2))


def kernel_distance_subsets(key: Key, first: Examples, second: Examples, *, size: int = 1000) -> KernelEstimate:
    """The mean of `kernel_distance` over min(N, M) // size pairs of disjoint subsets, with its standard error.

    Disjoint subsets are independent, so std / sqrt(subsets) is the standard error of the mean. Published tables draw
    100 overlapping subsets of 1,000: mean and std agree on average, but std / 10 is not the standard error there.

    Args:
      key: shape (); assigns the examples to subsets.
      first: (N, D) features, N >= 2 size.
      second: (M, D) features, M >= 2 size.
      size: examples per subset and set, >= 2.

    Raises:
      ValueError: if the features are invalid, size < 2, or a set has fewer than 2 size examples.

    Source: Binkowski et al. 2018, section 4; Zaremba et al. 2013 (disjoint blocks).
    """
    first, second = feature_sets(first=first, second=second)
    check_count("size", size, 2)
    for name, value in (("first", first), ("second", second)):
        if len(value) < 2 * size:
            raise ValueError(f"{name} must have at least 2 subsets of size = {size} examples, got {len(value)}")
    subsets = min(len(first), len(second)) // size
    indices = [
        np.asarray(jax.random.permutation(k, len(x)))[: subsets * size].reshape(subsets, size)
        for k, x in zip(jax.random.split(key), (first, second), strict=True)
    ]
    values = [_mmd2(first[i], second[j]) for i, j in zip(*indices, strict=True)]
    std = float(np.std(values, ddof=1))
    return KernelEstimate(float(np.mean(values)), std, std / math.sqrt(subsets), subsets)


def _cubic_kernel(products: np.ndarray, width: int) -> np.ndarray:
    k = products / width + 1
    return k * k * k


def _kernel_sum(first: Float[np.ndarray, "n d"], second: Float[np.ndarray, "m d"]) -> float:
    width = first.shape[1]
    return math.fsum(_cubic_kernel(first[rows] @ second.T, width).sum() for rows in blocks(len(first), len(second)))


def _mean_without_diagonal(x: Float[np.ndarray, "n d"]) -> float:
    diagonal = _cubic_kernel(np.einsum("nd,nd->n", x, x), x.shape[1]).sum()
    return (_kernel_sum(x, x) - float(diagonal)) / (len(x) * (len(x) - 1))


def _mmd2(first: Float[np.ndarray, "n d"], second: Float[np.ndarray, "m d"]) -> float:
    cross = _kernel_sum(first, second) / (len(first) * len(second))
    return _mean_without_diagonal(first) + _mean_without_diagonal(second) - 2 * cross
