"""diffusers' `UNet2DModel` and `UNet2DConditionModel` (Stable Diffusion 1 and 2) as `UNet`."""

import collections
from collections.abc import Iterable, Sequence
from typing import Any

from diffax.nn.attention import Attention
from diffax.nn.interop import fields
from diffax.nn.interop.fields import (
    ANY,
    COUNT,
    COUNTS,
    FLAG,
    NORM_GROUPS,
    POSITIVE,
    SIZE,
    TEXT,
    TWO,
    WHOLE,
    Field,
    Rule,
    counted,
    equal,
    many,
    number,
    one_of,
    or_none,
    same,
    single,
)
from diffax.nn.interop.weights import Link
from diffax.nn.layers import Norm, Residual, TimeEmbedding
from diffax.nn.unet import UNet

KINDS = {
    "UNet2DModel": {"DownBlock2D": False, "ResnetDownsampleBlock2D": False, "AttnDownBlock2D": True},
    "UNet2DConditionModel": {"DownBlock2D": False, "CrossAttnDownBlock2D": True},
}
SHARED = {
    "sample_size": Field(SIZE, None),
    "in_channels": Field(COUNT),
    "out_channels": Field(COUNT),
    "block_out_channels": Field(COUNTS),
    "up_block_types": Field(many(TEXT)),
    "flip_sin_to_cos": Field(FLAG, True),
    "freq_shift": Field(WHOLE, 0),
    "layers_per_block": Field(many(COUNT, one=True), 2),
    "downsample_padding": Field(one_of(0, 1), 1),
    "dropout": Field(number("in [0, 1)", lambda v: 0 <= v < 1), 0.0),
    "norm_num_groups": Field(COUNT, 32),
    "norm_eps": Field(POSITIVE, 1e-5),
    "num_class_embeds": Field(or_none(TWO), None),  # the last class is the null label here
    "num_train_timesteps": Field(or_none(COUNT), None),  # diffusers uses it only for a learned time embedding
    "center_input_sample": Field(one_of(False), False),
    "mid_block_scale_factor": Field(one_of(1, 1.0), 1),
    "act_fn": Field(one_of("silu"), "silu"),
    "class_embed_type": Field(one_of(None), None),
    "time_embedding_type": Field(one_of("positional"), "positional"),
    "time_embedding_dim": Field(one_of(None), None),
}
PLAIN = SHARED | {
    "down_block_types": Field(many(one_of(*KINDS["UNet2DModel"]))),
    "attention_head_dim": Field(or_none(COUNT), 8),
    "attn_norm_num_groups": Field(or_none(COUNT), None),
    "resnet_time_scale_shift": Field(one_of("default", "scale_shift"), "default"),
    "mid_block_type": Field(one_of("UNetMidBlock2D"), "UNetMidBlock2D"),
    "downsample_type": Field(one_of("conv", "resnet"), "conv"),
    "upsample_type": Field(one_of("conv", "resnet"), "conv"),
    "add_attention": Field(FLAG, True),
}
NONE = (
    *("reverse_transformer_layers_per_block", "encoder_hid_dim", "encoder_hid_dim_type", "num_attention_heads"),
    *("addition_embed_type", "addition_time_embed_dim", "time_embedding_act_fn", "timestep_post_act"),
    *("time_cond_proj_dim", "projection_class_embeddings_input_dim", "cross_attention_norm"),
)
OFF = ("only_cross_attention", "dual_cross_attention", "resnet_skip_time_act", "class_embeddings_concat")
CONDITIONED = (
    SHARED
    | {name: Field(one_of(None), None) for name in NONE}
    | {name: Field(one_of(False), False) for name in OFF}
    | {
        "down_block_types": Field(many(one_of(*KINDS["UNet2DConditionModel"]))),
        "attention_head_dim": Field(many(COUNT, one=True), 8),  # despite its name, the number of heads
        "cross_attention_dim": Field(many(COUNT, one=True), 1280),
        "transformer_layers_per_block": Field(many(COUNT, one=True), 1),
        "use_linear_projection": Field(FLAG, False),
        "upcast_attention": Field(FLAG, False),  # softmax is always computed in float32 here
        "resnet_time_scale_shift": Field(one_of("default"), "default"),
        "mid_block_type": Field(one_of("UNetMidBlock2DCrossAttn"), "UNetMidBlock2DCrossAttn"),
        "mid_block_only_cross_attention": Field(one_of(None, False), None),
        "addition_embed_type_num_heads": Field(ANY, 64),  # an option of addition_embed_type, which must be None
        "resnet_out_scale_factor": Field(one_of(1, 1.0), 1.0),
        "conv_in_kernel": Field(one_of(3), 3),
        "conv_out_kernel": Field(one_of(3), 3),
        "attention_type": Field(one_of("default"), "default"),
    }
)


