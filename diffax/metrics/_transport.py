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
    """The sliced Wasserstein distance, SW_p = (mean_theta int_0^1 |F_theta^-1(u) - G_theta^-1(u)|^p du)^(1/p).

    The integral over u is exact for any two counts N and M. Use the same key for all sets that are compared with one
    reference: the projections are then the same, which reduces the noise of the comparison.

    Args:
      key: shape (); draws the projections.
      first: (N, D) features.
      second: (M, D) features.
      projections: number of directions theta, >= 1.
      order: p, >= 1.

    Raises:
      ValueError: if a shape is wrong, a feature is not finite, projections < 1, or order < 1.

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
    powers = [
        _wasserstein_1d(theta[rows] @ first.T, theta[rows] @ second.T, order) for rows in blocks(projections, width)
    ]
    return float(np.concatenate(powers).mean() ** (1 / order))


def _wasserstein_1d(
    x: Float[np.ndarray, "rows n"], y: Float[np.ndarray, "rows m"], order: float
) -> Float[np.ndarray, " rows"]:
    """W_p^p of each pair of rows. Both quantile functions are constant between the multiples of 1 / N and 1 / M."""
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
    """The Sinkhorn divergence S_e = OT_e(X, Y) - (OT_e(X, X) + OT_e(Y, Y)) / 2 with cost |x - y|^2.

    It has the unit of W_2^2 and of the Fréchet distance. It is computed by ott-jax in float64 on JAX's default device,
    with matrices of N M, N^2 and M^2 entries.

    Args:
      first: (N, D) features.
      second: (M, D) features.
      epsilon: e, > 0. None for 5 % of the mean squared distance between examples of the second set, which is the same
        for all sets that are compared with it.
      threshold: summed error of the marginals at which the iterations stop, > 0.
      max_iterations: maximum number of iterations, >= 1.

    Raises:
      ImportError: if ott-jax is not installed.
      ValueError: if a shape is wrong, a feature is not finite, epsilon <= 0, or the iterations do not converge.

    Source: Genevay et al. 2018; Feydy et al. 2019, eq. 3.
    """
    first, second = feature_sets(first=first, second=second)
    epsilon = 0.1 * second.var(0).sum() if epsilon is None else epsilon
    check("epsilon", epsilon, Condition("> 0 and finite", lambda e: (e > 0) & np.isfinite(e)))
    check("threshold", threshold, positive)
    check_count("max_iterations", max_iterations)
    # The means contribute exactly |m_x - m_y|^2. Centred sets need far fewer iterations, so add that term at the end.
    means = first.mean(0), second.mean(0)
    x, y = first - means[0], second - means[1]
    # ott-jax relies on JAX's default promotion rules; the caller may have set strict ones.
    dtype_promotion, rank_promotion = jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow")
    with jax.enable_x64(True), jax.default_matmul_precision("highest"), dtype_promotion, rank_promotion:
        value, converged = jax.device_get(_divergence(x, y, float(epsilon), float(threshold), max_iterations))
    if not converged:
        raise ValueError(
            f"max_iterations must suffice for threshold = {threshold} at epsilon = {epsilon:.3g}, got {max_iterations}"
        )
    return float(value) + float(np.sum((means[0] - means[1]) ** 2))


@functools.partial(jax.jit, static_argnames="max_iterations")
def _divergence(x: Tree, y: Tree, epsilon: Scalar, threshold: PerExample, max_iterations: int) -> Any:
    """The divergence, and whether all three problems converged. Compiled once for all epsilons and thresholds."""
    try:
        from ott.geometry.pointcloud import PointCloud
        from ott.tools.sinkhorn_divergence import sinkhorn_divergence as divergence
    except ImportError as error:
        raise ImportError("sinkhorn_divergence needs ott-jax: pip install '.[metrics]'") from error
    settings = {"threshold": threshold, "max_iterations": max_iterations}
    value, output = divergence(PointCloud, x, y, epsilon=epsilon, solve_kwargs=settings)
    return value, jnp.all(jnp.stack(output.converged))
