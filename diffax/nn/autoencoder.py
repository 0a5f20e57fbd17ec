"""The KL autoencoder of latent diffusion (Rombach et al. 2022): encodes images as small Gaussian latents."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from diffax._checks import check_count
from diffax.nn.attention import AttentionBlock
from diffax.nn.autoencoding import reparameterise
from diffax.nn.layers import Downsample, Norm, ResBlock, Upsample, conv, group_norm
from diffax.typing import Array, Float, Key

LOG_VARIANCE = (-30.0, 20.0)  # range to which the log-variance of the encoder is clipped


class Blocks(NamedTuple):
    """Settings and building blocks of encoder and decoder.

    widths: channels of each level; norm: settings of the group norms; the other fields as of `Autoencoder`.
    """

    widths: tuple[int, ...]
    num_res_blocks: int
    attention: bool
    norm: Norm
    pad_after: bool
    dtype: Any

    def residual(self, h: Array, width: int) -> Array:
        """A residual block with `width` output channels."""
        return ResBlock(width, dtype=self.dtype, norm=self.norm)(h)

    def middle(self, h: Array) -> Array:
        """A residual block, attention if enabled, and another residual block."""
        h = self.residual(h, self.widths[-1])
        if self.attention:
            h = AttentionBlock(dtype=self.dtype, norm=self.norm)(h)
        return self.residual(h, self.widths[-1])

    def last(self, h: Array, channels: int) -> Array:
        """Group norm, silu, and the last convolution."""
        h = nn.silu(group_norm(h.shape[-1], self.dtype, self.norm)(h))
        return conv(channels, h.ndim - 2, self.dtype, name="conv_out")(h)


class Encoder(nn.Module):
    """The encoder: x (B, *space, C) -> (B, *small, 2 `latent_channels`), where small = space / 2^(levels - 1).

    quant: whether a dense layer follows.
    """

    blocks: Blocks
    latent_channels: int
    quant: bool

    @nn.compact
    def __call__(self, x: Float[Array, "batch *space c"]) -> Float[Array, "batch *small moments"]:
        """See the class."""
        blocks = self.blocks
        h = conv(blocks.widths[0], x.ndim - 2, blocks.dtype, name="conv_in")(x.astype(blocks.dtype))
        for level, width in enumerate(blocks.widths):
            if level > 0:
                h = Downsample(blocks.dtype, blocks.pad_after)(h)
            for _ in range(blocks.num_res_blocks):
                h = blocks.residual(h, width)
        h = blocks.last(blocks.middle(h), 2 * self.latent_channels)
        return nn.Dense(2 * self.latent_channels, dtype=blocks.dtype, name="quant")(h) if self.quant else h


class Decoder(nn.Module):
    """The decoder: z (B, *small, L) -> (B, *space, `out_channels`). quant: whether a dense layer comes first."""

    blocks: Blocks
    out_channels: int
    quant: bool

    @nn.compact
    def __call__(self, z: Float[Array, "batch *small l"]) -> Float[Array, "batch *space c"]:
        """See the class."""
        blocks, h = self.blocks, z.astype(self.blocks.dtype)
        if self.quant:
            h = nn.Dense(z.shape[-1], dtype=blocks.dtype, name="quant")(h)
        h = blocks.middle(conv(blocks.widths[-1], z.ndim - 2, blocks.dtype, name="conv_in")(h))
        for level in reversed(range(len(blocks.widths))):
            for _ in range(blocks.num_res_blocks + 1):
                h = blocks.residual(h, blocks.widths[level])
            if level > 0:
                h = Upsample(blocks.dtype)(h, tuple(2 * size for size in h.shape[1:-1]))
        return blocks.last(h, self.out_channels)


class Autoencoder(nn.Module):
    """A variational autoencoder, q(z | x) = N(mean, diag exp(log_variance)), with a convolutional encoder and decoder.

    Level i has `channels * channel_multipliers[i]` channels at 1 / 2^i of the input size. Each level has
    `num_res_blocks` residual blocks in the encoder and one more in the decoder. At the smallest size both have a middle
    part: two residual blocks with attention between them. x has 1 to 3 spatial axes; each size must be a multiple of
    2^(levels - 1).

        mean, log_variance = net.apply(params, x, method="encode")
        y = net.apply(params, z, method="decode")

    Attributes:
      sample_channels: channels of x.
      latent_channels: channels of z.
      channels: width of the first level.
      channel_multipliers: width of each level, as a multiple of `channels`.
      num_res_blocks: residual blocks per level of the encoder; each level of the decoder has one more.
      attention: whether the middle part has attention.
      norm_groups: number of groups of the group norms, see `diffax.nn.layers.group_norm`.
      eps: epsilon of the group norms.
      pad_after: padding of the convolutions that halve the size: True pads only at the end of each axis, as published;
        False pads both sides.
      quant_conv: whether a dense layer over the channels follows the encoder.
      post_quant_conv: whether a dense layer over the channels precedes the decoder.
      dtype: dtype of the computation; parameters and results are float32.

    `Autoencoder()` is the autoencoder of Stable Diffusion 1, with 83,653,863 parameters, except that the last
    convolution of each residual block and of the attention is initialised to zero.
    """

    sample_channels: int = 3
    latent_channels: int = 4
    channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attention: bool = True
    norm_groups: int | None = None
    eps: float = 1e-6
    pad_after: bool = True
    quant_conv: bool = True
    post_quant_conv: bool = True
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Check the settings, and create encoder and decoder."""
        for name in ("sample_channels", "latent_channels", "channels"):
            check_count(name, getattr(self, name))
        check_count("num_res_blocks", self.num_res_blocks, 0)
        if not self.channel_multipliers:
            raise ValueError("channel_multipliers must be ints >= 1, got ()")
        for multiplier in self.channel_multipliers:
            check_count("channel_multipliers", multiplier)
        widths = tuple(self.channels * m for m in self.channel_multipliers)
        norm = Norm(self.norm_groups, self.eps)
        blocks = Blocks(widths, self.num_res_blocks, self.attention, norm, self.pad_after, self.dtype)
        self.encoder = Encoder(blocks, self.latent_channels, self.quant_conv)
        self.decoder = Decoder(blocks, self.sample_channels, self.post_quant_conv)

    def encode(self, x: Float[Array, "batch *space c"]) -> tuple[Array, Array]:
        """Mean and log-variance of z given x, both (B, *small, latent_channels), float32.

        The log-variance is clipped to [-30, 20].

        Args:
          x: (B, *space, sample_channels).

        Raises:
          ValueError: if the shape of x is wrong, or a size is not a multiple of 2^(levels - 1).
        """
        _check("x", x, self.sample_channels)
        factor = 2 ** (len(self.channel_multipliers) - 1)
        if any(size % factor for size in x.shape[1:-1]):
            raise ValueError(f"x must have sizes that are multiples of {factor}, got {x.shape}")
        mean, log_variance = jnp.split(self.encoder(x).astype(jnp.float32), 2, -1)
        return mean, jnp.clip(log_variance, *LOG_VARIANCE)

    def decode(self, z: Float[Array, "batch *small l"]) -> Float[Array, "batch *space c"]:
        """The reconstruction from z: (B, *space, sample_channels), float32.

        Args:
          z: (B, *small, latent_channels).

        Raises:
          ValueError: if the shape of z is wrong.
        """
        _check("z", z, self.latent_channels)
        return self.decoder(z).astype(jnp.float32)

    def __call__(self, x: Float[Array, "batch *space c"], key: Key | None = None) -> tuple[Array, Array, Array]:
        """(y, mean, log_variance): the reconstruction of x, and the moments of z given x.

        key: () or (B,), consumed; y is decoded from a random z. None decodes the mean of z.
        """
        mean, log_variance = self.encode(x)
        return self.decode(mean if key is None else reparameterise(key, mean, log_variance)), mean, log_variance


def _check(name: str, x: Array, channels: int) -> None:
    if not 3 <= x.ndim <= 5 or x.shape[-1] != channels:
        raise ValueError(f"{name} must have shape (B, *space, {channels}) with 1 to 3 spatial axes, got {x.shape}")
