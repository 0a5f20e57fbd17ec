"""Weights of diffusers' `DiTTransformer2DModel` (and `Transformer2DModel` of norm_type "ada_norm_zero") as a `DiT`.

Its step i is the network's t = i / 1000, its class `num_embeds_ada_norm` is the null label; channels come last here.

It differs from the published DiT in two numbers, which `build` follows: the frequencies of the time embedding
(time_shift 1, published 0) and the feed-forward net's norm (norm_eps 1e-5, published 1e-6). With weights trained by the
published code, `build(config).clone(time_shift=0, norm_eps=1e-6)` is what they were trained as.
"""

from typing import Any

from diffax.nn.dit import DiT
from diffax.nn.interop import fields
from diffax.nn.interop.fields import ANY, COUNT, FLAG, POSITIVE, Field, Rule, one_of, or_none
from diffax.nn.interop.weights import Link

FIELDS: dict[str, Field] = {
    "attention_bias": Field(FLAG, True),
    "attention_head_dim": Field(COUNT, 72),
    "in_channels": Field(COUNT, 4),
    "norm_eps": Field(POSITIVE, 1e-5),
    "norm_num_groups": Field(ANY, 32),  # which nothing reads there
    "num_attention_heads": Field(COUNT, 16),
    "num_embeds_ada_norm": Field(COUNT, 1000),
    "num_layers": Field(COUNT, 28),
    "out_channels": Field(or_none(COUNT), None),
    "patch_size": Field(COUNT, 2),
    "sample_size": Field(COUNT, 32),
    "activation_fn": Field(one_of("gelu-approximate"), "gelu-approximate"),
    "attention_type": Field(one_of("default"), "default"),
    "dropout": Field(one_of(0.0, 0), 0.0),
    "norm_type": Field(one_of("ada_norm_zero"), "ada_norm_zero"),
    "upcast_attention": Field(FLAG, False),  # softmax is in float32 here in any case
    **{
        name: Field(one_of(None), None)
        for name in ("caption_channels", "cross_attention_dim", "interpolation_scale", "num_vector_embeds")
    },
    "use_additional_conditions": Field(one_of(None), None),
    **{
        name: Field(one_of(False), False)
        for name in ("double_self_attention", "norm_elementwise_affine", "only_cross_attention")
    },
    "use_linear_projection": Field(one_of(False), False),
}
RULES = (
    Rule(
        ("patch_size", "sample_size"),
        lambda patch, size: size % patch == 0,
        lambda patch, size: f"patch_size must divide sample_size = {size}, got {patch}",
    ),
)
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


def read(config: dict[str, Any]) -> dict[str, Any]:
    """{field: value} of a config.json, with diffusers' defaults. Raises as `build`."""
    return fields.read(config, FIELDS, RULES)


def build(config: dict[str, Any]) -> DiT:
    """The network of a config.json; what it does not say is as by diffusers' defaults.

    Raises:
      ValueError: for what is of a wrong type or not supported; lists it all.
    """
    full = read(config)
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
    for i in range(read(config)["num_layers"]):
        for ours, names in ((f"block_{i}", BLOCK), (f"embed_{i}", EMBEDDING)):
            found += [Link(f"transformer_blocks.{i}.{name}", (ours, *path)) for name, path in names.items()]
    return found
