"""The Fréchet distance between the Gaussian fits of two sets of features.

    FD = |m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2)),   m and C the sample means and covariances

With C_i = R_i^T R_i, tr (C_1 C_2)^(1/2) is the sum of the singular values of R_1 R_2^T, so that no root of an
ill-conditioned matrix is computed. The estimate is too large by about a / N; `frechet_infinity` removes this bias by
extrapolation.
"""

import math
from typing import NamedTuple

import jax
import numpy as np

from diffax._checks import check_count
from diffax.metrics._sets import check_width, feature_set, feature_sets
from diffax.typing import Examples, Float, Key


class FeatureMoments(NamedTuple):
    """The first two moments of N feature vectors; a pytree.

    examples: N; mean: (D,) m; scatter: (D, D), sum_i (x_i - m) (x_i - m)^T.
    """

    examples: int
    mean: Float[np.ndarray, " d"]
    scatter: Float[np.ndarray, "d d"]


class Extrapolation(NamedTuple):
    """The fitted line value + slope / n, and its data: counts n (points,) and distances FD(n) (points,)."""

    value: float
    slope: float
    counts: np.ndarray
    distances: np.ndarray


class _Fit(NamedTuple):
    """A Gaussian fit. mean: (D,); root: (K, D) R, where R^T R is the sample covariance."""

    mean: np.ndarray
    root: np.ndarray


def frechet_distance(first: Examples, second: Examples, *, allow_few: bool = False) -> float:
    """The Fréchet distance |m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2)) of the Gaussian fits of two sets.

    The bias falls with the number of examples: compare values at equal counts only, and report the distance between two
    sets of real data as a reference. The roots R come from QR decompositions of the centred features, so that the
    covariances are never formed.

    Args:
      first: (N, D) features.
      second: (M, D) features.
      allow_few: False requires N > D and M > D. True allows any count of at least 2; the covariance of D examples or
        fewer is singular.

    Raises:
      ValueError: if a shape is wrong, a feature is not finite, or there are too few examples.

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
      ValueError: if the shape is wrong, or a feature is not finite.
    """
    x = feature_set("features", features)
    mean = x.mean(0)
    return FeatureMoments(len(x), mean, (x - mean).T @ (x - mean))


def merge(first: FeatureMoments, second: FeatureMoments) -> FeatureMoments:
    """The moments of the union of two sets. The result is independent of order and grouping, up to rounding.

        m = m_1 + (N_2 / N) d,   S = S_1 + S_2 + (N_1 N_2 / N) d d^T,   d = m_2 - m_1,   N = N_1 + N_2

    Source: Chan, Golub & LeVeque 1979.

    Raises:
      ValueError: if the sets have different numbers of features.

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
    """`frechet_distance` of two sets, computed from their moments.

    The roots R come from the eigendecompositions of the covariances. An eigenvalue below D eps times the largest one
    is set to zero; eps = 2.2e-16.

    Args:
      first: moments of the first set, in D features.
      second: moments of the second set, in D features.
      allow_few: as of `frechet_distance`.

    Raises:
      ValueError: if the numbers of features differ, a moment is not finite, or there are too few examples.
    """
    check_width("first", len(first.mean), "second", len(second.mean))
    for name, value in (("first", first), ("second", second)):
        _check_enough(name, value.examples, len(value.mean), allow_few)
        feature_set(f"{name}.mean", np.asarray(value.mean)[None])
        feature_set(f"{name}.scatter", value.scatter)
    return _distance(_fit_from_moments(first), _fit_from_moments(second))


def frechet_infinity(
    key: Key, first: Examples, second: Examples, *, points: int = 15, smallest: int | None = None, both: bool = False
) -> Extrapolation:
    """The Fréchet distance for infinitely many examples: FD(n) = value + slope / n, by least squares.

    FD(n) is the distance for a random subset of n of the N examples. The n are evenly spaced from `smallest` to N.

    Args:
      key: shape (); draws the subsets.
      first: (N, D) features.
      second: (M, D) features.
      points: number of counts n, >= 2.
      smallest: the smallest n, > D; with `both`, n M / N > D too. None for N // 10, or about twice the minimum if that
        is larger.
      both: False uses all of the second set at each point, so that the bias of its M examples remains. True draws a
        subset of n M / N of them, so that this bias is removed too.

    Raises:
      ValueError: if the features are invalid, points < 2, or there are too few examples for two different n.

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
    second_fit = _fit(second)
    distances = []
    for i, count in enumerate(counts.tolist()):
        first_key, second_key = jax.random.split(jax.random.fold_in(key, i))
        if both:
            second_fit = _fit(_subset(second_key, second, round(count * m / n)))
        distances.append(_distance(_fit(_subset(first_key, first, count)), second_fit))
    slope, value = np.polyfit(1 / counts, distances, 1)
    return Extrapolation(float(value), float(slope), counts, np.array(distances))


def _subset(key: Key, features: np.ndarray, count: int) -> np.ndarray:
    subset: np.ndarray = features[np.asarray(jax.random.permutation(key, len(features)))[:count]]
    return subset


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


def _fit_from_moments(value: FeatureMoments) -> _Fit:
    variances, axes = np.linalg.eigh(np.asarray(value.scatter, np.float64) / (int(value.examples) - 1))
    # Rounding turns a zero eigenvalue into about eps times the largest, whose root is not negligible: set it to zero.
    variances[variances < variances[-1] * len(variances) * np.finfo(float).eps] = 0
    return _Fit(np.asarray(value.mean, np.float64), np.sqrt(variances)[:, None] * axes.T)


def _distance(first: _Fit, second: _Fit) -> float:
    cross = np.linalg.svd(first.root @ second.root.T, compute_uv=False).sum()
    means = np.sum((first.mean - second.mean) ** 2)
    return float(means + np.sum(first.root**2) + np.sum(second.root**2) - 2 * cross)
