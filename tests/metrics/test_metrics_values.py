"""Features of values and of sets of points, and spectra, against closed forms and explicit loops."""

import jax
import numpy as np
import pytest

from diffax import metrics

pytestmark = pytest.mark.newest
DIRECTIONS = metrics.unit_directions(6, 3)


def test_a_projection_is_orthonormal_and_given_by_its_seed():
    p = metrics.orthonormal_projection(90, 7, seed=3)
    np.testing.assert_allclose(p.T @ p, np.eye(7), atol=1e-6)
    np.testing.assert_array_equal(p, metrics.orthonormal_projection(90, 7, seed=3))
    assert np.abs(p - metrics.orthonormal_projection(90, 7, seed=4)).max() > 0.1
    entries = np.stack([metrics.orthonormal_projection(2, 1, seed=seed)[:, 0] for seed in range(400)])
    np.testing.assert_allclose(entries.mean(0), 0, atol=0.15)  # no sign is preferred
    for arguments, message in (((3, 4), "at most the 3 dimensions, got 4"), ((3, 0), "width must be an int >= 1")):
        with pytest.raises(ValueError, match=message):
            metrics.orthonormal_projection(*arguments)


def test_distances_of_projected_gaussians_are_those_of_the_projected_distributions():
    """N(0, I) and N(m, 4 I): FD = |m P|^2 + W (2 - 1)^2, and SW_2^2 is that of all dimensions on average over P."""
    rng, size, width, n = np.random.default_rng(0), 300, 8, 4000
    m = 2 * rng.normal(size=size) / np.sqrt(size)
    x, y = rng.normal(size=(n, size)), m + 2 * rng.normal(size=(n, size))
    sliced = []
    for seed in range(8):
        p = metrics.orthonormal_projection(size, width, seed=seed)
        expected = np.sum((m @ p) ** 2) + width
        assert metrics.frechet_distance(x @ p, y @ p) == pytest.approx(expected, rel=0.05)
        assert expected < m @ m + size
        sliced.append(metrics.sliced_wasserstein(jax.random.key(0), x @ p, y @ p, projections=50) ** 2)
    assert np.mean(sliced) == pytest.approx(m @ m / size + 1, rel=0.05)


def test_quantiles_of_a_set_depend_neither_on_the_order_nor_on_the_padding():
    rng = np.random.default_rng(1)
    x, mask = rng.normal(size=(5, 9, 3)), np.arange(9) < np.array([[9], [4], [1], [7], [2]])
    z = metrics.set_quantiles(x, DIRECTIONS, 4, mask=mask)
    assert z.shape == (5, 24)
    order = rng.permutation(9)
    np.testing.assert_allclose(metrics.set_quantiles(x[:, order], DIRECTIONS, 4, mask=mask[:, order]), z, atol=1e-12)
    padding = np.where(mask[..., None], x, np.nan)
    np.testing.assert_array_equal(metrics.set_quantiles(padding, DIRECTIONS, 4, mask=mask), z)
    np.testing.assert_allclose(metrics.set_quantiles(x[1:2, :4], DIRECTIONS, 4), z[1:2], atol=1e-12)
    twice = np.concatenate([x[3:4, :7], x[3:4, :7]], 1)  # the same distribution of points
    np.testing.assert_allclose(metrics.set_quantiles(twice, DIRECTIONS, 4), z[3:4], atol=1e-12)
    none = metrics.set_quantiles(x, DIRECTIONS, 4, mask=np.zeros((5, 9), bool))
    assert not none.any()
    median = metrics.set_quantiles(np.array([[[9.0], [1.0], [2.0]]]), np.ones((1, 1)), 1)
    assert median.tolist() == [[2.0]]


def test_the_distance_of_quantiles_is_the_sliced_wasserstein_distance_of_the_sets():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(8, 3)), rng.normal(size=(4, 3))
    zx, zy = (metrics.set_quantiles(points[None], DIRECTIONS, 8) for points in (x, y))
    powers = []
    for theta in DIRECTIONS:
        powers.append(np.mean((np.sort(x @ theta) - np.sort(np.repeat(y, 2, 0) @ theta)) ** 2))
    assert np.sum((zx - zy) ** 2) / zx.size == pytest.approx(np.mean(powers), rel=1e-9)


