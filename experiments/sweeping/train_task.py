"""A run that trains: the loop of `experiments.train` without pictures, then samples and their metrics.

Runs that differ in seeds and floats alone have models of one tree structure, so one compiled step serves them all: the
state has the model's numbers in `hyper`. One after another ("loop") they use all devices each; in one program ("vmap")
state and batches have a leading axis of runs.
"""

import contextlib
import functools
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffax import random, training
from diffax.pretrained import entries, spent
from diffax.training.parallel import over_batch
from experiments.configs import settings
from experiments.data.datasets import open_dataset
from experiments.model import Model
from experiments.models import adapters, latents
from experiments.models.drawing import draw
from experiments.run import loading
from experiments.run.command import path_of
from experiments.run.inputs import FORMS, Inputs, opened
from experiments.sweeping import measuring, programs
from experiments.sweeping.definition import Run
from experiments.sweeping.folder import Result
from experiments.sweeping.tasks import Job


def check(config: Any) -> None:
    """Raise `ValueError` for settings that are not possible."""
    for path, value, only in (("text.enabled", config.text.enabled, False), ("model", config.model, "diffusion")):
        if value != only:
            raise ValueError(f"config.{path} must be {only!r} in a sweep, got {value!r}")
    _specification(config)
    measuring.check(config.evaluation, config.network.conditional)


def alike(config: Any) -> str:
    """The static part of a config: equal for runs that one compiled step serves."""
    flat = settings.flatten(config.to_dict())
    kept = {key: value for key, value in flat.items() if not key.startswith(FREE)}
    return f"{jax.tree.structure(_specification(config))} {json.dumps(kept, sort_keys=True)}"


def inputs(configs: Sequence[Any]) -> dict[str, Any]:
    """The digests of the autoencoders and bases that the runs use."""
    result = {}
    for folder in sorted({config.latent.autoencoder for config in configs} - {""}):
        result[folder] = loading.load_latents(path_of("config.latent.autoencoder", folder)).digest
    for lora in {config.lora.base: config.lora for config in configs if config.lora.base}.values():
        result[lora.base] = loading.load_adapters(lora)[0].digest
    return result


# Settings that are numbers of the model, or of the data of one run.
FREE = (
    *("config.seed", "config.dataset.data_dir", "config.dataset.num_threads", "config.dataset.cache"),
    *("config.schedule.", "config.loss.", "config.optimizer.", "config.sampling.", "config.sigma_data"),
)


def _specification(config: Any) -> Model:
    """The model of a config."""
    model: Model = _built(config.to_json_best_effort())
    return model


@functools.lru_cache(maxsize=4096)
def _built(config_json: str) -> Any:
    return opened(ConfigDict(json.loads(config_json)), jax.local_device_count()).model


class Program(NamedTuple):
    """What is compiled for runs that are alike.

    first: (model with traced numbers, seed) -> state. step: of one run or of several. generate: ((params, model), keys,
    labels) -> images on the host.
    """

    first: Callable[..., Any]
    step: training.parallel.ParallelStep
    generate: Callable[..., Any]


_PROGRAMS: dict[tuple[str, str], Program] = {}


def _program(run: Run, inputs: Inputs, way: str) -> Program:
    """The program of runs that are alike; the previous one is dropped, since it takes hundreds of megabytes."""
    key = (alike(run.config), way)
    if key not in _PROGRAMS:
        _PROGRAMS.clear()
        jax.clear_caches()
        _PROGRAMS[key] = _compile(inputs, run.config.parallel, way)
    return _PROGRAMS[key]


