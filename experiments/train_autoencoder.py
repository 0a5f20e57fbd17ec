"""Trains an autoencoder, for diffusion in its latents.

    python -m experiments.train_autoencoder --config=experiments/configs/mnist5k_autoencoder.py --workdir=DIR

Of the config it takes `dataset`, `autoencoder`, `optimizer` and `train`. Running the same command again goes on from
the last checkpoint. DIR receives config.json, metrics.jsonl, checkpoints/, samples/*.png, with images of
config.dataset.test_split above what came back of them, and at its end latents.json: the standard deviation of the
latents of the training images, and the digest of the checkpoint that it belongs to. With each checkpoint the mean
square of what is lost of the test images is measured.

    python -m experiments.train --config=CONFIG --config.latent.autoencoder=DIR --workdir=RUN
"""

from pathlib import Path

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags

from diffax.nn.autoencoding import kl_to_standard_normal
from diffax.training.parallel import over_batch
from experiments.models import autoencoder
from experiments.models.objectives import Objective
from experiments.run import distributed, opening, training
from experiments.run.workdir import launch, read_json, usage_errors, write_json

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment's config file.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
flags.mark_flag_as_required("config")

MEASURES = ("reconstruction_error", "kl")
JUDGED = 1000  # test images that are looked at
MEASURED = 10_000  # training images that the scale of the latents is measured on
COLUMNS = 10
ROWS = 4


def watch(run, net):
    """look(...) for the loop: test images beside what comes back of their mean codes, and what is lost of them."""
    config = run.config
    images = autoencoder.pictures(run.dataset, config.dataset.test_split, JUDGED)
    columns = min(COLUMNS, len(images))

    @jax.jit
    def through(params, x):
        y, mean, log_variance = net.apply({"params": params}, x)
        return y, ((x - y) ** 2).mean(range(1, x.ndim)), kl_to_standard_normal(mean, log_variance)

    through = over_batch(through, run.mesh)

    def look(step, last, params, log, say):
        shown, judged = (last or step % config.train[f"{name}_every"] == 0 for name in ("sample", "checkpoint"))
        if not (shown or judged):
            return {}
        chunks = [images[at : at + autoencoder.CHUNK] for at in range(0, len(images), autoencoder.CHUNK)]
        back, errors, nats = (np.concatenate(part) for part in zip(*(through(params, x) for x in chunks), strict=True))
        if shown:
            starts = range(0, min(ROWS, len(images) // columns) * columns, columns)
            rows = [part[at : at + columns] for at in starts for part in (images, back)]
            training.picture(run, step, "step", np.concatenate(rows), columns, log, say)
        found = dict(zip(MEASURES, (float(errors.mean()), float(nats.mean())), strict=True))
        say(f"on test: mean square error {found['reconstruction_error']:.5f}, KL {found['kl']:.1f} nats")
        return found

    return look


def measure(run):
    """Writes latents.json of the newest checkpoint, unless it is there."""
    path = run.workdir / autoencoder.LATENTS
    trained, before = autoencoder.load(run.workdir, "workdir"), read_json(path)
    if before is not None and before["digest"] == trained.digest:
        return
    images = autoencoder.pictures(run.dataset, run.config.dataset.train_split, MEASURED)
    std = autoencoder.latent_std(trained, images, run.mesh)
    found = {"step": trained.step, "digest": trained.digest, "std": std, "images": len(images)}
    if distributed.is_first():
        write_json(path, found)
        print(f"latents: standard deviation {std:.4f} over {len(images)} training images", flush=True)


def main(argv):
    """Checks the config, trains, measures the latents."""
    del argv
    distributed.start()
    config = CONFIG.value
    workdir = Path(WORKDIR.value).absolute()
    run = opening.prepare(config, workdir, autoencoder.network, autoencoder.KIND, MEASURES)
    net = run.net.of(run.dataset.shape[-1])
    training.train(run, Objective(autoencoder.loss(config, net)), watch(run, net))
    with usage_errors():
        measure(run)


if __name__ == "__main__":
    launch(main)
