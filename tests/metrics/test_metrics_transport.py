"""Sliced Wasserstein and Sinkhorn against closed forms, assignments and an iteration in NumPy."""

import sys

import jax
import numpy as np
import pytest

from diffax.metrics import _sets as sets
from diffax.metrics import sinkhorn_divergence, sliced_wasserstein

pytestmark = pytest.mark.newest

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)


def white(n, d):
    """Features whose mean is exactly 0 and whose covariance (over N) is exactly the identity."""
    x = RNG.normal(size=(n, d))
    x -= x.mean(0)
    return x @ np.linalg.inv(np.linalg.cholesky(x.T @ x / n)).T


def test_sliced_wasserstein_of_a_scaled_and_shifted_set():
    """Along theta the map x -> s x + d is optimal: W_2^2 = (s - 1)^2 + (theta.d)^2, and E (theta.d)^2 = |d|^2 / D."""
    x, d = white(500, 3), np.array([3.0, 0.0, -1.0])
    np.testing.assert_allclose(sliced_wasserstein(KEY, 1.7 * x, x), 0.7, rtol=1e-9)
    result = sliced_wasserstein(KEY, 1.7 * x + d, x, projections=20_000)
    np.testing.assert_allclose(result**2, 0.49 + 10 / 3, rtol=0.02)


def test_sliced_wasserstein_of_gaussians():
    """N(m, s^2 I) and N(0, 1): SW_2^2 = |m|^2 / D + (s - 1)^2."""
    x, y = 2 + 1.5 * RNG.normal(size=(20_000, 2)), RNG.normal(size=(15_000, 2))
    np.testing.assert_allclose(sliced_wasserstein(KEY, x, y) ** 2, 4 + 0.25, rtol=0.05)


@pytest.mark.parametrize("counts", [(12, 12), (12, 8), (5, 7)])
def test_sliced_wasserstein_in_one_dimension_matches_sorted_examples(counts, monkeypatch):
    stats = pytest.importorskip("scipy.stats")
    x, y = (RNG.normal(size=(n, 1)) for n in counts)
    result = [sliced_wasserstein(KEY, x, y, projections=9, order=p) for p in (1.0, 2.0, 3.5)]
    # Repeat the examples until both sets have equally many: the optimal plan then matches them in sorted order.
    gaps = np.abs(np.sort(np.repeat(x, counts[1])) - np.sort(np.repeat(y, counts[0])))
    np.testing.assert_allclose(result, [np.mean(gaps**p) ** (1 / p) for p in (1.0, 2.0, 3.5)], rtol=1e-9)
    np.testing.assert_allclose(result[0], stats.wasserstein_distance(x[:, 0], y[:, 0]), rtol=1e-9)
    monkeypatch.setattr(sets, "BLOCK", 50)
    np.testing.assert_allclose(sliced_wasserstein(KEY, x, y, projections=9), result[1], rtol=1e-12)


def test_the_key_draws_the_projections():
    x, y = RNG.normal(size=(2, 30, 4))
    values = [sliced_wasserstein(jax.random.key(i), x, y, projections=20) for i in (0, 0, 1)]
    assert values[0] == values[1] != values[2]


def sinkhorn_in_numpy(x, y, epsilon, steps=3000):
    """OT_e by Sinkhorn's iteration of the potentials."""
    cost = ((x[:, None] - y[None]) ** 2).sum(-1)
    soften = lambda v, axis: -epsilon * np.log(np.mean(np.exp(v / epsilon), axis))
    f, g = np.zeros(len(x)), np.zeros(len(y))
    for _ in range(steps):
        f = soften(g[None] - cost, 1)
        g = soften(f[:, None] - cost, 0)
    plan = np.exp((f[:, None] + g[None] - cost) / epsilon) / cost.size
    return np.sum(plan * cost) + epsilon * np.sum(plan * np.log(plan * cost.size))


def test_sinkhorn_divergence_equals_numpy():
    x, y = RNG.normal(size=(30, 2)), 1.5 * RNG.normal(size=(20, 2)) + 0.5
    expected = sinkhorn_in_numpy(x, y, 2.0) - sinkhorn_in_numpy(x, x, 2.0) / 2 - sinkhorn_in_numpy(y, y, 2.0) / 2
    np.testing.assert_allclose(sinkhorn_divergence(x, y, epsilon=2.0, threshold=1e-9), expected, rtol=1e-7)


def test_sinkhorn_divergence_of_gaussians_is_the_closed_form():
    """400 quantiles of each Gaussian against the closed form of Janati et al. 2020, theorem 1, with e = 2 q."""
    normal = pytest.importorskip("scipy.stats").norm
    z = normal.ppf((np.arange(400) + 0.5) / 400)[:, None]
    q = 0.5

    def f(a, b):
        root = np.sqrt(4 * a * b + q**2)
        return root - q * np.log(root + q)

    expected = 9 - f(4.0, 1.0) + (f(4.0, 4.0) + f(1.0, 1.0)) / 2
    np.testing.assert_allclose(sinkhorn_divergence(2 * z + 3, z, epsilon=2 * q), expected, rtol=2e-3)
    assert abs(sinkhorn_divergence(z, z, epsilon=2 * q)) < 1e-9
    np.testing.assert_allclose(sinkhorn_divergence(z + 7, z, epsilon=2 * q), 49, rtol=1e-9)


def test_the_default_epsilon_scales_with_the_second_set():
    x, y = RNG.normal(size=(30, 2)), 2 * white(20, 2)
    np.testing.assert_allclose(sinkhorn_divergence(x, y), sinkhorn_divergence(x, y, epsilon=0.05 * 2 * 8), rtol=1e-9)


def test_sinkhorn_divergence_without_ott_names_the_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ott.geometry.pointcloud", None)
    with pytest.raises(ImportError, match=r"needs ott-jax: pip install '\.\[metrics\]'"):
        sinkhorn_divergence(np.eye(2), np.eye(2))


OK, NAN = np.eye(5, 2), np.full((3, 2), np.nan)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sliced_wasserstein(KEY, OK, NAN), r"second must be finite, got nan at \[0, 0\]"),
        (lambda: sliced_wasserstein(KEY, OK, np.eye(3)), "second must have 2 features, as first has, got 3"),
        (lambda: sliced_wasserstein(KEY, OK, OK, order=0.5), "order must be >= 1 and finite, got 0.5"),
        (lambda: sliced_wasserstein(KEY, OK, OK, projections=0), "projections must be an int >= 1, got 0"),
        (lambda: sinkhorn_divergence(NAN, OK), r"first must be finite, got nan at \[0, 0\]"),
        (lambda: sinkhorn_divergence(OK, OK, epsilon=0.0), "epsilon must be > 0 and finite, got 0.0"),
        (lambda: sinkhorn_divergence(OK, OK[:1]), "epsilon must be > 0 and finite, got 0.0"),
        (
            lambda: sinkhorn_divergence(
                RNG.normal(size=(30, 2)), RNG.normal(size=(20, 2)), epsilon=0.02, max_iterations=10
            ),
            "max_iterations must suffice for threshold = 1e-06 at epsilon = 0.02, got 10",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
