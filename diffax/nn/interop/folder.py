"""Folders as diffusers saves them: `config.json` and safetensors of a model, `scheduler_config.json` beside it.

A pipeline's folder works as well: its `unet` or `transformer`, `vae` (or `vqvae`) and `scheduler`. Text encoders and
safety checkers in it are not read; a part that alters what is sampled, and is not known here, is refused.
"""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffax.nn.interop import autoencoder, dit, fields, unet, weights
from diffax.nn.interop import scheduler as schedulers
from diffax.nn.unet import UNet

WEIGHTS = f"{weights.NAME}.safetensors"
CLASSES: dict[str, ModuleType] = {
    "UNet2DModel": unet,
    "UNet2DConditionModel": unet,
    "DiTTransformer2DModel": dit,
    "Transformer2DModel": dit,  # the class of older files; of other kinds than DiT it is refused
    "AutoencoderKL": autoencoder,
}
DIFFUSION = tuple(name for name, module in CLASSES.items() if module is not autoencoder)
NETWORKS, AUTOENCODERS = ("unet", "transformer"), ("vae", "vqvae")
READ = (*NETWORKS, *AUTOENCODERS, "scheduler")
UNREAD = ("text_encoder", "tokenizer", "safety_checker", "feature_extractor", "image_encoder")


class Pretrained(NamedTuple):
    """A network with its weights. config: its config.json. shape: of one image or latent, (H, W, C).

    scheduler, autoencoder: what was found beside it, or None. scheduler_config: the scheduler_config.json, or None.
    """

    network: Any
    params: Any
    config: dict[str, Any]
    shape: tuple[int, ...]
    scheduler: schedulers.Scheduler | None = None
    autoencoder: Any = None
    scheduler_config: dict[str, Any] | None = None

    def predict(self, label: Any = None, context: Any = None, mask: Any = None) -> Callable:
        """`predict(x, t)` of a diffusion network over the times of a table: t = (i + 1) / T at their timestep i.

        T is the scheduler's; without one the network's num_train_timesteps, or 1000.
        """
        count = self.scheduler.count if self.scheduler else self.config.get("num_train_timesteps") or 1000
        given = {"context": context, "context_mask": mask} if context is not None else {}
        net = _with_time_scale(self.network, float(count))
        return lambda x, t: net.apply(self.params, x, jnp.asarray(t) - 1 / count, label, **given)


def load(folder: str | os.PathLike, variant: str | None = None) -> Pretrained:
    """What a folder of diffusers holds. variant: of the weights' files, such as "fp16".

    Raises:
      ValueError: if it is none, asks for what is not supported, or its weights do not fit; lists what is wrong.
    """
    folder = Path(folder)
    parts = _parts(folder)
    found = load_model(next((parts[name] for name in NETWORKS if name in parts), folder), variant)
    if place := parts.get("scheduler"):
        config = _json(place / schedulers.FILE)
        found = found._replace(scheduler=schedulers.build(config), scheduler_config=config)
    for place in (parts[name] for name in AUTOENCODERS if name in parts):
        found = found._replace(autoencoder=load_model(place, variant))
    return found


def load_model(folder: str | os.PathLike, variant: str | None = None) -> Pretrained:
    """One model: `config.json` and its weights, in one file or several with an index. Raises as `load`."""
    folder = Path(folder)
    config = _json(folder / "config.json")
    module = _module(config, folder)
    net, shape = module.build(config), _shape(module, config)
    params = weights.from_torch(weights.load_folder(folder, variant), links(config), shapes(net, shape))
    return Pretrained(net, params, config, shape)


def save_model(folder: str | os.PathLike, params: Any, config: dict[str, Any]) -> None:
    """Writes a folder that diffusers reads, in float32; `load_model` of it gives the same bits of float32 parameters.

    config: of a config.json.

    Raises:
      ValueError: if the config is not supported or the parameters are not its network's; nothing is written then.
    """
    folder, module = Path(folder), _module(config, folder)
    weights.check_like(params, shapes(module.build(config), _shape(module, config)))
    tensors = {name: value.astype(np.float32) for name, value in weights.to_torch(params, links(config)).items()}
    written = json.dumps(config, indent=2).encode() + b"\n"
    weights.save_file(folder / WEIGHTS, tensors)
    fields.write(folder / "config.json", lambda path: path.write_bytes(written))


