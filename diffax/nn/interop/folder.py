"""Folders that diffusers saved: `config.json` and safetensors files of a model, with a `scheduler_config.json`.

The folder of a pipeline works as well: its `unet` or `transformer`, `vae` (or `vqvae`) and `scheduler` are loaded. Its
text encoders and safety checkers are ignored. Any other part raises an error, because it could change the samples.
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
from jax.typing import ArrayLike

from diffax.nn.interop import autoencoder, dit, fields, unet, weights
from diffax.nn.interop import scheduler as schedulers
from diffax.nn.unet import UNet
from diffax.typing import Array

WEIGHTS = f"{weights.NAME}.safetensors"
CLASSES: dict[str, ModuleType] = {
    "UNet2DModel": unet,
    "UNet2DConditionModel": unet,
    "DiTTransformer2DModel": dit,
    "Transformer2DModel": dit,  # the class name in older files; `dit.read` raises for models other than DiT
    "AutoencoderKL": autoencoder,
}
DIFFUSION = tuple(name for name, module in CLASSES.items() if module is not autoencoder)
NETWORKS, AUTOENCODERS = ("unet", "transformer"), ("vae", "vqvae")
READ = (*NETWORKS, *AUTOENCODERS, "scheduler")
UNREAD = ("text_encoder", "tokenizer", "safety_checker", "feature_extractor", "image_encoder")


class Pretrained(NamedTuple):
    """A network with its weights. config: its config.json. shape: (H, W, C) of one image or latent.

    scheduler, autoencoder: other parts of the folder, or None. scheduler_config: the scheduler_config.json, or None.
    """

    network: Any
    params: Any
    config: dict[str, Any]
    shape: tuple[int, ...]
    scheduler: schedulers.Scheduler | None = None
    autoencoder: Any = None
    scheduler_config: dict[str, Any] | None = None

    def predict(self, label: Any = None, context: Any = None, mask: Any = None) -> Callable[[Array, ArrayLike], Array]:
        """The function `predict(x, t)` of a diffusion network, where t = (i + 1) / T is timestep i of diffusers.

        T is the scheduler's number of timesteps. Without a scheduler it is num_train_timesteps of the network, or 1000.
        """
        count = self.scheduler.count if self.scheduler else self.config.get("num_train_timesteps") or 1000
        conditions = {"context": context, "context_mask": mask} if context is not None else {}
        apply: Callable[..., Any] = _with_time_scale(self.network, float(count)).apply
        return lambda x, t: apply(self.params, x, jnp.asarray(t) - 1 / count, label, **conditions)


def load(folder: str | os.PathLike[str], variant: str | None = None) -> Pretrained:
    """Load a model or pipeline that diffusers saved. variant: the variant of the weights' files, such as "fp16".

    Raises:
      ValueError: if diffusers did not save the folder, it has unsupported parts or settings, or its weights do not fit.
        The error lists all faults.
    """
    folder = Path(folder)
    parts = _parts(folder)
    result = load_model(next((parts[name] for name in NETWORKS if name in parts), folder), variant)
    if part := parts.get("scheduler"):
        config = _json(part / schedulers.FILE)
        result = result._replace(scheduler=schedulers.build(config), scheduler_config=config)
    for part in (parts[name] for name in AUTOENCODERS if name in parts):
        result = result._replace(autoencoder=load_model(part, variant))
    return result


def load_model(folder: str | os.PathLike[str], variant: str | None = None) -> Pretrained:
    """Load one model: `config.json`, and weights in one file or several with an index. Raises the errors of `load`."""
    folder = Path(folder)
    config = _json(folder / "config.json")
    module = _module(config, folder)
    net, shape = module.build(config), _shape(module, config)
    params = weights.from_torch(weights.load_folder(folder, variant), links(config), shapes(net, shape))
    return Pretrained(net, params, config, shape)


def network(config: dict[str, Any], *, num_classes: int | None, time_scale: float, **settings: Any) -> nn.Module:
    """The network of a config.json for other data: its number of channels and classes is not that of the file.

    Args:
      config: of a diffusion network without a context.
      num_classes: number of classes, None for none; label `num_classes` is the null label.
      time_scale: factor on t before its embedding.
      settings: `outputs`, `dropout_rate`, `remat` and `dtype` of the network.

    Raises:
      ValueError: if the config is not supported, or of an autoencoder or a network that attends to text.
    """
    name = config.get("_class_name")
    if name not in DIFFUSION or name == "UNet2DConditionModel":
        raise ValueError(f"diffusers must be the config of a diffusion network without a context, got {name}")
    net = _with_time_scale(_module(config).build(config), time_scale)
    return net.clone(num_classes=num_classes, out_channels=None, **settings)


def model_folder(path: str | os.PathLike[str]) -> Path | None:
    """The folder of the diffusion network in a folder that diffusers saved, None for another folder."""
    path = Path(path)
    for part in (path, *(path / name for name in NETWORKS)):
        try:
            config = json.loads((part / "config.json").read_text())
        except (OSError, ValueError):
            continue
        if isinstance(config, dict) and config.get("_class_name") in DIFFUSION:
            return part
    return None


def save_model(folder: str | os.PathLike[str], params: Any, config: dict[str, Any]) -> None:
    """Write a folder that diffusers reads, in float32. `load_model` restores float32 parameters bit for bit.

    config: the content of a config.json.

    Raises:
      ValueError: if the config is not supported or the parameters do not fit its network; nothing is written then.
    """
    folder, module = Path(folder), _module(config, folder)
    weights.check_like(params, shapes(module.build(config), _shape(module, config)))
    tensors = {name: value.astype(np.float32) for name, value in weights.to_torch(params, links(config)).items()}
    content = json.dumps(config, indent=2).encode() + b"\n"
    weights.save_file(folder / WEIGHTS, tensors)
    fields.write(folder / "config.json", lambda path: path.write_bytes(content))


def save(folder: str | os.PathLike[str], pretrained: Pretrained) -> None:
    """Write the parts that `load` returned, so that diffusers' class of each part can read it.

    With an autoencoder each part has its own folder, as in a pipeline; otherwise all parts are in one folder. No
    model_index.json is written, so diffusers cannot load the folder as a pipeline.

    Raises:
      ValueError: see `save_model`.
    """
    folder = Path(folder)
    part = folder
    if pretrained.autoencoder is not None:
        part = folder / ("unet" if _is_unet(pretrained.config) else "transformer")
    save_model(part, pretrained.params, pretrained.config)
    if pretrained.autoencoder is not None:
        save_model(folder / "vae", pretrained.autoencoder.params, pretrained.autoencoder.config)
    if pretrained.scheduler_config is not None:
        schedulers.save(folder if part == folder else folder / "scheduler", pretrained.scheduler_config)


def links(config: dict[str, Any]) -> list[weights.Link]:
    """The links of a config of any supported class, with `params` as the first key of our paths."""
    return [link._replace(ours=("params", *link.ours)) for link in _module(config).links(config)]


def shapes(net: Any, shape: tuple[int, ...]) -> Any:
    """The shapes of a network's parameters, from `eval_shape`."""
    x, key = jnp.empty((1, *shape)), jax.random.key(0)
    key_or_time = key if type(net).__name__ == "Autoencoder" else jnp.zeros(1)
    return jax.eval_shape(net.init, key, x, key_or_time)


