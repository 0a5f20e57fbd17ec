"""From a checkpoint or an export to a model that can be sampled."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections

from diffax.training import Checkpoints, load_export
from experiments.configs import default
from experiments.models import adapters as lora
from experiments.models import build, networks
from experiments.run.workdir import flatten, load_record

OF_THE_BASE = ("config.prediction", "config.sigma_data", "config.schedule.", "config.network.", "config.text.")
ITS_OWN = ("config.network.dropout_rate", "config.network.dtype", "config.network.remat")  # of an adapted model


def _completed(recorded: dict) -> dict:
    """A recorded config; a setting that is newer than the run has its default. Tuples are lists, as in JSON."""
    known = json.loads(json.dumps(default.get_config().to_dict()))
    groups = {key: value for key, value in known.items() if isinstance(value, dict) and key != "schedule"}
    return known | recorded | {key: value | recorded.get(key, {}) for key, value in groups.items()}


class Model(NamedTuple):
    """A trained network with its EMA parameters. shape: of one image; range: the data's pixels (low, high).

    latent: what the record says of the autoencoder, `shape` being that of its codes; None for pixels.
    words: the vocabulary of its captions, None without.
    """

    config: Any
    network: Any
    params: Any
    step: int
    shape: tuple[int, ...]
    range: tuple[float, float]
    num_classes: int | None
    latent: dict[str, Any] | None = None
    words: list[str] | None = None


class Base(NamedTuple):
    """A model that adapters are trained for."""

    folder: Path
    model: Model
    digest: str

    def identity(self) -> dict[str, Any]:
        """What a run and its continuation must agree on."""
        return {"step": self.model.step, "digest": self.digest}

    def record(self) -> dict[str, Any]:
        """What a checkpoint says of it."""
        return {"base": str(self.folder), **self.identity()}


def load_model(
    folder: Path, override: Callable[[Any], Any] = lambda config: config, *, name: str = "checkpoint"
) -> Model:
    """The newest checkpoint of a run, or an export. `override` may change and check the config's sampling.

    Adapters are merged into their base, which must be where it was and what it was. name: of the argument, for errors.

    Raises:
      ValueError: if the folder holds neither, or another kind of model, or adapters of a base that is another now.
    """
    step, record = load_record(folder, name)
    if (kind := record.get("model", "diffusion")) != "diffusion":
        raise ValueError(f"{name} must be a diffusion model's, got {folder}, which holds a {kind}")
    config = override(ml_collections.ConfigDict(_completed(record["config"])))
    latent, classes = record.get("latent"), record["num_classes"]
    shape = tuple((latent or record["data"])["shape"])
    network = networks.network(config, classes)
    base = _base_of(folder, record)
    like = jax.eval_shape(
        lambda key: (
            build.init_params(config, network, shape, key)
            if base is None
            else lora.first(config, base.model.params, key)
        ),
        jax.random.key(0),
    )
    if step is None:
        step, params = record["step"], load_export(folder, like)
    else:
        with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
            params = checkpoints.restore_ema(step, like)
    params = jax.device_put(jax.device_get(params))  # bound to no device: sampling may use all
    params = params if base is None else lora.merge(config, base.model.params, params)
    words = record.get("words")
    return Model(config, network, params, step, shape, tuple(record["data"]["range"]), classes, latent, words)


def _base(folder: Path, name: str) -> Base:
    model = load_model(folder, name=name)
    return Base(folder, model, lora.digest(model.params))


def _base_of(folder: Path, record: dict[str, Any]) -> Base | None:
    """The base of the adapters in a folder, None of a whole model."""
    if (known := record.get("lora")) is None:
        return None
    base = _base(Path(known["base"]), f"the base of {folder}")
    if base.identity() != {name: known[name] for name in base.identity()}:
        raise ValueError(
            f"the base of {folder} must be step {known['step']} of {known['base']} with digest {known['digest']}, got "
            f"step {base.model.step} with {base.digest}"
        )
    return base


def open_base(config: Any, dataset: Any, space: Any) -> Base | None:
    """The model that config.lora names, None without. space: the latents of the run, None for pixels.

    Raises:
      ValueError: if the folder holds none, or one with another network, of other images, classes or latents.
    """
    if not config.lora.base:
        return None
    base = _base(Path(config.lora.base).expanduser().absolute(), "config.lora.base")
    mine, its = (flatten(c.to_dict()) for c in (config, base.model.config))
    for key in sorted(mine.keys() | its.keys()):
        if key.startswith(OF_THE_BASE) and key not in ITS_OWN and mine.get(key) != its.get(key):
            raise ValueError(f"{key} must be {its.get(key)!r}, as of {base.folder}, got {mine.get(key)!r}")
    wanted = {
        "images": (base.model.shape, dataset.shape if space is None else space.shape),
        "classes": (base.model.num_classes, dataset.num_classes),
        "autoencoder": tuple(v and v["digest"] for v in (base.model.latent, space and space.identity())),
    }
    for what, (before, now) in wanted.items():
        if before != now:
            raise ValueError(f"config.lora.base must be of {what} {now}, got {base.folder} of {before}")
    return base
