"""A run that draws from a checkpoint: sampler, grid, calls, guidance, eta and seed, and the metrics of the samples.

One program serves all runs with one sampler and one length of the grid; the grid, eta, the guidance weight and the keys
are its arguments. Runs without guidance (weight 1) have a program of their own, which calls the network half as often.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffax import random
from diffax.pretrained import Diffusion, spent, step_grid
from diffax.training import make_mesh
from experiments.configs.settings import can_guide, check_guidance, flatten
from experiments.model import sampling
from experiments.models.digests import digest
from experiments.run import loading
from experiments.run.command import path_of
from experiments.sweeping import measuring, programs
from experiments.sweeping.definition import SEED, Run
from experiments.sweeping.folder import Result
from experiments.sweeping.tasks import Job, grid_entries

# Arguments of a program.
ARGUMENTS = (SEED, "config.calls", "config.sampling.eta", "config.sampling.guidance", "config.sampling.grid")


@functools.lru_cache(maxsize=1)
def _trained(checkpoint: str) -> loading.Trained:
    if not checkpoint:
        raise ValueError("config.checkpoint must be a run's workdir or an export: --set=config.checkpoint=DIR")
    return loading.load(path_of("config.checkpoint", checkpoint), "config.checkpoint")


def inputs(configs: Sequence[Any]) -> dict[str, Any]:
    """The step and a digest of the parameters of each checkpoint."""
    models = {checkpoint: _trained(checkpoint) for checkpoint in sorted({config.checkpoint for config in configs})}
    return {name: f"step {trained.step}, {digest(trained.params)}" for name, trained in models.items()}


def _diffusion(config: Any) -> Diffusion:
    """The model of a run, with its sampling."""
    settings = ConfigDict({**config.sampling.to_dict(), "num_steps": config.calls})
    return dataclasses.replace(_trained(config.checkpoint).model.diffusion, sampling=sampling(settings))


def _entries(config: Any, diffusion: Diffusion) -> int:
    schedule = diffusion.schedule(_trained(config.checkpoint).params)
    return grid_entries("config.calls", config.sampling.sampler, schedule, config.calls)


def check(config: Any) -> None:
    """Raise `ValueError` for settings that are not possible."""
    trained = _trained(config.checkpoint)
    if trained.tokenizer is not None:
        raise ValueError(f"config.checkpoint must not be a model of captions, got {config.checkpoint}")
    diffusion = _diffusion(config)
    if config.sampling.sampler == "ddpm_learned" and not diffusion.learned_variance:
        raise ValueError(f"config.sampling.sampler must not be ddpm_learned for {config.checkpoint}")
    reason = can_guide(ConfigDict(trained.record["config"]))
    check_guidance("config.sampling.guidance", config.sampling, reason)
    _entries(config, diffusion)
    measuring.check(config.evaluation, diffusion.condition == "label")


def alike(config: Any) -> str:
    """Equal for runs that one program serves."""
    diffusion = _diffusion(config)
    kept = {key: value for key, value in flatten(config.to_dict()).items() if key not in ARGUMENTS}
    structure = jax.tree.structure(
        dataclasses.replace(diffusion.sampling, num_steps=_entries(config, diffusion), grid="")
    )
    return f"{structure} {json.dumps(kept, sort_keys=True)}"


@functools.lru_cache(maxsize=1)
def _program(key: str, way: str, model: int) -> Callable[..., Any]:
    """((params, labels), diffusion with traced numbers, grid, keys) -> samples; of several runs for "vmap"."""

    def generate(shared: Any, diffusion: Diffusion, times: Any, keys: Any) -> Any:
        params, label = shared
        return diffusion.generate(params, keys, label, times=times)

    return jax.jit(generate) if way == "loop" else programs.several(generate)


def run(job: Job) -> Iterator[tuple[Run, Result | BaseException]]:
    """Draw for all runs of a job, batch by batch, then measure each."""
    config = job.runs[0].config
    trained, evaluation = _trained(config.checkpoint), config.evaluation
    diffusions = [_diffusion(one.config) for one in job.runs]
    count, name = _entries(config, diffusions[0]), config.sampling.sampler
    schedule = diffusions[0].schedule(trained.params)
    # All runs of a program have one static part, so that their trees can be stacked.
    same = {"grid": config.sampling.grid, "num_steps": config.calls}
    static = [dataclasses.replace(d, sampling=dataclasses.replace(d.sampling, **same)) for d in diffusions]
    numbers = [jax.tree.map(lambda value: jnp.asarray(value, jnp.float32), d) for d in static]
    grids = [step_grid(name, one.config.sampling.grid, schedule, count) for one in job.runs]
    program = _program(alike(config), job.way, id(trained))
    space = loading.latents_of(trained)
    decode = (lambda x: x) if space is None else space.decoded(lambda x: x, make_mesh(jax.local_devices()))
    label = measuring.labels(evaluation, trained.data.num_classes if static[0].condition == "label" else None)
    _, measure = measuring.prepared(evaluation, trained.dataset, label, job.extractors)
    size = min(evaluation.batch_size, evaluation.num)
    drawn: list[list[np.ndarray]] = [[] for _ in job.runs]
    starts = range(0, evaluation.num, size)
    progress, times = job.progress("batch", len(starts)), [time.monotonic()]
    for number, at in enumerate(starts):
        index = np.arange(at, at + size) % evaluation.num
        shared = trained.params, None if label is None else jnp.asarray(label[index])
        keys = [random.keys_at(jax.random.key(one.config.seed), index) for one in job.runs]
        rows = list(zip(numbers, grids, keys, strict=True))
        if job.way == "loop":
            parts = [program(shared, *row) for row in rows]
        else:
            together = program(
                shared, *(programs.stacked(programs.filled(column)) for column in zip(*rows, strict=True))
            )
            parts = [programs.row(together, place) for place in range(len(rows))]
        for place, part in enumerate(parts):
            drawn[place].append(decode(np.asarray(part)))
        progress.update(number + 1)
        times.append(time.monotonic())
    # The first batch compiles, unless a job before it did.
    each = np.diff(times)
    seconds = float(np.median(each[len(starts) > 1 :])) * len(starts) / len(job.runs)
    cost = {"seconds": round(seconds, 3), "compile_seconds": round(max(float(each[0] - np.median(each)), 0.0), 3)}
    cost["calls"] = float(spent(name, schedule, count))
    for one, parts in zip(job.runs, drawn, strict=True):
        try:
            x = np.concatenate(parts)[: evaluation.num]
            measured = measure(x, job.folder.run(one) / "samples.png")
            yield one, Result(measured.metrics, measured.floors, measured.conditions, cost)
        except Exception as error:  # the other runs of the job continue
            yield one, error
