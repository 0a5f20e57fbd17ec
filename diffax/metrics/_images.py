"""PSNR and SSIM of reconstructions, one value per image. Both support jit, vmap and grad.

    PSNR = 10 log10(L^2 / mean (x - y)^2)
    SSIM = mean over positions of (2 m_x m_y + C_1) (2 v_xy + C_2) / ((m_x^2 + m_y^2 + C_1) (v_x + v_y + C_2))

L is the range of the data (2 for data in [-1, 1]) and C_i = (K_i L)^2. m_x, v_x and v_xy are the mean, the variance and
the covariance under a Gaussian window around a position.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from diffax._checks import Condition, check, check_count, positive
from diffax._masks import check_mask, inside, mean
from diffax._pytrees import as_float
from diffax.typing import Array, Examples, Float, Leaf, Scalar


def psnr(
    first: Examples, second: Examples, *, data_range: Scalar, mask: Examples | None = None
) -> Float[Array, " batch"]:
    """Peak signal-to-noise ratio in dB, (B,).

    For two equal images the value is infinite and the gradient zero.

    Args:
      first: (B, *space, C).
      second: (B, *space, C).
      data_range: L, the largest minus the smallest possible value of the data, > 0; may be traced.
      mask: true for the entries that count, of the shape of the leading axes of `first`, such as (B, H, W) for land
        alone; None (default) for all.

    Raises:
      ValueError: if the shapes differ or have fewer than 3 axes, data_range <= 0, or the mask does not fit.

    >>> psnr(jnp.zeros((1, 4, 4, 1)), jnp.full((1, 4, 4, 1), 0.2), data_range=2.0).round(3).tolist()
    [20.0]
    """
    x, y = _checked_pair(first, second, data_range)
    check_mask(x, mask, "first")
    square = (x - y) ** 2
    error = jnp.mean(square, axis=tuple(range(1, x.ndim))) if mask is None else mean(square, mask)
    equal = error == 0
    ratio = jnp.where(equal, 1.0, error) / data_range**2
    return jnp.where(equal, jnp.inf, -10 * jnp.log10(ratio))


def ssim(
    first: Examples,
    second: Examples,
    *,
    data_range: Scalar,
    window: int = 11,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
    mask: Examples | None = None,
) -> Float[Array, " batch"]:
    """Structural similarity (SSIM), (B,), at most 1.

    The value is the mean over channels and over all positions where the whole window fits into the image, and into the
    mask.

    Args:
      first: (B, *space, C), 1 to 3 spatial axes, each of size >= `window`.
      second: (B, *space, C).
      data_range: L, the largest minus the smallest possible value of the data, > 0; may be traced.
      window: size of the Gaussian window along each axis, odd. The published 11 does not fit into 8x8 images.
      sigma: standard deviation of the window, > 0.
      k1: K_1, in C_1 = (K_1 L)^2.
      k2: K_2, in C_2 = (K_2 L)^2.
      mask: true for the entries that count, of the shape of the leading axes of `first`; 0 for an image without a
        window inside; None (default) for all.

    Raises:
      ValueError: if the shapes differ or have fewer than 3 axes, the images are smaller than the window, a setting is
        out of range, or the mask does not fit.

    Source: Wang et al. 2004, eqs. 12 to 17.

    >>> x = jnp.linspace(0.0, 1.0, 256).reshape(1, 16, 16, 1)
    >>> ssim(x, x, data_range=1.0).tolist()
    [1.0]
    """
    x, y = _checked_pair(first, second, data_range)
    check_count("window", window)
    if window % 2 == 0:
        raise ValueError(f"window must be odd, got {window}")
    check("sigma", sigma, positive)
    if min(x.shape[1:-1]) < window:
        raise ValueError(f"window must fit into images of shape {x.shape[1:-1]}, got {window}")
    check_mask(x, mask, "first")
    x, y = inside(x, mask), inside(y, mask)
    similarity: Array = _similarity(x, y, (k1 * data_range) ** 2, (k2 * data_range) ** 2, window, sigma)
    if mask is None:
        return jnp.mean(similarity, axis=tuple(range(1, x.ndim)))
    whole = inside(jnp.ones_like(x), mask)
    for axis in range(1, x.ndim - 1):
        size = x.shape[axis] - window + 1
        whole = jnp.stack([jax.lax.slice_in_dim(whole, i, i + size, axis=axis) for i in range(window)]).min(0)
    return jnp.asarray(mean(similarity, whole))


@functools.partial(jax.jit, static_argnames="window")
def _similarity(x: Leaf, y: Leaf, c1: Scalar, c2: Scalar, window: int, sigma: Scalar) -> Array:
    """SSIM at each position where the window fits into the image."""
    m_x, m_y, xx, yy, xy = _blur(jnp.stack([x, y, x * x, y * y, x * y]), window, sigma)
    v_x, v_y, v_xy = xx - m_x**2, yy - m_y**2, xy - m_x * m_y
    similarity: Array = (2 * m_x * m_y + c1) * (2 * v_xy + c2) / ((m_x**2 + m_y**2 + c1) * (v_x + v_y + c2))
    return similarity


def _blur(x: Float[Array, "maps batch *space c"], window: int, sigma: Scalar) -> Float[Array, "maps batch *smaller c"]:
    """Weighted means under a separable Gaussian window, at the positions where it fits.

    Shifted slices are summed rather than convolved: an accelerator may compute a convolution in bfloat16.
    """
    offsets = (jnp.arange(window) - window // 2).astype(float)
    weights = jax.nn.softmax(-(offsets**2) / (2 * sigma**2)).astype(x.dtype)
    for axis in range(2, x.ndim - 1):
        size = x.shape[axis] - window + 1
        x = jnp.asarray(sum(weights[i] * jax.lax.slice_in_dim(x, i, i + size, axis=axis) for i in range(window)))
    return x


def _checked_pair(first: Examples, second: Examples, data_range: Scalar) -> tuple[Array, Array]:
    check("data_range", data_range, Condition("> 0 and finite", lambda v: (v > 0) & np.isfinite(v)))
    x, y = as_float(first), as_float(second)
    if x.ndim < 3:
        raise ValueError(f"first must have shape (B, *space, C), got {x.shape}")
    if x.shape != y.shape:
        raise ValueError(f"second must have shape {x.shape}, as first has, got {y.shape}")
    return x, y
