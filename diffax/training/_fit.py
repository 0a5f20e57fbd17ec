"""The training loop: batches, steps, log, checkpoints; it resumes, stops on a signal and skips bad steps.

    step      state, metrics = step(state, batch)                 on the devices, without waiting for them
    log       each `log_every` steps, a line with the means of the metrics since the last line
    save      each `checkpoint_every` steps, in the background: the state, and what is needed to continue to the bit

A run that is killed and started again computes the same bits as a run that was not.
"""

import contextlib
import functools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from diffax._checks import check_count
from diffax.training.checkpoints import Checkpoints
from diffax.training.logs import FunctionLog, Log, Progress, clock
from diffax.training.manifest import CheckpointError
from diffax.training.parallel import ParallelStep, sharded
from diffax.training.processes import STOPPED, StopRequest, check_equal, is_first, on_all
from diffax.training.profiling import Profile
from diffax.training.running import NotFiniteError, RunningMetrics
from diffax.training.state import TrainState
from diffax.typing import Batch


class Stopped(SystemExit):
    """The run was asked to stop, by SIGTERM or Ctrl-C; its checkpoint, if any, is saved. Uncaught: exit status 75."""

    def __init__(self, step: int) -> None:
        super().__init__(STOPPED)
        self.step = step


class Every(NamedTuple):
    """A callback: `call(step, state)` after each `every`-th step and after the last one.

    It returns a dict of numbers for the log, or None. All processes call it.
    """

    every: int
    call: Callable[[int, TrainState], Mapping[str, float] | None]


class Fitted(NamedTuple):
    """The result of `fit`.

    state: the final state. step: its number of steps, which is larger than num_steps if an earlier run went further.
    logged: the newest value of each metric of the log. failed: {index of a run: error}, for runs of
    `over_runs` that failed while others continued; {} for a single run.
    seconds: wall time of the steps, with that of interrupted attempts up to their last checkpoint, without the first
    step of each attempt. compile_seconds: wall time of the first step of this attempt, which compiles.
    """

    state: TrainState
    step: int
    logged: dict[str, Any]
    failed: dict[int, NotFiniteError]
    seconds: float
    compile_seconds: float


