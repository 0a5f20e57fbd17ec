"""A run that draws from a checkpoint: sampler, grid, calls, guidance, eta and seed, and what the samples are worth.

One program serves all runs with one sampler and one length of the grid; the grid's times, eta, the guidance weight and
the keys are its arguments. Unguided runs (weight 1) have a program of their own, which calls the network half as often.
"""

import functools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffax.training import make_mesh
from experiments.models import build, latents, samplers
from experiments.models.adapters import digest
from experiments.models.loading import Model, load_model
from experiments.run import checks
from experiments.run.workdir import flatten
from experiments.sweeping import budget, judging, together
from experiments.sweeping.definition import SEED, Run
from experiments.sweeping.folder import Folder, Result, Unit

# Of a run alone, not of the program.
OWN = (SEED, "config.calls", "config.sampling.eta", "config.sampling.guidance", "config.sampling.grid")


@functools.lru_cache(maxsize=1)
def _model(checkpoint: str) -> Model:
    if not checkpoint:
        raise ValueError("config.checkpoint must name a run's workdir or an export: --set=config.checkpoint=DIR")
    return load_model(Path(checkpoint).expanduser().absolute(), name="config.checkpoint")


def inputs(configs: list[Any]) -> dict[str, Any]:
    """The step and a digest of the parameters of each checkpoint."""
    found = {}
    for checkpoint in sorted({config.checkpoint for config in configs}):
        model = _model(checkpoint)
        found[checkpoint] = f"step {model.step}, {digest(model.params)}"
    return found


def _settings(config: Any, model: Model) -> tuple[ConfigDict, Any, int]:
    """(the model's config with the run's sampling, its schedule, points of the grid)."""
    settings = ConfigDict(model.config.to_dict())
    schedule = build.schedule(settings, model.params)
    points = budget.points(config.sampling.sampler, schedule, config.calls)
    settings.sampling = {**config.sampling.to_dict(), "num_steps": config.calls}
    return settings, schedule, points


def check(config: Any) -> None:
    """Raises `ValueError` for what is wrong with a run."""
    sampling = config.sampling
    samplers.check_sampler("config.sampling.sampler", sampling.sampler)
    samplers.check_grid("config.sampling.grid", sampling.grid)
    samplers.check_eta("config.sampling.eta", sampling.sampler, sampling.eta)
    model = _model(config.checkpoint)
    if model.words is not None:
        raise ValueError(f"config.checkpoint must not be a model of captions, got {config.checkpoint}")
    settings, *_ = _settings(config, model)
    if sampling.sampler == "ddpm_learned" and not settings.network.learned_variance:
        raise ValueError(f"config.sampling.sampler must not be ddpm_learned for {config.checkpoint}")
    checks.check_guidance("config.sampling.guidance", sampling.guidance, settings)
    judging.check(config.evaluation, settings.network.conditional)


def alike(config: Any) -> str:
    """The same for runs that one program serves."""
    _, _, points = _settings(config, _model(config.checkpoint))
    kept = {k: v for k, v in flatten(config.to_dict()).items() if k not in OWN}
    asked = {"points": points, "guided": config.sampling.guidance != 1, "own": config.sampling.eta is None}
    return json.dumps({**kept, **asked}, sort_keys=True)


@functools.lru_cache(maxsize=1)
def _draw(checkpoint: str, sampling_json: str, guided: bool, way: str) -> Callable:
    """((params, label), times, eta, weight, keys) -> x0; with a leading axis of runs unless the way is "loop"."""
    model = _model(checkpoint)

    def draw(shared, times, eta, weight, keys):
        params, label = shared
        settings = ConfigDict(model.config.to_dict())
        own = {"eta": eta, "guidance": weight if guided else 1.0}
        settings.sampling = ConfigDict({**json.loads(sampling_json), **own})
        return build.generator(settings, model.network, model.shape, times)(params, keys, label)

    return jax.jit(draw) if way == "loop" else together.several(draw, way)


def _program(config: Any, way: str) -> Callable:
    """The program of a run and of those that are alike, compiled once for runs that follow each other."""
    shared = {k: v for k, v in config.sampling.to_dict().items() if f"config.sampling.{k}" not in OWN}
    return _draw(config.checkpoint, json.dumps(shared), config.sampling.guidance != 1, way)


def run(unit: Unit, folder: Folder, way: str, say: Callable) -> Iterator[tuple[Run, Result | BaseException]]:
    """Draws for all runs of a unit, then measures each."""
    config = unit.runs[0].config
    model, evaluation = _model(config.checkpoint), config.evaluation
    settings, schedule, points = _settings(config, model)
    draw = _program(config, way)
    space = latents.of_record(model.latent)
    decode = latents.decoded(lambda x: x, space, make_mesh(jax.local_devices()))
    label = judging.labels(evaluation, model.num_classes if settings.network.conditional else None)
    case, judge = judging.judge(evaluation, settings.dataset, label, folder.path / "extractors")
    drawn: list[list[np.ndarray]] = [[] for _ in unit.runs]
    failed: dict[int, ValueError] = {}
    places = judging.batches(evaluation)
    progress, times = say("batch", len(places)), [time.monotonic()]
    for number, index in enumerate(places):
        shared = model.params, None if label is None else label[index]
        rows = [_row(one.config, schedule, points, index) for one in unit.runs]
        for place, part in enumerate(_each(draw, shared, rows, way)):
            try:
                drawn[place].append(judging.stored(decode(np.asarray(part)), case.dataset))
            except ValueError as error:
                failed[place] = error
        progress.update(number + 1)
        times.append(time.monotonic())
    # The first batch compiles, where no run before it did.
    seconds = float(np.median(np.diff(times)[len(places) > 1 :])) * len(places) / len(unit.runs)
    cost = {"seconds": round(seconds, 3), "calls": float(samplers.spent(config.sampling.sampler, schedule, points))}
    for place, (one, parts) in enumerate(zip(unit.runs, drawn, strict=True)):
        if place in failed:
            yield one, failed[place]
            continue
        try:
            pixels = np.concatenate(parts)[: evaluation.num]
            judging.picture(folder.run(one) / "samples.png", pixels, case.dataset)
            measured = judge(pixels)
        except Exception as error:  # one run never stops the others
            yield one, error
        else:
            yield one, Result(measured.metrics, measured.floors, measured.conditions, cost)


def _row(config: Any, schedule: Any, points: int, index: np.ndarray) -> tuple[Any, ...]:
    keys = judging.keys(config.seed, index)
    times = samplers.step_grid(config.sampling.sampler, config.sampling.grid, schedule, points)
    eta = None if config.sampling.eta is None else jnp.float32(config.sampling.eta)
    return times, eta, jnp.float32(config.sampling.guidance), keys


def _each(draw: Callable, shared: Any, rows: list[Any], way: str) -> Any:
    if way == "loop":
        return [draw(shared, *row) for row in rows]
    found = draw(shared, *together.packed(rows, way))
    return [together.part(found, way, place) for place in range(len(rows))]