def save(folder: str | os.PathLike, found: Pretrained) -> None:
    """Writes the parts that `load` found, each as diffusers reads it by its own class; no model_index.json.

    With an autoencoder each in a folder of its own, as in a pipeline; without one all in one place.

    Raises:
      ValueError: as `save_model`.
    """
    folder = Path(folder)
    part = folder if found.autoencoder is None else folder / ("unet" if _is_unet(found.config) else "transformer")
    save_model(part, found.params, found.config)
    if found.autoencoder is not None:
        save_model(folder / "vae", found.autoencoder.params, found.autoencoder.config)
    if found.scheduler_config is not None:
        schedulers.save(folder if part == folder else folder / "scheduler", found.scheduler_config)


def links(config: dict[str, Any]) -> list[weights.Link]:
    """The links of a config's class, below the collection `params`."""
    return [link._replace(ours=("params", *link.ours)) for link in _module(config).links(config)]


def shapes(net: Any, shape: tuple[int, ...]) -> Any:
    """The shapes of a network's parameters, by `eval_shape`."""
    x, key = jnp.empty((1, *shape)), jax.random.key(0)
    last = key if type(net).__name__ == "Autoencoder" else jnp.zeros(1)
    return jax.eval_shape(net.init, key, x, last)


def _with_time_scale(net: nn.Module, scale: float) -> nn.Module:
    """The network for times t that the factor `scale` makes timesteps of."""
    if isinstance(net, UNet):
        return net.clone(time=dataclasses.replace(net.time, scale=scale))
    return net.clone(time_scale=scale)


def _is_unet(config):
    return CLASSES[config["_class_name"]] is unet


def _module(config, folder=None):
    where = f" in {folder}" if folder else ""
    fields.check_object(config, where=where)
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in CLASSES:
        raise ValueError(f"config.json must be that of a {' or '.join(CLASSES)}, got {name!r}{where}")
    return CLASSES[name]


def _shape(module, config):
    of = module.read(config)
    size = of["sample_size"] or 32
    size = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
    return (*size, of["in_channels"])


def _parts(folder):
    """{name: folder} of a pipeline's parts that are read; of a model's folder, that of its scheduler."""
    there = {place.parent.name: place.parent for place in folder.glob("*/config.json")}
    if (folder / "scheduler" / schedulers.FILE).exists():
        there["scheduler"] = folder / "scheduler"
    elif (folder / schedulers.FILE).exists():
        there["scheduler"] = folder
    if (folder / "config.json").exists() and not there.keys() & set(NETWORKS):
        there["unet"] = folder
    listed = _listed(folder / "model_index.json")
    strange = [name for name in sorted({*there, *listed}) if name not in READ and not name.startswith(UNREAD)]
    faults = [f"{name} is not known" for name in strange]
    faults += [f"{name} is missing" for name in sorted(listed - there.keys()) if name in READ]
    for names, classes in ((NETWORKS, DIFFUSION), (AUTOENCODERS, ("AutoencoderKL",))):
        if len(named := [name for name in names if name in there]) > 1:
            faults.append(f"there are both {' and '.join(named)}")
        for name in named:
            if there[name] != folder and (found := _class(there[name])) not in classes:
                faults.append(f"{name} must be of class {' or '.join(classes)}, got {found!r}")
    if faults:
        known = f"{', '.join(READ)} and, unread, {', '.join(UNREAD)}"
        raise ValueError(f"folder must have no parts but {known}, got in {folder}: {'; '.join(faults)}")
    return there


def _class(folder):
    config = _json(folder / "config.json")
    return config.get("_class_name") if isinstance(config, dict) else None


def _listed(path):
    """The parts that a model_index.json names: [library, class] by name, nulls where a pipeline has none."""
    if not path.exists():
        return set()
    index = _json(path)
    fields.check_object(index, path.name, f" in {path.parent}")
    return {name for name, value in index.items() if isinstance(value, list) and any(one is not None for one in value)}


def _json(path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"folder must be one that diffusers saved, got {path.parent} ({error})") from error
