"""The U-Net in 1 to 3 dimensions: of DDPM (Ho et al. 2020), ADM (Dhariwal & Nichol 2021), Stable Diffusion 1 and 2.

ddpm  UNet(channels=128, channel_multipliers=(1, 2, 2, 2), attention_levels=(1,))                35.7M parameters
adm   UNet(channels=192, channel_multipliers=(1, 2, 3, 4), num_res_blocks=3, attention_levels=(1, 2, 3),
head_channels=64, resample="block", scale_shift=True, num_classes=1000)               ImageNet 64
sd    UNet(channels=320, channel_multipliers=(1, 2, 4, 4), attention_levels=(0, 1, 2), attention="cross",
context_dim=768, num_heads=8)                                                         859.5M
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from diffax import random
from diffax._checks import Condition, check, check_count, choose, interval, positive
from diffax.nn.attention import AttentionBlock, CrossAttentionBlock, Implementation
from diffax.nn.checks import check_label, check_levels, check_shapes, check_space, check_time, level_widths, with_mask
from diffax.nn.layers import ZEROS, Downsample, ResBlock, Upsample, conv, group_norm, labels_or_null, sinusoidal
from diffax.typing import Array, Float, Key


class UNet(nn.Module):
    """A U-Net y = f(x, t, label, ...).

    Level i has `channels * channel_multipliers[i]` channels at 1 / 2^i of the input's size, rounded up: odd
    sizes work. Each level has `num_res_blocks` residual blocks on the way down and one more on the way up, each
    followed by attention where the level is in `attention_levels`; the middle has two around one attention.

    Attributes:
      out_channels: channels of y; None for those of x, times `outputs`.
      outputs: answers of x's shape, side by side in the channels: 2 for a mean and a variance.
      channels: width of the first level, even.
      channel_multipliers: a multiplier for each level.
      num_res_blocks: residual blocks a level.
      attention_levels: indices of the levels with attention, e.g. (1,) for 16x16 of a 32x32 input.
      attention: "self", among the places, or "cross", transformer blocks that also attend to the context.
      middle_attention: whether the middle has it.
      num_heads: attention heads.
      head_channels: channels of a head, in place of `num_heads`.
      transformer_depth: transformer blocks in each "cross" attention.
      context_dim: width of the context's tokens.
      vector_dim: size of a continuous condition, or None.
      image_channels: channels of an image to condition on, at the size of x; 0 for none.
      resample: between levels, "conv", a convolution, or "block", a residual block that halves or doubles.
      scale_shift: how the embedding acts, see `ResBlock`.
      rescale: the sum that ends each residual and attention block is divided by it; sqrt(2) keeps its variance (Song
        et al. 2021). Sums inside the transformer blocks of "cross" are not.
      norm_groups: of the group norms, see `group_norm`.
      norm_eps: of the group norms, but for "cross" attention, where it is 1e-6 as published.
      pad_after: see `Downsample`.
      dropout_rate: dropout in the residual blocks; active where a key is given.
      num_classes: number of labels, or None; label `num_classes` is the null label, "no class given".
      time_scale: what t is multiplied by before its sinusoidal embedding; 1000 for t in [0, 1]. To condition on
        log-SNR pass it in place of t, with a scale of about 1000 / 40.
      time_shift, time_cos_first: see `sinusoidal`.
      remat: compute the activations of a block again on the way back, rather than keep them: less memory, about a
        third more work (Chen et al. 2016). The parameters are the same.
      implementation: of attention, see `attend`.
      dtype: what the network computes in; parameters and result stay float32.
    """

    out_channels: int | None = None
    outputs: int = 1
    channels: int = 128
    channel_multipliers: tuple[int | float, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attention_levels: tuple[int, ...] = (1,)
    attention: str = "self"
    middle_attention: bool = True
    num_heads: int = 1
    head_channels: int | None = None
    transformer_depth: int = 1
    context_dim: int | None = None
    vector_dim: int | None = None
    image_channels: int = 0
    resample: str = "conv"
    scale_shift: bool = False
    rescale: float = 1.0
    norm_groups: int | None = None
    norm_eps: float = 1e-5
    pad_after: bool = False
    dropout_rate: float = 0.0
    num_classes: int | None = None
    time_scale: float = 1000.0
    time_shift: int = 1
    time_cos_first: bool = False
    remat: bool = False
    implementation: Implementation = None
    dtype: Any = jnp.float32

    @property
    def widths(self) -> list[int]:
        """The channels of each level."""
        return level_widths(self.channels, self.channel_multipliers)

    def _check_settings(self) -> None:
        for name in ("outputs", "channels", "num_heads", "transformer_depth"):
            check_count(name, getattr(self, name))
        for name in ("out_channels", "head_channels", "context_dim", "vector_dim", "norm_groups", "num_classes"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        for name in ("num_res_blocks", "image_channels"):
            check_count(name, getattr(self, name), 0)
        check("channels", self.channels, Condition("even and at least 4", lambda v: (v >= 4) & (v % 2 == 0)))
        check("rescale", self.rescale, positive)
        check("dropout_rate", self.dropout_rate, interval("[0, 1)"))
        choose("attention", self.attention, ("self", "cross"))
        choose("resample", self.resample, ("conv", "block"))
        if (self.attention == "cross") != (self.context_dim is not None):
            raise ValueError(f"context_dim must be given with attention = 'cross' alone, got {self.context_dim}")

    def _check_input(self, x: Any, label: Any, context: Any, context_mask: Any, vector: Any, image: Any) -> None:
        check_space(x)
        check_levels(x, len(self.widths), self.attention_levels)
        check_label(label, self.num_classes)
        conditions = (("context", context, "context_dim"), ("vector", vector, "vector_dim"))
        for name, value, setting in (*conditions, ("image", image, "image_channels")):
            if value is not None and not getattr(self, setting):
                raise ValueError(f"{name} was given to a network without it: set {setting}")
        check_shapes(
            {
                **with_mask(len(x), context, context_mask, self.context_dim),
                "vector": (vector, (len(x), self.vector_dim)),
                "image": (image, (*x.shape[:-1], self.image_channels)),
            }
        )

    def _embed(self, x: Any, t: Any, label: Any, vector: Any) -> Array:
        """The (B, 4 channels) embedding of time, class and vector."""
        width = 4 * self.channels
        t = jnp.broadcast_to(jnp.asarray(t, jnp.float32), x.shape[:1])
        frequencies: dict[str, Any] = {"shift": self.time_shift, "cos_first": self.time_cos_first}
        emb = sinusoidal(t, self.channels, scale=self.time_scale, **frequencies)
        emb = nn.Dense(width, dtype=self.dtype, name="time_1")(emb)
        emb = nn.Dense(width, dtype=self.dtype, name="time_2")(nn.silu(emb))
        if self.num_classes is not None:
            table = nn.Embed(self.num_classes + 1, width, dtype=self.dtype, name="label")
            emb = emb + table(labels_or_null(label, self.num_classes, len(x)))
        if self.vector_dim is not None:
            vector = jnp.zeros((x.shape[0], self.vector_dim)) if vector is None else vector
            vector = nn.Dense(width, dtype=self.dtype, name="vector_1")(vector)
            emb = emb + nn.Dense(width, dtype=self.dtype, name="vector_2")(nn.silu(vector))
        return emb

    def _attend(self, width: int, context: Any, mask: Any) -> Callable:
        """A new attention block, h -> h."""
        if self.head_channels is not None and width % self.head_channels:
            raise ValueError(f"head_channels must divide the {width} channels, got {self.head_channels}")
        heads = self.num_heads if self.head_channels is None else width // self.head_channels
        shared: dict[str, Any] = {"norm_groups": self.norm_groups, "implementation": self.implementation}
        shared |= {"num_heads": heads, "dtype": self.dtype, "rescale": self.rescale}
        if self.attention == "self":
            return _again(AttentionBlock, self.remat)(eps=self.norm_eps, **shared)
        block = _again(CrossAttentionBlock, self.remat)(depth=self.transformer_depth, **shared)
        return lambda h: block(h, context, mask)

    def _residual(self, emb: Any, keys: Iterator[Any]) -> Callable:
        """(h, width, resample, space) -> h, by a new residual block each time."""
        options = {"dtype": self.dtype, "scale_shift": self.scale_shift, "rescale": self.rescale}
        norms = {"norm_groups": self.norm_groups, "eps": self.norm_eps}
        residual = functools.partial(_again(ResBlock, self.remat), **options, **norms)

        def block(h, width, resample=None, space=None):
            return residual(width, self.dropout_rate, resample=resample, space=space)(h, emb, next(keys))

        return block

    def _down(self, h: Any, block: Callable, residual: Callable) -> list[Array]:
        """What the way up is given, in order: h, then what each block and each halving on the way down makes of it."""
        skips = [h]
        for level, width in enumerate(self.widths):
            for _ in range(self.num_res_blocks):
                skips.append(block(skips[-1], level))
            if level < len(self.widths) - 1:
                down = Downsample(self.dtype, self.pad_after) if self.resample == "conv" else None
                skips.append(residual(skips[-1], width, "down") if down is None else down(skips[-1]))
        return skips

    def _up(self, h: Any, skips: list[Array], block: Callable, residual: Callable) -> Array:
        """h at the size of x; takes the skips from their end."""
        for level in reversed(range(len(self.widths))):
            for _ in range(self.num_res_blocks + 1):
                h = block(jnp.concatenate([h, skips.pop()], -1), level)
            if level > 0:
                space = skips[-1].shape[1:-1]
                up = Upsample(self.dtype) if self.resample == "conv" else None
                h = residual(h, self.widths[level], "up", space) if up is None else up(h, space)
        return h

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch *space c"],
        t: Any,
        label: Any = None,
        *,
        context: Any = None,
        context_mask: Any = None,
        vector: Any = None,
        image: Any = None,
        key: Key | None = None,
    ) -> Float[Array, "batch *space out"]:
        """The prediction y. What is conditioned on and not given is "none": no tokens, zeros.

        Args:
          x: (B, *space, C).
          t: () or (B,).
          label: () or (B,) ints in [0, num_classes], or None for the null label.
          context: (B, m, context_dim) tokens to attend to.
          context_mask: (B, m), which of them there are; None for all.
          vector: (B, vector_dim).
          image: (B, *space, image_channels), put beside x in the channels (super-resolution, inpainting).
          key: (B,) or () dropout keys, or None to switch dropout off.

        Returns:
          (B, *space, out_channels), float32.

        Raises:
          ValueError: for settings that fit no network, shapes it cannot take, or a condition it was not made for.
        """
        self._check_settings()
        check_time(t, x)
        self._check_input(x, label, context, context_mask, vector, image)
        channels = self.outputs * x.shape[-1] if self.out_channels is None else self.out_channels
        if self.attention == "cross" and context is None:
            context, context_mask = jnp.zeros((x.shape[0], 1, self.context_dim)), jnp.zeros((x.shape[0], 1), bool)
        if self.image_channels:
            x = jnp.concatenate([x, jnp.zeros((*x.shape[:-1], self.image_channels)) if image is None else image], -1)
        keys = (None if key is None else random.fold_in(key, number) for number in range(1000))
        residual = self._residual(self._embed(x, t, label, vector), keys)

        def block(h, level):
            h = residual(h, self.widths[level])
            return self._attend(self.widths[level], context, context_mask)(h) if level in self.attention_levels else h

        h = conv(self.widths[0], x.ndim - 2, self.dtype, name="conv_in")(x.astype(self.dtype))
        skips = self._down(h, block, residual)
        h = residual(skips[-1], self.widths[-1])
        h = self._attend(self.widths[-1], context, context_mask)(h) if self.middle_attention else h
        h = residual(h, self.widths[-1])
        h = self._up(h, skips, block, residual)
        h = nn.silu(group_norm(h.shape[-1], self.dtype, groups=self.norm_groups, eps=self.norm_eps)(h))
        return conv(channels, x.ndim - 2, self.dtype, kernel_init=ZEROS, name="conv_out")(h).astype(jnp.float32)


def _again(block: Any, remat: bool) -> Any:
    """The block under `nn.remat`, by its own name, which that of its parameters comes from."""
    if not remat:
        return block
    again = nn.remat(block)
    again.__name__ = block.__name__
    return again
