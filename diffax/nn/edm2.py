"""The magnitude-preserving U-Net of EDM2, configuration G (Karras et al. 2024, figure 21), in 1 to 3 dimensions.

Each layer preserves magnitudes: for an input of standard deviation 1, all activations have about standard deviation 1,
whatever the learned weights are.

    weight      w / (n sqrt(fan in)),  n = eps + ||w|| / sqrt(fan in) = eps + rms(w), over the inputs of each output
    silu        silu(x) / 0.596
    sum         ((1 - t) a + t b) / sqrt((1 - t)^2 + t^2)
    concat      sqrt((Na + Nb) / ((1 - t)^2 + t^2)) [(1 - t) a / sqrt(Na), t b / sqrt(Nb)]
    pixel norm  x / (eps + rms(x)) over the channels: for the encoder's main path, and for q, k, v in attention

The output does not depend on the scale of a weight w, so the gradient is orthogonal to w. Each update therefore makes w
longer, which makes the relative size of later updates smaller. `forced_weight_norm` prevents this: it resets the stored
w to magnitude 1 after each step (the paper's learning rates are about 0.01, and decay):

    optimizer = optax.chain(optax.adam(rate), optax.stateless(edm2.forced_weight_norm))

x must have about unit variance: pass c_in x if the schedule does not normalise it (VE). The prediction kind "edm" is
the rest of the preconditioning. The paper's learned weighting u(sigma) and post-hoc EMA are not part of this module.

xs  EDM2(channels=128, num_classes=1000)                124.7M parameters
s   EDM2(channels=192, num_classes=1000)                280.2M
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffax import random
from diffax._checks import check, check_count, interval
from diffax._pytrees import promoted, safe_sqrt
from diffax.nn.attention import Implementation, attend, split_heads
from diffax.nn.checks import check_label, check_levels, check_second, check_space, check_time, level_widths
from diffax.nn.layers import ZEROS, FewStepEmbedding, convolve, double, dropout, halve, labels_or_null
from diffax.typing import Array, Examples, Float, Key, Params, Scalar, Times

EPS = 1e-4
CLIP = 256.0
RESIDUAL = ATTENTION = 0.3  # t of `mp_sum`: the share of the branch in the sum
WEIGHT = "weight"  # name of all parameters except the gains


def unit(x: Array, axis: int | Sequence[int] = -1) -> Array:
    """x / (1e-4 + rms(x)) with the root mean square along `axis`; computed in at least float32, in the dtype of x."""
    wide = x.astype(promoted(x.dtype, jnp.float32))
    return (wide / (EPS + safe_sqrt(jnp.mean(jnp.square(wide), axis, keepdims=True)))).astype(x.dtype)


def mp_silu(x: Array) -> Array:
    """silu(x) / 0.596, which has unit magnitude for standard normal x (equation 81)."""
    return nn.silu(x) / 0.596


def mp_sum(a: Array, b: Array, t: Times = 0.5) -> Any:
    """Interpolate from a (t = 0) to b (t = 1). Unit magnitude is preserved if a, b are uncorrelated (equation 88)."""
    return ((1 - t) * a + t * b) / ((1 - t) ** 2 + t**2) ** 0.5


def mp_cat(a: Array, b: Array, t: Times = 0.5) -> Array:
    """Concatenate the channels of a and b, preserving unit magnitude (equation 103).

    a and b contribute with weights 1 - t and t, independent of their numbers of channels.
    """
    scale = ((a.shape[-1] + b.shape[-1]) / ((1 - t) ** 2 + t**2)) ** 0.5
    return jnp.concatenate([scale * (1 - t) / a.shape[-1] ** 0.5 * a, scale * t / b.shape[-1] ** 0.5 * b], -1)


def fourier(t: Float[Array, " batch"], dim: int) -> Float[Array, "batch dim"]:
    """Fourier features sqrt(2) cos(2 pi (f_i t + p_i)), with f_i distributed as N(0, 1), p_i as U(0, 1) (equation 75).

    Instead of random constants, the f_i are quantiles of N(0, 1) and the p_i are multiples of the golden ratio, modulo
    1. The mean product of the embeddings of t and s is about exp(-(2 pi (t - s))^2 / 2).
    """
    index = jnp.arange(dim, dtype=jnp.float32)
    frequency, phase = jax.scipy.special.ndtri((index + 0.5) / dim), (index * (5**0.5 - 1) / 2) % 1
    return 2**0.5 * jnp.cos(2 * math.pi * (t.astype(jnp.float32)[:, None] * frequency[None] + phase[None]))


def normalised(params: Params) -> Any:
    """The parameters with each weight scaled to root mean square 1 over the inputs of each output; gains unchanged."""

    def leaf(path: tuple[Any, ...], value: Array) -> Array:
        return unit(value, range(value.ndim - 1)) if getattr(path[-1], "key", None) == WEIGHT else value

    return jax.tree_util.tree_map_with_path(leaf, params)


def forced_weight_norm(updates: Params, params: Params) -> Any:
    """The updates that lead to `normalised(params + updates)` (equation 66).

    Use `optax.stateless(forced_weight_norm)` as the last element of an `optax.chain`.

    Raises:
      ValueError: if the optimiser's `update` is called without the parameters.
    """
    if params is None:
        raise ValueError("params must be passed to the optimiser's update, got None")
    moved = normalised(jax.tree.map(jnp.add, params, updates))
    return jax.tree.map(jnp.subtract, moved, params)


class MPConv(nn.Module):
    """A magnitude-preserving, zero-padded convolution without bias (equations 47, 66).

    x: (B, *space, C); gain: factor on the result; returns (B, *space, features). window: size of the kernel along each
    spatial axis; () for a linear map of the channels.
    """

    features: int
    window: tuple[int, ...] = ()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch *space c"], gain: Scalar = 1.0) -> Float[Array, "batch *space out"]:
        """See the class."""
        w = self.param(WEIGHT, nn.initializers.normal(1.0), (*self.window, x.shape[-1], self.features))
        w = unit(w, range(w.ndim - 1)) * (gain / math.sqrt(w[..., 0].size))
        x, w = x.astype(self.dtype), w.astype(self.dtype)
        if not self.window:
            return x @ w
        return convolve(x, w, (1,) * len(self.window), [(size // 2, (size - 1) // 2) for size in self.window])


class Block(nn.Module):
    """A residual block (silu, conv, modulation, silu, dropout, conv), then self-attention if num_heads > 0.

    x: (B, *space, C); emb: (B, E); key: (B,), () or None; returns (B, *space, features). An encoder block maps x to
    `features` channels and normalises it before the residual branch. A decoder block maps x only for the sum with the
    branch, and does not normalise it.
    """

    features: int
    encoder: bool
    num_heads: int = 0
    dropout_rate: float = 0.0
    implementation: Implementation = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch *space c"], emb: Float[Array, "batch e"], key: Key | None = None
    ) -> Float[Array, "batch *space out"]:
        """See the class."""
        layer, window = functools.partial(MPConv, dtype=self.dtype), (3,) * (x.ndim - 2)
        skip: Callable[..., Any] = (lambda x: x) if x.shape[-1] == self.features else layer(self.features, name="skip")
        x = unit(skip(x)) if self.encoder else x
        scale = 1 + layer(self.features, name="emb")(emb, self.param("emb_gain", ZEROS, ()))
        h = layer(self.features, window, name="conv_1")(mp_silu(x))
        h = mp_silu(h * scale.reshape(len(scale), *(1,) * len(window), -1))
        h = layer(self.features, window, name="conv_2")(dropout(key, h, self.dropout_rate))
        x = mp_sum(x if self.encoder else skip(x), h, RESIDUAL)
        if self.num_heads:
            h = layer(3 * self.features, name="qkv")(x).reshape(len(x), -1, 3 * self.features)
            q, k, v = (unit(split_heads(part, self.num_heads)) for part in jnp.split(h, 3, -1))
            h = attend(q, k, v, implementation=self.implementation).reshape(x.shape)
            x = mp_sum(x, layer(self.features, name="out")(h), ATTENTION)
        return jnp.clip(x, -CLIP, CLIP)


class EDM2(nn.Module):
    """A magnitude-preserving U-Net y = f(x, t, label).

    Level i has `channels * channel_multipliers[i]` channels at 1 / 2^i of the input size, rounded up, so that odd sizes
    work. The middle consists of the first two blocks of the decoder; its first block has attention too.

    Attributes:
      out_channels, outputs, channels, channel_multipliers, num_classes, dropout_rate, remat: as of `UNet`.
      num_res_blocks: residual blocks per level of the encoder; each level of the decoder has one more.
      attention_levels: indices of the levels with attention; (2, 3) are 16x16 and 8x8 for a 64x64 input.
      head_channels: channels of each attention head.
      time_scale: factor on t: 4 for t in [0, 1], 1 for the paper's ln(sigma) / 4, 1/8 for log-SNR.
      second_time, guidance_input: as of `UNet`; the embedding has a zero-initialised gain.
      implementation: implementation of attention, see `diffax.nn.attention.attend`.
      dtype: as of `UNet`; norms and the embedding of time and class are computed in float32.
    """

    out_channels: int | None = None
    outputs: int = 1
    channels: int = 192
    channel_multipliers: tuple[int | float, ...] = (1, 2, 3, 4)
    num_res_blocks: int = 3
    attention_levels: tuple[int, ...] = (2, 3)
    head_channels: int = 64
    dropout_rate: float = 0.0
    num_classes: int | None = None
    time_scale: float = 4.0
    second_time: bool = False
    guidance_input: bool = False
    remat: bool = False
    implementation: Implementation = None
    dtype: Any = jnp.float32

    @property
    def widths(self) -> list[int]:
        """The channels of each level."""
        return level_widths(self.channels, self.channel_multipliers)

    def _check(self, x: Array, label: Examples | None) -> None:
        for name in ("outputs", "channels", "head_channels"):
            check_count(name, getattr(self, name))
        for name in ("out_channels", "num_classes"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        check_count("num_res_blocks", self.num_res_blocks, 0)
        check("dropout_rate", self.dropout_rate, interval("[0, 1)"))
        check_space(x)
        check_label(label, self.num_classes)
        check_levels(x, len(self.widths), self.attention_levels)
        for level in (*self.attention_levels, -1):
            width, head = self.widths[level], self.head_channels
            if width % head:
                raise ValueError(f"head_channels must divide the {width} channels, got {head}")

    def _embed(self, x: Array, t: Times, label: Examples | None, s: Times | None, weight: Times | None) -> Array:
        """The (B, E) embedding of times, class and guidance weight, as wide as the widest level."""
        t = jnp.broadcast_to(jnp.asarray(t, jnp.float32), x.shape[:1])
        emb = MPConv(max(self.widths), name="time")(fourier(self.time_scale * t, self.channels))
        if self.num_classes is not None:
            label = labels_or_null(label, self.num_classes, len(x))
            one_hot = jax.nn.one_hot(label, self.num_classes + 1) * math.sqrt(self.num_classes + 1)
            emb = mp_sum(emb, MPConv(max(self.widths), name="label")(one_hot))
        if self.second_time:
            few = FewStepEmbedding(max(self.widths), self.time_scale, self.guidance_input, name="few_step")
            emb = emb + few(t, s, weight)
        return mp_silu(emb)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch *space c"],
        t: Times,
        label: Examples | None = None,
        *,
        s: Times | None = None,
        weight: Times | None = None,
        key: Key | None = None,
    ) -> Float[Array, "batch *space out"]:
        """The prediction y; zero at initialisation.

        Args:
          x: (B, *space, C), of about unit variance.
          t: () or (B,).
          label: () or (B,) ints in [0, num_classes], or None for the null label.
          s: () or (B,), the second time; None for s = t.
          weight: () or (B,), a guidance weight; None for 1.
          key: (B,) or () dropout keys, or None to switch dropout off.

        Returns:
          (B, *space, out_channels), float32.

        Raises:
          ValueError: if a setting is out of range, a shape is wrong, or label is out of range or passed without
            `num_classes`.
        """
        check_time(t, x)
        check_second(x, self.second_time, s, self.guidance_input, weight)
        self._check(x, label)
        channels = self.outputs * x.shape[-1] if self.out_channels is None else self.out_channels
        emb, window = self._embed(x, t, label, s, weight), (3,) * (x.ndim - 2)
        keys = (None if key is None else random.fold_in(key, number) for number in range(1000))
        options = {"dropout_rate": self.dropout_rate, "implementation": self.implementation, "dtype": self.dtype}
        make_block = functools.partial(nn.remat(Block) if self.remat else Block, **options)

        def block(name: str, h: Array, width: int, attention: bool = False) -> Array:
            heads = width // self.head_channels if attention else 0
            return make_block(width, name.startswith("encoder"), heads, name=name)(h, emb, next(keys))

        x = jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1), x.dtype)], -1)  # a channel of ones replaces biases
        h = MPConv(self.widths[0], window, self.dtype, name="conv_in")(x)
        skips = [h]
        for level, width in enumerate(self.widths):
            if level > 0:
                h = block(f"encoder_{level}_down", halve(h), h.shape[-1])
                skips.append(h)
            for number in range(self.num_res_blocks):
                h = block(f"encoder_{level}_{number}", h, width, level in self.attention_levels)
                skips.append(h)

        h = block("middle_1", h, self.widths[-1], True)
        h = block("middle_2", h, self.widths[-1])
        for level, width in reversed([*enumerate(self.widths)]):
            if level < len(self.widths) - 1:
                h = block(f"decoder_{level}_up", double(h, skips[-1].shape[1:-1]), h.shape[-1])
            for number in range(self.num_res_blocks + 1):
                attention = level in self.attention_levels
                h = block(f"decoder_{level}_{number}", mp_cat(h, skips.pop()), width, attention)

        gain = self.param("gain", ZEROS, ())
        return MPConv(channels, window, self.dtype, name="conv_out")(h, gain).astype(jnp.float32)
