"""A run that trains: `experiments.train` without its pictures, then samples, then what they are worth.

One program serves all runs that differ in seeds and floats (`traced`): its step takes them with the state,

    step((state, values), batch) -> ((state, values), metrics)

so that it works under both parallel wrappers and over a leading axis of runs.
"""

import contextlib
import functools
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from diffax import random
from diffax._pytrees import pytree
from diffax.training import CheckpointError, Checkpoints, TrainState, init_state, make_mesh, train_step
from diffax.training.parallel import layout, over_batch
from experiments.models import adapters as lora
from experiments.models import build, latents, networks, objectives, samplers
from experiments.run import checks, opening
from experiments.run.metrics_log import MetricsLog, NotFiniteError, Pending
from experiments.run.progress import Progress
from experiments.sweeping import judging, together, traced
from experiments.sweeping.definition import Run
from experiments.sweeping.folder import Folder, Result, Unit


@pytree
class Swept:
    """A state and the values that its run is computed with."""

    state: TrainState
    values: Any


class Program(NamedTuple):
    """What is compiled for runs that are alike. first: values -> Swept; step: see above; generate: (params, values,
    keys, label) -> images.
    """

    first: Callable
    step: Callable
    generate: Callable


def experiment(config: Any) -> ConfigDict:
    """The config as `experiments.train` takes it."""
    found = config.to_dict()
    del found["task"], found["evaluation"]
    return ConfigDict(found)


def check(config: Any) -> None:
    """Raises `ValueError` for settings that cannot be. What depends on the data is found when the run is opened."""
    checks.check_config(experiment(config), jax.local_device_count())
    if config.text.enabled:
        raise ValueError("config.text.enabled must be False in a sweep, got True")
    judging.check(config.evaluation, config.network.conditional)


def alike(config: Any) -> str:
    """The same for runs that one program serves."""
    return traced.split(config)[0]


def _mesh():
    """Of one run, where runs are trained one by one: all devices of this process."""
    return make_mesh(jax.local_devices())


_COMPILED: dict[tuple[str, str], Program] = {}


def _program(run: opening.Run, key: str, way: str) -> Program:
    """The program of runs that are alike; the one before it is let go."""
    if (key, way) not in _COMPILED:
        _COMPILED.clear()
        jax.clear_caches()  # what jit remembers of it takes hundreds of megabytes
        _COMPILED[key, way] = _compile(run, way)
    return _COMPILED[key, way]


def _compile(run: opening.Run, way: str) -> Program:
    def bound(values):
        return traced.bind(run.config, values)

    def goal(config):
        inner = latents.objective(objectives.objective(config, run.net), run.latents)
        return lora.objective(inner, run.whole)

    def first(values):
        config = bound(values)
        init_key, state_key = jax.random.split(random.threefry(jax.random.key(config.seed)))
        params = run._replace(config=config).init(init_key)
        return Swept(init_state(state_key, params, build.optimizer(config), goal(config).memory), values)

    def step(swept, batch, *, axis_name=None):
        config = bound(swept.values)
        objective = goal(config)
        one = train_step(
            objective.loss,
            build.optimizer(config),
            ema_decay=config.optimizer.ema_decay,
            update_memory=objective.update_memory,
            accumulate=config.optimizer.accumulate,
        )
        state, metrics = one(swept.state, batch, axis_name=axis_name)
        return Swept(state, swept.values), metrics

    @jax.jit
    def draw(given, keys, label):
        params, values = given
        return build.generator(bound(values), run.net, run.shape)(run.whole(params), keys, label)

    generate = latents.decoded(over_batch(draw, run.mesh), run.latents, run.mesh)
    if way != "loop":
        several = together.several(lambda _, swept, batch: step(swept, batch), way, donate=True)
        return Program(jax.jit(first), functools.partial(several, ()), generate)
    parallel, rule = build.PARALLEL[run.config.parallel]
    example = jax.eval_shape(first, traced.arrays(traced.split(run.config)[1]))
    make = jax.jit(first, out_shardings=layout(example, run.mesh, rule))
    return Program(make, parallel(step, run.mesh), generate)


def run(
    unit: Unit, folder: Folder, way: str, say: Callable[..., Progress]
) -> Iterator[tuple[Run, Result | BaseException]]:
    """Trains the runs of a unit together and measures each.

    A unit that was interrupted goes on from its last checkpoint, with the runs that it began with.
    """
    start = time.monotonic()
    opened = [_open(one, folder) for one in unit.runs]
    judges = [_judge(one, run, folder) for one, run in zip(unit.runs, opened, strict=True)]  # before the training
    program = _program(opened[0], alike(unit.runs[0].config), way)
    trained = _Training(program, unit, opened, way, folder.unit(unit))
    with contextlib.closing(trained):
        failed = trained.go(say("step", trained.steps), start)
    shared = trained.seconds / len(unit.runs)
    for place, one in enumerate(unit.runs):
        if (error := failed.get(place)) is not None:
            yield one, error
            continue
        start = time.monotonic()
        try:
            result = _measure(
                program, one, opened[place], trained.swept(place), trained.last[place], judges[place], folder
            )
            result.cost["seconds"] = round(shared + time.monotonic() - start, 3)
        except Exception as error:  # one run never stops the others
            yield one, error
        else:
            yield one, result


def _open(one: Run, folder: Any) -> opening.Run:
    checked, read = opening.checked(experiment(one.config), _mesh(), networks.network, "diffusion")
    return opening.with_latents(checked._replace(workdir=folder.run(one)), read)


