"""The Fréchet distance against its closed form and a matrix square root."""

import numpy as np
import pytest

from diffax.metrics import frechet_distance

RNG = np.random.default_rng(0)


def exact_set(mean, covariance, n=2000):
    """A set of features whose sample mean and covariance are exactly these."""
    x = RNG.normal(size=(n, len(mean)))
    x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    return mean + x @ np.linalg.cholesky(covariance).T


def spd(dimension):
    root = RNG.normal(size=(dimension, dimension))
    return root @ root.T + 0.1 * np.eye(dimension)


def test_closed_form_of_commuting_covariances():
    """|m1 - m2|^2 + sum (sqrt(a) - sqrt(b))^2."""
    a, b, m = np.array([1.0, 4.0, 9.0]), np.array([4.0, 4.0, 1.0]), np.array([1.0, -2.0, 0.5])
    found = frechet_distance(exact_set(np.zeros(3), np.diag(a)), exact_set(m, np.diag(b)))
    np.testing.assert_allclose(found, 5.25 + 1 + 0 + 4, rtol=1e-9)


def test_against_a_matrix_square_root():
    scipy_linalg = pytest.importorskip("scipy.linalg")
    c1, c2, m = spd(6), spd(6), RNG.normal(size=6)
    expected = m @ m + np.trace(c1 + c2 - 2 * np.real(scipy_linalg.sqrtm(c1 @ c2)))
    np.testing.assert_allclose(frechet_distance(exact_set(np.zeros(6), c1), exact_set(m, c2)), expected, rtol=1e-7)


def test_it_is_symmetric_zero_on_itself_and_sound_with_fewer_examples_than_features():
    x, y = RNG.normal(size=(20, 64)), RNG.normal(size=(30, 64))
    assert abs(frechet_distance(x, x)) < 1e-9
    np.testing.assert_allclose(frechet_distance(x, y), frechet_distance(y, x), rtol=1e-10)
    assert frechet_distance(x, y) > 0


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((1, 2)), np.zeros((5, 2)), r"first must have shape \(N, D\) with N >= 2, got \(1, 2\)"),
        (np.zeros((5, 2)), np.zeros((5, 3)), "second must have 2 features, as first has, got 3"),
        (np.zeros((5, 2)), np.full((5, 2), np.nan), r"second must be finite, got \[0, 0\]"),
    ],
)
def test_bad_input(x, y, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(x, y)
