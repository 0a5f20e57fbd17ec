"""Networks from descriptions: dicts of JSON that name a network and its settings, as exports contain them."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from diffax._checks import choose
from diffax.nn.attention import Attention, with_implementation
from diffax.nn.autoencoder import Autoencoder
from diffax.nn.checks import check_attention_levels
from diffax.nn.conditioning import Conditioned, conditioned
from diffax.nn.dit import DiT
from diffax.nn.edm2 import EDM2
from diffax.nn.interop import folder
from diffax.nn.layers import TimeEmbedding
from diffax.nn.mlp import MLP
from diffax.nn.text import Captioned, TextEncoder
from diffax.nn.unet import UNet

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
NAMES = ("unet", "dit", "edm2", "mlp", "diffusers")


def from_description(description: Mapping[str, Any]) -> nn.Module:
    """The network of a description.

    Args:
      description: `name`, one of "unet", "dit", "edm2", "mlp" and "diffusers"; its settings, with the names of
        configs (`channels`, `depth` ...); `num_classes` or None; `outputs`; `time_scale`; `text` with the settings of a
        `TextEncoder`, or None; optionally `condition`, the `shape` of an array condition and the `channels` of x;
        optionally `second_time` and `guidance_input`, see `UNet`. A network with a second time uses XLA's attention.
        "diffusers" has the content of a config.json as the text `diffusers`.

    Raises:
      ValueError: if the name is unknown or a setting is missing or not possible.

    >>> settings = {"channels": 8, "depth": 1, "outputs": 1, "time_scale": 1000.0, "dropout_rate": 0.0, "text": None}
    >>> from_description({"name": "mlp", "num_classes": None, "dtype": "float32", **settings}).channels
    8
    """
    settings = dict(description)
    build = choose("name", settings.pop("name", None), BUILDERS)
    condition = settings.pop("condition", None)
    text, dtype = settings.pop("text"), choose("dtype", settings.pop("dtype"), DTYPES)
    few_steps = {name: settings.pop(name) for name in FEW_STEPS if settings.get(name)}
    if few_steps and description["name"] == "diffusers":
        raise ValueError(f"{next(iter(few_steps))} must be False for diffusers, got True")
    missing = [name for name in SETTINGS[description["name"]] if name not in settings]
    if missing:
        raise ValueError(f"description must have {missing[0]}, got {', '.join(description)}")
    net = build(settings, None if text is None else text["width"], dtype)
    if few_steps:
        # Losses of flow maps take its forward derivative, which fused attention lacks.
        net = with_forward_mode(net.clone(**few_steps))
    if condition is not None:
        return conditioned(net, tuple(condition["shape"]), condition["channels"])
    if text is None:
        return net
    encoder = TextEncoder(text["vocab_size"], text["width"], text["depth"], text["num_heads"], dtype)
    return Captioned(net, encoder)


FEW_STEPS = ("second_time", "guidance_input")
SHARED = ("channels", "dropout_rate", "num_classes", "outputs", "time_scale")
CONVOLUTIONAL = ("channel_multipliers", "num_res_blocks", "attention_levels", "num_heads", "remat")
SETTINGS = {
    "unet": (*SHARED, *CONVOLUTIONAL),
    "edm2": (*SHARED, *CONVOLUTIONAL),
    "dit": (*SHARED, "depth", "patch_size", "positions", "num_heads", "remat"),
    "mlp": (*SHARED, "depth"),
    "diffusers": ("diffusers", "dropout_rate", "num_classes", "outputs", "time_scale", "remat"),
}


def _shared(settings: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    return {name: settings[name] for name in SHARED} | {"dtype": dtype}


def _unet(settings: Mapping[str, Any], context_dim: int | None, dtype: Any) -> UNet:
    shared, multipliers = _shared(settings, dtype), tuple(settings["channel_multipliers"])
    levels = tuple(settings["attention_levels"])
    check_attention_levels("attention_levels", levels, len(multipliers))  # the name in a description, not in `UNet`
    return UNet(
        channel_multipliers=multipliers,
        num_res_blocks=settings["num_res_blocks"],
        attention=Attention(levels, num_heads=settings["num_heads"], context_dim=context_dim),
        time=TimeEmbedding(shared.pop("time_scale")),
        vector_dim=context_dim,
        remat=settings["remat"],
        **shared,
    )


def _dit(settings: Mapping[str, Any], context_dim: int | None, dtype: Any) -> DiT:
    return DiT(
        depth=settings["depth"],
        patch_size=settings["patch_size"] or None,  # 0: x is a set of points
        positions=settings["positions"],
        num_heads=settings["num_heads"],
        cross_attention=context_dim is not None,
        context_dim=context_dim,
        vector_dim=context_dim,
        remat=settings["remat"],
        **_shared(settings, dtype),
    )


def _edm2(settings: Mapping[str, Any], context_dim: int | None, dtype: Any) -> EDM2:
    if context_dim is not None:
        raise ValueError("text must be None for edm2, which has no cross-attention")
    shared = _shared(settings, dtype)
    return EDM2(
        channel_multipliers=tuple(settings["channel_multipliers"]),
        num_res_blocks=settings["num_res_blocks"],
        attention_levels=tuple(settings["attention_levels"]),
        head_channels=settings["channels"] // settings["num_heads"],
        # Its frequencies are standard normal numbers, so a scale of 1000 for t in [0, 1] would be noise.
        time_scale=shared.pop("time_scale") / 250,
        remat=settings["remat"],
        **shared,
    )


def _mlp(settings: Mapping[str, Any], context_dim: int | None, dtype: Any) -> MLP:
    if context_dim is not None:
        raise ValueError("text must be None for mlp, which has no cross-attention")
    return MLP(depth=settings["depth"], **_shared(settings, dtype))


def _diffusers(settings: Mapping[str, Any], context_dim: int | None, dtype: Any) -> nn.Module:
    if context_dim is not None:
        raise ValueError("text must be None for diffusers")
    names = ("outputs", "num_classes", "time_scale", "dropout_rate", "remat")
    return folder.network(json.loads(settings["diffusers"]), dtype=dtype, **{name: settings[name] for name in names})


BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "unet": _unet,
    "dit": _dit,
    "edm2": _edm2,
    "mlp": _mlp,
    "diffusers": _diffusers,
}


def autoencoder_from_description(description: Mapping[str, Any]) -> Autoencoder:
    """The autoencoder of a description: `channels`, `channel_multipliers`, `num_res_blocks`, `latent_channels`,
    `attention`, `dtype` and `sample_channels`, the channels of the data.
    """
    settings = dict(description)
    settings["channel_multipliers"] = tuple(settings["channel_multipliers"])
    settings["dtype"] = choose("dtype", settings["dtype"], DTYPES)
    return Autoencoder(**settings)


def with_forward_mode(net: nn.Module) -> nn.Module:
    """The network with XLA's attention, which has forward-mode derivatives; fused kernels have none."""
    if isinstance(net, (Captioned, Conditioned)):
        return net.clone(network=with_forward_mode(net.network))
    return with_implementation(net, "xla")
