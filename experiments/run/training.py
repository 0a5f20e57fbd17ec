"""What the training entrypoints share: the loop, its logs and checkpoints, and what may go wrong."""

import contextlib
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from diffax import random
from diffax.training import (
    CheckpointError,
    Checkpoints,
    init_state,
    train_step,
)
from diffax.training.parallel import layout
from experiments.data import images
from experiments.data.pipeline import RecordError, places
from experiments.models import build
from experiments.models.objectives import Objective
from experiments.run import devices, distributed, opening
from experiments.run.metrics_log import MetricsLog, NoLog, NotFiniteError, Pending
from experiments.run.progress import Progress, clock
from experiments.run.workdir import usage_errors


def train(run: opening.Run, objective: Objective, look: Callable) -> None:
    """The training loop, from wherever the last sound checkpoint left off.

    Args:
      run: of `prepare`.
      objective: the loss of each example, and what it remembers.
      look: (step, is it the last, EMA parameters, log, say) -> values for the log, {} if there is nothing to see at
        this step; it may write pictures to the log and say a line. All processes call it.

    Raises:
      SystemExit: with status 75 if it was told to stop, and 1 for what cannot go on: a loss that is not finite, no
        sound checkpoint, a record that cannot be read, a disk that is full at the end.
    """
    try:
        with contextlib.ExitStack() as stack:
            _loop(run, objective, look, stack)
    except (NotFiniteError, CheckpointError, RecordError, distributed.ElsewhereError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(1) from error


def _loop(run: opening.Run, objective: Objective, look: Callable, stack: contextlib.ExitStack) -> None:
    config, settings, first_process = run.config, run.config.train, distributed.is_first()
    say: Callable = print if first_process else (lambda *text, **how: None)
    stop = stack.enter_context(distributed.Stop())
    like, first_state, step_fn, operations = _start(run, objective, say)
    checkpoints = stack.enter_context(
        Checkpoints(
            run.workdir / "checkpoints",
            keep_latest=settings.keep_latest,
            keep_every=settings.keep_every,
            best=settings.keep_best,
        )
    )
    found = _resume(run, checkpoints, like, say)
    state, first = found[:2] if found else (first_state(), 0)
    record: dict[str, Any] = found[2] if found else {}
    with usage_errors():
        distributed.agree({"the step to go on from": first})
        log = distributed.together(lambda: MetricsLog(run.workdir, first) if first_process else NoLog())
    stack.enter_context(contextlib.closing(log))
    profile = stack.enter_context(contextlib.closing(devices.Profile(settings.profile, run.workdir / "profile")))
    progress = Progress("step", settings.num_steps, silent=not first_process)
    pending, logged = Pending(settings.max_skipped, record.get("pending")), record.get("logged", {})
    start = time.monotonic()

    for step in range(first + 1, settings.num_steps + 1):
        profile.before(step)
        batch = next(run.data)
        state, metrics = step_fn(state, batch)
        profile.after(step, metrics)
        pending.add(step, metrics)
        last, stopped = step == settings.num_steps, stop.asked(step)
        with _naming_the_data(run, checkpoints):
            seen = look(step, last, state.ema, log, progress.message)
            if step % settings.log_every == 0 or last or step == 1 or seen:
                line = pending.line()
                rate = progress.update(step, _text(line))
                if rate:
                    line |= devices.rates(rate, config.dataset.batch_size, operations, list(run.mesh.devices.flat))
                log.write(step, line | seen)
                logged |= line | seen
            elif step == first + 1:  # a sign of life; the log has it with the others of its line
                progress.update(step, _text(pending.newest()))
            if step % settings.checkpoint_every == 0 or last or stopped:
                record = _record(run, pending.read(), logged)
                log.sync()
                _save(checkpoints, step, state, record, progress.message)
        if stopped and not last:
            _settle(checkpoints, step)
            say(f"stopped: step {step} is saved; the same command goes on from there", flush=True)
            raise SystemExit(distributed.STOPPED)
    end = max(first, settings.num_steps)  # it may have gone further before
    _settle(checkpoints, end)
    say(f"done: step {end} in {clock(time.monotonic() - start)}", flush=True)


def _start(run, objective, say):
    """(shapes and layout of the state, what makes the first one, the step, how many operations it takes)."""
    config, optimizer = run.config, build.optimizer(run.config)
    parallel, rule = build.PARALLEL[config.parallel]

    def make():
        init_key, state_key = jax.random.split(random.threefry(jax.random.key(config.seed)))
        return init_state(state_key, run.init(init_key), optimizer, objective.memory)

    state = jax.eval_shape(make)
    places = layout(state, run.mesh, rule)
    options = {"ema_decay": config.optimizer.ema_decay, "update_memory": objective.update_memory}
    step = train_step(objective.loss, optimizer, accumulate=config.optimizer.accumulate, **options)
    say(opening.describe(run, state.params), flush=True)
    size, shape = config.dataset.batch_size, run.shape if run.latents is None else run.latents.moments_shape
    operations = None
    if devices.peak(run.mesh.devices.flat[0].device_kind):
        numbers = np.empty(size, np.int32)
        batch = {"image": np.empty((size, *shape), np.float32), "label": numbers, "index": numbers}
        batch |= {} if run.tokenizer is None else {"tokens": np.empty((size, run.tokenizer.max_length), np.int32)}
        keys = jax.eval_shape(lambda key: jax.random.split(key, size), state.key)
        memory = () if objective.update_memory is None else (state.memory,)
        operations = devices.training_flops(objective.loss, state.params, batch, keys, *memory)
    like = jax.tree.map(lambda v, at: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=at), state, places)
    # Made where it belongs, so that no device ever holds all of a state that is spread.
    return like, jax.jit(make, out_shardings=places), parallel(step, run.mesh), operations


