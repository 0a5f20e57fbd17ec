"""Layers that the networks share: time embedding, norm, per-example dropout, residual blocks, halving and doubling.

The layout is channels last, (B, *space, C), with one to three spatial axes.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from diffax import random
from diffax._checks import check, check_count, choose, positive
from diffax.typing import Array, Float, Key

ZEROS = nn.initializers.zeros_init()


@dataclasses.dataclass(frozen=True)
class Norm:
    """Settings of the group norms (Wu & He 2018): y = (h - mean) / sqrt(variance + eps) over the channels of a group.

    Args:
      groups: number of groups, which must divide the channels; None for the largest divisor up to 32 that leaves at
        least 4 channels in each group. The norm of a single channel would cancel an embedding, which adds one value to
        all positions of a channel.
      eps: constant added to the variance, > 0.

    Raises:
      ValueError: if a setting is out of its range.

    >>> Norm().num_groups(320), Norm().num_groups(24), Norm(groups=4).num_groups(24)
    (32, 6, 4)
    """

    groups: int | None = None
    eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.groups is not None:
            check_count("groups", self.groups)
        check("eps", self.eps, positive)

    def num_groups(self, channels: int) -> int:
        """The number of groups for `channels` channels.

        Raises:
          ValueError: if `groups` does not divide the channels.
        """
        if self.groups is None:
            largest = max(1, min(32, channels // 4))
            return max(g for g in range(1, largest + 1) if channels % g == 0)
        if channels % self.groups:
            raise ValueError(f"groups must divide the {channels} channels, got {self.groups}")
        return self.groups


DEFAULT_NORM = Norm()


@dataclasses.dataclass(frozen=True)
class TimeEmbedding:
    """Settings of the time embedding: `sinusoidal(t, channels, ...)`, followed by two dense layers (Ho et al. 2020).

    Args:
      scale: factor of t, > 0: 1000 for t in [0, 1], about 1000 / 40 for a network that takes the log-SNR instead of t.
      shift: an int >= 0 in the frequencies 10000^(-k / (channels / 2 - shift)): 1 in DDPM, 0 in ADM and Stable
        Diffusion.
      cos_first: whether the cosines come before the sines, as in ADM and Stable Diffusion.

    Raises:
      ValueError: if a setting is out of its range.
    """

    scale: float = 1000.0
    shift: int = 1
    cos_first: bool = False

    def __post_init__(self) -> None:
        check("scale", self.scale, positive)
        check_count("shift", self.shift, 0)


@dataclasses.dataclass(frozen=True)
class Residual:
    """Settings of the residual blocks, y = (x + branch(x, emb)) / rescale.

    Args:
      resample: the layers between two levels. "conv": a convolution of stride 2 halves; nearest-neighbour doubling and
        a convolution double. Both convolutions are padded on both sides (Stable Diffusion). "conv_pad_after": the same,
        but the convolution of stride 2 is padded only at the end of each axis, which requires even sizes (DDPM).
        "block": a residual block halves or doubles (ADM).
      scale_shift: whether the embedding scales and shifts, as in ADM, or is added, as in DDPM and Stable Diffusion. See
        `ResBlock`.
      rescale: divisor of the sum, > 0; sqrt(2) preserves the variance (Song et al. 2021). It also divides the sum at
        the end of an attention block, but not the sums inside the transformer blocks.

    Raises:
      ValueError: if a setting is out of its range.
    """

    resample: Literal["conv", "conv_pad_after", "block"] = "conv"
    scale_shift: bool = False
    rescale: float = 1.0

    def __post_init__(self) -> None:
        choose("resample", self.resample, ("conv", "conv_pad_after", "block"))
        check("rescale", self.rescale, positive)


def labels_or_null(label: ArrayLike | None, num_classes: int, batch: int) -> Array:
    """(B,) labels from a label of shape () or (B,); None becomes the null label, `num_classes`."""
    return jnp.broadcast_to(jnp.asarray(num_classes if label is None else label), (batch,))


def sinusoidal(
    t: ArrayLike,
    dim: int,
    *,
    scale: ArrayLike = 1000.0,
    max_period: float = 10_000.0,
    shift: int = 1,
    cos_first: bool = False,
) -> Float[Array, "batch dim"]:
    """Sinusoidal embedding of one scalar per example: sin and cos of scale t max_period^(-k / (dim/2 - shift)).

    t: (B,); returns (B, dim). With scale = 1000 and t = i / 1000 this is DDPM's embedding of step i
    (Ho et al. 2020, after Vaswani et al. 2017). ADM, DiT and Stable Diffusion use shift = 0 and cos_first.

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


