"""Trained models from their folders: `load`, the latents of an autoencoder, the base of adapters."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from diffax import pretrained
from diffax.pretrained import Tokenizer, is_export
from diffax.training import Checkpoints
from experiments.configs.settings import flatten, without_null
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
    """A trained model with its averaged parameters; adapters are merged into their base.

    model: as `build` returns it. step: of the checkpoint. data: the training data; shape is that of the data, also for
    a model in latents. dataset, sampling: those of the config, as overridden. latents: the record of its latent space,
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
    config = ConfigDict(record["config"])
    if config.model != kind:
        raise ValueError(f"{name} must have a model of kind {kind!r}, got {folder} with kind {config.model!r}")
    config, known = override(config), record["data"]
    data = Data.of(known)
    latents = record.get("latents")
    of_network = data if latents is None else data._replace(shape=tuple(latents["shape"]))
    model = build(config, of_network)
    # On no device in particular, as sampling may use all of them.
    if step is None:  # an export, whose adapters are merged
        step, params = int(record["step"]), jax.device_put(jax.device_get(pretrained.load(folder).params))
    else:
        base = _base_of(folder, config.lora, record)
        like = jax.eval_shape((base or model).init, jax.random.key(0))
        with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
            params = jax.device_put(jax.device_get(checkpoints.restore_ema(step, like)))
        params = params if base is None else base.merge(params)
    words = record.get("words")
    tokenizer = None if words is None else Tokenizer(words, config.text.max_length)
    dataset, sampling = config.dataset.to_dict(), config.sampling.to_dict()
    return Trained(model, params, step, folder, data, dataset, sampling, latents, tokenizer, record)


def load_latents(folder: Path, scale: float | None = None, name: str = "config.latent.autoencoder") -> Latents:
    """The latent space of a trained autoencoder. scale: None for that of latents.json, which a finished run has.

    Raises:
      ValueError: if the folder has no autoencoder, or latents.json is not of its newest checkpoint.
    """
    trained = load(folder, name, "autoencoder")
    model = trained.model
    mark, shape = digest(model.network, list(model.shape), trained.params), model.latent_shape(trained.params)
    if scale is None:
        measured = read_json(folder / LATENTS)
        if measured is None or measured["digest"] != mark:
            state = "is not there" if measured is None else f"is of step {measured['step']}"
            raise ValueError(
                f"{name} must be a finished run, got {folder}, where {LATENTS} {state} and the checkpoint of step "
                f"{trained.step}: run experiments.train on it to its end"
            )
        scale = 1 / measured["std"]
    return Latents(model, trained.params, folder, trained.step, mark, scale, shape)


def latents_of(trained: Trained, moved: str | None = None) -> Latents | None:
    """The latent space of a trained model, None for pixels. moved: the present folder of a moved autoencoder.

    Raises:
      ValueError: if the folder has another autoencoder, or `moved` is given for a model of pixels.
    """
    if (saved := trained.latents) is None:
        if moved is not None:
            raise ValueError(f"autoencoder must not be given for a model of pixels, got {moved}")
        return None
    if moved is None and is_export(trained.folder):  # an export includes its autoencoder
        space = pretrained.load(trained.folder).latents
        model = AutoencoderModel(0.0, trained.model.optimizer, space.network, "squared", trained.data.shape)
        of_checkpoint = (trained.folder, saved["step"], saved["digest"])
        return Latents(model, space.params, *of_checkpoint, space.scale, tuple(saved["shape"]))
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
    form = {"rank": settings.rank, "alpha": settings.alpha, "patterns": tuple(settings.patterns)}
    return Adapters(trained.folder, trained.step, trained.params, digest(trained.params), **form), trained


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
    mine, its = flatten(mine), flatten(base.record["config"])
    for key in sorted(mine.keys() | its.keys()):
        if key.startswith(OF_THE_BASE) and key not in OF_THE_ADAPTERS and mine.get(key) != its.get(key):
            raise ValueError(f"{key} must be {its.get(key)!r}, as of {base.folder}, got {mine.get(key)!r}")
    pairs = {
        "images": (base.data.shape, data.shape),
        "classes": (base.data.num_classes, data.num_classes),
        "conditions": (base.data.condition, data.condition),
        "autoencoder": (base.latents and base.latents["digest"], latents and latents.digest),
    }
    for what, (of_base, of_run) in pairs.items():
        if of_base != of_run:
            raise ValueError(f"config.lora.base must be of {what} {of_run}, got {base.folder} of {of_base}")


def save_export(path: Path, source: Any, params: Any, step: int, space: Latents | None, record: dict[str, Any]) -> None:
    """Write an export of a diffusion model.

    Args:
      path: the folder, which must not exist.
      source: `model`, `data` and `tokenizer` of the model, such as `Trained` or `Inputs`.
      params: of the network, with adapters merged.
      step: of the parameters.
      space: the latents of the model, None for pixels.
      record: as of a checkpoint, at least the config.
    """
    kept = {key: record.get(key) for key in ("config", "identity", "adapters")}
    pretrained.save(
        path,
        source.model.diffusion,
        params,
        step=step,
        units=source.data.units,
        latents=space and space.exported(),
        words=source.tokenizer.words if source.tokenizer else (),
        max_length=source.tokenizer.max_length if source.tokenizer else 0,
        has_null=not without_null(ConfigDict(record["config"])),
        condition_units=source.data.condition_units,
        more=kept | {"data": source.data.record(), "latents": space and space.record()},
    )
