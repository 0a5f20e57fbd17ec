"""Does a model look at captions? Its denoising loss with the right captions, with those of other images, with none.

    python -m experiments.evaluation.caption_score --checkpoint=RUN [--split=test --num=128 --draws=20]

The loss is that of the config's prediction, a mean square over pixels, at `draws` stratified times for each image. The
same times and noise serve all three, so what is compared is the captions; standard errors are over images. "Others" are
the captions of the same images, each moved to another one. Writes RUN/captions.json.
"""

import math

import jax
import numpy as np
from absl import flags

import diffax
from diffax.training.parallel import over_batch
from experiments.data.datasets import open_dataset
from experiments.run.command import launch, path_of, usage_errors
from experiments.run.loading import load
from experiments.run.workdir import read_json, write_json

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Workdir of a run, or an export.", required=True)
SPLIT = flags.DEFINE_string("split", None, "Split of the data; config.dataset.test_split if not given.")
NUM = flags.DEFINE_integer("num", 128, "Images.")
DRAWS = flags.DEFINE_integer("draws", 20, "Times for each image.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of prepared data sets; the run's own if not given.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the times, the noise and who gets whose caption.")


def moved(rng, count):
    """A permutation of `count` places that leaves none where it is."""
    order = rng.permutation(count)
    found = np.empty(count, int)
    found[order] = np.roll(order, 1)
    return found


def losses(model, images, tokens, draws, seed):
    """(N,) mean losses: {"right": .., "others": .., "none": ..}."""
    diffusion = model.model.diffusion
    given = {"right": tokens, "others": tokens[moved(np.random.default_rng(seed), len(tokens))]}
    given["none"] = np.zeros_like(tokens)

    @jax.jit
    def one(params, images, keys, t, tokens):
        predict, schedule, options = diffusion.predict(params, tokens), diffusion.schedule(params), {}
        options["sigma_data"] = diffusion.sigma_data
        return diffax.denoising_loss(keys, predict, schedule, diffusion.prediction, images, t, **options)

    one, found = over_batch(one), {name: np.zeros(len(images)) for name in given}
    for draw in range(draws):
        noise, time = jax.random.split(jax.random.fold_in(jax.random.key(seed), draw))
        keys = diffax.random.keys_at(noise, np.arange(len(images)))
        t = np.asarray((draw + jax.random.uniform(time, (len(images),))) / draws)
        for name, condition in given.items():
            found[name] += one(model.params, images, keys, t, condition) / draws
    return found


def summary(values):
    """Mean and standard error of (N,) values."""
    return {"mean": float(np.mean(values)), "stderr": float(np.std(values, ddof=1) / math.sqrt(len(values)))}


def main(argv):
    """Measures."""
    del argv
    with usage_errors():
        folder = path_of("checkpoint", CHECKPOINT.value)
        model = load(folder)
        if model.tokenizer is None or model.latents is not None:
            raise ValueError(f"checkpoint must be a model of captioned pixels, got {folder}")
        for name, value, least in (("num", NUM.value, 2), ("draws", DRAWS.value, 1)):
            if value < least:
                raise ValueError(f"{name} must be >= {least}, got {value}")
        data = model.dataset
        dataset = open_dataset(data["name"], DATA_DIR.value or data["data_dir"], data["labels"])
        split = SPLIT.value or data["test_split"]
        images, _ = dataset.arrays(split)
        if NUM.value > len(images):
            raise ValueError(f"num must be at most the {len(images)} images of split {split!r}, got {NUM.value}")
        tokens = model.tokenizer.encode(dataset.captions(split))[: NUM.value]
    found = losses(model, images[: NUM.value], tokens, DRAWS.value, SEED.value)
    gains = {f"{name} - right": found[name] - found["right"] for name in ("others", "none")}
    result = {name: summary(values) for name, values in {**found, **gains}.items()}
    write_json(folder / "captions.json", (read_json(folder / "captions.json") or {}) | {split: result})
    print(f"step {model.step} of {folder}: {NUM.value} images of split {split!r}, {DRAWS.value} times each")
    for name, value in result.items():
        print(f"  {name:14s} {value['mean']:.4f} +- {value['stderr']:.4f}")


if __name__ == "__main__":
    launch(main)