def fit(
    step: Callable[..., Any],
    state: TrainState | Callable[[], TrainState],
    batches: Iterator[Batch] | Callable[[int], Batch],
    *,
    num_steps: int,
    checkpoints: Checkpoints | str | os.PathLike[str] | None = None,
    checkpoint_every: int = 1000,
    log: Log | Callable[[int, dict[str, float]], Any] | None = None,
    log_every: int = 100,
    callbacks: Sequence[Every] = (),
    max_skipped: int = 0,
    record: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None,
    rates: Callable[[float], Mapping[str, float]] = lambda rate: {"steps_per_second": rate},
    profile: Profile | None = None,
    progress: Progress | None = None,
) -> Fitted:
    """Train up to step `num_steps`, from the newest checkpoint if there is one.

    The k-th step uses batch k - 1 of `batches`. On SIGTERM or Ctrl-C the loop finishes the step, saves and raises
    `Stopped`, unless it was the last step; a second signal ends the process. With several processes, all call this
    function.

    Args:
      step: (state, batch) -> (state, metrics) of `data_parallel`, `sharded` or `over_runs`; a step of `train_step` is
        sharded over all devices. metrics include `loss` and `finite`.
      state: the first state, or a function that makes it. The function is traced for its shapes, and run under `jit`
        only if there is no checkpoint, so that no device ever holds more than its part of the state. Of a
        `functools.partial`, the function is compiled once for all runs with arguments of the same shapes.
      batches: a function of the number of steps so far, 0 for the first batch; or an iterator with the methods
        `get_state`, which returns JSON, and `set_state`, as the iterators of a Grain `IterDataset` have, so that a
        restart continues at the same batch; its position is the same on all processes. A batch is a dict of arrays
        (B, ...), or (K, B, ...) for K runs; B is the part of this process; if there is no `index`, the positions in the
        whole batch are added, process_index * B + (0 .. B - 1).
      num_steps: the number of steps of the whole run, >= 1.
      checkpoints: where checkpoints are saved and restored from, or a folder for them; None for none.
      checkpoint_every: save after each multiple of this number, after the last step, and after a request to stop.
      log: a `Log`, or a function (step, metrics); None for none. Only the first process writes.
      log_every: write after each multiple of this number, after the first and the last step, and after each step at
        which a callback returns values.
      callbacks: functions to call in between, such as one that draws samples.
      max_skipped: number of steps in a row that may be skipped because their loss or gradient is not finite.
      record: JSON that each checkpoint contains, or a function that returns it when a checkpoint is saved; the key
        "fit" is ours.
      rates: steps per second -> the numbers about speed in each line of the log.
      profile: steps to trace.
      progress: the line on the terminal; None for the default one.

    Raises:
      Stopped: after a signal before the last step, once the checkpoint is saved.
      NotFiniteError: if the run, or each of the K runs, had to skip more steps in a row than max_skipped.
      CheckpointError: if there are checkpoints, but none is intact, or the newest intact one does not match the state;
        or if the last one could not be saved.
      ValueError: if a count is too small, or an iterator without a position is used with checkpoints.
    """
    for name, value in (("num_steps", num_steps), ("checkpoint_every", checkpoint_every), ("log_every", log_every)):
        check_count(name, value)
    check_count("max_skipped", max_skipped, 0)
    for every, _ in callbacks:
        check_count("every", every)
    iterator = None if callable(batches) else _with_position(batches, is_saved=checkpoints is not None)
    progress = progress or Progress("step", num_steps, silent=not is_first())
    parallel = step if isinstance(step, ParallelStep) else sharded(step)
    lines = _log_of(log)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        trace = stack.enter_context(contextlib.closing(profile or Profile((), "")))
        folder = _opened(checkpoints, stack)

        # ---- restore
        current, first, saved = _start(parallel, state, folder, progress)
        if iterator is not None and "position" in saved:
            iterator.set_state(saved["position"])
        check_equal({"the step to continue from": first})
        on_all(lambda: lines.start(first))
        running, logged = RunningMetrics(max_skipped, saved.get("metrics")), dict(saved.get("logged", {}))

        # ---- loop
        begin = after_first = time.monotonic()
        seconds = saved.get("seconds", 0.0)
        for number in range(first + 1, num_steps + 1):
            trace.before(number)
            batch = batches(number - 1) if callable(batches) else next(batches)
            if number == first + 1:
                progress.message("compiling the step ...")
            current, metrics = parallel(current, _indexed(batch, parallel.batch_axis))
            trace.after(number, metrics)
            running.add(number, metrics)
            if number == first + 1:  # wait, so that the time of compiling is known
                jax.block_until_ready(metrics)
                after_first = time.monotonic()

            is_last = number == num_steps
            values = _call_back(callbacks, number, current, is_last, metrics, progress)
            is_stopping = stop.requested(number)
            try:
                if values or is_last or number == 1 or number % log_every == 0:
                    line = running.line()
                    rate = progress.update(number, _text(line))
                    line |= {**(rates(rate) if rate else {}), **values}
                    lines.write(number, _as_json(line))
                    logged |= _as_json(line)
                elif number == first + 1:  # show that the run has started; the log has this step in its next line
                    progress.update(number, _text(running.newest()))
                if folder is not None and (number % checkpoint_every == 0 or is_last or is_stopping):
                    own = record() if callable(record) else record or {}
                    position = {} if iterator is None else {"position": iterator.get_state()}
                    internal = {"metrics": running.save(), "logged": dict(logged), **position}
                    internal["seconds"] = seconds + time.monotonic() - after_first
                    lines.sync()
                    with progress.paused():
                        _save(folder, number, current, {**own, "fit": internal}, progress)
            except NotFiniteError as error:
                raise NotFiniteError(f"{error}; {_kept(folder)}", error.step, error.failed) from error
            if is_stopping and not is_last:
                _settle(folder, number)
                kept = (
                    f"step {number} is saved; the same command continues from there" if folder else "nothing is saved"
                )
                progress.message(f"stopped: {kept}")
                raise Stopped(number)

        # ---- end
        end = max(first, num_steps)
        _settle(folder, end)
        progress.message(f"done: step {end} in {clock(time.monotonic() - begin)}")
        seconds += time.monotonic() - after_first
        return Fitted(current, end, logged, running.failed, seconds, after_first - begin)


def _opened(checkpoints: Checkpoints | str | os.PathLike[str] | None, stack: contextlib.ExitStack) -> Any:
    """The checkpoints; those of a folder are closed at the end."""
    if isinstance(checkpoints, (str, os.PathLike)):
        return stack.enter_context(Checkpoints(checkpoints))
    return checkpoints