def _compile(inputs: Inputs, parallel: str, way: str) -> Program:
    base, space = inputs.base, inputs.space
    mesh = training.make_mesh(jax.local_devices())

    def objective(model: Any) -> Any:
        return adapters.wrap(base, latents.wrap(space, model.objective()))

    @jax.jit
    def first(model: Model, seed: Any) -> training.TrainState:
        init_key, state_key = jax.random.split(random.threefry(jax.random.key(seed)))
        params = (base or model).init(init_key)
        return training.init_state(state_key, params, model.optimizer.make(), objective(model).memory, hyper=model)

    def step(state: Any, batch: Any, *, axis_name: str | None = None) -> Any:
        model = state.hyper
        loss, _, update_memory = objective(model)
        one = training.train_step(
            loss,
            model.optimizer.make(),
            ema_decay=model.optimizer.ema_decay,
            update_memory=update_memory,
            accumulate=model.optimizer.accumulate,
        )
        return one(state, batch, axis_name=axis_name)

    def generate(variables: Any, keys: Any, label: Any) -> Any:
        params, model = variables
        return model.diffusion.generate(inputs.whole(params), keys, label)

    images = over_batch(jax.jit(generate), mesh)
    one_or_several = FORMS[parallel](step, mesh) if way == "loop" else training.over_runs(step, mesh)
    return Program(first, one_or_several, images if space is None else space.decoded(images, mesh))


def traced(model: Any) -> Any:
    """The model with its numbers as float32 arrays."""
    return jax.tree.map(lambda value: jnp.asarray(value, jnp.float32), model)


class JoinedBatches:
    """The batches of several runs as one iterator, whose position is that of each."""

    def __init__(self, batches: list[Any]) -> None:
        self._batches = batches

    def __iter__(self) -> "JoinedBatches":
        return self

    def __next__(self) -> Any:
        rows = programs.filled([next(batches) for batches in self._batches])
        return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)

    def get_state(self) -> list[Any]:
        """The positions."""
        return [batches.get_state() for batches in self._batches]

    def set_state(self, positions: list[Any]) -> None:
        """Go to these positions."""
        for batches, position in zip(self._batches, positions, strict=True):
            batches.set_state(position)


