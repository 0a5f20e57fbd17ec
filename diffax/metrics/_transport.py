"""Optimal transport between two sets of features: the sliced Wasserstein distance and the Sinkhorn divergence.

W_p^p(X, Y)  = min_P sum_ij P_ij |x_i - y_j|^p               P: (N, M) >= 0, row sums 1 / N, column sums 1 / M
SW_p         = (E_theta W_p^p(X theta, Y theta))^(1/p)       theta uniform on the sphere; in one dimension W_p is
                                                             that of the quantile functions
OT_e(X, Y)   = min_P sum_ij P_ij |x_i - y_j|^2 + e KL(P | 1 / NM)
S_e          = OT_e(X, Y) - (OT_e(X, X) + OT_e(Y, Y)) / 2    zero for equal sets; e -> 0: W_2^2
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffax._checks import Condition, check, check_count, positive
from diffax.metrics._sets import blocks, feature_sets
from diffax.typing import Examples, Float, Key, PerExample, Scalar, Tree


def sliced_wasserstein(
    key: Key, first: Examples, second: Examples, *, projections: int = 500, order: float = 2.0
) -> float:
    """SW_p = (mean_theta int_0^1 |F_theta^-1(u) - G_theta^-1(u)|^p du)^(1/p), the integral exact for any two counts.

    The same key gives the same projections, so that values of several sets against one are compared with less noise.

    Args:
      key: shape (); draws the projections.
      first: (N, D) features.
      second: (M, D) features.
      projections: how many theta.
      order: p >= 1.

    Raises:
      ValueError: for other shapes, features that are not finite, no projection, or order < 1.

    Source: Rabin et al. 2011; Bonneel et al. 2015.

    >>> x = np.random.default_rng(0).normal(size=(10, 1))
    >>> round(sliced_wasserstein(jax.random.key(0), x, x + 3.0), 6)
    3.0
    """
    first, second = feature_sets(first=first, second=second)
    check_count("projections", projections)
    check("order", order, Condition(">= 1 and finite", lambda p: (p >= 1) & np.isfinite(p)))
    theta = np.asarray(jax.random.normal(key, (projections, first.shape[1]), "float32"), np.float64)
    theta /= np.linalg.norm(theta, axis=1, keepdims=True)
    width = len(first) + len(second)
    powers = [_line(theta[rows] @ first.T, theta[rows] @ second.T, order) for rows in blocks(projections, width)]
    return float(np.concatenate(powers).mean() ** (1 / order))


def _line(x: Float[np.ndarray, "rows n"], y: Float[np.ndarray, "rows m"], order: float) -> Float[np.ndarray, " rows"]:
    """W_p^p of each pair of rows: both quantile functions are constant between the multiples of 1 / N and 1 / M."""
    n, m = x.shape[1], y.shape[1]
    ends = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)
    x, y = np.sort(x, 1)[:, (ends - 1) // m], np.sort(y, 1)[:, (ends - 1) // n]
    powers: np.ndarray = np.abs(x - y) ** order @ (np.diff(ends, prepend=0) / (n * m))
    return powers


def sinkhorn_divergence(
    first: Examples,
    second: Examples,
    *,
    epsilon: float | None = None,
    threshold: float = 1e-6,
    max_iterations: int = 10_000,
) -> float:
    """S_e = OT_e(X, Y) - (OT_e(X, X) + OT_e(Y, Y)) / 2, cost |x - y|^2, in float64 on JAX's default device.

    Its unit is that of W_2^2 and of the Fréchet distance. Holds matrices of N M, N^2 and M^2 entries. Needs ott-jax.

    Args:
      first: (N, D) features.
      second: (M, D) features.
      epsilon: e; if not given, 5 % of the mean squared distance between examples of the second set, which is then
        the same for all sets that are compared with it.
      threshold: the sum of what the marginals are off by, at which the iterations end.
      max_iterations: how many there may be.

    Raises:
      ImportError: if ott-jax is missing.
      ValueError: for other shapes, features that are not finite, epsilon <= 0, or no convergence.

    Source: Genevay et al. 2018; Feydy et al. 2019, eq. 3.
    """
    first, second = feature_sets(first=first, second=second)
    epsilon = 0.1 * second.var(0).sum() if epsilon is None else epsilon
    check("epsilon", epsilon, Condition("> 0 and finite", lambda e: (e > 0) & np.isfinite(e)))
    check("threshold", threshold, positive)
    check_count("max_iterations", max_iterations)
    # Of the means alone the cost is |m_x - m_y|^2, exactly; without them far fewer iterations are needed.
    means = first.mean(0), second.mean(0)
    x, y = first - means[0], second - means[1]
    # ott-jax relies on JAX's standard promotion.
    standard = jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow")
    with jax.enable_x64(True), jax.default_matmul_precision("highest"), standard[0], standard[1]:
        value, converged = jax.device_get(_divergence(x, y, float(epsilon), float(threshold), max_iterations))
    if not converged:
        raise ValueError(
            f"max_iterations must do for threshold = {threshold} at epsilon = {epsilon:.3g}, got {max_iterations}"
        )
    return float(value) + float(np.sum((means[0] - means[1]) ** 2))


@functools.partial(jax.jit, static_argnames="max_iterations")
def _divergence(x: Tree, y: Tree, epsilon: Scalar, threshold: PerExample, max_iterations: int) -> Any:
    """The divergence, and whether all three problems converged. One compile for all epsilon and thresholds."""
    try:
        from ott.geometry.pointcloud import PointCloud
        from ott.tools.sinkhorn_divergence import sinkhorn_divergence as divergence
    except ImportError as error:
        raise ImportError("sinkhorn_divergence needs ott-jax: pip install '.[metrics]'") from error
    settings = {"threshold": threshold, "max_iterations": max_iterations}
    value, found = divergence(PointCloud, x, y, epsilon=epsilon, solve_kwargs=settings)
    return value, jnp.all(jnp.stack(found.converged))
