"""The magnitude-preserving U-Net of EDM2, configuration G (Karras et al. 2024, figure 21), in 1 to 3 dimensions.

Activations keep the standard deviation of 1 that the input has: by the layers, not by what is learned.

    weight      w / (eps + rms(w)) over what each output sums, over sqrt(fan in)        n = eps + ||w|| / sqrt(fan in)
    silu        silu(x) / 0.596
    sum         ((1 - t) a + t b) / sqrt((1 - t)^2 + t^2)
    concat      sqrt((Na + Nb) / ((1 - t)^2 + t^2)) [(1 - t) a / sqrt(Na), t b / sqrt(Nb)]
    pixel norm  x / (eps + rms(x)) over the channels: of the encoder's main path, and of q, k, v in attention

So the answer does not depend on the scale of a weight w, and the gradient is orthogonal to w: every step makes w longer
and the next ones smaller. `forced_weight_norm` puts the stored w back to magnitude 1 after each step (the paper's rates
are about 0.01, and decay):

    optimizer = optax.chain(optax.adam(rate), optax.stateless(edm2.forced_weight_norm))

x must have about unit variance: c_in x where the schedule does not see to it (VE). The rest of the preconditioning is
the prediction kind "edm"; the paper's learned weighting, u(sigma), and post-hoc moving averages are not part of this.

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
from diffax.nn.checks import check_label, check_levels, check_space, check_time, level_widths
from diffax.nn.layers import ZEROS, double, dropout, halve, labels_or_null
from diffax.typing import Array, Examples, Float, Key, Params, Scalar, Times

EPS = 1e-4
CLIP = 256.0
RESIDUAL = ATTENTION = 0.3  # the share of a branch in the sum
WEIGHT = "weight"  # the name of all parameters but the gains


def unit(x: Array, axis: int | Sequence[int] = -1) -> Array:
    """x / (1e-4 + its root mean square along `axis`), computed in float32 at least, in the dtype of x."""
    wide = x.astype(promoted(x.dtype, jnp.float32))
    return (wide / (EPS + safe_sqrt(jnp.mean(jnp.square(wide), axis, keepdims=True)))).astype(x.dtype)


def mp_silu(x: Array) -> Array:
    """Of unit magnitude for standard normal x (equation 81)."""
    return nn.silu(x) / 0.596


def mp_sum(a: Array, b: Array, t: Times = 0.5) -> Any:
    """From a (t = 0) to b (t = 1), of unit magnitude where a and b are and do not correlate (equation 88)."""
    return ((1 - t) * a + t * b) / ((1 - t) ** 2 + t**2) ** 0.5


def mp_cat(a: Array, b: Array, t: Times = 0.5) -> Array:
    """Channels of a beside those of b, of unit magnitude, with shares 1 - t and t however many they are (103)."""
    scale = ((a.shape[-1] + b.shape[-1]) / ((1 - t) ** 2 + t**2)) ** 0.5
    return jnp.concatenate([scale * (1 - t) / a.shape[-1] ** 0.5 * a, scale * t / b.shape[-1] ** 0.5 * b], -1)


def fourier(t: Float[Array, " batch"], dim: int) -> Float[Array, "batch dim"]:
    """sqrt(2) cos(2 pi (f_i t + p_i)), f_i spread as N(0, 1), p_i as U(0, 1) (equation 75).

    In place of random constants, f_i are quantiles and p_i multiples of the golden ratio. The mean product of two
    embeddings is about exp(-(2 pi (t - s))^2 / 2).
    """
    index = jnp.arange(dim, dtype=jnp.float32)
    frequency, phase = jax.scipy.special.ndtri((index + 0.5) / dim), (index * (5**0.5 - 1) / 2) % 1
    return 2**0.5 * jnp.cos(2 * math.pi * (t.astype(jnp.float32)[:, None] * frequency[None] + phase[None]))


def normalised(params: Params) -> Any:
    """The parameters with each weight at magnitude 1, root mean square over what an output sums; gains as they are."""

    def leaf(path: tuple[Any, ...], value: Array) -> Array:
        return unit(value, range(value.ndim - 1)) if getattr(path[-1], "key", None) == WEIGHT else value

    return jax.tree_util.tree_map_with_path(leaf, params)


def forced_weight_norm(updates: Params, params: Params) -> Any:
    """The updates that lead to `normalised(params + updates)`: `optax.stateless` of it ends a chain (equation 66).

    Raises:
      ValueError: if the optimiser is not given the parameters.
    """
    if params is None:
        raise ValueError("params must be given to the optimiser's update, got None")
    moved = normalised(jax.tree.map(jnp.add, params, updates))
    return jax.tree.map(jnp.subtract, moved, params)


class MPConv(nn.Module):
    """A convolution with this window, zero-padded, or () for a map of the channels; no bias (equations 47, 66).

    x: (B, *space, C), gain: what the result is multiplied by; returns (B, *space, features).
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
        space = "DHW"[-len(self.window) :]
        layout = (f"N{space}C", f"{space}IO", f"N{space}C")
        return jax.lax.conv_general_dilated(x, w, (1,) * len(self.window), "SAME", dimension_numbers=layout)


