"""diffusers' `DiTTransformer2DModel` (and `Transformer2DModel` of norm_type "ada_norm_zero") as a `DiT`.

Timestep i in diffusers is t = i / 1000 here. Class `num_embeds_ada_norm` is the null label. Channels are last here.

The diffusers model differs from the published DiT in two numbers: the frequencies of the time embedding (time_shift 1,
published 0) and the epsilon of the norm before the feed-forward net (norm_eps 1e-5, published 1e-6). `build` uses
diffusers' numbers. Weights that were trained with the published code need the published numbers:
`build(config).clone(time_shift=0, norm_eps=1e-6)`.
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
    "norm_num_groups": Field(ANY, 32),  # diffusers does not use it
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
    "upcast_attention": Field(FLAG, False),  # softmax is always computed in float32 here
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
    """{field: value} of a config.json, with diffusers' defaults. Raises the errors of `build`."""
    return fields.read(config, FIELDS, RULES)


def build(config: dict[str, Any]) -> DiT:
    """The network of a config.json; missing fields have diffusers' defaults.

    Raises:
      ValueError: if fields have a wrong type or an unsupported value; the error lists all of them.
    """
    values = read(config)
    return DiT(
        out_channels=values["in_channels"] if values["out_channels"] is None else values["out_channels"],
        patch_size=values["patch_size"],
        channels=values["num_attention_heads"] * values["attention_head_dim"],
        depth=values["num_layers"],
        num_heads=values["num_attention_heads"],
        position_grid=values["sample_size"] // values["patch_size"],
        attention_bias=values["attention_bias"],
        norm_eps=values["norm_eps"],
        embed_each_block=True,
        num_classes=values["num_embeds_ada_norm"],
        time_shift=1,
    )


def links(config: dict[str, Any]) -> list[Link]:
    """Links from diffusers' modules to those of `build(config)`, for `weights.from_torch` and `weights.to_torch`."""
    result = [
        Link("pos_embed.proj", ("patches",)),
        Link("proj_out_1", ("modulation",)),
        Link("proj_out_2", ("out",)),
    ]
    for i in range(read(config)["num_layers"]):
        for ours, names in ((f"block_{i}", BLOCK), (f"embed_{i}", EMBEDDING)):
            result += [Link(f"transformer_blocks.{i}.{name}", (ours, *path)) for name, path in names.items()]
    return result
