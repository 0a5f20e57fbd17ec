"""U-Net in 1 to 3 dimensions, as in DDPM (Ho et al. 2020), ADM (Dhariwal & Nichol 2021), Stable Diffusion 1 and 2.

Level i has channels * channel_multipliers[i] channels and 1 / 2^i of the size of x, rounded up; odd sizes work
unless `resample` is "conv_pad_after" (DDPM).
block(h) is a residual block, followed by attention on the levels that have it:

    encoder   each level, `num_res_blocks` times: h = block(h); between levels h is halved. Each h is saved as a skip
    middle    h = residual(attention(residual(h)))
    decoder   each level, `num_res_blocks` + 1 times: h = block([h, skip]); between levels h is doubled

UNet.ddpm()                35.7M parameters, CIFAR-10
UNet.adm()                 296M, ImageNet 64x64
UNet.stable_diffusion()    859.5M, version 1.5
"""

import dataclasses
import functools
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from diffax import random
from diffax._checks import Condition, check, check_count, interval
from diffax.nn.attention import Attention, AttentionBlock, CrossAttentionBlock
from diffax.nn.checks import (
    check_attention_levels,
    check_label,
    check_levels,
    check_second,
    check_shapes,
    check_space,
    check_time,
    level_widths,
    with_mask,
)
from diffax.nn.layers import (
    ZEROS,
    Downsample,
    FewStepEmbedding,
    Norm,
    ResBlock,
    Residual,
    TimeEmbedding,
    Upsample,
    conv,
    group_norm,
    labels_or_null,
    sinusoidal,
)
from diffax.typing import Array, Float, Key


