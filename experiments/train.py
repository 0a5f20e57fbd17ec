"""Trains a diffusion model.

    python -m experiments.train --config=experiments/configs/digits.py --workdir=DIR [--config.KEY=VALUE ...]

Running the same command again goes on from the last checkpoint. DIR receives config.json, metrics.jsonl,
checkpoints/, samples/*.png and, where tensorboardX is installed, tensorboard/.
"""

from pathlib import Path

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags

from diffax.training.parallel import over_batch
from experiments import build, distributed, images, objectives, training
from experiments.workdir import launch

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment's config file.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
flags.mark_flag_as_required("config")

SAMPLE_ROWS = 8


def draw_samples(run):
    """look(...) for the loop: a picture with a column for each class (of the first 10), always from the same noise."""
    config, num_classes = run.config, run.dataset.num_classes
    generate = over_batch(build.generator(config, run.net, run.dataset.shape), run.mesh)
    columns = min(num_classes or 10, 10)
    label = np.tile(np.arange(columns), SAMPLE_ROWS) if config.network.conditional else None
    keys = jax.random.split(jax.random.key(config.seed), columns * SAMPLE_ROWS)

    def look(step, last, params, log, say):
        if step % config.train.sample_every == 0 or last:
            samples = generate(params, keys, label)
            path = run.workdir / "samples" / f"step_{step:07d}.png"
            if distributed.is_first():
                try:
                    log.image(step, "samples", images.save_png(path, samples, columns))
                    say(f"samples: {path}")
                except OSError as error:  # a full disk ends no run
                    say(f"warning: {path} cannot be written ({error.strerror})")
        return {}

    return look


def main(argv):
    """Checks the config, then trains."""
    del argv
    distributed.start()
    config = CONFIG.value
    run = training.prepare(config, Path(WORKDIR.value).absolute(), build.network, "diffusion")
    training.train(run, objectives.objective(config, run.net), draw_samples(run))


if __name__ == "__main__":
    launch(main)
