"""The U-Net of DDPM (Ho et al. 2020, appendix B), with class conditioning."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from diffax import random
from diffax.nn.layers import (
    ZEROS,
    AttentionBlock,
    Downsample,
    ResBlock,
    Upsample,
    conv,
    group_norm,
    sinusoidal,
)
from diffax.pytrees import check
from diffax.typing import Array, Float, Key


class UNet(nn.Module):
    """A U-Net y = f(x, t, label).

    Level i has `channels * channel_multipliers[i]` channels at 1 / 2^i of the input's size, rounded up: odd
    sizes work. Each level has `num_res_blocks` residual blocks on the way down and one more on the way up, each
    followed by self-attention where the level is in `attention_levels`; the middle has two around one attention.

    Attributes:
      out_channels: channels of y; None for those of x, times `outputs`.
      outputs: answers of x's shape, side by side in the channels: 2 for a mean and a variance.
      channels: width of the first level.
      channel_multipliers: a multiplier for each level.
      num_res_blocks: residual blocks a level.
      attention_levels: indices of the levels with attention, e.g. (1,) for 16x16 of a 32x32 input.
      num_heads: attention heads.
      dropout_rate: dropout in the residual blocks; active where a key is given.
      num_classes: number of labels, or None; label `num_classes` is the null label, "no class given".
      time_scale: what t is multiplied by before its sinusoidal embedding; 1000 for t in [0, 1]. To condition on
        log-SNR pass it in place of t, with a scale of about 1000 / 40.
      remat: compute the activations of a block again on the way back, rather than keep them: less memory, about a
        third more work (Chen et al. 2016). The parameters are the same.
      dtype: what the network computes in; parameters and result stay float32.

    The DDPM CIFAR-10 network, `UNet(channels=128, channel_multipliers=(1, 2, 2, 2), attention_levels=(1,))`,
    has 35.7M parameters.
    """

    out_channels: int | None = None
    outputs: int = 1
    channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attention_levels: tuple[int, ...] = (1,)
    num_heads: int = 1
    dropout_rate: float = 0.0
    num_classes: int | None = None
    time_scale: float = 1000.0
    remat: bool = False
    dtype: Any = jnp.float32

    def _check(self, x: Any, label: Any) -> None:
        if x.ndim < 3 or x.ndim > 5:
            raise ValueError(f"x must have shape (B, *space, C) with 1 to 3 spatial axes, got {x.shape}")
        if not self.channel_multipliers or min(self.channel_multipliers) < 1:
            raise ValueError(f"channel_multipliers must be ints >= 1, got {self.channel_multipliers}")
        factor = 2 ** (len(self.channel_multipliers) - 1)
        if min(x.shape[1:-1]) * 2 <= factor:
            levels = len(self.channel_multipliers)
            raise ValueError(f"channel_multipliers has {levels} levels, too many for x of shape {x.shape}")
        bad = [i for i in self.attention_levels if not 0 <= i < len(self.channel_multipliers)]
        if bad:
            raise ValueError(f"attention_levels must lie below {len(self.channel_multipliers)}, got {bad[0]}")
        if label is not None and self.num_classes is None:
            raise ValueError("label was given to a network without classes: set num_classes")
        if label is not None:
            check("label", label, f"in [0, {self.num_classes}]", lambda v: (v >= 0) & (v <= self.num_classes))

    def _embed(self, x: Any, t: Any, label: Any) -> Array:
        """The (B, 4 channels) embedding of time and class."""
        width = 4 * self.channels
        t = jnp.broadcast_to(jnp.asarray(t, jnp.float32), x.shape[:1])
        emb = sinusoidal(t, self.channels, scale=self.time_scale)
        emb = nn.Dense(width, dtype=self.dtype, name="time_1")(emb)
        emb = nn.Dense(width, dtype=self.dtype, name="time_2")(nn.silu(emb))
        if self.num_classes is not None:
            label = self.num_classes if label is None else label
            label = jnp.broadcast_to(jnp.asarray(label), x.shape[:1])
            emb = emb + nn.Embed(self.num_classes + 1, width, dtype=self.dtype, name="label")(label)
        return emb

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch *space c"], t: Any, label: Any = None, *, key: Key | None = None
    ) -> Float[Array, "batch *space out"]:
        """The prediction y.

        Args:
          x: (B, *space, C).
          t: () or (B,).
          label: () or (B,) ints in [0, num_classes], or None for the null label.
          key: (B,) or () dropout keys, or None to switch dropout off.

        Returns:
          (B, *space, out_channels), float32.

        Raises:
          ValueError: for shapes the network cannot take, or a label it has no classes for.
        """
        self._check(x, label)
        emb = self._embed(x, t, label)
        residual, attention = _again(ResBlock, self.remat), _again(AttentionBlock, self.remat)
        count = iter(range(1000))  # numbers the residual blocks, for their dropout keys

        def block(h, width, level=None):
            block_key = None if key is None else random.fold_in(key, next(count))
            h = residual(width, self.dropout_rate, self.dtype)(h, emb, block_key)
            attend = level is None or level in self.attention_levels
            return attention(self.num_heads, self.dtype)(h) if attend else h

        widths = [self.channels * m for m in self.channel_multipliers]
        h = conv(widths[0], x.ndim - 2, self.dtype, name="conv_in")(x.astype(self.dtype))
        skips = [h]
        for level, width in enumerate(widths):
            for _ in range(self.num_res_blocks):
                h = block(h, width, level)
                skips.append(h)
            if level < len(widths) - 1:
                h = Downsample(self.dtype)(h)
                skips.append(h)

        h = block(h, widths[-1])
        last_key = None if key is None else random.fold_in(key, next(count))
        h = residual(widths[-1], self.dropout_rate, self.dtype)(h, emb, last_key)

        for level in reversed(range(len(widths))):
            for _ in range(self.num_res_blocks + 1):
                h = block(jnp.concatenate([h, skips.pop()], -1), widths[level], level)
            if level > 0:
                h = Upsample(self.dtype)(h, skips[-1].shape[1:-1])

        h = nn.silu(group_norm(h.shape[-1], self.dtype)(h))
        channels = self.outputs * x.shape[-1] if self.out_channels is None else self.out_channels
        h = conv(channels, x.ndim - 2, self.dtype, kernel_init=ZEROS, name="conv_out")(h)
        return h.astype(jnp.float32)


def _again(block: Any, remat: bool) -> Any:
    """The block under `nn.remat`, by its own name, which that of its parameters comes from."""
    if not remat:
        return block
    again = nn.remat(block)
    again.__name__ = block.__name__
    return again
