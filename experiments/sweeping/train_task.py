"""A run that trains: the loop of `experiments.train` without pictures, then samples and their metrics.

Runs that differ only in seeds and floats have models of one tree structure, so one compiled step serves them all: the
state has the model's numbers in `hyper`. With "loop" the runs are computed one after another, each on all devices; with
"vmap" state and batches have a leading axis of runs.
"""

import contextlib
import dataclasses
import functools
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from diffax import training
from diffax.pretrained import Diffusion, entries, spent
from diffax.training.parallel import over_batch
from experiments.configs import settings
from experiments.models import adapters, latents
from experiments.models.drawing import draw, generated
from experiments.run import loading, warm_start
from experiments.run.inputs import FORMS, Inputs, opened
from experiments.run.workdir import newest
from experiments.sweeping import measuring
from experiments.sweeping.definition import Run
from experiments.sweeping.folder import Result
from experiments.sweeping.tasks import Job, traced

# Settings that are numbers of the model, or of the data of one run.
FREE = (
    *("config.seed", "config.dataset.data_dir", "config.dataset.num_threads", "config.dataset.cache"),
    *("config.schedule.", "config.loss.", "config.optimizer.", "config.sampling.", "config.sigma_data"),
)


def parse(config: Any) -> tuple[str, dict[str, str]]:
    """See `Task`.

    Raises:
      ValueError: for invalid settings.
    """
    for path, value, only in (("text.enabled", config.text.enabled, False), ("model", config.model, "diffusion")):
        if value != only:
            raise ValueError(f"config.{path} must be {only!r} in a sweep, got {value!r}")
    inputs = opened(config, jax.local_device_count())
    measuring.check(config.evaluation, inputs.model.diffusion.condition == "label")
    flat = settings.flatten(config.to_dict())
    kept = {key: value for key, value in flat.items() if not key.startswith(FREE)}
    structure = jax.tree.structure(inputs.model)
    used = (
        (config.latent.autoencoder, inputs.space),
        (config.lora.base, inputs.base),
        (config.teacher, inputs.teacher),
        (config.dataset.pairs, inputs.pairs),
    )
    digests = {path: part.digest for path, part in used if part is not None}
    if config.init_from:
        start = warm_start.read(config.init_from, "diffusion")
        inputs.check_start(start)
        digests[config.init_from] = start.digest
    return f"{structure} {json.dumps(kept, sort_keys=True)}", digests


class Program(NamedTuple):
    """The compiled functions for runs that share a program.

    first: (model with traced numbers, seed) -> state, of one run or of several. step: as `first`. generate: ((params,
    model), keys, conditions) -> samples on the host.
    """

    first: Callable[..., Any]
    step: training.parallel.ParallelStep
    generate: Callable[..., Any]


def _compile(inputs: Inputs, parallel: str, way: str, init_from: str) -> Program:
    jax.clear_caches()  # of the previous program
    base, space = inputs.base, inputs.space
    start = warm_start.read(init_from, "diffusion") if init_from else None
    mesh = training.make_mesh(jax.local_devices())

    def objective(model: Any) -> Any:
        return adapters.wrap(base, latents.wrap(space, model.objective(teacher=inputs.teacher)))

    def first(model: Any, seed: Any) -> training.TrainState:
        kept = {"memory": objective(model).memory, "hyper": model}
        return warm_start.first_state(seed, (base or model).init, start, model.optimizer.make(), **kept)

    def step(state: Any, batch: Any, *, axis_name: str | None = None) -> Any:
        model = state.hyper
        return model.optimizer.step(objective(model))(state, batch, axis_name=axis_name)

    def generate(variables: Any, keys: Any, which: Any) -> Any:
        params, model = variables
        return generated(model.diffusion, inputs.data, inputs.whole(params), keys, which)

    images = over_batch(jax.jit(generate), mesh)
    images = images if space is None else space.decoded(images, mesh)
    if way == "loop":
        return Program(jax.jit(first), FORMS[parallel](step, mesh), images)
    return Program(jax.jit(jax.vmap(first)), training.over_runs(step, mesh), images)


def filled(items: list[Any]) -> list[Any]:
    """The items, the last one repeated up to a multiple of the devices; the results of the repeats are dropped."""
    return [*items, *[items[-1]] * (-len(items) % jax.local_device_count())]


def stacked(trees: list[Any]) -> Any:
    """The trees of several runs as one tree (K, ...), K a multiple of the devices."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *filled(trees))


class JoinedBatches(Iterator[Any]):
    """The batches of several runs as one iterator; its position is the list of their positions."""

    def __init__(self, batches: list[Any]) -> None:
        self._batches = batches

    def __next__(self) -> Any:
        return stacked([next(batches) for batches in self._batches])

    def get_state(self) -> list[Any]:
        """The positions."""
        return [batches.get_state() for batches in self._batches]

    def set_state(self, positions: list[Any]) -> None:
        """Restore these positions."""
        for batches, position in zip(self._batches, positions, strict=True):
            batches.set_state(position)


class RunLog(training.JsonLog):
    """The log of one of several runs: its entries of the values, until the run fails."""

    def __init__(self, job: Job, index: int) -> None:
        super().__init__(job.folder.run(job.runs[index]) / "metrics.jsonl")
        self._index = index

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Write the entries of this run."""
        own = {name: float(np.ravel(v)[self._index] if np.ndim(v) else v) for name, v in values.items()}
        if own.get("skipped") == 0:
            del own["skipped"]
        if not np.isnan(own.get("loss", 0.0)):
            super().write(step, own)


