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
from experiments.models import adapters as lora
from experiments.models import build, latents, networks, objectives, samplers
from experiments.models import captions as text
from experiments.run import distributed, opening, training
from experiments.run.workdir import launch

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment's config file.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
flags.mark_flag_as_required("config")

SAMPLE_ROWS = 8


def draw_samples(run):
    """look(...) for the loop: a picture, a column for each of 10 classes or captions, always from the same noise."""
    config, num_classes = run.config, run.dataset.num_classes
    generate_from = build.generator(config, run.net, run.shape)
    generate = over_batch(jax.jit(lambda params, *which: generate_from(run.whole(params), *which)), run.mesh)
    generate = latents.decoded(generate, run.latents, run.mesh)
    columns = 10 if run.tokenizer else min(num_classes or 10, 10)
    label = np.tile(np.arange(columns), SAMPLE_ROWS) if config.network.conditional else None
    if run.tokenizer is not None:
        captions = text.examples(run.dataset, config.dataset.train_split, columns)
        label = np.tile(run.tokenizer.encode(captions), (SAMPLE_ROWS, 1))
    keys = jax.random.split(jax.random.key(config.seed), columns * SAMPLE_ROWS)

    def look(step, last, params, log, say):
        if step % config.train.sample_every == 0 or last:
            training.picture(run, step, "step", generate(params, keys, label), columns, log, say)
        return {}

    return look


def main(argv):
    """Checks the config, then trains."""
    del argv
    distributed.start()
    config = CONFIG.value
    run = opening.prepare(config, Path(WORKDIR.value).absolute(), networks.network, "diffusion")
    samplers.report_rounding(config.sampling.sampler, build.schedule(config), config.sampling.num_steps)
    objective = latents.objective(objectives.objective(config, run.net), run.latents)
    training.train(run, lora.objective(objective, run.whole), draw_samples(run))


if __name__ == "__main__":
    launch(main)
