"""Precision, recall, density and coverage by balls around the examples; the nearest training example.

r_k(x_i; X) is the distance of x_i to its k-th nearest neighbour in its own set X, itself left out. The balls of these
radii around a set's examples stand for where its law lives:

    precision   the part of the fakes that lie in any ball of the reals (real to the eye)
    recall      the part of the reals that lie in any ball of the fakes (what is produced at all)
    density     in how many balls of the reals a fake lies on average, divided by k: one for one law, it may exceed one
    coverage    the part of the reals with a fake in their ball

All four depend on both counts and on k: compare at equal ones, and beside the values of two sets of real data.
"""

from typing import NamedTuple

import numpy as np

from diffax._checks import check_count
from diffax.metrics._sets import feature_sets, squared_distances
from diffax.typing import Examples, Float


class PrecisionRecall(NamedTuple):
    """Both in [0, 1]."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """Density >= 0, coverage in [0, 1]."""

    density: float
    coverage: float


class Neighbours(NamedTuple):
    """Of each query, (N,): the Euclidean distance of the nearest example, and which it is."""

    distance: Float[np.ndarray, " n"]
    example: np.ndarray


def precision_recall(real: Examples, fake: Examples, *, neighbours: int = 3) -> PrecisionRecall:
    """precision = mean_j max_i 1[|y_j - x_i| <= r_k(x_i; X)], recall the same with X and Y exchanged.

    Args:
      real: (N, D) features x_i, N > neighbours.
      fake: (M, D) features y_j, M > neighbours.
      neighbours: k.

    Raises:
      ValueError: for other shapes, features that are not finite, or too few examples.

    Source: Kynkäänniemi et al. 2019, eqs. 1 and 2.
    """
    real, fake = _sets(real, fake, neighbours)
    real_radii, fake_radii = _squared_radii(real, neighbours), _squared_radii(fake, neighbours)
    precise, recalled = np.zeros(len(fake), bool), np.zeros(len(real), bool)
    for rows, block in squared_distances(real, fake):
        precise |= (block <= real_radii[rows, None]).any(0)
        recalled[rows] = (block <= fake_radii).any(1)
    return PrecisionRecall(float(precise.mean()), float(recalled.mean()))


def density_coverage(real: Examples, fake: Examples, *, neighbours: int = 5) -> DensityCoverage:
    """density = sum_ij 1[|y_j - x_i| < r_k(x_i; X)] / (k M), coverage = mean_i max_j 1[|y_j - x_i| < r_k(x_i; X)].

    For two sets of one law the density is one on average, and the coverage about 1 - 2^-k at N = M.

    Args:
      real: (N, D) features x_i, N > neighbours.
      fake: (M, D) features y_j, M >= 1.
      neighbours: k.

    Raises:
      ValueError: for other shapes, features that are not finite, or too few examples.

    Source: Naeem et al. 2020, eqs. 4 and 6.
    """
    real, fake = _sets(real, fake, neighbours, both=False)
    radii, inside = _squared_radii(real, neighbours), np.zeros(len(real), int)
    for rows, block in squared_distances(real, fake):
        inside[rows] = (block < radii[rows, None]).sum(1)
    return DensityCoverage(float(inside.sum() / (neighbours * len(fake))), float((inside > 0).mean()))


def nearest_neighbours(queries: Examples, reference: Examples) -> Neighbours:
    """min_j |x_i - y_j| and where: with samples and training data, what was memorised.

    Compare with the distances of held-out data to the same reference.

    Args:
      queries: (N, D) features x_i.
      reference: (M, D) features y_j.

    Raises:
      ValueError: for other shapes, or features that are not finite.

    >>> nearest_neighbours([[0.0, 1.0]], [[5.0, 5.0], [0.0, 1.0], [0.0, 2.0]])
    Neighbours(distance=array([0.]), example=array([1]))
    """
    queries, reference = feature_sets(queries=queries, reference=reference)
    index = np.empty(len(queries), int)
    for rows, block in squared_distances(queries, reference):
        index[rows] = block.argmin(1)
    # Again by the difference: a copy's distance is zero, not what rounding left of it.
    return Neighbours(np.linalg.norm(queries - reference[index], axis=1), index)


def _sets(real: Examples, fake: Examples, neighbours: int, *, both: bool = True) -> tuple[np.ndarray, np.ndarray]:
    check_count("neighbours", neighbours)
    real, fake = feature_sets(real=real, fake=fake)
    for name, value in (("real", real), ("fake", fake))[: 1 + both]:
        if len(value) <= neighbours:
            raise ValueError(f"{name} must have more examples than neighbours = {neighbours}, got {len(value)}")
    return real, fake


def _squared_radii(x: Float[np.ndarray, "n d"], k: int) -> Float[np.ndarray, " n"]:
    radii = np.empty(len(x))
    for rows, block in squared_distances(x, x):
        # The k-th after the first, which is the example itself.
        radii[rows] = np.partition(block, k, axis=1)[:, k]
    return radii
