"""The Fréchet distance between the Gaussian fits of two sets of features.

    FD = |m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2)),   m and C the sample means and covariances

With C_i = R_i^T R_i the cross term is the sum of the singular values of R_1 R_2^T: no root of an ill-conditioned
matrix is taken. The estimate is biased upwards, by about a / N: `frechet_infinity` extrapolates it.
"""

import math
from typing import NamedTuple

import jax
import numpy as np

from diffax._checks import check_count
from diffax.metrics._sets import check_width, feature_set, feature_sets
from diffax.typing import Examples, Float, Key


class FeatureMoments(NamedTuple):
    """Mean (D,), scatter (D, D) = sum_i (x_i - m) (x_i - m)^T and number of some examples' features; a pytree."""

    examples: int
    mean: Float[np.ndarray, " d"]
    scatter: Float[np.ndarray, "d d"]


class Extrapolation(NamedTuple):
    """The line value + slope / N through the distances at these counts; distances and counts: (points,)."""

    value: float
    slope: float
    counts: np.ndarray
    distances: np.ndarray


class _Fit(NamedTuple):
    """Mean (D,), and R (K, D) with R^T R the sample covariance."""

    mean: np.ndarray
    root: np.ndarray


def frechet_distance(first: Examples, second: Examples, *, allow_few: bool = False) -> float:
    """|m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2)), m and C the sample means and covariances.

    The value falls with the number of examples, so compare at equal counts only, and beside the distance of two sets
    of real data. The roots R are those of QR decompositions of the features: the covariances are never formed.

    Args:
      first: (N, D) features.
      second: (M, D) features.
      allow_few: whether D examples or fewer will do, with covariances that are singular; two are the least.

    Raises:
      ValueError: for other shapes, features that are not finite, or too few examples.

    Source: Dowson & Landau 1982; Heusel et al. 2017, eq. 6.

    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(100, 3))
    >>> round(frechet_distance(x, x + 2.0), 6)
    12.0
    """
    first, second = feature_sets(first=first, second=second, least=2)
    for name, value in (("first", first), ("second", second)):
        _check_enough(name, len(value), value.shape[1], allow_few)
    return _distance(_fit(first), _fit(second))


def moments(features: Examples) -> FeatureMoments:
    """The moments of one chunk of features (N, D), N >= 1, in float64 on the host.

    Raises:
      ValueError: for other shapes, or features that are not finite.
    """
    x = feature_set("features", features)
    mean = x.mean(0)
    return FeatureMoments(len(x), mean, (x - mean).T @ (x - mean))


def merge(first: FeatureMoments, second: FeatureMoments) -> FeatureMoments:
    """The moments of both sets together. Any order and grouping gives the same, but for rounding.

        m = m_1 + (N_2 / N) d,   S = S_1 + S_2 + (N_1 N_2 / N) d d^T,   d = m_2 - m_1,   N = N_1 + N_2

    Source: Chan, Golub & LeVeque 1979.

    Raises:
      ValueError: if they have different numbers of features.

    >>> import functools
    >>> chunks = np.arange(30.0).reshape(5, 3, 2)
    >>> functools.reduce(merge, map(moments, chunks)).mean
    array([14., 15.])
    """
    check_width("first", len(first.mean), "second", len(second.mean))
    count = int(first.examples) + int(second.examples)
    gap = np.subtract(second.mean, first.mean, dtype=np.float64)
    mean = first.mean + gap * (second.examples / count)
    cross = np.outer(gap, gap) * (first.examples * (second.examples / count))
    return FeatureMoments(count, mean, first.scatter + second.scatter + cross)


