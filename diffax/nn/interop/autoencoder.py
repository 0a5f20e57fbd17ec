"""diffusers' `AutoencoderKL`, the autoencoder of Stable Diffusion: its config.json and the names of its weights.

net = build(config)
like = jax.eval_shape(net.init, key, x)["params"]
params = weights.from_torch(weights.load_file(path), links(config), like)
"""

import math
from collections.abc import Iterator
from typing import Any

from diffax.nn.autoencoder import Autoencoder
from diffax.nn.interop.weights import Link, check_fields

SUPPORTED: dict[str, Any] = {
    "act_fn": "silu",
    "latents_mean": None,
    "latents_std": None,
    "use_quant_conv": (True, False),
    "use_post_quant_conv": (True, False),
    "mid_block_add_attention": (True, False),
}
DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [64],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
# Of the pipeline around it, not of the network.
OTHERS = ("sample_size", "scaling_factor", "shift_factor", "force_upcast")


def build(config: dict[str, Any]) -> Autoencoder:
    """The autoencoder of a config.json; what it leaves out has diffusers' defaults.

    Raises:
      ValueError: for what is not supported; lists it all.
    """
    of = DEFAULTS | config
    levels = len(of["block_out_channels"])
    types = {
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "out_channels": of["in_channels"],
    }
    used = (*(name for name in DEFAULTS if name not in SUPPORTED | types), *OTHERS)
    listed = {name: list(v) if isinstance(v, tuple) else v for name, v in config.items()}
    check_fields(listed, SUPPORTED | types, used)
    width = math.gcd(*of["block_out_channels"])
    return Autoencoder(
        sample_channels=of["in_channels"],
        latent_channels=of["latent_channels"],
        channels=width,
        channel_multipliers=tuple(channels // width for channels in of["block_out_channels"]),
        num_res_blocks=of["layers_per_block"],
        attention=of["mid_block_add_attention"],
        norm_groups=of["norm_num_groups"],
        quant_conv=of["use_quant_conv"],
        post_quant_conv=of["use_post_quant_conv"],
    )


def links(config: dict[str, Any]) -> list[Link]:
    """The modules of a config, there and here, for `weights.from_torch` and `weights.to_torch`."""
    of = DEFAULTS | config
    found = [*_encoder(of), *_decoder(of)]
    if of["use_quant_conv"]:
        found.append(Link("quant_conv", ("encoder", "quant"), 2))
    if of["use_post_quant_conv"]:
        found.append(Link("post_quant_conv", ("decoder", "quant"), 2))
    return found


def _encoder(of: dict[str, Any]) -> Iterator[Link]:
    widths, blocks = of["block_out_channels"], _Blocks("encoder")
    width = widths[0]
    for level, out in enumerate(widths):
        if level > 0:
            name = f"encoder.down_blocks.{level - 1}.downsamplers.0.conv"
            yield Link(name, ("encoder", f"Downsample_{level - 1}", "Conv_0"))
        for i in range(of["layers_per_block"]):
            yield from blocks.residual(f"encoder.down_blocks.{level}.resnets.{i}", width, out)
            width = out
    yield from blocks.middle(of)
    yield from blocks.ends()


def _decoder(of: dict[str, Any]) -> Iterator[Link]:
    widths, blocks = of["block_out_channels"][::-1], _Blocks("decoder")
    width = widths[0]
    yield from blocks.middle(of)
    for level, out in enumerate(widths):
        for i in range(of["layers_per_block"] + 1):
            yield from blocks.residual(f"decoder.up_blocks.{level}.resnets.{i}", width, out)
            width = out
        if level < len(widths) - 1:
            yield Link(f"decoder.up_blocks.{level}.upsamplers.0.conv", ("decoder", f"Upsample_{level}", "Conv_0"))
    yield from blocks.ends()


class _Blocks:
    """The links of the blocks of one half, numbered in the order of the calls here."""

    def __init__(self, half: str):
        self.half, self.count = half, 0

    def residual(self, theirs: str, width: int, out: int) -> Iterator[Link]:
        ours = (self.half, f"ResBlock_{self.count}")
        self.count += 1
        for i in range(2):
            yield Link(f"{theirs}.norm{i + 1}", (*ours, f"GroupNorm_{i}"))
            yield Link(f"{theirs}.conv{i + 1}", (*ours, f"Conv_{i}"))
        if width != out:
            yield Link(f"{theirs}.conv_shortcut", (*ours, "Dense_0"), 2)

    def middle(self, of: dict[str, Any]) -> Iterator[Link]:
        width, theirs = of["block_out_channels"][-1], f"{self.half}.mid_block"
        for i in range(2):
            yield from self.residual(f"{theirs}.resnets.{i}", width, width)
        if of["mid_block_add_attention"]:
            theirs, ours = f"{theirs}.attentions.0", (self.half, "AttentionBlock_0")
            yield Link(f"{theirs}.group_norm", (*ours, "GroupNorm_0"))
            for name, own in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "out")):
                yield Link(f"{theirs}.{name}", (*ours, own))

    def ends(self) -> Iterator[Link]:
        yield Link(f"{self.half}.conv_in", (self.half, "conv_in"))
        yield Link(f"{self.half}.conv_norm_out", (self.half, "GroupNorm_0"))
        yield Link(f"{self.half}.conv_out", (self.half, "conv_out"))