class RunLogs:
    """The log of several runs: each gets its part of the values, until it fails."""

    def __init__(self, logs: list[training.JsonLog]) -> None:
        self._logs = logs

    def start(self, step: int) -> None:
        """Start each."""
        for log in self._logs:
            log.start(step)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Write to each."""
        for index, log in enumerate(self._logs):
            own = {name: float(np.ravel(value)[index] if np.ndim(value) else value) for name, value in values.items()}
            if own.get("skipped") == 0:
                del own["skipped"]
            if not np.isnan(own.get("loss", 0.0)):
                log.write(step, own)

    def sync(self) -> None:
        """Sync each."""
        for log in self._logs:
            log.sync()


def run(job: Job) -> Iterator[tuple[Run, Result | BaseException]]:
    """Train the runs of a job and measure each."""
    config, folders = job.runs[0].config, [job.folder.run(run) for run in job.runs]
    mesh = training.make_mesh(jax.local_devices())
    caches = {"cache_images": config.dataset.cache, "cache_latents": config.latent.cache}
    owns = [opened(run.config, mesh.size) for run in job.runs]
    prepared = [_prepared(run, job) for run in job.runs]  # before the training, which takes longer
    program = _program(job.runs[0], owns[0], job.way)
    states = [program.first(traced(own.model), run.config.seed) for run, own in zip(job.runs, owns, strict=True)]
    batches = [own.batches(mesh, **caches) for own in owns]
    is_loop = job.way == "loop"
    with contextlib.ExitStack() as stack:
        logs = [stack.enter_context(contextlib.closing(training.JsonLog(path / "metrics.jsonl"))) for path in folders]
        try:
            fitted = _fit(
                folders[0] / "checkpoints",
                [run.id for run in job.runs],
                [own.identity(run.config.dataset.train_split) for run, own in zip(job.runs, owns, strict=True)],
                program.step,
                states[0] if is_loop else jax.tree.map(lambda *leaves: jnp.stack(leaves), *programs.filled(states)),
                batches[0] if is_loop else JoinedBatches(batches),
                num_steps=config.train.num_steps,
                checkpoint_every=config.train.checkpoint_every,
                log=RunLogs(logs),
                log_every=config.train.log_every,
                max_skipped=config.train.max_skipped,
                progress=job.progress("step", config.train.num_steps),
            )
        except training.NotFiniteError as error:  # of all runs
            yield from ((run, error.failed.get(index, error)) for index, run in enumerate(job.runs))
            return
    cost = {"seconds": fitted.seconds / len(job.runs), "compile_seconds": fitted.compile_seconds}
    for index, (run, own) in enumerate(zip(job.runs, owns, strict=True)):
        if index in fitted.failed:
            yield run, fitted.failed[index]
            continue
        try:
            ema = fitted.state.ema if is_loop else programs.row(fitted.state.ema, index)
            result = _measure(program, run, own, ema, prepared[index], job)
            result.metrics["loss"] = float(np.ravel(fitted.logged["loss"])[index])
            result.cost.update({name: round(value, 3) for name, value in cost.items()})
            yield run, result
        except Exception as error:  # the other runs of the job continue
            yield run, error


def _fit(path: Path, ids: list[str], identity: list[Any], *args: Any, **settings: Any) -> training.Fitted:
    """`fit`; checkpoints of another group of runs, other data or models, or other devices, are removed."""
    record = {"ids": ids, "identity": identity}
    with contextlib.suppress(training.CheckpointError), training.Checkpoints(path, read_only=True) as checkpoints:
        newest, _ = checkpoints.newest()
        saved = {} if newest is None else checkpoints.record(newest)
        if any(saved.get(name, value) != value for name, value in record.items()):
            shutil.rmtree(path)
    with training.Checkpoints(path, keep_latest=1) as checkpoints:
        try:
            return training.fit(*args, checkpoints=checkpoints, record=record, **settings)
        except training.CheckpointError as error:
            if "must hold" not in str(error) and "intact" not in str(error):
                raise
            print(f"warning: {error}; starting again", file=sys.stderr, flush=True)
    shutil.rmtree(path)
    with training.Checkpoints(path, keep_latest=1) as checkpoints:
        return training.fit(*args, checkpoints=checkpoints, record=record, **settings)


def _prepared(run: Run, job: Job) -> tuple[Any, Callable[..., Any]]:
    """(labels of the samples, the function that measures them)."""
    names = run.config.dataset
    dataset = open_dataset(names.name, names.data_dir)
    label = measuring.labels(run.config.evaluation, dataset.num_classes if run.config.network.conditional else None)
    return label, measuring.prepared(run.config.evaluation, names.to_dict(), label, job.extractors)[1]


def _measure(program: Program, run: Run, inputs: Inputs, ema: Any, prepared: Any, job: Job) -> Result:
    """Draw samples, measure them, and keep an export."""
    evaluation, diffusion, (label, measure) = run.config.evaluation, inputs.model.diffusion, prepared
    variables, index = (ema, traced(inputs.model)), np.arange(evaluation.num)
    size = min(evaluation.batch_size, evaluation.num)
    x = draw(program.generate, variables, run.config.seed, index, label, batch_size=size)
    measured = measure(x, job.folder.run(run) / "samples.png")
    if job.keep == "export":
        path = job.folder.run(run) / "export"
        shutil.rmtree(path, ignore_errors=True)
        config = {key: value for key, value in run.config.to_dict().items() if key not in ("task", "evaluation")}
        params = jax.device_get(inputs.whole(ema))
        loading.save_export(path, inputs, params, run.config.train.num_steps, inputs.space, {"config": config})
    name, schedule = diffusion.sampling.sampler, diffusion.schedule(ema)
    calls = spent(name, schedule, entries(name, schedule, diffusion.sampling.num_steps))
    return Result({"loss": 0.0, **measured.metrics}, measured.floors, measured.conditions, {"calls": float(calls)})
