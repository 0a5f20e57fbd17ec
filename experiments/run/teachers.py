"""Models that a run learns from: the teacher of a distillation, and the pairs of a reflow."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from experiments.configs.objectives import FEW_STEPS, ROWS
from experiments.configs.settings import can_guide
from experiments.data.datasets import Dataset
from experiments.data.pairs import Pairs
from experiments.model import Data
from experiments.models.digests import digest
from experiments.models.few_steps import Teacher
from experiments.models.latents import Latents
from experiments.run import sample_folder
from experiments.run.command import path_of
from experiments.run.loading import load
from experiments.run.workdir import read_json


def load_teacher(path: str, dataset: Dataset, data: Data, space: Latents | None, model: Any) -> Teacher:
    """The model of config.teacher, for a run with this data set, these latents and this model.

    Raises:
      ValueError: if there is no denoiser of a diffusion model, or it has other data, another schedule, condition or
        latent space, or cannot be guided as config.loss.objective_parameters says.
    """
    trained = load(path_of("config.teacher", path), "config.teacher")
    diffusion, recorded = trained.model.diffusion, ConfigDict(trained.record["config"])
    for what, of_teacher, of_run in (
        ("images", trained.data.shape, data.shape),
        ("the data set", trained.dataset["name"], dataset.name),
        ("labels", list(trained.dataset["labels"]), list(dataset.labels)),
        ("classes", trained.data.num_classes, data.num_classes),
        ("conditions", trained.data.condition, data.condition),
        ("units", trained.data.units, data.units),
        ("autoencoder", trained.latents and trained.latents["digest"], space and space.digest),
        ("schedule", levels(diffusion.schedule(trained.params)), levels(model.diffusion.schedule())),
        ("condition", diffusion.condition, model.diffusion.condition),
    ):
        if of_teacher != of_run:
            raise ValueError(f"config.teacher must be of {what} {of_run!r}, got {trained.folder} of {of_teacher!r}")
    objective, of_teacher = model.loss.objective, recorded.loss.objective
    row = ROWS[objective.name]
    if of_teacher in FEW_STEPS and of_teacher != "progressive":
        raise ValueError(f"config.teacher must be a denoiser, got {trained.folder}, trained by {of_teacher}")
    if diffusion.learned_variance:
        raise ValueError(f"config.teacher must be without a learned variance, got {trained.folder}")
    if row.memory:
        own = jax.eval_shape(model.init, jax.random.key(0))
        shapes = [jax.tree.map(jnp.shape, tree) for tree in (trained.params, own)]
        if shapes[0] != shapes[1] or diffusion.prediction != model.diffusion.prediction:
            raise ValueError(
                f"config.teacher must have the network and the prediction of this run for {objective.name}, got "
                f"{trained.folder}"
            )
    guides = row.guidance_input or objective.parameters.get("guidance", 1) != 1
    if guides and (reason := can_guide(recorded)):
        raise ValueError(f"config.teacher must be a model that can be guided, got {trained.folder} {reason}")
    return Teacher(diffusion, trained.params, trained.step, digest(trained.params))


def levels(schedule: Any) -> list[tuple[float, float]]:
    """(alpha, sigma) of a schedule at some times, to compare it with another one."""
    return [tuple(round(float(v), 6) for v in schedule(t)[:2]) for t in (0.0, 0.25, 0.5, 0.75, 1.0)]  # type: ignore[misc]


def load_pairs(path: str, dataset: Dataset, data: Data, model: Any) -> Pairs:
    """The pairs of config.dataset.pairs, for this model of this data set.

    Raises:
      ValueError: if there are none, or they are of another schedule, shape or condition, or of other data.
    """
    folder = path_of("config.dataset.pairs", path)
    of = (read_json(folder / "settings.json") or {}).get("pairs")
    if not of:
        raise ValueError(f"config.dataset.pairs must be a folder of experiments.sample --pairs, got {folder}")
    record = pairs_record(model.diffusion, model.diffusion.schedule(), data, dataset.name)
    for what, mine in json.loads(json.dumps(record)).items():
        if of[what] != mine:
            raise ValueError(f"config.dataset.pairs must be of {what} {mine!r}, got {folder} of {of[what]!r}")
    return sample_folder.load_pairs(folder)


def pairs_record(diffusion: Any, schedule: Any, data: Data, name: str) -> dict[str, Any]:
    """The values that a model trained on pairs must share with the one that drew them."""
    return {
        "shape": diffusion.shape,
        "schedule": levels(schedule),
        "condition": diffusion.condition,
        "data set": name,
        "classes": data.num_classes,
        "units": dataclasses.asdict(data.units),
    }