def _save(checkpoints: Checkpoints, step: int, state: TrainState, record: dict[str, Any], progress: Progress) -> None:
    try:
        logged = record["fit"]["logged"]
        checkpoints.save(step, state, record, {k: v for k, v in logged.items() if not isinstance(v, list)})
    except CheckpointError as error:  # the disk may have room again at the next save
        progress.message(f"warning: {error}")


def _with_position(batches: Any, *, is_saved: bool) -> Any:
    """The iterator, if it has a position to save."""
    if hasattr(batches, "get_state") and hasattr(batches, "set_state"):
        try:
            json.dumps(batches.get_state())
        except TypeError as error:
            raise ValueError(f"batches.get_state must return JSON, to be saved in checkpoints, got {error}") from error
        return batches
    if is_saved:
        raise ValueError(
            "batches must be a function of the step, or an iterator with get_state and set_state, to continue from a "
            f"checkpoint, got {type(batches).__name__}"
        )
    return None


def _log_of(log: Any) -> Any:
    """A log with all methods; one that does nothing on other processes than the first."""
    if log is None or not is_first():
        return FunctionLog(lambda step, values: None)
    return log if hasattr(log, "write") else FunctionLog(log)


def _start(
    step: ParallelStep, state: Any, checkpoints: Checkpoints | None, progress: Progress
) -> tuple[TrainState, int, dict[str, Any]]:
    """(state, its number of steps, record) of the newest sound checkpoint, or the first state."""
    shapes = jax.eval_shape(state) if callable(state) else state
    layout = step.layout(shapes)
    like = jax.tree.map(lambda v, at: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=at), shapes, layout)
    try:
        restored = checkpoints.restore_latest(like) if checkpoints is not None else None
    except ValueError as error:  # of another network or optimiser
        raise CheckpointError(str(error)) from error
    if restored is None or checkpoints is None:
        if not callable(state):
            return step.place(state), 0, {}
        make, arguments = (state.func, state.args) if isinstance(state, functools.partial) else (state, ())
        return jax.jit(make, out_shardings=layout)(*arguments), 0, {}
    for number, reason in restored.skipped:
        progress.message(f"warning: checkpoint {number} is damaged and was moved aside: {reason}")
    progress.message(f"restored step {restored.step} from {checkpoints.folder}")
    return restored.state, restored.step, restored.record.get("fit", {})


def _indexed(batch: Batch, axis: int) -> Batch:
    """The batch with the position of each example in the whole batch of all processes. axis: that of the examples."""
    if "index" in batch:
        return batch
    shape = np.shape(next(iter(batch.values())))[: axis + 1]
    index = jax.process_index() * shape[axis] + np.arange(shape[axis], dtype=np.int32)
    return {**batch, "index": np.broadcast_to(index.astype(np.int32), shape)}


def _call_back(
    callbacks: Sequence[Every], number: int, state: TrainState, is_last: bool, metrics: Any, progress: Progress
) -> dict[str, float]:
    """The values of the callbacks that are due."""
    values: dict[str, float] = {}
    due = [call for every, call in callbacks if is_last or number % every == 0]
    if due:
        jax.block_until_ready(metrics)  # so that the time of the steps is not that of the callbacks
    for call in due:
        with progress.paused():
            values |= call(number, state) or {}
    return values


def _settle(checkpoints: Checkpoints | None, step: int) -> None:
    """Wait until a step is on the disk; if it is not, raise `CheckpointError` on all processes."""

    def work() -> None:
        if checkpoints is None:
            return
        checkpoints.wait()
        if is_first() and step not in checkpoints.steps:
            raise CheckpointError(f"step {step} could not be saved")

    on_all(work)


def _kept(checkpoints: Checkpoints | None) -> str:
    """A text about the newest checkpoint, for a run that ends."""
    if checkpoints is None:
        return "no checkpoints are saved"
    with contextlib.suppress(CheckpointError):
        checkpoints.wait()
    step = max(checkpoints.steps, default=None)
    return "nothing was saved yet" if step is None else f"step {step} is kept"


def _text(line: Mapping[str, Any]) -> str:
    """The loss, for the progress line; the mean over the runs."""
    loss = f"loss {np.nanmean(line['loss']):.4f}" if "loss" in line else "no step was taken"
    return loss + (f"  {int(np.sum(line['skipped']))} skipped" if "skipped" in line else "")


def _as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}