def _with_time_scale(net: nn.Module, scale: float) -> nn.Module:
    """A copy of the network that multiplies its times t by `scale`."""
    if isinstance(net, UNet):
        return net.clone(time=dataclasses.replace(net.time, scale=scale))
    return net.clone(time_scale=scale)


def _is_unet(config: dict[str, Any]) -> bool:
    return CLASSES[config["_class_name"]] is unet


def _module(config: dict[str, Any], folder: Path | None = None) -> ModuleType:
    where = f" in {folder}" if folder else ""
    fields.check_object(config, where=where)
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in CLASSES:
        raise ValueError(f"_class_name of config.json must be one of {', '.join(CLASSES)}, got {name!r}{where}")
    return CLASSES[name]


def _shape(module: ModuleType, config: dict[str, Any]) -> tuple[int, ...]:
    values = module.read(config)
    size = values["sample_size"] or 32
    size = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
    return (*size, values["in_channels"])


def _parts(folder: Path) -> dict[str, Path]:
    """{name: folder} of a pipeline's parts. A model's folder is the part "unet", and "scheduler" if it has one."""
    parts = {path.parent.name: path.parent for path in folder.glob("*/config.json")}
    if (folder / "scheduler" / schedulers.FILE).exists():
        parts["scheduler"] = folder / "scheduler"
    elif (folder / schedulers.FILE).exists():
        parts["scheduler"] = folder
    if (folder / "config.json").exists() and not parts.keys() & set(NETWORKS):
        parts["unet"] = folder
    listed = _listed(folder / "model_index.json")
    unsupported = [name for name in sorted({*parts, *listed}) if name not in READ and not name.startswith(UNREAD)]
    faults = [f"{name} is not supported" for name in unsupported]
    faults += [f"{name} is missing" for name in sorted(listed - parts.keys()) if name in READ]
    for names, classes in ((NETWORKS, DIFFUSION), (AUTOENCODERS, ("AutoencoderKL",))):
        if len(present := [name for name in names if name in parts]) > 1:
            faults.append(f"there are both {' and '.join(present)}")
        for name in present:
            if parts[name] != folder and (class_name := _class(parts[name])) not in classes:
                faults.append(f"{name} must be of class {' or '.join(classes)}, got {class_name!r}")
    if faults:
        supported = f"{', '.join(READ)}; ignored: {', '.join(UNREAD)}"
        raise ValueError(f"folder must have only supported parts ({supported}), got {folder}: {'; '.join(faults)}")
    return parts


def _class(folder: Path) -> Any:
    config = _json(folder / "config.json")
    return config.get("_class_name") if isinstance(config, dict) else None


def _listed(path: Path) -> set[str]:
    """The names of the parts in a model_index.json: values are [library, class], or nulls for an absent part."""
    if not path.exists():
        return set()
    index = _json(path)
    fields.check_object(index, path.name, f" in {path.parent}")
    return {name for name, value in index.items() if isinstance(value, list) and any(v is not None for v in value)}


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"folder must be one that diffusers saved, got {path.parent} ({error})") from error