def _mirrored(down: Iterable[str]) -> list[str]:
    return [name.replace("Down", "Up") for name in down][::-1]  # also replaces ResnetDownsample by ResnetUpsample


def _head_widths(widths: Sequence[int], heads: int | Sequence[int]) -> list[float]:
    """The width of a head on each level; [] for a list of another length than `widths`."""
    counts = [heads] * len(widths) if isinstance(heads, int) else list(heads)
    return [width / count for width, count in zip(widths, counts, strict=True)] if len(counts) == len(widths) else []


RULES = (
    Rule(
        ("up_block_types", "down_block_types"),
        lambda up, down: list(up) == _mirrored(down),
        lambda up, down: f"up_block_types must mirror down_block_types, got {', '.join(up)}",
    ),
    counted("block_out_channels", "down_block_types"),
    NORM_GROUPS,
    same("layers_per_block"),
)
OF_PLAIN = (
    *RULES,
    Rule(
        ("upsample_type", "downsample_type"),
        lambda up, down: up == down,
        lambda up, down: f"upsample_type must be downsample_type = {down!r}, got {up!r}",
    ),
    Rule(
        ("downsample_type", "down_block_types"),
        lambda kind, down: ("DownBlock2D" if kind == "resnet" else "ResnetDownsampleBlock2D") not in down,
        lambda kind, down: (
            "downsample_type must be 'resnet' with ResnetDownsampleBlock2D or 'conv' with DownBlock2D in "
            f"down_block_types, got {kind!r}"
        ),
    ),
    Rule(
        ("attn_norm_num_groups", "norm_num_groups", "resnet_time_scale_shift", "add_attention"),
        # With "scale_shift" and no attn_norm_num_groups, diffusers builds the attention of the middle without a norm.
        lambda value, groups, style, middle: not middle or value == groups or (value is None and style == "default"),
        lambda value, groups, *_: f"attn_norm_num_groups must be norm_num_groups = {groups}, got {value}",
    ),
)
OF_CONDITIONED = (
    *RULES,
    same("cross_attention_dim"),
    same("transformer_layers_per_block"),
    Rule(
        ("block_out_channels", "attention_head_dim"),
        lambda widths, heads: (
            (head_widths := _head_widths(widths, heads))
            and (equal(heads) or equal(head_widths))
            and all(width == int(width) for width in head_widths)
        ),
        lambda widths, heads: (
            f"attention_head_dim must divide the block_out_channels {list(widths)} into heads of one number or one "
            f"width on all levels, got {heads}"
        ),
    ),
)


def read(config: dict[str, Any]) -> dict[str, Any]:
    """{field: value} of a config.json, with the defaults of its class. Raises the errors of `build`."""
    plain = not isinstance(config, dict) or config.get("_class_name") != "UNet2DConditionModel"
    return fields.read(config, PLAIN if plain else CONDITIONED, OF_PLAIN if plain else OF_CONDITIONED)


def build(config: dict[str, Any]) -> UNet:
    """The network of a config.json. Its labels are 0 .. num_class_embeds - 1, of which the last is the null label.

    Raises:
      ValueError: if fields are missing or have a wrong type or an unsupported value; the error lists all of them.
    """
    values = read(config)
    kinds = KINDS["UNet2DConditionModel" if "cross_attention_dim" in values else "UNet2DModel"]
    levels = tuple(level for level, name in enumerate(values["down_block_types"]) if kinds[name])
    widths, classes = values["block_out_channels"], values["num_class_embeds"]
    return UNet(
        out_channels=values["out_channels"],
        channels=widths[0],
        channel_multipliers=tuple(width / widths[0] for width in widths),
        num_res_blocks=single(values["layers_per_block"]),
        residual=_residual_settings(values),
        attention=_cross_attention(values, levels) if "cross_attention_dim" in values else _attention(values, levels),
        norm=Norm(values["norm_num_groups"], values["norm_eps"]),
        time=TimeEmbedding(shift=values["freq_shift"], cos_first=values["flip_sin_to_cos"]),
        dropout_rate=values["dropout"],
        num_classes=None if classes is None else classes - 1,
    )


def _residual_settings(values: dict[str, Any]) -> Residual:
    padded_after = values["downsample_padding"] == 0
    by_block = values.get("downsample_type") == "resnet"  # only UNet2DModel has this field
    return Residual(
        resample="block" if by_block else "conv_pad_after" if padded_after else "conv",
        scale_shift=values["resnet_time_scale_shift"] == "scale_shift",
    )


