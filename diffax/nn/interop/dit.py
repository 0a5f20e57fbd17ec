"""Weights of diffusers' `DiTTransformer2DModel` (and `Transformer2DModel` of norm_type "ada_norm_zero") as a `DiT`.

Its step i is the network's t = i / 1000, its class `num_embeds_ada_norm` is the null label; channels come last here.

It differs from the published DiT in two numbers, which `build` follows: the frequencies of the time embedding
(time_shift 1, published 0) and the feed-forward net's norm (norm_eps 1e-5, published 1e-6). With weights trained by the
published code, `build(config).clone(time_shift=0, norm_eps=1e-6)` is what they were trained as.
"""

from typing import Any

from diffax.nn.dit import DiT
from diffax.nn.interop.weights import Link, check_fields
from diffax.pytrees import check_count

SUPPORTED: dict[str, Any] = {
    "activation_fn": "gelu-approximate",
    "attention_type": "default",
    "caption_channels": None,
    "cross_attention_dim": None,
    "double_self_attention": False,
    "dropout": (0.0, 0),
    "interpolation_scale": None,
    "norm_elementwise_affine": False,
    "norm_type": "ada_norm_zero",
    "num_vector_embeds": None,
    "only_cross_attention": False,
    "upcast_attention": (False, True),  # softmax is in float32 here in any case
    "use_additional_conditions": None,
    "use_linear_projection": False,
}
DEFAULTS: dict[str, Any] = {
    "attention_bias": True,
    "attention_head_dim": 72,
    "in_channels": 4,
    "norm_eps": 1e-5,
    "norm_num_groups": 32,  # which nothing reads there
    "num_attention_heads": 16,
    "num_embeds_ada_norm": 1000,
    "num_layers": 28,
    "out_channels": None,
    "patch_size": 2,
    "sample_size": 32,
}
BLOCK = {
    "norm1.linear": ("modulation",),
    "attn1.to_q": ("self", "q"),
    "attn1.to_k": ("self", "k"),
    "attn1.to_v": ("self", "v"),
    "attn1.to_out.0": ("self", "out"),
    "ff.net.0.proj": ("mlp_1",),
    "ff.net.2": ("mlp_2",),
}
EMBEDDING = {
    "norm1.emb.timestep_embedder.linear_1": ("time_1",),
    "norm1.emb.timestep_embedder.linear_2": ("time_2",),
    "norm1.emb.class_embedder.embedding_table": ("label",),
}


def build(config: dict[str, Any]) -> DiT:
    """The network of a config.json; what it does not say is as by diffusers' defaults.

    Raises:
      ValueError: for what it asks for and is not supported; lists it all.
    """
    check_fields(config, SUPPORTED, DEFAULTS)
    full = {**DEFAULTS, **config}
    for name in ("attention_head_dim", "in_channels", "num_embeds_ada_norm", "patch_size", "sample_size"):
        check_count(name, full[name])
    return DiT(
        out_channels=full["in_channels"] if full["out_channels"] is None else full["out_channels"],
        patch_size=full["patch_size"],
        channels=full["num_attention_heads"] * full["attention_head_dim"],
        depth=full["num_layers"],
        num_heads=full["num_attention_heads"],
        position_grid=full["sample_size"] // full["patch_size"],
        attention_bias=full["attention_bias"],
        norm_eps=full["norm_eps"],
        embed_each_block=True,
        num_classes=full["num_embeds_ada_norm"],
        time_shift=1,
    )


def links(config: dict[str, Any]) -> list[Link]:
    """The modules of a config, there and here, for `weights.from_torch` and `weights.to_torch`."""
    found = [
        Link("pos_embed.proj", ("patches",)),
        Link("proj_out_1", ("modulation",)),
        Link("proj_out_2", ("out",)),
    ]
    for i in range({**DEFAULTS, **config}["num_layers"]):
        for ours, names in ((f"block_{i}", BLOCK), (f"embed_{i}", EMBEDDING)):
            found += [Link(f"transformer_blocks.{i}.{name}", (ours, *path)) for name, path in names.items()]
    return found
