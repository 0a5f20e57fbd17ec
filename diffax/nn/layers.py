"""Blocks that the networks share: time embedding, norm, dropout by example, residual blocks, halving and doubling.

Layout is channels last, (B, *space, C), with one to three spatial axes.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffax import random
from diffax.typing import Array, Float, Key

ZEROS = nn.initializers.zeros_init()


def labels_or_null(label: Any, num_classes: int, batch: int) -> Array:
    """(B,) labels from one or all of them; of None the null label, `num_classes`."""
    return jnp.broadcast_to(jnp.asarray(num_classes if label is None else label), (batch,))


def sinusoidal(
    t: Any,
    dim: int,
    *,
    scale: Any = 1000.0,
    max_period: float = 10_000.0,
    shift: int = 1,
    cos_first: bool = False,
) -> Float[Array, "batch dim"]:
    """Sinusoidal embedding of a scalar for each example: sin and cos of scale t max_period^(-k / (dim/2 - shift)).

    t: (B,); returns (B, dim). With scale = 1000 and t = i / 1000 it is DDPM's embedding of the step i
    (Ho et al. 2020, after Vaswani et al. 2017). shift = 0 and cos_first is that of ADM, DiT and Stable Diffusion.

    Raises:
      ValueError: if dim is odd or less than 4.
    """
    if dim < 4 or dim % 2:
        raise ValueError(f"dim must be even and at least 4, got {dim}")
    half = dim // 2
    frequencies = jnp.exp(-math.log(max_period) / (half - shift) * jnp.arange(half, dtype=float))
    angles = scale * jnp.asarray(t, jnp.float32)[:, None] * frequencies.astype(jnp.float32)[None]
    parts = [jnp.sin(angles), jnp.cos(angles)]
    return jnp.concatenate(parts[::-1] if cos_first else parts, -1)


def group_norm(channels: int, dtype: Any, *, groups: int | None = None, eps: float = 1e-5) -> nn.GroupNorm:
    """Group norm, statistics in float32.

    groups: None for the most, up to 32, that divide the channels and leave 4 or more to each: a group of one channel
    would take away again what an embedding adds to that channel everywhere.

    Raises:
      ValueError: if the groups do not divide the channels.
    """
    if groups is None:
        most = max(1, min(32, channels // 4))
        groups = max(g for g in range(1, most + 1) if channels % g == 0)
    if groups < 1 or channels % groups:
        raise ValueError(f"norm_groups must divide the {channels} channels, got {groups}")
    return nn.GroupNorm(num_groups=groups, epsilon=eps, dtype=dtype)


def dropout(key: Key | None, x: Array, rate: float) -> Array:
    """Dropout with a key for each example, so that masks do not depend on how the batch is laid out.

    key: (B,), or None for no dropout; x: (B, ...).
    """
    if key is None or rate == 0.0:
        return x
    keys = random.per_example(random.stream(key, "dropout"), len(x))
    keep = jax.vmap(lambda k: jax.random.bernoulli(k, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))


def conv(features: int, ndim: int, dtype: Any, *, size: int = 3, stride: int = 1, **kwargs: Any) -> nn.Conv:
    """A convolution over `ndim` spatial axes, zero-padded to keep ceil(space / stride)."""
    return nn.Conv(features, (size,) * ndim, strides=(stride,) * ndim, padding=size // 2, dtype=dtype, **kwargs)


def halve(x: Float[Array, "batch *space c"]) -> Float[Array, "batch *smaller c"]:
    """Means over blocks of 2 along each spatial axis; of odd sizes the last block is of what is there."""
    window = (2,) * (x.ndim - 2)
    return nn.avg_pool(x, window, strides=window, padding="SAME", count_include_pad=False)


def double(x: Float[Array, "batch *small c"], space: tuple[int, ...]) -> Float[Array, "batch *space c"]:
    """Each place twice along each spatial axis, cut to `space` (odd sizes)."""
    for axis, size in enumerate(space, start=1):
        x = jax.lax.slice_in_dim(jnp.repeat(x, 2, axis=axis), 0, size, axis=axis)
    return x


class ResBlock(nn.Module):
    """norm, silu, conv, + embedding, norm, silu, dropout, zero-initialised conv; plus the input (Ho et al. 2020).

    x: (B, *space, C), emb: (B, E) or None, key: (B,) or None; returns (B, *space, features), space resampled.

    Attributes:
      features: channels of the result.
      scale_shift: the embedding scales and shifts after the second norm, h (1 + a) + b, rather than adding before it
        (Dhariwal & Nichol 2021, "adaptive group norm").
      resample: "down" halves, "up" doubles (to `space`, if given) input and branch before the first conv, as BigGAN's
        blocks do.
      rescale: what the sum is divided by; sqrt(2) keeps its variance (Song et al. 2021).
      norm_groups, eps: of the norms, see `group_norm`.
    """

    features: int
    dropout_rate: float = 0.0
    dtype: Any = jnp.float32
    scale_shift: bool = False
    resample: str | None = None
    space: tuple[int, ...] | None = None
    rescale: float = 1.0
    norm_groups: int | None = None
    eps: float = 1e-5

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch *space c"],
        emb: Float[Array, "batch e"] | None = None,
        key: Key | None = None,
    ) -> Float[Array, "batch *resized out"]:
        """See the class."""
        ndim = x.ndim - 2
        norm = functools.partial(group_norm, dtype=self.dtype, groups=self.norm_groups, eps=self.eps)
        h = nn.silu(norm(x.shape[-1])(x))
        if self.resample is not None:
            space = tuple(2 * size for size in x.shape[1:-1]) if self.space is None else self.space
            x, h = (halve(v) if self.resample == "down" else double(v, space) for v in (x, h))
        h = conv(self.features, ndim, self.dtype)(h)
        scale, shift = None, jnp.zeros((), h.dtype)
        if emb is not None:
            shift = nn.Dense(self.features * (1 + self.scale_shift), dtype=self.dtype)(nn.silu(emb))
            shift = shift.reshape(shift.shape[:1] + (1,) * ndim + shift.shape[1:])
            if self.scale_shift:
                scale, shift = jnp.split(shift, 2, -1)
        h = norm(self.features)(h if scale is not None else h + shift)
        h = nn.silu(h if scale is None else h * (1 + scale) + shift)
        h = dropout(key, h, self.dropout_rate)
        h = conv(self.features, ndim, self.dtype, kernel_init=ZEROS)(h)
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, dtype=self.dtype)(x)
        return (x + h) / self.rescale if self.rescale != 1 else x + h


class Downsample(nn.Module):
    """A 3-wide convolution of stride 2: each spatial size n becomes ceil(n / 2).

    pad_after: zeros after the last place alone, as DDPM's and the latent autoencoder's code; n must be even. Else
    one zero on each side, as ADM's.
    """

    dtype: Any = jnp.float32
    pad_after: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "batch *space c"]) -> Float[Array, "batch *smaller c"]:
        """x: (B, *space, C)."""
        ndim = x.ndim - 2
        if not self.pad_after:
            return conv(x.shape[-1], ndim, self.dtype, stride=2)(x)
        if any(size % 2 for size in x.shape[1:-1]):
            raise ValueError(f"x must have even sizes where a level is halved with pad_after, got {x.shape}")
        return nn.Conv(x.shape[-1], (3,) * ndim, strides=(2,) * ndim, padding=[(0, 1)] * ndim, dtype=self.dtype)(x)


class Upsample(nn.Module):
    """Nearest neighbour by 2, cut to `space` (odd sizes), then a 3-wide convolution."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch *small c"], space: tuple[int, ...]) -> Float[Array, "batch *space c"]:
        """x: (B, *small, C) with small = ceil(space / 2)."""
        return conv(x.shape[-1], x.ndim - 2, self.dtype)(double(x, space))