def _settle(checkpoints, step):
    """Waits until a step is on the disk; all processes hear of it if it is not."""

    def work():
        checkpoints.wait()
        if distributed.is_first() and step not in checkpoints.steps:
            raise CheckpointError(f"step {step} could not be saved")

    distributed.together(work)


def _resume(run, checkpoints, like, say):
    """(state, step, record) of the newest sound checkpoint, None if nothing was saved."""
    try:
        found = checkpoints.restore_latest(like)
    except ValueError as error:  # of another network or optimiser
        raise CheckpointError(str(error)) from error
    if found is None:
        return None
    for step, reason in found.skipped:
        say(f"warning: checkpoint {step} is damaged and was moved aside: {reason}", flush=True)
    record = found.record
    for name, now in run.described.items():
        if (before := record["data"].get(name)) != now:
            where = f"the data's {name} must be that of step {found.step}"
            raise CheckpointError(f"{where}, {before}, got {now}")
    run.data.set_state(record["data_position"])
    say(f"restored step {found.step} from {run.workdir / 'checkpoints'}", flush=True)
    return found.state, found.step, record


@contextlib.contextmanager
def _naming_the_data(run, checkpoints):
    """Says of a loss that is not finite which records its batch had and what is left."""
    try:
        yield
    except NotFiniteError as error:
        with contextlib.suppress(CheckpointError):
            checkpoints.wait()
        data, kept = run.config.dataset, max(checkpoints.steps, default=None)
        in_split = run.dataset.numbers(data.train_split)
        batch = places(run.described["length"], data.batch_size, run.config.seed, error.step - 1)
        numbers = [in_split[place] for place in batch]
        raise NotFiniteError(
            f"{error}; its batch has the records {' '.join(map(str, numbers))} of split {data.train_split!r}; "
            + ("nothing was saved yet" if kept is None else f"step {kept} is kept"),
            error.step,
        ) from error


def picture(run: opening.Run, step: int, name: str, drawn: Any, columns: int, log: Any, say: Callable) -> None:
    """Writes images (N, *shape) in [-1, 1] as samples/NAME_STEP.png and to the log, from the first process."""
    path = run.workdir / "samples" / f"{name}_{step:07d}.png"
    if distributed.is_first():
        try:
            log.image(step, "samples", images.save_png(path, drawn, columns))
            say(f"samples: {path}")
        except OSError as error:  # a full disk ends no run
            say(f"warning: {path} cannot be written ({error.strerror})")


def _save(checkpoints, step, state, record, say):
    try:
        checkpoints.save(step, state, record, record["logged"])
    except CheckpointError as error:  # room may be made until the next one
        say(f"warning: {error}")


def _text(line):
    loss = f"loss {line['loss']:.4f}" if "loss" in line else "no step was taken"
    return loss + (f"  {line['skipped']} skipped" if "skipped" in line else "")


def _record(run, pending, logged):
    return {
        "model": run.model,
        "config": run.config.to_dict(),
        "data": run.described,
        "num_classes": run.dataset.num_classes,
        "latent": run.latents and run.latents.record(),
        "lora": run.base and run.base.record(),
        "words": run.tokenizer and list(run.tokenizer.words),
        "data_position": run.data.get_state(),
        "pending": pending,  # what the next line of the log is made of
        "logged": dict(logged),  # the newest value of each measure
    }
