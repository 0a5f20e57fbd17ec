"""Folders as diffusers saves them: `config.json` and safetensors of a model, `scheduler_config.json` beside it.

A pipeline's folder works as well: its `unet` or `transformer`, `vae` and `scheduler`.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffax.nn.interop import autoencoder, dit, unet, weights
from diffax.nn.interop import scheduler as schedulers

WEIGHTS = "diffusion_pytorch_model.safetensors"
CLASSES: dict[str, ModuleType] = {
    "UNet2DModel": unet,
    "UNet2DConditionModel": unet,
    "DiTTransformer2DModel": dit,
    "Transformer2DModel": dit,  # the class of older files; of other kinds than DiT it is refused
    "AutoencoderKL": autoencoder,
}


class Pretrained(NamedTuple):
    """A network with its weights. config: its config.json. shape: of one image or latent, (H, W, C).

    scheduler, autoencoder: what was found beside it, or None.
    """

    network: Any
    params: Any
    config: dict[str, Any]
    shape: tuple[int, ...]
    scheduler: schedulers.Scheduler | None = None
    autoencoder: Any = None

    def predict(self, label: Any = None, context: Any = None, mask: Any = None) -> Callable:
        """`predict(x, t)` of a diffusion network over the times of a table: t = (i + 1) / T at their timestep i."""
        count = self.config.get("num_train_timesteps") or 1000
        given = {"context": context, "context_mask": mask} if context is not None else {}
        net = self.network.clone(time_scale=float(count))
        return lambda x, t: net.apply(self.params, x, jnp.asarray(t) - 1 / count, label, **given)


def load(folder: str | os.PathLike) -> Pretrained:
    """What a folder of diffusers holds.

    Raises:
      ValueError: if it is none, asks for what is not supported, or its weights do not fit; lists what is wrong.
    """
    folder = Path(folder)
    parts = {name: folder / name for name in ("unet", "transformer") if (folder / name / "config.json").exists()}
    found = load_model(next(iter(parts.values()), folder))
    for place in (folder, folder / "scheduler"):
        if (place / "scheduler_config.json").exists():
            found = found._replace(scheduler=schedulers.build(_json(place / "scheduler_config.json")))
    if (folder / "vae" / "config.json").exists():
        found = found._replace(autoencoder=load_model(folder / "vae"))
    return found


def load_model(folder: str | os.PathLike) -> Pretrained:
    """One model: `config.json` and its weights. Raises as `load`."""
    folder = Path(folder)
    config = _json(folder / "config.json")
    name = config.get("_class_name")
    if name not in CLASSES:
        raise ValueError(f"config.json must be that of a {' or '.join(CLASSES)}, got {name!r} in {folder}")
    net, shape = CLASSES[name].build(config), _shape(config)
    params = weights.from_torch(weights.load_file(folder / WEIGHTS), links(config), shapes(net, shape))
    return Pretrained(net, params, config, shape)


def save_model(folder: str | os.PathLike, params: Any, config: dict[str, Any]) -> None:
    """Writes a folder that diffusers reads; `load_model` of it gives the same bits. config: of a config.json."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights.save_file(folder / WEIGHTS, weights.to_torch(params, links(config)))
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def links(config: dict[str, Any]) -> list[weights.Link]:
    """The links of a config's class, below the collection `params`."""
    return [link._replace(ours=("params", *link.ours)) for link in CLASSES[config["_class_name"]].links(config)]


def shapes(net: Any, shape: tuple[int, ...]) -> Any:
    """The shapes of a network's parameters, by `eval_shape`."""
    x, key = jnp.empty((1, *shape)), jax.random.key(0)
    last = key if type(net).__name__ == "Autoencoder" else jnp.zeros(1)
    return jax.eval_shape(net.init, key, x, last)


def _shape(config):
    size = config.get("sample_size") or 32
    size = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
    return (*size, config["in_channels"])


def _json(path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"folder must be one that diffusers saved, got {path.parent} ({error})") from error
