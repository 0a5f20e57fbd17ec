"""From a checkpoint or an export to a model that can be sampled."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections

from diffax.training import Checkpoints, load_export
from experiments import build
from experiments.configs import default
from experiments.workdir import load_record


def _completed(recorded: dict) -> dict:
    """A recorded config; a setting that is newer than the run has its default. Tuples are lists, as in JSON."""
    known = json.loads(json.dumps(default.get_config().to_dict()))
    groups = {key: value for key, value in known.items() if isinstance(value, dict) and key != "schedule"}
    return known | recorded | {key: value | recorded.get(key, {}) for key, value in groups.items()}


class Model(NamedTuple):
    """A trained network with its EMA parameters. shape: of one image; range: the data's pixels (low, high)."""

    config: Any
    network: Any
    params: Any
    step: int
    shape: tuple[int, ...]
    range: tuple[float, float]
    num_classes: int | None


def load_model(folder: Path, override: Callable[[Any], Any] = lambda config: config) -> Model:
    """The newest checkpoint of a run, or an export. `override` may change and check the config's sampling.

    Raises:
      ValueError: if the folder holds neither, or another kind of model.
    """
    step, record = load_record(folder)
    if (kind := record.get("model", "diffusion")) != "diffusion":
        raise ValueError(f"checkpoint must be a diffusion model's, got {folder}, which holds a {kind}")
    config = override(ml_collections.ConfigDict(_completed(record["config"])))
    shape, classes = tuple(record["data"]["shape"]), record["num_classes"]
    network = build.network(config, classes)
    like = jax.eval_shape(lambda: build.init_params(config, network, shape, jax.random.key(0)))
    if step is None:
        step, params = record["step"], load_export(folder, like)
    else:
        with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
            params = checkpoints.restore_ema(step, like)
    params = jax.device_put(jax.device_get(params))  # bound to no device: sampling may use all
    return Model(config, network, params, step, shape, tuple(record["data"]["range"]), classes)
