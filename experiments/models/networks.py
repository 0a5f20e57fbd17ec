"""ConfigDict -> the network: a U-Net, that of EDM2, a DiT or an MLP, with captions together with their encoder."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
from ml_collections import ConfigDict

from diffax._checks import check_count, choose
from diffax.nn import EDM2, MLP, Attention, DiT, TimeEmbedding, UNet, with_implementation
from diffax.nn.text import Captioned, TextEncoder
from experiments.models.build import DTYPES, TIMES


def _unet(settings: ConfigDict, context_dim: int | None, num_heads: int, time_scale: float, **shared: Any) -> UNet:
    return UNet(
        channel_multipliers=tuple(settings.channel_multipliers),
        num_res_blocks=settings.num_res_blocks,
        attention=Attention(tuple(settings.attention_levels), num_heads=num_heads, context_dim=context_dim),
        time=TimeEmbedding(time_scale),
        vector_dim=context_dim,
        **shared,
    )


def _dit(settings: ConfigDict, context_dim: int | None, **shared: Any) -> DiT:
    return DiT(
        depth=settings.depth,
        patch_size=settings.patch_size,
        positions=settings.positions,
        cross_attention=context_dim is not None,
        context_dim=context_dim,
        vector_dim=context_dim,
        **shared,
    )


def _edm2(settings: ConfigDict, context_dim: int | None, num_heads: int, time_scale: float, **shared: Any) -> EDM2:
    return EDM2(
        channel_multipliers=tuple(settings.channel_multipliers),
        num_res_blocks=settings.num_res_blocks,
        attention_levels=tuple(settings.attention_levels),
        head_channels=settings.channels // num_heads,
        time_scale=time_scale / 250,  # its frequencies are normal numbers: 1000 for t in [0, 1] would be noise
        **shared,
    )


def _mlp(settings: ConfigDict, context_dim: int | None, num_heads: int, remat: bool, **shared: Any) -> MLP:
    return MLP(depth=settings.depth, **shared)


NETWORKS: dict[str, Callable[..., nn.Module]] = {"unet": _unet, "dit": _dit, "edm2": _edm2, "mlp": _mlp}


def check(config: ConfigDict) -> None:
    """Raises `ValueError` for a network that does not exist."""
    settings = config.network
    choose("config.network.name", settings.name, NETWORKS)
    choose("config.network.time", settings.time, TIMES)
    choose("config.network.dtype", settings.dtype, DTYPES)
    if settings.name == "dit":
        choose("config.network.positions", settings.positions, ("sincos", "rope", "none"))
        check_count("config.network.patch_size", settings.patch_size)
    if settings.name in ("dit", "mlp"):
        check_count("config.network.depth", settings.depth)
    if settings.name in ("edm2", "mlp") and config.text.enabled:
        raise ValueError(f"config.text.enabled must be False for config.network.name = {settings.name!r}, got True")
    if settings.name == "mlp" and (settings.channels < 4 or settings.channels % 2):
        raise ValueError(f"config.network.channels must be even and >= 4 for an mlp, got {settings.channels}")
    if settings.name in ("dit", "edm2") and settings.num_heads > 0 and settings.channels % settings.num_heads:
        raise ValueError(
            f"config.network.num_heads must divide config.network.channels = {settings.channels}, "
            f"got {settings.num_heads}"
        )


def check_shape(config: ConfigDict, shape: tuple[int, ...]) -> None:
    """Raises `ValueError` for a network that cannot take examples (*space, C) of this shape."""
    patch = config.network.patch_size
    if config.network.name == "dit" and any(size % patch for size in shape[:-1]):
        raise ValueError(f"config.network.patch_size must divide the sizes of {shape}, got {patch}")


def forwards(net: nn.Module) -> nn.Module:
    """The network with XLA's attention, which has forward-mode derivatives; a GPU's fused kernel has none."""
    if isinstance(net, Captioned):
        return net.clone(network=forwards(net.network))
    return with_implementation(net, "xla")


def network(config: ConfigDict, dataset_classes: int | None) -> nn.Module:
    """The network of a config, for a data set of so many classes."""
    settings, text = config.network, config.text
    if settings.conditional and not dataset_classes:
        raise ValueError(f"config.network.conditional must be False: dataset {config.dataset.name!r} has no labels")
    net = NETWORKS[settings.name](
        settings,
        text.width if text.enabled else None,
        channels=settings.channels,
        num_heads=settings.num_heads,
        dropout_rate=settings.dropout_rate,
        num_classes=dataset_classes if settings.conditional else None,
        outputs=1 + settings.learned_variance,
        time_scale=TIMES[settings.time][0],
        remat=settings.remat,
        dtype=DTYPES[settings.dtype],
    )
    if not text.enabled:
        return net
    return Captioned(net, TextEncoder(text.vocab_size, text.width, text.depth, text.num_heads, DTYPES[settings.dtype]))
