"""Precision, recall, density and coverage from nearest-neighbour balls; the nearest training example of a sample.

r_k(x_i; X) is the distance of x_i to its k-th nearest neighbour in its own set X, without x_i itself. The union of the
balls with these radii around the examples of a set estimates the support of its distribution:

    precision   fraction of the fakes that are in at least one ball of the reals (sample fidelity)
    recall      fraction of the reals that are in at least one ball of the fakes (sample diversity)
    density     mean number of balls of the reals that contain a fake, over k: 1 for equal distributions, may exceed 1
    coverage    fraction of the reals whose ball contains a fake

All four depend on k and on both counts. Compare values at equal k and counts only, and report the values for two sets
of real data as a reference.
"""

from typing import NamedTuple

import numpy as np

from diffax._checks import check_count
from diffax.metrics._sets import feature_sets, squared_distances
from diffax.typing import Examples, Float


class PrecisionRecall(NamedTuple):
    """Precision and recall, both in [0, 1]."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """Density, >= 0, and coverage, in [0, 1]."""

    density: float
    coverage: float


class Neighbours(NamedTuple):
    """The nearest reference example of each query. distance: (N,) Euclidean; example: (N,) its index."""

    distance: Float[np.ndarray, " n"]
    example: np.ndarray


def precision_recall(real: Examples, fake: Examples, *, neighbours: int = 3) -> PrecisionRecall:
    """Improved precision and recall.

        precision = mean_j max_i 1[|y_j - x_i| <= r_k(x_i; X)],   recall the same with X and Y exchanged

    Args:
      real: (N, D) features x_i, N > neighbours.
      fake: (M, D) features y_j, M > neighbours.
      neighbours: k, >= 1.

    Raises:
      ValueError: if a shape is wrong, a feature is not finite, or there are too few examples.

    Source: Kynkäänniemi et al. 2019, eqs. 1 and 2.
    """
    real, fake = _checked_sets(real, fake, neighbours)
    real_radii, fake_radii = _squared_radii(real, neighbours), _squared_radii(fake, neighbours)
    precise, recalled = np.zeros(len(fake), bool), np.zeros(len(real), bool)
    for rows, block in squared_distances(real, fake):
        precise |= (block <= real_radii[rows, None]).any(0)
        recalled[rows] = (block <= fake_radii).any(1)
    return PrecisionRecall(float(precise.mean()), float(recalled.mean()))


def density_coverage(real: Examples, fake: Examples, *, neighbours: int = 5) -> DensityCoverage:
    """Density and coverage.

        density = sum_ij 1[|y_j - x_i| < r_k(x_i; X)] / (k M),   coverage = mean_i max_j 1[|y_j - x_i| < r_k(x_i; X)]

    For two sets from one distribution the density is 1 on average, and the coverage about 1 - 2^-k at N = M.

    Args:
      real: (N, D) features x_i, N > neighbours.
      fake: (M, D) features y_j, M >= 1.
      neighbours: k, >= 1.

    Raises:
      ValueError: if a shape is wrong, a feature is not finite, or there are too few examples.

    Source: Naeem et al. 2020, eqs. 4 and 6.
    """
    real, fake = _checked_sets(real, fake, neighbours, both=False)
    radii, counts = _squared_radii(real, neighbours), np.zeros(len(real), int)
    for rows, block in squared_distances(real, fake):
        counts[rows] = (block < radii[rows, None]).sum(1)
    return DensityCoverage(float(counts.sum() / (neighbours * len(fake))), float((counts > 0).mean()))


def nearest_neighbours(queries: Examples, reference: Examples) -> Neighbours:
    """The nearest reference example of each query, argmin_j |x_i - y_j|, and its distance.

    To detect memorised training data, pass samples as queries and the training set as reference. Compare the distances
    with those of held-out data to the same reference.

    Args:
      queries: (N, D) features x_i.
      reference: (M, D) features y_j.

    Raises:
      ValueError: if a shape is wrong, or a feature is not finite.

    >>> nearest_neighbours([[0.0, 1.0]], [[5.0, 5.0], [0.0, 1.0], [0.0, 2.0]])
    Neighbours(distance=array([0.]), example=array([1]))
    """
    queries, reference = feature_sets(queries=queries, reference=reference)
    index = np.empty(len(queries), int)
    for rows, block in squared_distances(queries, reference):
        index[rows] = block.argmin(1)
    # Recompute the distances from the differences: exactly zero for copies, where |x|^2 + |y|^2 - 2 x.y is rounded.
    return Neighbours(np.linalg.norm(queries - reference[index], axis=1), index)


def _checked_sets(
    real: Examples, fake: Examples, neighbours: int, *, both: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    check_count("neighbours", neighbours)
    real, fake = feature_sets(real=real, fake=fake)
    for name, value in (("real", real), ("fake", fake))[: 1 + both]:
        if len(value) <= neighbours:
            raise ValueError(f"{name} must have more examples than neighbours = {neighbours}, got {len(value)}")
    return real, fake


def _squared_radii(x: Float[np.ndarray, "n d"], k: int) -> Float[np.ndarray, " n"]:
    radii = np.empty(len(x))
    for rows, block in squared_distances(x, x):
        # Entry 0 of the sorted row is the distance of the example to itself, so entry k is its k-th neighbour.
        radii[rows] = np.partition(block, k, axis=1)[:, k]
    return radii
