"""Trains a classifier of noisy images, for classifier guidance.

    python -m experiments.train_classifier --config=experiments/configs/digits_classifier.py --workdir=DIR

Of the config it takes `dataset`, `schedule`, `network`, `optimizer` and `train`. Take the schedule of the diffusion
model that it shall guide; another one works too, if it covers the same levels of noise. Running the same command again
goes on from the last checkpoint. DIR receives config.json, metrics.jsonl and checkpoints/; with each checkpoint the
accuracy on config.dataset.test_split is measured, at several levels of noise.

    python -m experiments.sample --checkpoint=RUN --classifier=DIR --classifier_scale=1 --guidance=0 --out=OUT
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import config_flags

import diffax
from diffax.training.parallel import over_batch
from experiments.models import build, noisy_classifier
from experiments.models.objectives import Objective
from experiments.run import distributed, opening, training
from experiments.run.workdir import launch

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment's config file.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
flags.mark_flag_as_required("config")

LEVELS = (0.0, 0.25, 0.5, 0.75)  # times at which accuracy is measured
MEASURES = tuple(f"accuracy_t{t:g}" for t in LEVELS)


def judge(run):
    """look(...) for the loop: the accuracy on the test split with each checkpoint, always under the same noise."""
    config, net = run.config, run.net
    images, labels = map(jnp.asarray, run.dataset.arrays(config.dataset.test_split))
    noise = diffax.random.noise(jax.random.key(config.seed), images)

    @jax.jit
    def right(params, images, noise, labels, t):
        x = diffax.diffuse(build.schedule(config), images, noise, t)
        return noisy_classifier.logits(config, net, params, x, t).argmax(-1) == labels

    right = over_batch(right, run.mesh)

    def look(step, last, params, log, say):
        if step % config.train.checkpoint_every and not last:
            return {}
        at = {t: np.full(len(labels), t, np.float32) for t in LEVELS}
        found = {t: float(right(params, images, noise, labels, at[t]).mean()) for t in LEVELS}
        say(f"accuracy on test: {', '.join(f'{value:.1%} at t = {t:g}' for t, value in found.items())}")
        return dict(zip(MEASURES, found.values(), strict=True))

    return look


def main(argv):
    """Checks the config, then trains."""
    del argv
    distributed.start()
    config = CONFIG.value
    workdir = Path(WORKDIR.value).absolute()
    run = opening.prepare(config, workdir, noisy_classifier.network, noisy_classifier.KIND, MEASURES)
    training.train(run, Objective(noisy_classifier.loss(config, run.net)), judge(run))


if __name__ == "__main__":
    launch(main)