def run(job: Job) -> Iterator[tuple[Run, Result | BaseException]]:
    """Train the runs of a job and measure each."""
    # ---- open
    config, is_loop = job.runs[0].config, job.way == "loop"
    mesh = training.make_mesh(jax.local_devices())
    inputs = [opened(run.config, mesh.size) for run in job.runs]
    classes = inputs[0].data.num_classes if inputs[0].model.diffusion.condition == "label" else None
    data, folder = config.dataset.to_dict(), job.folder.run(job.runs[0])
    prepared = measuring.prepared(config.evaluation, data, inputs[0].data, classes, job.folder.path / "extractors")
    program = job.compiled(lambda: _compile(inputs[0], config.parallel, job.way, config.init_from))
    caches = {"cache_images": config.dataset.cache, "cache_latents": config.latent.cache}
    batches: list[Any] = [own.batches(mesh, **caches) for own in inputs]
    starts = [(traced(own.model), np.int32(run.config.seed)) for run, own in zip(job.runs, inputs, strict=True)]

    # ---- train
    record = {
        "ids": [run.id for run in job.runs],
        "identity": [own.identity(run.config.dataset.train_split) for run, own in zip(job.runs, inputs, strict=True)],
        "rows": 1 if is_loop else len(filled(starts)),
    }
    _remove_others(folder, record)
    with contextlib.ExitStack() as stack:
        logs = [stack.enter_context(contextlib.closing(RunLog(job, index))) for index in range(len(job.runs))]
        try:
            fitted = training.fit(
                program.step,
                functools.partial(program.first, *(starts[0] if is_loop else stacked(starts))),
                batches[0] if is_loop else JoinedBatches(batches),
                num_steps=config.train.num_steps,
                checkpoints=stack.enter_context(training.Checkpoints(folder / "checkpoints", keep_latest=1)),
                checkpoint_every=config.train.checkpoint_every,
                log=training.Logs(logs),
                log_every=config.train.log_every,
                max_skipped=config.train.max_skipped,
                record=record,
                progress=job.progress("step", config.train.num_steps),
            )
        except training.NotFiniteError as error:  # of all runs
            yield from ((run, error.failed.get(index, error)) for index, run in enumerate(job.runs))
            return

    # ---- measure
    cost = {"seconds": round(fitted.seconds / len(job.runs), 3), "compile_seconds": round(fitted.compile_seconds, 3)}
    averages = fitted.state.ema if is_loop else jax.device_get(fitted.state.ema)
    for index, run in enumerate(job.runs):
        if index in fitted.failed:
            yield run, fitted.failed[index]
            continue
        try:
            ema = averages if is_loop else jax.device_put(jax.tree.map(lambda v, index=index: v[index], averages))
            result = _measure(program, run, inputs[index], ema, prepared, job)
            loss = {"loss": float(np.ravel(fitted.logged["loss"])[index])}
            yield run, result._replace(metrics=loss | result.metrics, cost=result.cost | cost)
        except Exception as error:  # the other runs of the job continue
            yield run, error


def with_calls(diffusion: Diffusion, calls: int) -> Diffusion:
    """The model with another number of denoiser calls."""
    return dataclasses.replace(diffusion, sampling=dataclasses.replace(diffusion.sampling, num_steps=calls))


def _remove_others(folder: Path, record: dict[str, Any]) -> None:
    """Remove checkpoints that this job cannot restore: of other runs, data, models or devices, or damaged."""
    try:
        _, saved = newest(folder) or (None, {})
        if all(saved.get(name, value) == value for name, value in record.items()):
            return
    except training.CheckpointError as error:
        print(f"warning: {error}; starting again", file=sys.stderr, flush=True)
    shutil.rmtree(folder / "checkpoints")


def _measure(program: Program, run: Run, inputs: Inputs, ema: Any, prepared: Any, job: Job) -> Result:
    """Draw samples with each number of calls, measure them, and write an export."""
    evaluation, diffusion, (cycle, measure) = run.config.evaluation, inputs.model.diffusion, prepared
    index, size, parts = np.arange(evaluation.num), min(evaluation.batch_size, evaluation.num), {}
    for calls in evaluation.calls or (diffusion.sampling.num_steps,):
        model = dataclasses.replace(inputs.model, diffusion=with_calls(diffusion, calls))
        x = draw(program.generate, (ema, traced(model)), run.config.seed, index, cycle, batch_size=size)
        parts[calls] = measure(x, job.folder.run(run) / (f"samples_{calls}.png" if evaluation.calls else "samples.png"))
    if job.keep == "export":
        path = job.folder.run(run) / "export"
        shutil.rmtree(path, ignore_errors=True)
        config = {key: value for key, value in run.config.to_dict().items() if key not in ("task", "evaluation")}
        params = jax.device_get(inputs.whole(ema))
        loading.save_export(path, inputs, params, run.config.train.num_steps, inputs.space, {"config": config})
    name, schedule = diffusion.sampling.sampler, diffusion.schedule(ema)
    calls = spent(name, schedule, entries(name, schedule, diffusion.sampling.num_steps))
    *_, last = parts.values()
    if not evaluation.calls:
        return Result(last.metrics, last.floors, last.conditions, {"calls": float(calls)})
    metrics, floors = ({f"{k}_{n}": v for n, part in parts.items() for k, v in part[i].items()} for i in (0, 1))
    return Result(metrics, floors, last.conditions, {})
