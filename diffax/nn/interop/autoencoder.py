"""diffusers' `AutoencoderKL`, the autoencoder of Stable Diffusion, as `Autoencoder`: its config and its weights.

net = build(config)
like = jax.eval_shape(net.init, key, x)["params"]
params = weights.from_torch(weights.load_file(path), links(config), like)
"""

import math
from collections.abc import Iterator
from typing import Any

from diffax.nn.autoencoder import Autoencoder
from diffax.nn.interop import fields
from diffax.nn.interop.fields import (
    COUNT,
    COUNTS,
    FLAG,
    NORM_GROUPS,
    NUMBER,
    POSITIVE,
    SIZE,
    Field,
    Rule,
    counted,
    many,
    one_of,
    or_none,
)
from diffax.nn.interop.weights import Link

FIELDS: dict[str, Field] = {
    "in_channels": Field(COUNT, 3),
    "out_channels": Field(COUNT, 3),
    "block_out_channels": Field(COUNTS, [64]),
    "down_block_types": Field(many(one_of("DownEncoderBlock2D")), ["DownEncoderBlock2D"]),
    "up_block_types": Field(many(one_of("UpDecoderBlock2D")), ["UpDecoderBlock2D"]),
    "layers_per_block": Field(COUNT, 1),
    "latent_channels": Field(COUNT, 4),
    "norm_num_groups": Field(COUNT, 32),
    "use_quant_conv": Field(FLAG, True),
    "use_post_quant_conv": Field(FLAG, True),
    "mid_block_add_attention": Field(FLAG, True),
    "act_fn": Field(one_of("silu"), "silu"),
    "latents_mean": Field(one_of(None), None),
    "latents_std": Field(one_of(None), None),
    # Settings of the pipeline, not of the network: `build` does not use them.
    "sample_size": Field(SIZE, 32),
    "scaling_factor": Field(POSITIVE, 0.18215),
    "shift_factor": Field(or_none(NUMBER), None),
    "force_upcast": Field(or_none(FLAG), True),
}
RULES = (
    counted("down_block_types", "block_out_channels"),
    counted("up_block_types", "block_out_channels"),
    Rule(
        ("out_channels", "in_channels"),
        lambda out, channels: out == channels,
        lambda out, channels: f"out_channels must be in_channels = {channels}, got {out}",
    ),
    NORM_GROUPS,
)


def read(config: dict[str, Any]) -> dict[str, Any]:
    """{field: value} of a config.json, with diffusers' defaults. Raises the errors of `build`."""
    return fields.read(config, FIELDS, RULES)


def build(config: dict[str, Any]) -> Autoencoder:
    """The autoencoder of a config.json; missing fields have diffusers' defaults.

    Raises:
      ValueError: if fields have a wrong type or an unsupported value; the error lists all of them.
    """
    values = read(config)
    width = math.gcd(*values["block_out_channels"])
    return Autoencoder(
        sample_channels=values["in_channels"],
        latent_channels=values["latent_channels"],
        channels=width,
        channel_multipliers=tuple(channels // width for channels in values["block_out_channels"]),
        num_res_blocks=values["layers_per_block"],
        attention=values["mid_block_add_attention"],
        norm_groups=values["norm_num_groups"],
        quant_conv=values["use_quant_conv"],
        post_quant_conv=values["use_post_quant_conv"],
    )


def links(config: dict[str, Any]) -> list[Link]:
    """Links from diffusers' modules to those of `build(config)`, for `weights.from_torch` and `weights.to_torch`."""
    values = read(config)
    result = [*_encoder(values), *_decoder(values)]
    if values["use_quant_conv"]:
        result.append(Link("quant_conv", ("encoder", "quant"), 2))
    if values["use_post_quant_conv"]:
        result.append(Link("post_quant_conv", ("decoder", "quant"), 2))
    return result


def _encoder(values: dict[str, Any]) -> Iterator[Link]:
    widths, blocks = values["block_out_channels"], _Blocks("encoder")
    width = widths[0]
    for level, out in enumerate(widths):
        if level > 0:
            name = f"encoder.down_blocks.{level - 1}.downsamplers.0.conv"
            yield Link(name, ("encoder", f"Downsample_{level - 1}", "Conv_0"))
        for i in range(values["layers_per_block"]):
            yield from blocks.residual(f"encoder.down_blocks.{level}.resnets.{i}", width, out)
            width = out
    yield from blocks.middle(values)
    yield from blocks.ends()


def _decoder(values: dict[str, Any]) -> Iterator[Link]:
    widths, blocks = values["block_out_channels"][::-1], _Blocks("decoder")
    width = widths[0]
    yield from blocks.middle(values)
    for level, out in enumerate(widths):
        for i in range(values["layers_per_block"] + 1):
            yield from blocks.residual(f"decoder.up_blocks.{level}.resnets.{i}", width, out)
            width = out
        if level < len(widths) - 1:
            yield Link(f"decoder.up_blocks.{level}.upsamplers.0.conv", ("decoder", f"Upsample_{level}", "Conv_0"))
    yield from blocks.ends()


class _Blocks:
    """Links of the blocks of one half, the encoder or the decoder.

    Flax numbers residual blocks in the order in which the network creates them, so `residual` counts its calls, and
    they must follow that order.
    """

    def __init__(self, half: str):
        self.half, self.num_residual = half, 0

    def residual(self, theirs: str, width: int, out: int) -> Iterator[Link]:
        ours = (self.half, f"ResBlock_{self.num_residual}")
        self.num_residual += 1
        for i in range(2):
            yield Link(f"{theirs}.norm{i + 1}", (*ours, f"GroupNorm_{i}"))
            yield Link(f"{theirs}.conv{i + 1}", (*ours, f"Conv_{i}"))
        if width != out:
            yield Link(f"{theirs}.conv_shortcut", (*ours, "Dense_0"), 2)

    def middle(self, values: dict[str, Any]) -> Iterator[Link]:
        width, theirs = values["block_out_channels"][-1], f"{self.half}.mid_block"
        for i in range(2):
            yield from self.residual(f"{theirs}.resnets.{i}", width, width)
        if values["mid_block_add_attention"]:
            theirs, ours = f"{theirs}.attentions.0", (self.half, "AttentionBlock_0")
            yield Link(f"{theirs}.group_norm", (*ours, "GroupNorm_0"))
            for their_name, our_name in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "out")):
                yield Link(f"{theirs}.{their_name}", (*ours, our_name))

    def ends(self) -> Iterator[Link]:
        yield Link(f"{self.half}.conv_in", (self.half, "conv_in"))
        yield Link(f"{self.half}.conv_norm_out", (self.half, "GroupNorm_0"))
        yield Link(f"{self.half}.conv_out", (self.half, "conv_out"))
