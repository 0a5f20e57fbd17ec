"""Trains a diffusion model.

    python -m experiments.train --config=experiments/configs/digits.py --workdir=DIR [--config.KEY=VALUE ...]

Running the same command again goes on from the last checkpoint. DIR receives config.json, metrics.jsonl,
checkpoints/, samples/*.png and, where tensorboardX is installed, tensorboard/.
"""

import time
from pathlib import Path

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags

from diffax.training import Checkpoints, data_parallel, init_state, replicate, train_step
from experiments import build, images
from experiments.data.datasets import open_dataset
from experiments.data.pipeline import batches
from experiments.progress import Progress, clock
from experiments.workdir import MetricsLog, claim, launch, usage_errors

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment's config file.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
flags.mark_flag_as_required("config")

SAMPLE_ROWS = 8


def describe(config, dataset, params, devices):
    """The line that says what is being trained on what."""
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    kind = devices[0].device_kind
    per_device = config.dataset.batch_size // len(devices)
    return (
        f"{config.dataset.name} {'x'.join(map(str, dataset.shape))}: {count:,} parameters, "
        f"{len(devices)} x {kind}, batch {per_device} per device, jax {jax.__version__}"
    )


def draw_grid(config, dataset, net):
    """draw(params) -> a picture: a column for each class (of the first 10), always from the same noise."""
    generate = build.generator(config, net, dataset.shape)
    columns = min(dataset.num_classes or 10, 10)
    label = np.tile(np.arange(columns), SAMPLE_ROWS) if config.network.conditional else None
    keys = jax.random.split(jax.random.key(config.seed), columns * SAMPLE_ROWS)
    return lambda params: np.asarray(generate(jax.device_put(params, jax.local_devices()[0]), keys, label)), columns


def run(config, workdir, dataset, data, net, devices):
    """The training loop, from wherever the last checkpoint left off."""
    settings = config.train
    init_key, state_key = jax.random.split(jax.random.key(config.seed))
    params = build.init_params(config, net, dataset.shape, init_key)
    optimizer = build.optimizer(config)
    state = replicate(init_state(state_key, params, optimizer), devices)
    step_fn = data_parallel(
        train_step(build.loss(config, net), optimizer, ema_decay=config.optimizer.ema_decay), devices
    )
    draw, columns = draw_grid(config, dataset, net)
    print(describe(config, dataset, params, devices), flush=True)

    checkpoints = Checkpoints(workdir / "checkpoints", keep_latest=settings.keep_latest, keep_every=settings.keep_every)
    first = max(checkpoints.steps, default=0)
    if first:
        state = checkpoints.restore(first, state)
        data.set_state(checkpoints.record(first)["data_position"])
        print(f"restored step {first} from {workdir / 'checkpoints'}", flush=True)
    log = MetricsLog(workdir, first)
    progress, start, pending = Progress("step", settings.num_steps), time.monotonic(), []

    for step in range(first + 1, settings.num_steps + 1):
        state, metrics = step_fn(state, next(data))
        pending.append(metrics)
        last = step == settings.num_steps
        if step % settings.log_every == 0 or last or step == first + 1:
            values = jax.tree.map(lambda *v: float(np.mean(v)), *jax.device_get(pending))
            pending = []
            rate = progress.update(step, f"loss {values['loss']:.4f}")
            log.write(step, {**values, "steps_per_second": rate})
        if step % settings.sample_every == 0 or last:
            path = workdir / "samples" / f"step_{step:07d}.png"
            log.image(step, "samples", images.save_png(path, draw(state.ema), columns))
            progress.message(f"samples: {path}")
        if step % settings.checkpoint_every == 0 or last:
            record = {
                "config": config.to_dict(),
                "data": {"range": [dataset.low, dataset.high], "shape": list(dataset.shape)},
                "num_classes": dataset.num_classes,
                "data_position": data.get_state(),
            }
            checkpoints.save(step, state, record)
    log.close()
    checkpoints.close()
    print(f"done: step {settings.num_steps} in {clock(time.monotonic() - start)}", flush=True)


def main(argv):
    """Checks the config, then trains."""
    del argv
    config, workdir, devices = CONFIG.value, Path(WORKDIR.value).absolute(), jax.local_devices()
    with usage_errors():
        build.check(config, len(devices))
        dataset = open_dataset(config.dataset.name, config.dataset.data_dir)
        net = build.network(config, dataset.num_classes)
        data = batches(
            dataset,
            config.dataset.train_split,
            config.dataset.batch_size,
            seed=config.seed,
            flip=config.dataset.flip,
            cache=config.dataset.cache,
            num_threads=config.dataset.num_threads,
        )
        jax.eval_shape(lambda key: build.init_params(config, net, dataset.shape, key), jax.random.key(0))
        claim(workdir, config)
    run(config, workdir, dataset, data, net, devices)


if __name__ == "__main__":
    launch(main)
