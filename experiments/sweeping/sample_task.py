"""A run that draws from a checkpoint: sampler, grid, calls, guidance, eta and seed, and the metrics of the samples.

One program serves all runs with one sampler and one length of the grid; the grid, eta, the guidance weight and the keys
are its arguments. Runs without guidance (weight 1) have a program of their own, which calls the network half as often.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffax import random
from diffax.pretrained import Diffusion, spent, step_grid
from diffax.training.parallel import over_batch
from experiments.configs.settings import can_guide, check_guidance, flatten
from experiments.model import sampling
from experiments.models.digests import digest
from experiments.models.drawing import in_batches
from experiments.run import loading
from experiments.run.command import path_of
from experiments.sweeping import measuring
from experiments.sweeping.definition import SEED, Run
from experiments.sweeping.folder import Result
from experiments.sweeping.tasks import Job, Parsed, grid_entries, traced

# Arguments of a program.
ARGUMENTS = (SEED, "config.calls", "config.sampling.eta", "config.sampling.guidance", "config.sampling.grid")


@functools.cache
def _opened(checkpoint: str) -> tuple[loading.Trained, str]:
    """(the model of a checkpoint, its step and a digest of its parameters)."""
    if not checkpoint:
        raise ValueError("config.checkpoint must be a run's workdir or an export: --set=config.checkpoint=DIR")
    trained = loading.load(path_of("config.checkpoint", checkpoint), "config.checkpoint")
    return trained, f"step {trained.step}, {digest(trained.params)}"


def _diffusion(trained: loading.Trained, settings: Any, calls: int) -> Diffusion:
    """The model with config.sampling. num_steps: the entries of the grid, which is an argument of the program."""
    own = sampling(ConfigDict({**settings.to_dict(), "num_steps": calls}))
    schedule = trained.model.diffusion.schedule(trained.params)
    count = grid_entries("config.calls", settings.sampler, schedule, calls)
    own = dataclasses.replace(own, num_steps=count, grid="")
    return dataclasses.replace(trained.model.diffusion, sampling=own)


def parse(config: Any) -> Parsed:
    """The program and the checkpoint of a run.

    Raises:
      ValueError: for settings that are not possible.
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
    return Parsed(f"{structure} {json.dumps(kept, sort_keys=True)}", {config.checkpoint: mark})


def run(job: Job) -> Iterator[tuple[Run, Result | BaseException]]:
    """Draw for all runs of a job, batch by batch, then measure each."""
    config, seeds = job.runs[0].config, [run.config.seed for run in job.runs]
    trained, _ = _opened(config.checkpoint)
    evaluation, name = config.evaluation, config.sampling.sampler
    space, classes = loading.latents_of(trained), trained.data.num_classes
    decode: Callable[..., Any] = (lambda x: x) if space is None else space.decoded(lambda x: x)
    generate = job.compiled(lambda: _compile(job.way))

    diffusions = [_diffusion(trained, run.config.sampling, run.config.calls) for run in job.runs]
    count, schedule = diffusions[0].sampling.num_steps, diffusions[0].schedule(trained.params)
    grids = [step_grid(name, run.config.sampling.grid, schedule, count) for run in job.runs]
    numbers = [traced(diffusion) for diffusion in diffusions]
    columns = jax.tree.map(lambda *leaves: jnp.stack(leaves), *numbers), jnp.stack(grids)
    label = measuring.labels(evaluation, classes if diffusions[0].condition == "label" else None)
    measure = measuring.prepared(evaluation, trained.dataset, label, job.extractors)

    def batch(index: np.ndarray) -> np.ndarray:
        """The samples (B, K, *shape) of K runs."""
        keys = jnp.stack([random.keys_at(jax.random.key(seed), index) for seed in seeds])
        own = None if label is None else jnp.asarray(label[index])
        if job.way == "loop":
            z = generate((trained.params, numbers[0], grids[0]), keys[0], own)[None]
        else:
            z = generate((trained.params, own), *columns, keys)
        x = decode(z.reshape(-1, *z.shape[2:]))
        return np.moveaxis(x.reshape(*z.shape[:2], *x.shape[1:]), 0, 1)

    size = min(evaluation.batch_size, evaluation.num)
    batches = -(-evaluation.num // size)
    progress, times = job.progress("batch", batches), [time.monotonic()]

    def update(last: int) -> None:
        progress.update(len(times))
        times.append(time.monotonic())

    samples = in_batches(batch, np.arange(evaluation.num), batch_size=size, update=update)
    # The first batch compiles, unless a job before it did.
    each = np.diff(times)
    seconds = float(np.median(each[batches > 1 :])) * batches / len(job.runs)
    cost = {"seconds": round(seconds, 3), "compile_seconds": round(max(float(each[0] - np.median(each)), 0.0), 3)}
    cost["calls"] = float(spent(name, schedule, count))
    for index, run in enumerate(job.runs):
        try:
            measured = measure(samples[:, index], job.folder.run(run) / "samples.png")
            yield run, Result(measured.metrics, measured.floors, measured.conditions, cost)
        except Exception as error:  # the other runs of the job continue
            yield run, error


def _compile(way: str) -> Callable[..., np.ndarray]:
    """loop: ((params, model, grid), keys, labels) -> samples (B, *shape), spread over the devices.

    vmap: ((params, labels), models (K), grids (K, n), keys (K, B)) -> samples (K, B, *shape), the runs spread over the
    devices. The numbers of a model are traced.
    """

    def alone(variables: Any, keys: Any, label: Any) -> Any:
        params, diffusion, times = variables
        return diffusion.generate(params, keys, label, times=times)

    def several(shared: Any, *own: Any) -> Any:
        params, label = shared
        return jax.vmap(lambda diffusion, times, keys: alone((params, diffusion, times), keys, label))(*own)

    return over_batch(jax.jit(alone if way == "loop" else several))
