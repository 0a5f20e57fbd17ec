"""Trained models from their folders: `load`, the latents of an autoencoder, the base of adapters."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from diffax import pretrained
from diffax.pretrained import is_export
from diffax.training import Checkpoints
from experiments.configs import default
from experiments.configs.settings import flatten
from experiments.data.captions import Tokenizer
from experiments.model import Data, build
from experiments.models.adapters import Adapters
from experiments.models.autoencoder import LATENTS, AutoencoderModel
from experiments.models.digests import digest
from experiments.models.latents import Latents
from experiments.run.command import path_of
from experiments.run.workdir import load_record, read_json

OF_THE_BASE = ("config.prediction", "config.sigma_data", "config.schedule.", "config.network.", "config.text.")
OF_THE_ADAPTERS = ("config.network.dropout_rate", "config.network.dtype", "config.network.remat")


class Trained(NamedTuple):
    """A trained model with its averaged parameters, merged with those of the base of its adapters.

    model: as `build` returns it. step: of the checkpoint. data: what it was trained on; shape is that of the data, also
    for a model in latents. dataset, sampling: those of the config, as overridden. latents: where its autoencoder was,
    None for pixels. tokenizer: of captions, None without. record: that of the checkpoint or export.
    """

    model: Any
    params: Any
    step: int
    folder: Path
    data: Data
    dataset: dict[str, Any]
    sampling: dict[str, Any]
    latents: dict[str, Any] | None
    tokenizer: Tokenizer | None
    record: dict[str, Any]


def load(
    folder: Path, name: str = "checkpoint", kind: str = "diffusion", override: Any = lambda config: config
) -> Trained:
    """The newest checkpoint of a run, or an export.

    Args:
      folder: a workdir or an export.
      name: of the argument, for errors.
      kind: of the model that is expected.
      override: config -> config, which may change how samples are drawn.

    Raises:
      ValueError: if the folder has neither, another kind of model, or adapters whose base has changed.
    """
    step, record = load_record(folder, name)
    config = ConfigDict(_completed(record["config"]))
    if config.model != kind:
        raise ValueError(f"{name} must have a model of kind {kind!r}, got {folder} with kind {config.model!r}")
    config, known = override(config), record["data"]
    data = Data(tuple(known["shape"]), known["num_classes"], tuple(known["range"]))
    latents = record.get("latents")
    seen = data if latents is None else data._replace(shape=tuple(latents["shape"]), range=(-1.0, 1.0))
    model = build(config, seen)
    if step is None:  # an export, whose adapters are merged
        step, base, params = int(record["step"]), None, pretrained.load(folder).params
    else:
        base = _base_of(folder, config.lora, record)
        like = jax.eval_shape(model.init if base is None else base.init, jax.random.key(0))
        with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
            params = checkpoints.restore_ema(step, like)
    params = jax.device_put(jax.device_get(params))  # on no device in particular: sampling may use all
    params = params if base is None else base.merge(params)
    words = record.get("words")
    tokenizer = None if words is None else Tokenizer(words, config.text.max_length)
    dataset, sampling = config.dataset.to_dict(), config.sampling.to_dict()
    return Trained(model, params, step, folder, data, dataset, sampling, latents, tokenizer, record)


def _completed(recorded: dict[str, Any]) -> dict[str, Any]:
    """A recorded config, with the defaults of settings that are newer than the run."""
    known = json.loads(json.dumps(default.get_config().to_dict()))
    groups = {key: value for key, value in known.items() if isinstance(value, dict) and key != "schedule"}
    return known | recorded | {key: value | recorded.get(key, {}) for key, value in groups.items()}


def load_latents(folder: Path, scale: float | None = None, name: str = "config.latent.autoencoder") -> Latents:
    """The latent space of a trained autoencoder. scale: None for that of latents.json, which a finished run has.

    Raises:
      ValueError: if the folder has no autoencoder, or latents.json is not of its newest checkpoint.
    """
    trained = load(folder, name, "autoencoder")
    model = trained.model
    mark = digest(model.network, list(model.shape), trained.params)
    if scale is None:
        measured = read_json(folder / LATENTS)
        if measured is None or measured["digest"] != mark:
            of = "is not there" if measured is None else f"is of step {measured['step']}"
            raise ValueError(
                f"{name} must be a finished run, got {folder}, where {LATENTS} {of} and the checkpoint of step "
                f"{trained.step}: run experiments.train on it to its end"
            )
        scale = 1 / measured["std"]
    shape = model.latent_shape(trained.params)
    return Latents(model, trained.params, folder, trained.step, mark, scale, shape)


def latents_of(trained: Trained, moved: str | None = None) -> Latents | None:
    """The latent space of a trained model, None for pixels. moved: where the autoencoder is now.

    Raises:
      ValueError: if another autoencoder is there, or `moved` is given for a model of pixels.
    """
    saved = trained.latents
    if saved is None:
        if moved is not None:
            raise ValueError(f"autoencoder must not be given for a model of pixels, got {moved}")
        return None
    if moved is None and is_export(trained.folder):  # an export includes its autoencoder
        own = pretrained.load(trained.folder).latents
        model = AutoencoderModel(0.0, trained.model.optimizer, own.network, "squared", trained.data.shape)
        mark, shape = saved["digest"], tuple(saved["shape"])
        return Latents(model, own.params, trained.folder, saved["step"], mark, own.scale, shape)
    folder = path_of("autoencoder", moved or saved["autoencoder"])
    latents = load_latents(folder, saved["scale"], "autoencoder")
    if latents.digest != saved["digest"]:
        raise ValueError(
            f"autoencoder must be that of step {saved['step']} with digest {saved['digest']}, which the model was "
            f"trained with, got {folder} at step {latents.step} with {latents.digest}"
        )
    return latents


def load_adapters(settings: Any, name: str = "config.lora.base") -> tuple[Adapters, Trained]:
    """The adapters of config.lora, and the base that they are trained for."""
    trained = load(path_of(name, settings.base), name)
    shape = {"rank": settings.rank, "alpha": settings.alpha, "patterns": tuple(settings.patterns)}
    return Adapters(trained.folder, trained.step, trained.params, digest(trained.params), **shape), trained


def _base_of(folder: Path, settings: Any, record: dict[str, Any]) -> Adapters | None:
    """The base of the adapters in a checkpoint, None for a whole model."""
    if (saved := record.get("adapters")) is None:
        return None
    settings = ConfigDict({**settings.to_dict(), "base": saved["base"]})
    adapters, _ = load_adapters(settings, f"the base of {folder}")
    if adapters.record() != saved:
        raise ValueError(
            f"the base of {folder} must be step {saved['step']} of {saved['base']} with digest {saved['digest']}, got "
            f"step {adapters.step} with {adapters.digest}"
        )
    return adapters


def check_base(mine: dict[str, Any], base: Trained, data: Data, latents: Latents | None) -> None:
    """Raise `ValueError` unless the base of adapters has the network, data and latents of this run."""
    mine, its = flatten(mine), flatten(_completed(base.record["config"]))
    for key in sorted(mine.keys() | its.keys()):
        if key.startswith(OF_THE_BASE) and key not in OF_THE_ADAPTERS and mine.get(key) != its.get(key):
            raise ValueError(f"{key} must be {its.get(key)!r}, as of {base.folder}, got {mine.get(key)!r}")
    pairs = {
        "images": (base.data.shape, data.shape),
        "classes": (base.data.num_classes, data.num_classes),
        "autoencoder": (base.latents and base.latents["digest"], latents and latents.digest),
    }
    for what, (of_base, of_run) in pairs.items():
        if of_base != of_run:
            raise ValueError(f"config.lora.base must be of {what} {of_run}, got {base.folder} of {of_base}")
