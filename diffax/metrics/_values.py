"""Features of any data without a network: values under a fixed projection, and sets of points by their quantiles.

    values      z = x P,              P: (D, W) with P^T P = 1, drawn uniformly
    sets        z_kj = F_k^-1(u_j),   u_j = (j - 1/2) / Q; F_k: distribution of theta_k . x over the points of a set

Distances of z compare with those of x as follows.

    Fréchet, Wasserstein   never larger than that of x, and 0 for equal distributions: a lower bound
    sliced Wasserstein     SW_2^2 of x, on average over P
    squared distances      W / D of those of x, up to a relative error of about sqrt(2 / W); neighbours are kept so far
    kernel distance        x.y / D of its kernel is kept on average over P

For sets, |z - z'|^2 / (K Q) is the squared sliced Wasserstein distance of two sets, on K directions and Q quantiles.

Source: Johnson & Lindenstrauss 1984 (projections); Naderializadeh et al. 2021 (sets of points by sliced quantiles).
"""

import numpy as np

from diffax._checks import check_count
from diffax.metrics._sets import blocks, check_finite
from diffax.typing import Examples, Float


def orthonormal_projection(dimensions: int, width: int, *, seed: int = 0) -> Float[np.ndarray, "d w"]:
    """A matrix (D, W) in float32 with orthonormal columns, distributed uniformly; the same for the same seed.

    Args:
      dimensions: D, >= 1.
      width: W, in [1, D].
      seed: >= 0.

    Raises:
      ValueError: if an argument is out of range.

    >>> p = orthonormal_projection(100, 3)
    >>> bool(np.allclose(p.T @ p, np.eye(3), atol=1e-6))
    True
    """
    check_count("dimensions", dimensions)
    check_count("width", width)
    check_count("seed", seed, 0)
    if width > dimensions:
        raise ValueError(f"width must be at most the {dimensions} dimensions, got {width}")
    orthogonal, upper = np.linalg.qr(np.random.default_rng(seed).normal(size=(dimensions, width)))
    # The signs make the result unique, so that it does not depend on how the decomposition is computed.
    return np.asarray(orthogonal * np.sign(np.diag(upper)), np.float32)


def unit_directions(count: int, dimensions: int, *, seed: int = 0) -> Float[np.ndarray, "k d"]:
    """Directions (K, d) in float32, drawn uniformly from the sphere; the same for the same seed.

    Raises:
      ValueError: if count < 1, dimensions < 1 or seed < 0.
    """
    check_count("count", count)
    check_count("dimensions", dimensions)
    check_count("seed", seed, 0)
    normal = np.random.default_rng(seed).normal(size=(count, dimensions))
    return np.asarray(normal / np.linalg.norm(normal, axis=1, keepdims=True), np.float32)


def set_quantiles(
    points: Examples, directions: Float[np.ndarray, "k d"], quantiles: int, *, mask: Examples | None = None
) -> Float[np.ndarray, "n kq"]:
    """Features (N, K Q) of sets of points: the quantiles of their coordinates along each direction.

    They depend neither on the order of the points nor on what is outside the mask.

    Args:
      points: (N, n, d), N sets of up to n points.
      directions: (K, d) theta, of length 1.
      quantiles: Q, >= 1.
      mask: (N, n), true for the points of a set; None (default) for all. A set without points has features 0.

    Raises:
      ValueError: if a shape is wrong, quantiles < 1, or a point inside the mask is not finite.

    >>> points = np.array([[[3.0], [1.0], [99.0]]])
    >>> set_quantiles(points, np.ones((1, 1)), 2, mask=[[True, True, False]]).tolist()
    [[1.0, 3.0]]
    """
    check_count("quantiles", quantiles)
    x = np.asarray(points)
    if x.ndim != 3 or not x.shape[1] or np.ndim(directions) != 2 or x.shape[-1] != np.shape(directions)[1]:
        raise ValueError(f"points must have shape (N, n, d) for directions (K, d), got {x.shape}")
    inside = np.ones(x.shape[:2], bool) if mask is None else np.asarray(mask, bool)
    if inside.shape != x.shape[:2]:
        raise ValueError(f"mask must have shape {x.shape[:2]}, got {inside.shape}")
    x = np.where(inside[..., None], x, 0)
    check_finite("points", x)
    return np.concatenate(
        [
            _quantiles(x[rows], inside[rows], directions, quantiles)
            for rows in blocks(len(x), x.shape[1] * len(directions))
        ]
    )


def _quantiles(
    x: Float[np.ndarray, "n m d"], inside: np.ndarray, directions: Float[np.ndarray, "k d"], quantiles: int
) -> Float[np.ndarray, "n kq"]:
    along = np.sort(np.where(inside[..., None], x @ directions.T, np.inf), axis=1)
    count = inside.sum(1)
    # floor(u_j n), in integers: the quantile function is constant between the multiples of 1 / n.
    rank = (2 * np.arange(quantiles) + 1) * count[:, None] // (2 * quantiles)
    result = np.take_along_axis(along, rank[..., None], axis=1)
    result[count == 0] = 0
    return np.asarray(result.transpose(0, 2, 1).reshape(len(x), -1))
