"""Trains a classifier of noisy images, for classifier guidance.

    python -m experiments.train_classifier --config=experiments/configs/digits_classifier.py --workdir=DIR

Of the config it takes `dataset`, `schedule`, `network`, `optimizer` and `train`. Take the schedule of the diffusion
model that it shall guide; another one works too, if it covers the same levels of noise. Running the same command again
goes on from the last checkpoint. DIR receives config.json, metrics.jsonl and checkpoints/; with each checkpoint the
accuracy on config.dataset.test_split is measured, at several levels of noise.

    python -m experiments.sample --checkpoint=RUN --classifier=DIR --classifier_scale=1 --guidance=0 --out=OUT
"""

import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import config_flags

import diffax
from diffax.training import Checkpoints, data_parallel, init_state, replicate, train_step
from experiments import build, noisy_classifier
from experiments.data.datasets import open_dataset
from experiments.data.pipeline import batches
from experiments.progress import Progress, clock
from experiments.workdir import MetricsLog, claim, launch, usage_errors

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment's config file.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
flags.mark_flag_as_required("config")

LEVELS = (0.0, 0.25, 0.5, 0.75)  # times at which accuracy is measured


def judge(config, net, images, labels):
    """accuracies(params) -> {"accuracy_t0.25": ...} on these images, always under the same noise."""
    noise = diffax.random.noise(jax.random.key(config.seed), jnp.asarray(images))

    @jax.jit
    def at(params, t):
        x = diffax.diffuse(build.schedule(config), jnp.asarray(images), noise, t)
        return jnp.mean(noisy_classifier.logits(config, net, params, x, t).argmax(-1) == jnp.asarray(labels))

    def accuracies(params):
        params = jax.device_put(params, jax.local_devices()[0])
        return {f"accuracy_t{t:g}": float(at(params, t)) for t in LEVELS}

    return accuracies


def run(config, workdir, dataset, data, net, devices):
    """The training loop, from wherever the last checkpoint left off."""
    settings = config.train
    init_key, state_key = jax.random.split(jax.random.key(config.seed))
    params = build.init_params(config, net, dataset.shape, init_key)
    optimizer = build.optimizer(config)
    state = replicate(init_state(state_key, params, optimizer), devices)
    loss = noisy_classifier.loss(config, net)
    step_fn = data_parallel(train_step(loss, optimizer, ema_decay=config.optimizer.ema_decay), devices)
    accuracies = judge(config, net, *dataset.arrays(config.dataset.test_split))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"classifier of noisy {dataset.name}: {count:,} parameters, {len(devices)} x {devices[0].device_kind}")

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
        saves = step % settings.checkpoint_every == 0 or last
        if step % settings.log_every == 0 or saves or step == first + 1:
            values = jax.tree.map(lambda *v: float(np.mean(v)), *jax.device_get(pending))
            pending = []
            rate = progress.update(step, f"loss {values['loss']:.4f}")
            found = accuracies(state.ema) if saves else {}
            log.write(step, {**values, **found, "steps_per_second": rate})
        if saves:
            shown = (f"{value:.1%} at t = {t:g}" for t, value in zip(LEVELS, found.values(), strict=True))
            progress.message(f"accuracy on test: {', '.join(shown)}")
            record = {
                "model": noisy_classifier.KIND,
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
        net = noisy_classifier.network(config, dataset.num_classes)
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
        claim(workdir, config, model=noisy_classifier.KIND)
    run(config, workdir, dataset, data, net, devices)


if __name__ == "__main__":
    launch(main)
