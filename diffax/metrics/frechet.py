"""The Fréchet distance between the Gaussian fits of two sets of features."""

from typing import Any

import numpy as np


def _root(features: np.ndarray) -> np.ndarray:
    """R with R^T R the sample covariance: (min(N, D), D), without ever forming the covariance."""
    centred = features - features.mean(0)
    return np.linalg.qr(centred, mode="r") / np.sqrt(len(features) - 1)


def frechet_distance(first: Any, second: Any) -> float:
    """|m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2)), m and C the sample means and covariances.

    With C_i = R_i^T R_i the cross term is the sum of the singular values of R_1 R_2^T: no root of an
    ill-conditioned matrix is taken. The value falls with the number of examples (it is biased upwards), so
    compare at equal counts only, and beside the distance of two sets of real data.

    Args:
      first: (N, D) features, N >= 2.
      second: (M, D) features, M >= 2.

    Raises:
      ValueError: for other shapes, or features that are not finite.

    Source: Dowson & Landau 1982; Heusel et al. 2017, eq. 6.

    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(100, 3))
    >>> round(frechet_distance(x, x + 2.0), 6)
    12.0
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    for name, value in (("first", first), ("second", second)):
        if value.ndim != 2 or len(value) < 2:
            raise ValueError(f"{name} must have shape (N, D) with N >= 2, got {value.shape}")
        if not np.isfinite(value).all():
            raise ValueError(f"{name} must be finite, got {np.argwhere(~np.isfinite(value))[0].tolist()}")
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"second must have {first.shape[1]} features, as first has, got {second.shape[1]}")
    root_1, root_2 = _root(first), _root(second)
    cross = np.linalg.svd(root_1 @ root_2.T, compute_uv=False).sum()
    means = np.sum((first.mean(0) - second.mean(0)) ** 2)
    return float(means + np.sum(root_1**2) + np.sum(root_2**2) - 2 * cross)