class _Training:
    """The loop over steps of one or of several runs.

    seconds: since they were begun, those of attempts before included up to the checkpoints that they left.
    """

    def __init__(self, program: Program, unit: Unit, runs: Sequence[opening.Run], way: str, path: Path):
        self._step, self._runs, self._way = program.step, runs, way
        self._ids, self._settings = [one.id for one in unit.runs], runs[0].config.train
        self.last: list[dict[str, float]] = [{} for _ in runs]
        self._path, self._checkpoints = path, Checkpoints(path, keep_latest=1)
        self._first, self._pending = 0, [Pending(self._settings.max_skipped) for _ in runs]
        self._failed: dict[int, NotFiniteError] = {}
        self.seconds = 0.0
        values = [traced.arrays(traced.split(run.config)[1]) for run in runs]
        self._swept = together.packed([program.first(v) for v in values], way)
        self._resume()

    def _resume(self):
        found = self._restored()
        if found is None:
            return
        self._first, self._swept = found.step, Swept(found.state, self._swept.values)
        self.last, self.seconds = found.record["last"], found.record["seconds"]
        self._failed = {int(place): NotFiniteError(*held) for place, held in found.record["failed"].items()}
        self._pending = [Pending(self._settings.max_skipped, held) for held in found.record["pending"]]
        for run, position in zip(self._runs, found.record["positions"], strict=True):
            run.data.set_state(position)

    def _restored(self):
        """The last checkpoint; one that cannot be gone on from, of other devices say, is removed."""
        with contextlib.suppress(CheckpointError, ValueError):
            found = self._checkpoints.restore_latest(self._swept.state)
            if found is None or found.record["ids"] == self._ids:
                return found
        self._checkpoints.close()
        for step in (path for path in self._path.iterdir() if path.is_dir()):
            shutil.rmtree(step)
        self._checkpoints = Checkpoints(self._path, keep_latest=1)
        return None

    @property
    def steps(self) -> int:
        """How many there are."""
        return self._settings.num_steps

    def swept(self, place: int) -> Swept:
        """What became of one run."""
        return together.part(self._swept, self._way, place)

    def close(self) -> None:
        """Waits for what is being written."""
        self._checkpoints.close()

    def go(self, say: Progress, start: float) -> dict[int, NotFiniteError]:
        """Trains to the end; the runs whose loss was not finite, by their place. They stand still, the others go on.

        start: when this attempt began, of `time.monotonic`.
        """
        before, settings, failed, waiting = self.seconds, self._settings, self._failed, []
        with contextlib.ExitStack() as stack:
            logs = [MetricsLog(run.workdir, self._first, board=False) for run in self._runs]
            for log in logs:
                stack.enter_context(contextlib.closing(log))
            for step in range(self._first + 1, settings.num_steps + 1):
                self._swept, metrics = self._step(self._swept, self._batch())
                waiting.append((step, metrics))
                last = step == settings.num_steps
                is_saved = step % settings.checkpoint_every == 0 or last
                if step % settings.log_every == 0 or step == 1 or is_saved:
                    self._read(waiting)
                if step % settings.log_every == 0 or step == 1 or last:
                    self._log(step, logs)
                    say.update(step, f"loss {self.last[0].get('loss', math.nan):.4f}")
                self.seconds = before + time.monotonic() - start
                if is_saved:
                    self._save(step)
                if len(failed) == len(self._runs):
                    break
        return failed

    def _batch(self):
        return together.packed([next(run.data) for run in self._runs], self._way)

    def _read(self, waiting):
        """From the devices to what each run has pending."""
        for step, metrics in jax.device_get(waiting):
            for place, pending in enumerate(self._pending):
                pending.add(step, together.part(metrics, self._way, place))
        waiting.clear()
        for place, pending in enumerate(self._pending):
            try:
                pending.read()
            except NotFiniteError as error:
                self._failed.setdefault(place, error)

    def _log(self, step, logs):
        for place, (pending, log) in enumerate(zip(self._pending, logs, strict=True)):
            if place not in self._failed:
                self.last[place] = pending.line()
                log.write(step, self.last[place])

    def _save(self, step):
        record = {
            "ids": self._ids,
            "last": self.last,
            "seconds": self.seconds,
            "failed": {place: [str(error), error.step] for place, error in self._failed.items()},
            "pending": [pending.read() for pending in self._pending],
            "positions": [run.data.get_state() for run in self._runs],
        }
        self._checkpoints.save(step, self._swept.state, record)


def _judge(one, opened, folder):
    """(labels of the samples, what measures them)."""
    evaluation, dataset = one.config.evaluation, opened.dataset
    label = judging.labels(evaluation, dataset.num_classes if one.config.network.conditional else None)
    return label, judging.judge(evaluation, opened.config.dataset, label, folder.path / "extractors")[1]


def _measure(program, one, opened, swept, last, judged_by, folder):
    evaluation, dataset, (label, judge) = one.config.evaluation, opened.dataset, judged_by
    drawn = []
    for index in judging.batches(evaluation):
        keys = judging.keys(one.config.seed, index)
        found = program.generate((swept.state.ema, swept.values), keys, None if label is None else label[index])
        drawn.append(judging.stored(found, dataset))
    pixels = np.concatenate(drawn)[: evaluation.num]
    judging.picture(folder.run(one) / "samples.png", pixels, dataset)
    found = judge(pixels)
    sampling, schedule = opened.config.sampling, build.schedule(opened.config, swept.state.ema)
    entries = samplers.entries(sampling.sampler, schedule, sampling.num_steps)
    cost = {"calls": float(samplers.spent(sampling.sampler, schedule, entries))}
    return Result({"loss": last["loss"], **found.metrics}, found.floors, found.conditions, cost)
