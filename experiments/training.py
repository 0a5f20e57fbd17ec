"""What the training entrypoints share: the data, the loop, its logs and checkpoints."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from diffax.training import Checkpoints, data_parallel, init_state, replicate, train_step
from experiments import build, checks
from experiments.data.datasets import open_dataset
from experiments.data.pipeline import batches
from experiments.objectives import Objective
from experiments.progress import Progress, clock
from experiments.workdir import MetricsLog, claim, usage_errors


class Run(NamedTuple):
    """A run whose input was checked. net: a Linen module. model: its kind, as the checkpoints name it."""

    config: Any
    workdir: Path
    dataset: Any
    data: Any
    net: Any
    devices: list
    model: str


def prepare(config: Any, workdir: Path, network: Callable, model: str) -> Run:
    """Checks everything that can be wrong before anything compiles, and makes the folder this run's.

    network: (config, number of classes) -> Linen module.
    """
    devices = jax.local_devices()
    with usage_errors():
        checks.check_config(config, len(devices))
        settings = config.dataset
        dataset = open_dataset(settings.name, settings.data_dir)
        checks.check_data(config, dataset)
        net = network(config, dataset.num_classes)
        data = batches(
            dataset,
            settings.train_split,
            settings.batch_size,
            seed=config.seed,
            flip=settings.flip,
            cache=settings.cache,
            num_threads=settings.num_threads,
        )
        jax.eval_shape(lambda key: build.init_params(config, net, dataset.shape, key), jax.random.key(0))
        claim(workdir, config, model=model)
    return Run(config, workdir, dataset, data, net, devices, model)


def describe(run: Run, params: Any) -> str:
    """The line that says what is being trained on what."""
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    return (
        f"{run.model} on {run.config.dataset.name} {'x'.join(map(str, run.dataset.shape))}: {count:,} parameters, "
        f"{len(run.devices)} x {run.devices[0].device_kind}, "
        f"batch {run.config.dataset.batch_size // len(run.devices)} per device, jax {jax.__version__}"
    )


def train(run: Run, objective: Objective, look: Callable) -> None:
    """The training loop, from wherever the last checkpoint left off.

    Args:
      run: of `prepare`.
      objective: the loss of each example, and what it remembers.
      look: (step, is it the last, EMA parameters, log, say) -> values for the log, {} if there is nothing to see at
        this step; it may write pictures to the log and say a line.
    """
    config, settings, checkpoint_folder = run.config, run.config.train, run.workdir / "checkpoints"
    init_key, state_key = jax.random.split(jax.random.key(config.seed))
    params = build.init_params(config, run.net, run.dataset.shape, init_key)
    optimizer = build.optimizer(config)
    state = replicate(init_state(state_key, params, optimizer, objective.memory), run.devices)
    ema_decay = config.optimizer.ema_decay
    one_step = train_step(objective.loss, optimizer, ema_decay=ema_decay, remember=objective.remember)
    step_fn = data_parallel(one_step, run.devices)
    print(describe(run, params), flush=True)

    checkpoints = Checkpoints(checkpoint_folder, keep_latest=settings.keep_latest, keep_every=settings.keep_every)
    first = max(checkpoints.steps, default=0)
    if first:
        state = checkpoints.restore(first, state)
        run.data.set_state(checkpoints.record(first)["data_position"])
        print(f"restored step {first} from {checkpoint_folder}", flush=True)
    log = MetricsLog(run.workdir, first)
    progress, start, pending = Progress("step", settings.num_steps), time.monotonic(), []

    for step in range(first + 1, settings.num_steps + 1):
        state, metrics = step_fn(state, next(run.data))
        pending.append(metrics)
        last = step == settings.num_steps
        seen = look(step, last, state.ema, log, progress.message)
        if step % settings.log_every == 0 or last or step == first + 1 or seen:
            values = jax.tree.map(lambda *v: float(np.mean(v)), *jax.device_get(pending))
            pending = []
            rate = progress.update(step, f"loss {values['loss']:.4f}")
            log.write(step, {**values, **seen, "steps_per_second": rate})
        if step % settings.checkpoint_every == 0 or last:
            checkpoints.save(step, state, _record(run))
    log.close()
    checkpoints.close()
    print(f"done: step {settings.num_steps} in {clock(time.monotonic() - start)}", flush=True)


def _record(run):
    return {
        "model": run.model,
        "config": run.config.to_dict(),
        "data": {"range": [run.dataset.low, run.dataset.high], "shape": list(run.dataset.shape)},
        "num_classes": run.dataset.num_classes,
        "data_position": run.data.get_state(),
    }