def _attention(values: dict[str, Any], levels: tuple[int, ...]) -> Attention:
    return Attention(levels, middle=values["add_attention"], head_channels=values["attention_head_dim"])


def _cross_attention(values: dict[str, Any], levels: tuple[int, ...]) -> Attention:
    heads = values["attention_head_dim"]
    by_width = not equal(heads)
    return Attention(
        levels,
        num_heads=1 if by_width else single(heads),
        head_channels=int(_head_widths(values["block_out_channels"], heads)[0]) if by_width else None,
        context_dim=single(values["cross_attention_dim"]),
        depth=single(values["transformer_layers_per_block"]),
    )


def links(config: dict[str, Any]) -> list[Link]:
    """Links from diffusers' modules to those of `build(config)`, for `weights.from_torch` and `weights.to_torch`."""
    net = build(config)
    places = 0 if config.get("use_linear_projection") else 2
    last = len(net.widths) - 1
    result = [
        Link("conv_in", ("conv_in",)),
        Link("time_embedding.linear_1", ("time_1",)),
        Link("time_embedding.linear_2", ("time_2",)),
        Link("class_embedding", ("label",)),
        Link("conv_norm_out", ("GroupNorm_0",)),
        Link("conv_out", ("conv_out",)),
    ]
    count: collections.Counter[str] = collections.Counter()  # Flax numbers blocks in the order of creation

    def add(theirs: str, kind: str) -> None:
        number = count[kind]
        count[kind] += 1
        if kind == "residual":
            result.extend(_residual_links(theirs, number))
        elif kind == "attention" and net.context_dim is None:
            result.extend(_attention_links(theirs, number))
        elif kind == "attention":
            result.extend(_transformer_links(theirs, number, depth=net.attention.depth, places=places))
        else:
            result.append(Link(f"{theirs}.conv", (f"{kind}_{number}", "Conv_0")))

    def add_level(theirs: str, level: int, blocks: int) -> None:
        for i in range(blocks):
            add(f"{theirs}.resnets.{i}", "residual")
            if level in net.attention.levels:
                add(f"{theirs}.attentions.{i}", "attention")

    by_block = net.residual.resample == "block"
    for level in range(last + 1):
        add_level(f"down_blocks.{level}", level, net.num_res_blocks)
        if level < last:
            add(f"down_blocks.{level}.downsamplers.0", "residual" if by_block else "Downsample")
    add("mid_block.resnets.0", "residual")
    if net.attention.middle:
        add("mid_block.attentions.0", "attention")
    add("mid_block.resnets.1", "residual")
    for level in reversed(range(last + 1)):
        add_level(f"up_blocks.{last - level}", level, net.num_res_blocks + 1)
        if level > 0:
            add(f"up_blocks.{last - level}.upsamplers.0", "residual" if by_block else "Upsample")
    return result


def _residual_links(theirs: str, number: int) -> list[Link]:
    ours = f"ResBlock_{number}"
    names = {
        "norm1": "GroupNorm_0",
        "conv1": "Conv_0",
        "time_emb_proj": "Dense_0",
        "norm2": "GroupNorm_1",
        "conv2": "Conv_1",
    }
    shortcut = Link(f"{theirs}.conv_shortcut", (ours, "Dense_1"), 2)
    return [*(Link(f"{theirs}.{their_name}", (ours, name)) for their_name, name in names.items()), shortcut]


def _attention_links(theirs: str, number: int) -> list[Link]:
    ours = f"AttentionBlock_{number}"
    names = {"group_norm": "GroupNorm_0", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "out"}
    return [Link(f"{theirs}.{their_name}", (ours, name)) for their_name, name in names.items()]


def _transformer_links(theirs: str, number: int, *, depth: int, places: int) -> list[Link]:
    ours = f"CrossAttentionBlock_{number}"
    result = [
        Link(f"{theirs}.norm", (ours, "GroupNorm_0")),
        Link(f"{theirs}.proj_in", (ours, "in"), places),
        Link(f"{theirs}.proj_out", (ours, "out"), places),
    ]
    projections = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "out"}
    for i in range(depth):
        block, our_block = f"{theirs}.transformer_blocks.{i}", (ours, f"TransformerBlock_{i}")
        for attention, our_attention in {"attn1": "self", "attn2": "cross"}.items():
            for their_name, name in projections.items():
                result.append(Link(f"{block}.{attention}.{their_name}", (*our_block, our_attention, name)))
        result += [Link(f"{block}.norm{j}", (*our_block, f"norm_{j}")) for j in (1, 2, 3)]
        result += [
            Link(f"{block}.ff.net.0.proj", (*our_block, "gated")),
            Link(f"{block}.ff.net.2", (*our_block, "out")),
        ]
    return result