def frechet_from_moments(first: FeatureMoments, second: FeatureMoments, *, allow_few: bool = False) -> float:
    """`frechet_distance` of two sets of which only the moments are known.

    The roots R come from the eigenvectors of the covariances; variances below D 2e-16 of the largest count as zero.

    Args:
      first: moments of the one set, in D features.
      second: moments of the other.
      allow_few: whether counts of D or less will do; two are the least.

    Raises:
      ValueError: for different numbers of features, moments that are not finite, or too few examples.
    """
    check_width("first", len(first.mean), "second", len(second.mean))
    for name, value in (("first", first), ("second", second)):
        _check_enough(name, value.examples, len(value.mean), allow_few)
        feature_set(f"{name}.mean", np.asarray(value.mean)[None])
        feature_set(f"{name}.scatter", value.scatter)
    return _distance(_fit_of_moments(first), _fit_of_moments(second))


def frechet_infinity(
    key: Key, first: Examples, second: Examples, *, points: int = 15, smallest: int | None = None, both: bool = False
) -> Extrapolation:
    """The Fréchet distance for infinitely many examples: FD(n) = value + slope / n, by least squares.

    FD(n) is that of a random choice of n of the N examples; n goes in even steps from `smallest` to N.

    Args:
      key: shape (); chooses the examples.
      first: (N, D) features.
      second: (M, D) features, all of them used at each point: what bias their count gives stays.
      points: how many n.
      smallest: the first n, more than D, and with `both` n M / N is to be more than D too; if not given, N // 10 or
        about twice the least.
      both: whether to take n M / N of the second set too, so that its bias goes as well.

    Raises:
      ValueError: for bad features, fewer than 2 points, or too few examples for two different n.

    Source: Chong & Forsyth 2020, section 3 (`both` = False).
    """
    first, second = feature_sets(first=first, second=second, least=2)
    check_count("points", points, 2)
    (n, width), m = first.shape, len(second)
    _check_enough("second", m, width, False)
    least = math.ceil((width + 1) * max(1.0, n / m)) if both else width + 1
    smallest = max(n // 10, 2 * least - 2) if smallest is None else smallest
    check_count("smallest", smallest, least)
    if smallest >= n:
        raise ValueError(f"first must have more examples than smallest = {smallest}, got {n}")
    counts = np.unique(np.linspace(smallest, n, points).round().astype(int))
    whole = _fit(second)
    distances = []
    for i, count in enumerate(counts.tolist()):
        keys = jax.random.split(jax.random.fold_in(key, i))
        other = _fit(_choose(keys[1], second, round(count * m / n))) if both else whole
        distances.append(_distance(_fit(_choose(keys[0], first, count)), other))
    slope, value = np.polyfit(1 / counts, distances, 1)
    return Extrapolation(float(value), float(slope), counts, np.array(distances))


def _choose(key: Key, features: np.ndarray, count: int) -> np.ndarray:
    chosen: np.ndarray = features[np.asarray(jax.random.permutation(key, len(features)))[:count]]
    return chosen


def _check_enough(name: str, count: int, width: int, allow_few: bool) -> None:
    if count < 2:
        raise ValueError(f"{name} must have at least 2 examples, got {count}")
    if count <= width and not allow_few:
        raise ValueError(
            f"{name} must have more examples than its {width} features (or pass allow_few=True), got {count}"
        )


def _fit(features: np.ndarray) -> _Fit:
    mean = features.mean(0)
    return _Fit(mean, np.linalg.qr(features - mean, mode="r") / np.sqrt(len(features) - 1))


def _fit_of_moments(value: FeatureMoments) -> _Fit:
    variances, axes = np.linalg.eigh(np.asarray(value.scatter, np.float64) / (int(value.examples) - 1))
    # What rounding left of zero would count by its root.
    variances[variances < variances[-1] * len(variances) * np.finfo(float).eps] = 0
    return _Fit(np.asarray(value.mean, np.float64), np.sqrt(variances)[:, None] * axes.T)


def _distance(first: _Fit, second: _Fit) -> float:
    cross = np.linalg.svd(first.root @ second.root.T, compute_uv=False).sum()
    means = np.sum((first.mean - second.mean) ** 2)
    return float(means + np.sum(first.root**2) + np.sum(second.root**2) - 2 * cross)