class Block(nn.Module):
    """silu, conv, times 1 + embedding, silu, dropout, conv: summed with the input; then attention, if it has heads.

    x: (B, *space, C), emb: (B, E), key: (B,), () or None; returns (B, *space, features). In the encoder the main path
    is mapped to the features and normalised before the branch leaves it, in the decoder after.
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
    """A U-Net y = f(x, t, label); see the module for what keeps its magnitudes.

    Level i has `channels * channel_multipliers[i]` channels at 1 / 2^i of the input's size, rounded up: odd sizes work.
    The middle, the first two blocks of the decoder, has attention too.

    Attributes:
      out_channels, outputs, channels, channel_multipliers, num_classes, dropout_rate, remat: as of `UNet`.
      num_res_blocks: residual blocks a level on the way down; one more on the way up.
      attention_levels: indices of the levels with attention; (2, 3) are 16x16 and 8x8 of a 64x64 input.
      head_channels: channels of an attention head.
      time_scale: what t is multiplied by: 4 for t in [0, 1], 1 for the paper's ln(sigma) / 4, 1/8 for log-SNR.
      implementation: of attention, see `diffax.nn.attention.attend`.
      dtype: as of `UNet`; norms and the embedding of time and class stay float32.
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

    def _embed(self, x: Array, t: Times, label: Examples | None) -> Array:
        """The (B, E) embedding of time and class, as wide as the widest level."""
        t = jnp.broadcast_to(jnp.asarray(t, jnp.float32), x.shape[:1])
        emb = MPConv(max(self.widths), name="time")(fourier(self.time_scale * t, self.channels))
        if self.num_classes is not None:
            label = labels_or_null(label, self.num_classes, len(x))
            one_hot = jax.nn.one_hot(label, self.num_classes + 1) * math.sqrt(self.num_classes + 1)
            emb = mp_sum(emb, MPConv(max(self.widths), name="label")(one_hot))
        return mp_silu(emb)

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch *space c"], t: Times, label: Examples | None = None, *, key: Key | None = None
    ) -> Float[Array, "batch *space out"]:
        """The prediction y; zero at first.

        Args:
          x: (B, *space, C), of about unit variance.
          t: () or (B,).
          label: () or (B,) ints in [0, num_classes], or None for the null label.
          key: (B,) or () dropout keys, or None to switch dropout off.

        Returns:
          (B, *space, out_channels), float32.

        Raises:
          ValueError: for settings that fit no network, shapes it cannot take, or a label that it was not made for.
        """
        check_time(t, x)
        self._check(x, label)
        channels = self.outputs * x.shape[-1] if self.out_channels is None else self.out_channels
        emb, window = self._embed(x, t, label), (3,) * (x.ndim - 2)
        keys = (None if key is None else random.fold_in(key, number) for number in range(1000))
        shared = {"dropout_rate": self.dropout_rate, "implementation": self.implementation, "dtype": self.dtype}
        made = functools.partial(nn.remat(Block) if self.remat else Block, **shared)

        def block(name: str, h: Array, width: int, attention: bool = False) -> Array:
            heads = width // self.head_channels if attention else 0
            return made(width, name.startswith("encoder"), heads, name=name)(h, emb, next(keys))

        x = jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1), x.dtype)], -1)  # ones in place of biases
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
