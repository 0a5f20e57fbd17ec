"""Blocks that the networks share: time embedding, dropout by example, residual and attention blocks.

Layout is channels last, (B, *space, C), with one to three spatial axes.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffax import random
from diffax.typing import Array, Float, Key

ZEROS = nn.initializers.zeros_init()


def sinusoidal(t: Any, dim: int, *, scale: Any = 1000.0, max_period: float = 10_000.0) -> Float[Array, "batch dim"]:
    """Sinusoidal embedding of a scalar for each example: cos and sin of scale t max_period^(-k / (dim/2 - 1)).

    t: (B,); returns (B, dim). With scale = 1000 and t = i / 1000 it is DDPM's embedding of the step i
    (Ho et al. 2020, after Vaswani et al. 2017).

    Raises:
      ValueError: if dim is odd or less than 4.
    """
    if dim < 4 or dim % 2:
        raise ValueError(f"dim must be even and at least 4, got {dim}")
    half = dim // 2
    frequencies = jnp.exp(-math.log(max_period) / (half - 1) * jnp.arange(half))
    angles = scale * jnp.asarray(t, jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)


def group_norm(channels: int, dtype: Any) -> nn.GroupNorm:
    """Group norm with the most groups, up to 32, that leave 4 channels or more to each. Statistics in float32.

    A group of one channel would take away again what an embedding adds to that channel everywhere.
    """
    most = max(1, min(32, channels // 4))
    groups = max(g for g in range(1, most + 1) if channels % g == 0)
    return nn.GroupNorm(num_groups=groups, epsilon=1e-5, dtype=dtype)


def dropout(key: Key | None, x: Array, rate: float) -> Array:
    """Dropout with a key for each example, so that masks do not depend on how the batch is laid out.

    key: (B,), or None for no dropout; x: (B, ...).
    """
    if key is None or rate == 0.0:
        return x
    keys = random.per_example(key, len(x))
    keep = jax.vmap(lambda k: jax.random.bernoulli(k, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))


def conv(features: int, ndim: int, dtype: Any, *, size: int = 3, stride: int = 1, **kwargs: Any) -> nn.Conv:
    """A convolution over `ndim` spatial axes, zero-padded to keep ceil(space / stride)."""
    return nn.Conv(features, (size,) * ndim, strides=(stride,) * ndim, padding=size // 2, dtype=dtype, **kwargs)


class ResBlock(nn.Module):
    """norm, silu, conv, + embedding, norm, silu, dropout, zero-initialised conv; plus the input (Ho et al. 2020).

    x: (B, *space, C), emb: (B, E), key: (B,) or None; returns (B, *space, features).
    """

    features: int
    dropout_rate: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch *space c"], emb: Float[Array, "batch e"], key: Key | None = None
    ) -> Float[Array, "batch *space out"]:
        """See the class."""
        ndim = x.ndim - 2
        h = nn.silu(group_norm(x.shape[-1], self.dtype)(x))
        h = conv(self.features, ndim, self.dtype)(h)
        shift = nn.Dense(self.features, dtype=self.dtype)(nn.silu(emb))
        h = h + shift.reshape(shift.shape[:1] + (1,) * ndim + shift.shape[1:])
        h = nn.silu(group_norm(self.features, self.dtype)(h))
        h = dropout(key, h, self.dropout_rate)
        h = conv(self.features, ndim, self.dtype, kernel_init=ZEROS)(h)
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, dtype=self.dtype)(x)
        return x + h


class AttentionBlock(nn.Module):
    """norm, multi-head self-attention over all places, zero-initialised projection; plus the input.

    x: (B, *space, C), C divisible by `num_heads`; returns the same shape.
    """

    num_heads: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch *space c"]) -> Float[Array, "batch *space c"]:
        """See the class."""
        channels = x.shape[-1]
        if channels % self.num_heads:
            raise ValueError(f"num_heads must divide the {channels} channels, got {self.num_heads}")
        h = group_norm(channels, self.dtype)(x)
        h = h.reshape(x.shape[0], -1, channels)
        heads = (*h.shape[:2], self.num_heads, channels // self.num_heads)
        q, k, v = (nn.Dense(channels, dtype=self.dtype, name=name)(h).reshape(heads) for name in ("q", "k", "v"))
        h = jax.nn.dot_product_attention(q, k, v).reshape(x.shape)
        return x + nn.Dense(channels, dtype=self.dtype, kernel_init=ZEROS, name="out")(h)


class Downsample(nn.Module):
    """A 3-wide convolution of stride 2: each spatial size n becomes ceil(n / 2)."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch *space c"]) -> Float[Array, "batch *smaller c"]:
        """x: (B, *space, C)."""
        return conv(x.shape[-1], x.ndim - 2, self.dtype, stride=2)(x)


class Upsample(nn.Module):
    """Nearest neighbour by 2, cut to `space` (odd sizes), then a 3-wide convolution."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch *small c"], space: tuple[int, ...]) -> Float[Array, "batch *space c"]:
        """x: (B, *small, C) with small = ceil(space / 2)."""
        for axis, size in enumerate(space, start=1):
            x = jax.lax.slice_in_dim(jnp.repeat(x, 2, axis=axis), 0, size, axis=axis)
        return conv(x.shape[-1], x.ndim - 2, self.dtype)(x)