@pytest.mark.parametrize(
    ("points", "options", "message"),
    [
        (np.zeros((2, 3)), {}, r"points must have shape \(N, n, d\) for directions \(K, d\), got \(2, 3\)"),
        (np.zeros((2, 3, 2)), {}, r"points must have shape"),
        (np.zeros((2, 4, 3)), {"mask": np.ones((2, 3))}, r"mask must have shape \(2, 4\), got \(2, 3\)"),
        (np.full((1, 1, 3), np.inf), {}, r"points must be finite, got inf at \[0, 0, 0\]"),
    ],
)
def test_bad_sets_of_points(points, options, message):
    with pytest.raises(ValueError, match=message):
        metrics.set_quantiles(points, DIRECTIONS, 4, **options)


def test_directions_are_unit_vectors_in_all_directions():
    theta = metrics.unit_directions(2000, 3)
    np.testing.assert_allclose(np.linalg.norm(theta, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(theta.T @ theta / 2000, np.eye(3) / 3, atol=0.03)


# Spectra


def test_the_spectrum_of_a_wave_is_at_its_wavenumber_in_any_direction():
    i, j = np.meshgrid(np.arange(16), np.arange(16), indexing="ij")
    for a, b in ((5, 0), (0, 5), (3, 4), (-3, 4), (1, 5), (5, 2), (3, -4)):
        wave = 3 + np.cos(2 * np.pi * (a * i + b * j) / 16)
        power = metrics.radial_power_spectrum(wave[None, ..., None])[:, 0]
        assert power.shape == (8,)
        assert int(np.argmax(power)) + 1 == 5
        assert power[4] > 1e20 * np.delete(power, 4).max()
    diagonal = np.cos(2 * np.pi * 2 * (i + j) / 16)  # |f| L = 2.83
    assert int(np.argmax(metrics.radial_power_spectrum(diagonal[None, ..., None])[:, 0])) + 1 == 3


@pytest.mark.parametrize("space", [(16,), (12, 6), (4, 4, 4)])
def test_white_noise_has_the_same_power_at_all_wavenumbers(space):
    x = 2 * np.random.default_rng(0).normal(size=(3000, *space, 2))
    power = metrics.radial_power_spectrum(x)
    assert power.shape == (max(space) // 2, 2)
    np.testing.assert_allclose(power, 4 * np.prod(space), rtol=0.1)


def test_the_spectral_distance_is_the_gain_of_a_filter_in_db():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 16, 1))
    gain = np.where(np.arange(9) >= 5, 0.1, 1.0)[:, None]  # half of the wavenumbers are lower by 20 dB
    filtered = np.fft.irfft(gain * np.fft.rfft(rng.normal(size=(2000, 16, 1)), axis=1), axis=1)
    assert metrics.log_spectral_distance(filtered, x) == pytest.approx(20 * np.sqrt(0.5), rel=0.05)
    assert metrics.log_spectral_distance(x[:1000], x[1000:]) < 0.5
    assert metrics.log_spectral_distance(x, x[:, ::-1] + 5) < 1e-9  # phases and the mean do not count
    assert 100 < metrics.log_spectral_distance(np.zeros_like(x), x) < 140  # at the level of rounding, not infinite


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (np.ones((2, 8)), np.ones((2, 8)), r"first must have shape \(N, \*space, C\) with at least 2 cells"),
        (np.ones((2, 8, 1)), np.ones((2, 6, 1)), r"second must have examples of shape \(8, 1\), got \(6, 1\)"),
        (np.ones((2, 8, 1)), np.ones((2, 8, 1)), "second must vary in each channel, got a constant channel 0"),
        (np.full((2, 8, 1), np.nan), np.ones((2, 8, 1)), r"first must be finite, got nan at \[0, 0, 0\]"),
    ],
)
def test_bad_fields(first, second, message):
    with pytest.raises(ValueError, match=message):
        metrics.log_spectral_distance(first, second)
