"""The exact posterior of Gaussian and mixture priors under a linear measurement, a reference for every method.

    y = A x0 + std n,   x0 ~ sum_k w_k N(m_k, C_k),   A = U diag(c) V^T
    x0 | y ~ sum_k w'_k N(m'_k, C'_k)

    S_k = A C_k A^T + std^2 I
    m'_k = m_k + C_k A^T S_k^-1 (y - A m_k)
    C'_k = C_k - C_k A^T S_k^-1 A C_k
    w'_k ~ w_k N(y; A m_k, S_k)

The computation uses the singular value decomposition of A and leaves out the zero singular values, so that A may be
rank-deficient and std may be 0.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffax import random
from diffax._checks import check, non_negative
from diffax._pytrees import float_fields, pytree
from diffax.analytic import CLEAN, Gaussian, Mixture
from diffax.inverse._operators import Mask, Operator
from diffax.typing import Array, Denoiser, Key, Leaf, Level, PerExample, Schedule, Tree


@pytree
class GaussianMixture:
    """sum_k w_k N(m_k, C_k) with full covariances: the posterior of a mixture under a linear measurement.

    weights: (K,), of sum 1. components: a `Gaussian` whose fields have a leading axis K. States are (..., D).
    """

    weights: Any
    components: Any

    def __post_init__(self) -> None:
        float_fields(self)

    def _log_joint(self, x: Tree, level: Level) -> Any:
        """(K, ...) log of w_k N_k(x)."""
        log_probs = jax.vmap(lambda component: component.log_prob(x, level))(self.components)
        weights = jnp.asarray(self.weights)
        return log_probs + jnp.log(weights).reshape(-1, *[1] * (log_probs.ndim - 1))

    def log_prob(self, x: Tree, level: Level = CLEAN) -> Array:
        """log p_t(x) in nats, shape (...)."""
        return jax.nn.logsumexp(self._log_joint(x, level), 0)

    def denoise(self, x: Tree, level: Level) -> Array:
        """E[x0 | x] at this level."""
        gamma = jax.nn.softmax(self._log_joint(x, level), 0)
        return jnp.sum(gamma[..., None] * jax.vmap(lambda component: component.denoise(x, level))(self.components), 0)

    def sample(self, key: Key, n: int) -> Array:
        """(n, D) draws of x0. The key is consumed."""
        keys = random.per_example(random.stream(key, "GaussianMixture.sample"), n)
        logits = jnp.log(jnp.asarray(self.weights))
        k = jax.vmap(lambda key: jax.random.categorical(key, logits))(random.fold_in(keys, 0))
        component = jax.tree.map(lambda v: jnp.asarray(v)[k], self.components)
        eps = random.noise(random.fold_in(keys, 1), jax.ShapeDtypeStruct(component.mean.shape, component.mean.dtype))
        z = jnp.sqrt(component.variances) * eps
        x0: Array = component.mean + jnp.einsum("nij,nj->ni", component.basis, z, precision="highest")
        return x0

    def denoiser(self, schedule: Schedule) -> Denoiser:
        """denoise(x, t) for this schedule."""
        return lambda x, t: self.denoise(x, schedule(t))


def posterior(prior: Gaussian | Mixture, operator: Operator, y: Tree, *, std: PerExample) -> Gaussian | GaussianMixture:
    """The exact distribution of x0 given y = A x0 + std n.

    Its denoiser is E[x0 | x_t, y], so any sampler with this denoiser samples the posterior. NumPy computes it in
    float64: no argument may be traced.

    Args:
      prior: the distribution of x0, in D dimensions.
      operator: an operator on (B, D).
      y: (1, ...), one measurement; its component outside the range of A is ignored.
      std: (), >= 0; with 0, the prior's covariance must not vanish in the range of A.

    Returns:
      A `Gaussian` for a `Gaussian` prior, a `GaussianMixture` for a `Mixture`.

    Raises:
      ValueError: if y does not have the shape of the operator's measurements of the prior's x0, std < 0, or the prior
        is neither a `Gaussian` nor a `Mixture`.

    >>> from diffax.inverse import Mask
    >>> prior = Gaussian.from_covariance([0.0, 0.0], [[1.0, 0.5], [0.5, 1.0]])
    >>> exact = posterior(prior, Mask(jnp.array([1, 0])), jnp.array([[2.0, 0.0]]), std=0.0)
    >>> moments(exact)[0].round(4).tolist(), moments(exact)[1].round(4).tolist()
    ([2.0, 1.0], [[0.0, 0.0], [0.0, 0.75]])
    """
    check("std", std, non_negative)
    operator.check(y)
    if not isinstance(prior, (Gaussian, Mixture)):
        raise ValueError(f"prior must be a Gaussian or a Mixture, got {type(prior).__name__}")
    if np.shape(y)[0] != 1:
        raise ValueError(f"y must be one measurement, of shape (1, ...), got {np.shape(y)}")
    mean = prior.mean if isinstance(prior, Gaussian) else prior.means[0]
    _check_fits(operator, mean, y)
    rows, values = _rows(operator, mean, y)
    if isinstance(prior, Gaussian):
        mean, covariance, _ = _condition(*moments(prior), rows, values, float(std))
        return Gaussian.from_covariance(mean, covariance)
    means, weights = np.asarray(prior.means, np.float64), np.asarray(prior.weights, np.float64)
    variances = np.broadcast_to(np.asarray(prior.std, np.float64), weights.shape) ** 2
    conditioned = [
        _condition(m, v * np.eye(len(m)), rows, values, float(std)) for m, v in zip(means, variances, strict=True)
    ]
    log_weights = np.log(weights) + [result[2] for result in conditioned]
    weights = np.exp(log_weights - log_weights.max())
    components = [Gaussian.from_covariance(mean, covariance) for mean, covariance, _ in conditioned]
    return GaussianMixture(weights / weights.sum(), jax.tree.map(lambda *v: np.stack(v), *components))


def _check_fits(operator: Operator, mean: Tree, y: Tree) -> None:
    """Raise `ValueError` unless y has the shape of the operator's measurement of one x0 like the prior's mean."""
    try:
        measured = jax.eval_shape(operator.forward, jnp.asarray(mean)[None]).shape
    except (TypeError, ValueError):
        measured = None
    if measured != np.shape(y):
        raise ValueError(f"y must be a measurement of x0 of the prior's shape {np.shape(mean)}, got {np.shape(y)}")


def moments(distribution: Gaussian | Mixture | GaussianMixture) -> tuple[np.ndarray, np.ndarray]:
    """The mean (D,) and covariance (D, D) of a `Gaussian`, `Mixture` or `GaussianMixture`, in float64.

    >>> moments(Mixture(np.array([0.5, 0.5]), np.array([[-1.0], [1.0]]), 0.5))[1].tolist()
    [[1.25]]
    """
    if isinstance(distribution, Gaussian):
        basis, variances = np.asarray(distribution.basis, np.float64), np.asarray(distribution.variances, np.float64)
        return np.asarray(distribution.mean, np.float64), np.matmul(
            basis * variances[..., None, :], basis.swapaxes(-1, -2)
        )
    weights = np.asarray(distribution.weights, np.float64)
    if isinstance(distribution, Mixture):
        means = np.asarray(distribution.means, np.float64)
        within = np.einsum(
            "k,ij->kij", np.broadcast_to(np.asarray(distribution.std) ** 2.0, weights.shape), np.eye(len(means[0]))
        )
    else:
        means, within = moments(distribution.components)
    mean = weights @ means
    return mean, np.einsum("k,kij->ij", weights, within + np.einsum("ki,kj->kij", means - mean, means - mean))


def _rows(operator: Operator, example: Leaf, y: Tree) -> Any:
    """Rows of A and entries of y in the basis U, without those of singular value 0."""
    identity = np.eye(len(example), dtype=np.asarray(example).dtype)
    # Evaluate A now, also inside jit: NumPy needs its values.
    with jax.ensure_compile_time_eval():
        matrix = np.asarray(operator.forward(jnp.asarray(identity)), np.float64).reshape(len(identity), -1).T
    u, c, vt = np.linalg.svd(matrix, full_matrices=False)
    nonzero = c > 1e-6 * max(c.max(initial=0.0), 1e-300)
    y = np.asarray(y, np.float64)
    if isinstance(operator, Mask):
        # Entries of y outside the mask are ignored: set them to 0.
        y = np.where(np.asarray(operator.known) != 0, y, 0.0)
    y = np.broadcast_to(y, (1, *np.shape(y)[1:])).ravel()
    return (c[:, None] * vt)[nonzero], (u.T @ y)[nonzero]


def _condition(mean: np.ndarray, covariance: np.ndarray, rows: np.ndarray, values: np.ndarray, std: PerExample) -> Any:
    """Mean, covariance and log evidence of x0 ~ N(mean, covariance) given rows x0 + std n = values."""
    if not np.isfinite(std) or not len(values):
        return mean, covariance, 0.0
    covariance_y = rows @ covariance @ rows.T + std**2 * np.eye(len(values))
    gain = np.linalg.solve(covariance_y, rows @ covariance).T
    residual = values - rows @ mean
    log_evidence = -0.5 * (
        residual @ np.linalg.solve(covariance_y, residual) + np.linalg.slogdet(2 * np.pi * covariance_y)[1]
    )
    new_covariance = covariance - gain @ rows @ covariance
    return mean + gain @ residual, (new_covariance + new_covariance.T) / 2, log_evidence
