"""diffusers' `UNet2DModel` and `UNet2DConditionModel` (Stable Diffusion 1 and 2) as `UNet`."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from diffax.nn.interop.weights import Link, check_fields
from diffax.nn.unet import UNet

# Fields that do not alter the network's function, or are read below.
USED = (
    "sample_size",
    "in_channels",
    "out_channels",
    "flip_sin_to_cos",
    "freq_shift",
    "down_block_types",
    "up_block_types",
    "block_out_channels",
    "layers_per_block",
    "downsample_padding",
    "dropout",
    "norm_num_groups",
    "norm_eps",
    "attention_head_dim",
    "num_class_embeds",
    "num_train_timesteps",
    "resnet_time_scale_shift",
)
SHARED = {
    "center_input_sample": False,
    "mid_block_scale_factor": (1, 1.0),
    "act_fn": "silu",
    "class_embed_type": None,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
}
PLAIN = SHARED | {
    "mid_block_type": "UNetMidBlock2D",
    "downsample_type": ("conv", "resnet"),
    "upsample_type": ("conv", "resnet"),
    "add_attention": (True, False),
}
CONDITIONED = SHARED | {
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "only_cross_attention": False,
    "mid_block_only_cross_attention": (None, False),
    "dual_cross_attention": False,
    "use_linear_projection": (False, True),
    "upcast_attention": (False, True),  # to float32, which softmax is here anyway
    "reverse_transformer_layers_per_block": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "num_attention_heads": None,
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "addition_embed_type_num_heads": 64,
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": (1, 1.0),
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "projection_class_embeddings_input_dim": None,
    "attention_type": "default",
    "class_embeddings_concat": False,
    "cross_attention_norm": None,
}


def build(config: dict[str, Any]) -> UNet:
    """The network of a config.json. Its labels are 0 .. num_class_embeds - 1, the last of which is our null label.

    Raises:
      ValueError: for what is not supported; lists it all.
    """
    if config["_class_name"] == "UNet2DConditionModel":
        return _conditioned(config)
    scaled = config.get("resnet_time_scale_shift") == "scale_shift"
    groups = config.get("norm_num_groups", 32)
    # Without it the middle's attention has no norm where the embedding scales and shifts.
    supported = PLAIN | {"attn_norm_num_groups": groups if scaled else (None, groups)}
    if scaled and config.get("add_attention", True) and "attn_norm_num_groups" not in config:
        config = config | {"attn_norm_num_groups": None}
    check_fields(config, supported, USED)
    down, up = config.get("downsample_type", "conv"), config.get("upsample_type", "conv")
    plain = "DownBlock2D" if down == "conv" else "ResnetDownsampleBlock2D"
    levels = _levels(config, {plain: False, "AttnDownBlock2D": True})
    if down != up:
        raise ValueError(f"upsample_type must be the downsample_type, {down!r}, got {up!r}")
    return UNet(
        **_shared(config),
        attention_levels=levels,
        middle_attention=config.get("add_attention", True),
        head_channels=config.get("attention_head_dim", 8),
        resample={"conv": "conv", "resnet": "block"}[down],
        scale_shift=scaled,
    )


def _conditioned(config):
    check_fields(config, CONDITIONED, (*USED, "cross_attention_dim", "transformer_layers_per_block"))
    if config.get("resnet_time_scale_shift", "default") != "default":
        raise ValueError(f"resnet_time_scale_shift must be 'default', got {config['resnet_time_scale_shift']!r}")
    # A name of theirs: these are numbers of heads.
    heads, widths = config.get("attention_head_dim", 8), config["block_out_channels"]
    of_head = {width / count for width, count in zip(widths, heads, strict=True)} if _several(heads) else set()
    if len(of_head) > 1:
        raise ValueError(f"attention_head_dim must give heads of one width, or be one number, got {heads}")
    for name in ("cross_attention_dim", "transformer_layers_per_block"):
        if _several(config.get(name)):
            raise ValueError(f"{name} must be one number, got {config[name]}")
    return UNet(
        **_shared(config),
        attention_levels=_levels(config, {"DownBlock2D": False, "CrossAttnDownBlock2D": True}),
        attention="cross",
        context_dim=config.get("cross_attention_dim", 1280),
        transformer_depth=config.get("transformer_layers_per_block", 1),
        num_heads=1 if of_head else heads,
        head_channels=int(of_head.pop()) if of_head else None,
    )


def _several(value):
    return isinstance(value, Sequence)


def _shared(config):
    widths, layers = config["block_out_channels"], config.get("layers_per_block", 2)
    if _several(layers):
        raise ValueError(f"layers_per_block must be one number, got {layers}")
    if (padding := config.get("downsample_padding", 1)) not in (0, 1):
        raise ValueError(f"downsample_padding must be 0 or 1, got {padding}")
    if (style := config.get("resnet_time_scale_shift", "default")) not in ("default", "scale_shift"):
        raise ValueError(f"resnet_time_scale_shift must be 'default' or 'scale_shift', got {style!r}")
    classes = config.get("num_class_embeds")
    return {
        "out_channels": config["out_channels"],
        "channels": widths[0],
        "channel_multipliers": tuple(width / widths[0] for width in widths),
        "num_res_blocks": layers,
        "norm_groups": config.get("norm_num_groups", 32),
        "norm_eps": config.get("norm_eps", 1e-5),
        "pad_after": padding == 0,
        "dropout_rate": config.get("dropout", 0.0),
        "num_classes": None if classes is None else classes - 1,
        "time_shift": config.get("freq_shift", 0),
        "time_cos_first": config.get("flip_sin_to_cos", True),
    }


def _levels(config, kinds):
    """The levels with attention; both ways must have them alike."""
    down, up = config["down_block_types"], config["up_block_types"]
    mirror = [name.replace("Down", "Up") for name in down]  # also ResnetDownsample, ResnetUpsample
    unknown = sorted(set(down) - set(kinds))
    if unknown:
        raise ValueError(f"down_block_types must be of {', '.join(kinds)}, got {', '.join(unknown)}")
    if mirror != list(up)[::-1]:
        raise ValueError(f"up_block_types must mirror down_block_types, got {', '.join(up)}")
    return tuple(level for level, name in enumerate(down) if kinds[name])


def links(config: dict[str, Any]) -> list[Link]:
    """Where each module of theirs is in the parameters of `build(config)`."""
    net, cross = build(config), config["_class_name"] == "UNet2DConditionModel"
    places = 0 if config.get("use_linear_projection") else 2
    of_attention: Callable = _attention
    if cross:
        of_attention = functools.partial(_transformer, depth=net.transformer_depth, places=places)
    found = [
        Link("conv_in", ("conv_in",)),
        Link("time_embedding.linear_1", ("time_1",)),
        Link("time_embedding.linear_2", ("time_2",)),
        Link("class_embedding", ("label",)),
        Link("conv_norm_out", ("GroupNorm_0",)),
        Link("conv_out", ("conv_out",)),
    ]
    count = {"ResBlock": 0, "attention": 0, "Downsample": 0, "Upsample": 0}

    def number(kind):
        count[kind] += 1
        return count[kind] - 1

    def blocks(theirs, how_many, attended):
        for i in range(how_many):
            found.extend(_residual(f"{theirs}.resnets.{i}", number("ResBlock")))
            if attended:
                found.extend(of_attention(f"{theirs}.attentions.{i}", number("attention")))

    def between(theirs, kind):
        if net.resample == "conv":
            found.append(Link(f"{theirs}.conv", (f"{kind}_{number(kind)}", "Conv_0")))
        else:
            found.extend(_residual(theirs, number("ResBlock")))

    last = len(net.widths) - 1
    for level in range(last + 1):
        blocks(f"down_blocks.{level}", net.num_res_blocks, level in net.attention_levels)
        if level < last:
            between(f"down_blocks.{level}.downsamplers.0", "Downsample")
    found.extend(_residual("mid_block.resnets.0", number("ResBlock")))
    if net.middle_attention:
        found.extend(of_attention("mid_block.attentions.0", number("attention")))
    found.extend(_residual("mid_block.resnets.1", number("ResBlock")))
    for level in reversed(range(last + 1)):
        blocks(f"up_blocks.{last - level}", net.num_res_blocks + 1, level in net.attention_levels)
        if level > 0:
            between(f"up_blocks.{last - level}.upsamplers.0", "Upsample")
    return found


def _residual(theirs, number):
    ours = f"ResBlock_{number}"
    names = {
        "norm1": "GroupNorm_0",
        "conv1": "Conv_0",
        "time_emb_proj": "Dense_0",
        "norm2": "GroupNorm_1",
        "conv2": "Conv_1",
    }
    shortcut = Link(f"{theirs}.conv_shortcut", (ours, "Dense_1"), 2)
    return [*(Link(f"{theirs}.{a}", (ours, b)) for a, b in names.items()), shortcut]


def _attention(theirs, number):
    names = {"group_norm": "GroupNorm_0", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "out"}
    return [Link(f"{theirs}.{a}", (f"AttentionBlock_{number}", b)) for a, b in names.items()]


def _transformer(theirs, number, *, depth, places):
    ours = f"CrossAttentionBlock_{number}"
    found = [
        Link(f"{theirs}.norm", (ours, "GroupNorm_0")),
        Link(f"{theirs}.proj_in", (ours, "in"), places),
        Link(f"{theirs}.proj_out", (ours, "out"), places),
    ]
    for i in range(depth):
        there, here = f"{theirs}.transformer_blocks.{i}", (ours, f"TransformerBlock_{i}")
        for a, b in {"attn1": "self", "attn2": "cross"}.items():
            maps = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "out"}
            found += [Link(f"{there}.{a}.{c}", (*here, b, d)) for c, d in maps.items()]
        found += [Link(f"{there}.norm{j}", (*here, f"norm_{j}")) for j in (1, 2, 3)]
        found += [Link(f"{there}.ff.net.0.proj", (*here, "gated")), Link(f"{there}.ff.net.2", (*here, "out"))]
    return found
