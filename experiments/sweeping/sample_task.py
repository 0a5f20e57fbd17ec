"""A run that draws from a checkpoint: sampler, grid, calls, guidance, eta and seed, and the metrics of the samples.

One program serves all runs with one sampler and one length of the grid; the grid, eta, the guidance weight and the keys
are its arguments. Runs without guidance (weight 1) have a separate program, which calls the network half as often.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from diffax.pretrained import Diffusion, spent, step_grid
from diffax.training.parallel import over_batch
from experiments.configs.settings import can_guide, check_guidance, flatten
from experiments.model import Data, sampling
from experiments.models.digests import digest
from experiments.models.drawing import draw, generated
from experiments.run import loading
from experiments.run.command import path_of
from experiments.sweeping import measuring
from experiments.sweeping.definition import SEED, Run
from experiments.sweeping.folder import Result
from experiments.sweeping.tasks import Job, grid_entries, traced

# Arguments of a program.
ARGUMENTS = (SEED, "config.calls", "config.sampling.eta", "config.sampling.guidance", "config.sampling.grid")


@functools.cache
def _opened(checkpoint: str) -> tuple[loading.Trained, str]:
    """(the model of a checkpoint, its step and a digest of its parameters); all stay loaded, since runs alternate."""
    if not checkpoint:
        raise ValueError("config.checkpoint must be a run's workdir or an export: --set=config.checkpoint=DIR")
    trained = loading.load(path_of("config.checkpoint", checkpoint), "config.checkpoint")
    return trained, f"step {trained.step}, {digest(trained.params)}"


def _diffusion(trained: loading.Trained, settings: Any, calls: int) -> Diffusion:
    """The model with config.sampling; num_steps becomes the length of the grid, which is an argument of the program."""
    own = sampling(ConfigDict({**settings.to_dict(), "num_steps": calls}))
    schedule = trained.model.diffusion.schedule(trained.params)
    count = grid_entries("config.calls", settings.sampler, schedule, calls)
    own = dataclasses.replace(own, num_steps=count, grid="")
    return dataclasses.replace(trained.model.diffusion, sampling=own)


def parse(config: Any) -> tuple[str, dict[str, str]]:
    """See `Task`.

    Raises:
      ValueError: for invalid settings.
    """
    trained, mark = _opened(config.checkpoint)
    if trained.tokenizer is not None:
        raise ValueError(f"config.checkpoint must not be a model of captions, got {config.checkpoint}")
    diffusion = _diffusion(trained, config.sampling, config.calls)
    if config.sampling.sampler == "ddpm_learned" and not diffusion.learned_variance:
        raise ValueError(f"config.sampling.sampler must not be ddpm_learned for {config.checkpoint}")
    reason = can_guide(ConfigDict(trained.record["config"]))
    check_guidance("config.sampling.guidance", config.sampling, reason)
    measuring.check(config.evaluation, diffusion.condition == "label")
    kept = {key: value for key, value in flatten(config.to_dict()).items() if key not in ARGUMENTS}
    structure = jax.tree.structure(diffusion.sampling)
    return f"{structure} {json.dumps(kept, sort_keys=True)}", {config.checkpoint: mark}


def run(job: Job) -> Iterator[tuple[Run, Result | BaseException]]:
    """Draw and measure the runs of a job, one after another; each is spread over the devices by its samples."""
    config = job.runs[0].config
    trained, _ = _opened(config.checkpoint)
    classes = trained.data.num_classes if trained.model.diffusion.condition == "label" else None
    folder = job.folder.path / "extractors"
    cycle, measure = measuring.prepared(config.evaluation, trained.dataset, trained.data, classes, folder)
    generate = job.compiled(lambda: _compile(trained.data, loading.latents_of(trained)))
    for run in job.runs:
        try:
            x, cost = _drawn(generate, trained, cycle, run, job)
            measured = measure(x, job.folder.run(run) / "samples.png")
            yield run, Result(measured.metrics, measured.floors, measured.conditions, cost)
        except Exception as error:  # the other runs of the job continue
            yield run, error


def _compile(data: Data, space: Any) -> Callable[..., np.ndarray]:
    """((params, model with traced numbers, grid), keys, conditions) -> samples, of any run with this program."""

    def generate(variables: Any, keys: Any, which: Any) -> Any:
        params, diffusion, times = variables
        return generated(diffusion, data, params, keys, which, times=times)

    images = over_batch(jax.jit(generate))
    return images if space is None else space.decoded(images)


def _drawn(
    generate: Callable[..., np.ndarray], trained: loading.Trained, cycle: Any, run: Run, job: Job
) -> tuple[np.ndarray, dict[str, float]]:
    """(the samples of a run, their cost)."""
    config, num = run.config, run.config.evaluation.num
    name, schedule = config.sampling.sampler, trained.model.diffusion.schedule(trained.params)
    diffusion = _diffusion(trained, config.sampling, config.calls)
    grid = step_grid(name, config.sampling.grid, schedule, diffusion.sampling.num_steps)
    size = min(config.evaluation.batch_size, num)
    batches = -(-num // size)
    progress, times = job.progress("batch", batches), [time.monotonic()]

    def update(last: int) -> None:
        progress.update(len(times))
        times.append(time.monotonic())

    variables = trained.params, traced(diffusion), grid
    x = draw(generate, variables, config.seed, np.arange(num), cycle, batch_size=size, update=update)
    # The first batch compiles, unless an earlier run has compiled the program.
    each = np.diff(times)
    typical = float(np.median(each[batches > 1 :]))
    seconds = {"seconds": typical * batches, "compile_seconds": max(float(each[0] - np.median(each)), 0.0)}
    calls = float(spent(name, schedule, diffusion.sampling.num_steps))
    return x, {"calls": calls, **{key: round(value, 3) for key, value in seconds.items()}}