class UNet(nn.Module):
    """A U-Net y = f(x, t, label, ...), with y = 0 at initialisation. The module's docstring describes its structure.

    Attributes:
      out_channels: channels of y; None for `outputs` times the channels of x.
      outputs: number of predictions of the shape of x, concatenated along the channels; 2 for a mean and a variance.
      channels: width of the first level, even and at least 4.
      channel_multipliers: width of each level, as a multiple of `channels`.
      num_res_blocks: residual blocks per level of the encoder; each level of the decoder has one more.
      residual: settings of the residual blocks and of the layers between the levels.
      attention: settings of the attention: its levels, its heads and its context.
      norm: settings of all group norms. Cross-attention blocks use only the groups, with an epsilon of 1e-6, see
        `CrossAttentionBlock`.
      time: settings of the embedding of t.
      dropout_rate: dropout rate of the residual blocks, in [0, 1). Dropout is active when a key is passed.
      num_classes: number of classes, or None. Label `num_classes` is the null label, which means "no class".
      vector_dim: size of a continuous condition, or None.
      image_channels: channels of an image to condition on, which has the spatial size of x; 0 for none.
      second_time: whether the network has a second time s, for flow maps; zero-initialised, see `FewStepEmbedding`.
      guidance_input: whether the network has a guidance weight as an input; it needs `second_time`.
      remat: whether the backward pass recomputes the activations of each block instead of storing them: less memory,
        about a third more work (Chen et al. 2016). The parameters are the same.
      dtype: dtype of the computation; parameters and y are float32.

    Raises:
      ValueError: if a setting is out of its range or incompatible with another one.

    >>> net = UNet(channels=64, attention=Attention(levels=(1, 2), num_heads=4), num_classes=10)
    >>> net.widths
    [64, 128, 128, 128]
    >>> UNet(channels=64, attention=Attention(levels=(4,)))
    Traceback (most recent call last):
    ...
    ValueError: attention.levels must be in [0, 4), the levels of channel_multipliers, got 4
    """

    out_channels: int | None = None
    outputs: int = 1
    channels: int = 128
    channel_multipliers: tuple[int | float, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    residual: Residual = Residual()
    attention: Attention = Attention()
    norm: Norm = Norm()
    time: TimeEmbedding = TimeEmbedding()
    dropout_rate: float = 0.0
    num_classes: int | None = None
    vector_dim: int | None = None
    image_channels: int = 0
    second_time: bool = False
    guidance_input: bool = False
    remat: bool = False
    dtype: DTypeLike = jnp.float32

    @classmethod
    def ddpm(cls, *, attention_levels: tuple[int, ...] = (1,), dropout_rate: float = 0.1, **settings: Any) -> "UNet":
        """The network of DDPM on CIFAR-10, 35.7M parameters. Spatial sizes must be even on all levels except the last.

        Args:
          attention_levels: levels with attention; level 1 is 16x16 for a 32x32 input.
          dropout_rate: 0.1 on CIFAR-10; the paper uses no dropout on its larger images.
          settings: other fields of `UNet`, which replace the published ones.

        Source: Ho et al. 2020, appendix B, and their code: 32 groups at these widths, eps 1e-6.

        >>> UNet.ddpm(channel_multipliers=(1, 1, 2, 2, 4, 4), attention_levels=(4,), dropout_rate=0.0).widths  # 256x256
        [128, 128, 256, 256, 512, 512]
        """
        published: dict[str, Any] = {
            "channels": 128,
            "channel_multipliers": (1, 2, 2, 2),
            "num_res_blocks": 2,
            "residual": Residual(resample="conv_pad_after"),
            "attention": Attention(levels=attention_levels),
            "norm": Norm(eps=1e-6),
            "dropout_rate": dropout_rate,
        }
        return cls(**(published | settings))

    @classmethod
    def adm(cls, *, attention_levels: tuple[int, ...] = (1, 2, 3), head_channels: int = 64, **settings: Any) -> "UNet":
        """The class-conditional network of ADM on ImageNet 64x64, 296M parameters. It predicts a mean and a variance.

        Args:
          attention_levels: levels with attention; 1, 2 and 3 are 32x32, 16x16 and 8x8 for a 64x64 input.
          head_channels: channels per attention head.
          settings: other fields of `UNet`, which replace the published ones.

        Source: Dhariwal & Nichol 2021, table 4, and their code.

        >>> UNet.adm(channels=256, channel_multipliers=(1, 1, 2, 2, 4, 4), num_res_blocks=2, attention_levels=(3, 4, 5),
        ...     dropout_rate=0.0).widths  # 256x256
        [256, 256, 512, 512, 1024, 1024]
        """
        published: dict[str, Any] = {
            "outputs": 2,
            "channels": 192,
            "channel_multipliers": (1, 2, 3, 4),
            "num_res_blocks": 3,
            "residual": Residual(resample="block", scale_shift=True),
            "attention": Attention(levels=attention_levels, head_channels=head_channels),
            "time": TimeEmbedding(shift=0, cos_first=True),
            "dropout_rate": 0.1,
            "num_classes": 1000,
        }
        return cls(**(published | settings))

    @classmethod
    def stable_diffusion(
        cls, *, context_dim: int = 768, num_heads: int = 8, head_channels: int | None = None, **settings: Any
    ) -> "UNet":
        """The network of Stable Diffusion 1.5 on latents (B, 64, 64, 4), 859.5M parameters.

        Args:
          context_dim: width of the text tokens.
          num_heads: number of attention heads.
          head_channels: channels per attention head; replaces `num_heads`.
          settings: other fields of `UNet`, which replace the published ones.

        Source: Rombach et al. 2022, in the form of diffusers' `UNet2DConditionModel`.

        >>> version_2 = UNet.stable_diffusion(context_dim=1024, head_channels=64)
        >>> inpainting = UNet.stable_diffusion(image_channels=5)
        """
        attention = Attention(
            levels=(0, 1, 2), num_heads=num_heads, head_channels=head_channels, context_dim=context_dim
        )
        published: dict[str, Any] = {
            "channels": 320,
            "channel_multipliers": (1, 2, 4, 4),
            "num_res_blocks": 2,
            "attention": attention,
            "time": TimeEmbedding(shift=0, cos_first=True),
        }
        return cls(**(published | settings))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("outputs", self.outputs)
        for name in ("out_channels", "num_classes", "vector_dim"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        for name in ("num_res_blocks", "image_channels"):
            check_count(name, getattr(self, name), 0)
        check_count("channels", self.channels)
        check("channels", self.channels, Condition("even and at least 4", lambda v: (v >= 4) & (v % 2 == 0)))
        check("dropout_rate", self.dropout_rate, interval("[0, 1)"))
        for width in self.widths:
            self.norm.num_groups(width)
        check_attention_levels("attention.levels", self.attention.levels, len(self.widths))
        for level in self.attention.levels:
            self.attention.heads(self.widths[level])
        if self.attention.middle:
            self.attention.heads(self.widths[-1])

    @property
    def widths(self) -> list[int]:
        """The number of channels of each level."""
        return level_widths(self.channels, self.channel_multipliers)

    @property
    def context_dim(self) -> int | None:
        """The width of the context tokens; None for a network without a context."""
        return self.attention.context_dim

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch *space c"],
        t: ArrayLike,
        label: ArrayLike | None = None,
        *,
        context: Float[Array, "batch m e"] | None = None,
        context_mask: ArrayLike | None = None,
        vector: Float[Array, "batch v"] | None = None,
        image: Float[Array, "batch *space i"] | None = None,
        s: ArrayLike | None = None,
        weight: ArrayLike | None = None,
        key: Key | None = None,
    ) -> Float[Array, "batch *space out"]:
        """Compute the prediction y. A condition of None means "no condition": the null label, no tokens, or zeros.

        Args:
          x: (B, *space, C).
          t: () or (B,).
          label: () or (B,) ints in [0, num_classes], or None for the null label.
          context: (B, m, context_dim) tokens to attend to.
          context_mask: (B, m), True for real tokens and False for padding; None if all tokens are real.
          vector: (B, vector_dim).
          image: (B, *space, image_channels), concatenated with x along the channels (super-resolution, inpainting).
          s: () or (B,), the second time; None for s = t.
          weight: () or (B,), a guidance weight; None for 1.
          key: (B,) or () dropout keys, or None to disable dropout.

        Returns:
          (B, *space, out_channels), float32.

        Raises:
          ValueError: if a shape does not fit the network, or a condition is passed for which the network has no
            setting.
        """
        check_time(t, x)
        check_second(x, self.second_time, s, self.guidance_input, weight)
        self._check_input(x, label, context, context_mask, vector, image)
        out_channels = self.outputs * x.shape[-1] if self.out_channels is None else self.out_channels
        if self.context_dim is not None and context is None:
            context, context_mask = jnp.zeros((len(x), 1, self.context_dim)), jnp.zeros((len(x), 1), bool)
        if self.image_channels:
            x = jnp.concatenate([x, jnp.zeros((*x.shape[:-1], self.image_channels)) if image is None else image], -1)
        emb, keys = self._embed(x, t, label, vector, s, weight), self._dropout_keys(key)
        call = nn.remat(_call) if self.remat else _call

        def residual(
            h: Array, width: int, resample: Literal["down", "up"] | None = None, space: tuple[int, ...] | None = None
        ) -> Array:
            return call(self._residual_block(width, resample, space), h, emb, keys.pop())

        def attend(h: Array) -> Array:
            tokens = () if self.context_dim is None else (context, context_mask)
            return call(self._attention_block(h.shape[-1]), h, *tokens)

        h = conv(self.widths[0], x.ndim - 2, self.dtype, name="conv_in")(x.astype(self.dtype))
        skips = [h]
        for level, width in enumerate(self.widths):
            for _ in range(self.num_res_blocks):
                h = residual(h, width)
                h = attend(h) if level in self.attention.levels else h
                skips.append(h)
            if level < len(self.widths) - 1:
                h = residual(h, width, "down") if self._by_block else self._downsample()(h)
                skips.append(h)

        h = residual(h, self.widths[-1])
        h = attend(h) if self.attention.middle else h
        h = residual(h, self.widths[-1])

        for level, width in reversed([*enumerate(self.widths)]):
            for _ in range(self.num_res_blocks + 1):
                h = residual(jnp.concatenate([h, skips.pop()], -1), width)
                h = attend(h) if level in self.attention.levels else h
            if level > 0:
                space = skips[-1].shape[1:-1]
                h = residual(h, width, "up", space) if self._by_block else Upsample(self.dtype)(h, space)

        h = nn.silu(group_norm(h.shape[-1], self.dtype, self.norm)(h))
        return conv(out_channels, x.ndim - 2, self.dtype, kernel_init=ZEROS, name="conv_out")(h).astype(jnp.float32)

    @property
    def _by_block(self) -> bool:
        """Whether residual blocks, instead of convolutions, halve and double h between the levels."""
        return self.residual.resample == "block"

    def _check_input(
        self,
        x: Array,
        label: ArrayLike | None,
        context: Array | None,
        context_mask: ArrayLike | None,
        vector: Array | None,
        image: Array | None,
    ) -> None:
        check_space(x)
        check_levels(x, len(self.widths))
        check_label(label, self.num_classes)
        conditions = (("context", context), ("vector", vector), ("image", image))
        for (name, value), setting in zip(conditions, ("context_dim", "vector_dim", "image_channels"), strict=True):
            if value is not None and not getattr(self, setting):
                raise ValueError(f"{name} must be None for a network without {setting}, got shape {jnp.shape(value)}")
        check_shapes(
            {
                **with_mask(len(x), context, context_mask, self.context_dim),
                "vector": (vector, (len(x), self.vector_dim)),
                "image": (image, (*x.shape[:-1], self.image_channels)),
            }
        )

    def _embed(
        self,
        x: Array,
        t: ArrayLike,
        label: ArrayLike | None,
        vector: Array | None,
        s: ArrayLike | None,
        weight: ArrayLike | None,
    ) -> Array:
        """The (B, 4 * channels) embedding of times, class, vector and guidance weight."""
        dense = functools.partial(nn.Dense, 4 * self.channels, dtype=self.dtype)
        t = jnp.broadcast_to(jnp.asarray(t, jnp.float32), x.shape[:1])
        emb = sinusoidal(t, self.channels, **dataclasses.asdict(self.time))
        emb = dense(name="time_2")(nn.silu(dense(name="time_1")(emb)))
        if self.num_classes is not None:
            table = nn.Embed(self.num_classes + 1, 4 * self.channels, dtype=self.dtype, name="label")
            emb = emb + table(labels_or_null(label, self.num_classes, len(x)))
        if self.vector_dim is not None:
            vector = jnp.zeros((len(x), self.vector_dim)) if vector is None else vector
            emb = emb + dense(name="vector_2")(nn.silu(dense(name="vector_1")(vector)))
        if self.second_time:
            options = (4 * self.channels, self.time.scale, self.guidance_input, self.dtype)
            emb = emb + FewStepEmbedding(*options, name="few_step")(t, s, weight)
        return emb

    def _dropout_keys(self, key: Key | None) -> list[Key | None]:
        """Keys fold_in(key, i) of the residual blocks i, in reverse order, because `pop` takes keys from the end."""
        levels = len(self.widths)
        count = levels * (2 * self.num_res_blocks + 1) + 2 + 2 * (levels - 1) * self._by_block
        return [None if key is None else random.fold_in(key, i) for i in reversed(range(count))]

    def _residual_block(
        self, width: int, resample: Literal["down", "up"] | None, space: tuple[int, ...] | None
    ) -> ResBlock:
        return ResBlock(
            width,
            dropout_rate=self.dropout_rate,
            dtype=self.dtype,
            scale_shift=self.residual.scale_shift,
            resample=resample,
            space=space,
            rescale=self.residual.rescale,
            norm=self.norm,
        )

    def _attention_block(self, width: int) -> AttentionBlock | CrossAttentionBlock:
        settings: dict[str, Any] = {
            "num_heads": self.attention.heads(width),
            "dtype": self.dtype,
            "rescale": self.residual.rescale,
            "norm": self.norm,
            "implementation": self.attention.implementation,
        }
        if self.context_dim is None:
            return AttentionBlock(**settings)
        return CrossAttentionBlock(depth=self.attention.depth, **settings)

    def _downsample(self) -> Downsample:
        return Downsample(self.dtype, pad_after=self.residual.resample == "conv_pad_after")


def _call(block: nn.Module, *args: Any) -> Array:
    """Return block(*args). `nn.remat` wraps this function, because wrapping a block directly would change its name."""
    y: Array = block(*args)
    return y