class FewStepEmbedding(nn.Module):
    """The embedding (B, features) of a second time s and of a guidance weight; zero at initialisation.

        W_2 silu(W_1 sinusoidal(t - s)),   W_2 = 0 at initialisation,   plus the same of the weight

    So a network that was trained with one time starts as itself. s = None is s = t.

    Attributes:
      features: the width of the embedding of time in the network.
      scale: factor on t - s. Large frequencies make the derivative in t noise: about 1 for losses with a jvp.
      with_weight: whether there is a guidance weight; None is the weight 1.
      dtype: of the computation.
    """

    features: int
    scale: float
    with_weight: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, t: Array, s: ArrayLike | None, weight: ArrayLike | None) -> Float[Array, "batch features"]:
        """t: (B,); s, weight: () or (B,), or None."""
        if weight is not None and not self.with_weight:
            raise ValueError("weight must be None for a network without guidance_input")
        length = jnp.zeros_like(t) if s is None else t - jnp.broadcast_to(jnp.asarray(s, jnp.float32), t.shape)
        result = self._embed("length", sinusoidal(length, 256, scale=self.scale))
        if not self.with_weight:
            return result
        value = jnp.broadcast_to(jnp.asarray(1.0 if weight is None else weight, jnp.float32), t.shape)
        return result + self._embed("weight", sinusoidal(value, 256, scale=1.0))

    def _embed(self, name: str, features: Array) -> Array:
        h = nn.silu(nn.Dense(self.features, dtype=self.dtype, name=f"{name}_1")(features))
        result: Array = nn.Dense(self.features, dtype=self.dtype, kernel_init=ZEROS, name=f"{name}_2")(h)
        return result


def group_norm(channels: int, dtype: DTypeLike, norm: Norm = DEFAULT_NORM) -> nn.GroupNorm:
    """A group norm with the settings `norm`; its statistics are computed in float32.

    Raises:
      ValueError: if the groups do not divide the channels.
    """
    return nn.GroupNorm(num_groups=norm.num_groups(channels), epsilon=norm.eps, dtype=dtype)


def dropout(key: Key | None, x: Array, rate: float) -> Array:
    """Dropout with one key per example, so that a mask does not depend on the other examples of the batch.

    key: (B,), or None to disable dropout; x: (B, ...).
    """
    if key is None or rate == 0.0:
        return x
    keys = random.per_example(random.stream(key, "dropout"), len(x))
    keep = jax.vmap(lambda k: jax.random.bernoulli(k, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))


def conv(features: int, ndim: int, dtype: DTypeLike, *, size: int = 3, stride: int = 1, **kwargs: Any) -> nn.Conv:
    """A convolution over `ndim` spatial axes, zero-padded so that each size n becomes ceil(n / stride)."""
    return nn.Conv(
        features,
        (size,) * ndim,
        strides=(stride,) * ndim,
        padding=size // 2,
        dtype=dtype,
        conv_general_dilated=convolve,
        **kwargs,
    )


