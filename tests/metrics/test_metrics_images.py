"""PSNR and SSIM against scikit-image, and under jit, vmap and grad."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffax.metrics import psnr, ssim

pytestmark = pytest.mark.newest

ROW, COLUMN = np.mgrid[:24, :17]
TRUTH = np.stack([np.sin(0.5 * ROW + 0.2 * COLUMN), np.cos(0.03 * ROW * COLUMN)], -1)
NEAR = 0.8 * TRUTH + 0.1 * np.sin(2.0 * ROW - 1.3 * COLUMN)[..., None] + 0.05
FAR = np.cos(TRUTH * 3 + 0.4 * ROW[..., None])
RNG = np.random.default_rng(0)


def test_psnr_and_ssim_equal_scikit_image(x64):
    """Values of scikit-image 0.26.0 with gaussian_weights, population covariances and data_range 2."""
    first, second = np.stack([TRUTH, TRUTH]), np.stack([NEAR, FAR])
    result = jax.jit(ssim, static_argnames="window")(first, second, data_range=2.0)
    np.testing.assert_allclose(result, [0.8550822911359428, 0.1497650203413659], rtol=1e-12)
    result = ssim(first[:, :8, :8], second[:, :8, :8], data_range=2.0, window=7, sigma=0.8)
    np.testing.assert_allclose(result, [0.7646376562858185, 0.20374858541036062], rtol=1e-12)
    np.testing.assert_allclose(psnr(first, second, data_range=2.0), [21.679360205982057, 4.541421480468728], rtol=1e-12)


def test_ssim_equals_a_loop_over_windows(x64):
    """On one spatial axis."""
    x, y = RNG.uniform(size=(2, 1, 9, 1))
    w = np.exp(-(np.arange(-2, 3) ** 2) / (2 * 0.9**2))
    w /= w.sum()
    values = []
    for start in range(5):
        a, b = x[0, start : start + 5, 0], y[0, start : start + 5, 0]
        ma, mb = w @ a, w @ b
        va, vb, vab = w @ (a - ma) ** 2, w @ (b - mb) ** 2, w @ ((a - ma) * (b - mb))
        c1, c2 = 0.02**2 * 9, 0.05**2 * 9
        values.append((2 * ma * mb + c1) * (2 * vab + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    result = ssim(x, y, data_range=3.0, window=5, sigma=0.9, k1=0.02, k2=0.05)
    np.testing.assert_allclose(result, [np.mean(values)], rtol=1e-10)


def test_ssim_of_a_volume_constant_along_an_axis_is_that_of_a_slice():
    x, y = (np.repeat(v[None, :, :, None], 7, 3) for v in (TRUTH[:9, :8], NEAR[:9, :8]))
    flat = ssim(x[:, :, :, 0], y[:, :, :, 0], data_range=2.0, window=7)
    np.testing.assert_allclose(ssim(x, y, data_range=2.0, window=7), flat, rtol=1e-5)


def test_eight_bit_pixels_equal_floats():
    x, y = RNG.integers(0, 256, (2, 3, 12, 12, 1)).astype(np.uint8)
    for metric in (psnr, ssim):
        floats = metric(x / np.float32(255), y / np.float32(255), data_range=1.0)
        np.testing.assert_allclose(metric(x, y, data_range=255), floats, rtol=1e-4)


@pytest.mark.slow_cases("ssim")
@pytest.mark.parametrize("metric", [psnr, ssim])
def test_metrics_work_under_jit_vmap_and_grad(metric, x64):
    x, y = RNG.uniform(size=(2, 2, 2, 12, 11, 1))
    each = jnp.stack([metric(a, b, data_range=1.5) for a, b in zip(x, y, strict=True)])
    batched = jax.jit(jax.vmap(lambda a, b, r: metric(a, b, data_range=r), (0, 0, None)))(x, y, 1.5)
    np.testing.assert_allclose(batched, each, rtol=1e-12)
    first = lambda a: metric(a, y[0], data_range=1.5)[0]
    step = 1e-5 * RNG.normal(size=x[0].shape)
    slope = jnp.sum(jax.jit(jax.grad(first))(x[0]) * step)
    np.testing.assert_allclose(slope, (first(x[0] + step) - first(x[0] - step)) / 2, rtol=1e-4)


@pytest.mark.slow_cases("image-ssim-1.0", "zeros-ssim-1.0")
@pytest.mark.parametrize(("metric", "best"), [(psnr, np.inf), (ssim, 1.0)])
@pytest.mark.parametrize("value", ["image", "zeros"])
def test_equal_images_have_the_best_value_and_a_zero_gradient(metric, best, value):
    x = jnp.asarray(TRUTH[None] if value == "image" else np.zeros((1, 12, 12, 1)), jnp.float32)
    result, slope = jax.jit(jax.value_and_grad(lambda v: metric(v, x, data_range=2.0)[0]))(x)
    np.testing.assert_allclose(result, best, rtol=1e-6)
    np.testing.assert_allclose(slope, 0, atol=1e-5)
    assert np.isnan(metric(x.at[0, 3, 3, 0].set(jnp.nan), x, data_range=2.0)[0])


IMAGE = np.zeros((1, 8, 8, 1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: psnr(IMAGE, IMAGE[0], data_range=1.0),
            r"second must have shape \(1, 8, 8, 1\), as first has, got \(8,",
        ),
        (
            lambda: psnr(IMAGE[0, 0], IMAGE[0, 0], data_range=1.0),
            r"first must have shape \(B, \*space, C\), got \(8, 1\)",
        ),
        (lambda: psnr(IMAGE, IMAGE, data_range=0.0), "data_range must be > 0 and finite, got 0.0"),
        (lambda: ssim(IMAGE, IMAGE, data_range=1.0), r"window must fit into images of shape \(8, 8\), got 11"),
        (lambda: ssim(IMAGE, IMAGE, data_range=1.0, window=4), "window must be odd, got 4"),
        (lambda: ssim(IMAGE, IMAGE, data_range=1.0, window=5, sigma=0.0), "sigma must be > 0, got 0.0"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