def convolve(
    lhs: Array,
    rhs: Array,
    window_strides: tuple[int, ...],
    padding: Sequence[tuple[int, int]],
    precision: Any = None,
    **options: Any,
) -> Array:
    """`jax.lax.conv_general_dilated` with channels last and no dilation; on a CPU fast over three axes as well.

    XLA's convolutions over three axes take many times as long on a CPU as the same work over two axes. There the result
    is a sum over the first axis of the window, of convolutions over the other two.

    Args:
      lhs: (B, *space, C).
      rhs: (*window, C, features).
      window_strides: of each axis.
      padding: (before, after) of each axis.
      precision: of `jax.lax`.
      options: further arguments of Flax's convolution, which have their defaults.
    """
    space = "DHW"[-(lhs.ndim - 2) :]
    whole = functools.partial(jax.lax.conv_general_dilated, precision=precision)
    if len(space) < 3 or jax.default_backend() != "cpu":
        return whole(lhs, rhs, window_strides, padding, dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"))
    (stride, *strides), (ends, *pads) = window_strides, padding
    x = jnp.pad(lhs, [(0, 0), ends, (0, 0), (0, 0), (0, 0)])
    count = (x.shape[1] - len(rhs)) // stride + 1

    def plane(offset: int) -> Array:
        part = jax.lax.slice_in_dim(x, offset, offset + stride * (count - 1) + 1, stride, 1)
        part = part.reshape(-1, *part.shape[2:])
        y = whole(part, rhs[offset], strides, pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return y.reshape(len(x), count, *y.shape[1:])

    return functools.reduce(jnp.add, map(plane, range(len(rhs))))


def halve(x: Float[Array, "batch *space c"]) -> Float[Array, "batch *smaller c"]:
    """Means over blocks of 2 along each spatial axis; along an axis of odd size the last block has one entry."""
    window = (2,) * (x.ndim - 2)
    means: Array = nn.avg_pool(x, window, strides=window, padding="SAME", count_include_pad=False)
    return means


def double(x: Float[Array, "batch *small c"], space: tuple[int, ...]) -> Float[Array, "batch *space c"]:
    """Repeat each entry twice along each spatial axis and cut the result to `space`, for odd sizes."""
    for axis, size in enumerate(space, start=1):
        x = jax.lax.slice_in_dim(jnp.repeat(x, 2, axis=axis), 0, size, axis=axis)
    return x


class ResBlock(nn.Module):
    """A residual block: x + (norm, silu, conv, + embedding, norm, silu, dropout, conv)(x) (Ho et al. 2020).

    The last convolution is zero at initialisation. x: (B, *space, C), emb: (B, E) or None, key: (B,) or None; returns
    (B, *space, features), with space halved or doubled according to `resample`.

    Attributes:
      features: channels of the result.
      dropout_rate: dropout rate of the second convolution's input. Dropout is active when a key is passed.
      dtype: dtype of the computation.
      scale_shift: whether the embedding scales and shifts after the second norm, h (1 + a) + b, instead of being added
        before it (Dhariwal & Nichol 2021, "adaptive group norm").
      resample: "down" halves and "up" doubles both x and the branch before its first convolution, as in BigGAN.
      space: spatial sizes after "up", for odd sizes; None for twice the sizes of x.
      rescale: see `Residual`.
      norm: settings of both group norms.
    """

    features: int
    dropout_rate: float = 0.0
    dtype: DTypeLike = jnp.float32
    scale_shift: bool = False
    resample: Literal["down", "up"] | None = None
    space: tuple[int, ...] | None = None
    rescale: float = 1.0
    norm: Norm = Norm()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch *space c"],
        emb: Float[Array, "batch e"] | None = None,
        key: Key | None = None,
    ) -> Float[Array, "batch *resized out"]:
        """See the class."""
        ndim = x.ndim - 2
        norm = functools.partial(group_norm, dtype=self.dtype, norm=self.norm)
        h = nn.silu(norm(x.shape[-1])(x))
        if self.resample is not None:
            space = tuple(2 * size for size in x.shape[1:-1]) if self.space is None else self.space
            x, h = (halve(v) if self.resample == "down" else double(v, space) for v in (x, h))
        h = conv(self.features, ndim, self.dtype)(h)
        if emb is None:
            h = norm(self.features)(h)
        else:
            emb = nn.Dense(self.features * (2 if self.scale_shift else 1), dtype=self.dtype)(nn.silu(emb))
            emb = emb.reshape(emb.shape[0], *(1,) * ndim, -1)
            if self.scale_shift:
                scale, shift = jnp.split(emb, 2, -1)
                h = norm(self.features)(h) * (1 + scale) + shift
            else:
                h = norm(self.features)(h + emb)
        h = dropout(key, nn.silu(h), self.dropout_rate)
        h = conv(self.features, ndim, self.dtype, kernel_init=ZEROS)(h)
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, dtype=self.dtype)(x)
        return (x + h) / self.rescale if self.rescale != 1 else x + h


class Downsample(nn.Module):
    """A 3-wide convolution of stride 2: each spatial size n becomes ceil(n / 2).

    pad_after: whether one zero is padded only at the end of each axis, as in the code of DDPM and of the latent
    autoencoder; n must then be even. Otherwise one zero is padded on each side, as in ADM.
    """

    dtype: DTypeLike = jnp.float32
    pad_after: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "batch *space c"]) -> Float[Array, "batch *smaller c"]:
        """x: (B, *space, C)."""
        ndim = x.ndim - 2
        if not self.pad_after:
            return conv(x.shape[-1], ndim, self.dtype, stride=2)(x)
        if any(size % 2 for size in x.shape[1:-1]):
            raise ValueError(f"x must have even sizes where a level is halved with pad_after, got {x.shape}")
        return nn.Conv(
            x.shape[-1],
            (3,) * ndim,
            strides=(2,) * ndim,
            padding=[(0, 1)] * ndim,
            dtype=self.dtype,
            conv_general_dilated=convolve,
        )(x)


class Upsample(nn.Module):
    """Nearest-neighbour doubling, cut to `space` for odd sizes, followed by a 3-wide convolution."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch *small c"], space: tuple[int, ...]) -> Float[Array, "batch *space c"]:
        """x: (B, *small, C) with small = ceil(space / 2)."""
        return conv(x.shape[-1], x.ndim - 2, self.dtype)(double(x, space))
