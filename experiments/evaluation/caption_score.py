"""The denoising loss of a model with the right captions, with those of other images, and without captions.

    python -m experiments.evaluation.caption_score --checkpoint=RUN [--split=test --num=128 --draws=20]

The loss is the mean square error over pixels of the model's prediction, at `draws` stratified times for each image. The
three losses have the same times and noise, so they differ only by the captions; standard errors are over images. The
"others" are the captions of the same images, permuted without fixed points. Writes RUN/captions.json.
"""

import math

import jax
import numpy as np
from absl import flags

import diffax
from diffax._checks import check_count
from diffax.training.parallel import over_batch
from experiments.data.datasets import open_dataset
from experiments.run.command import launch, path_of, usage_errors
from experiments.run.loading import load
from experiments.run.workdir import read_json, write_json

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Workdir of a run, or an export.", required=True)
SPLIT = flags.DEFINE_string("split", None, "Split of the data; default: config.dataset.test_split.")
NUM = flags.DEFINE_integer("num", 128, "Images.")
DRAWS = flags.DEFINE_integer("draws", 20, "Times for each image.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of prepared data sets; default: that of the run.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the times, the noise and the permutation of captions.")


def moved(rng, count):
    """A permutation of 0 .. count - 1 without fixed points."""
    order = rng.permutation(count)
    result = np.empty(count, int)
    result[order] = np.roll(order, 1)
    return result


def losses(model, images, tokens, draws, seed):
    """(N,) mean losses: {"right": .., "others": .., "none": ..}."""
    diffusion = model.model.diffusion
    others = tokens[moved(np.random.default_rng(seed), len(tokens))]
    captions = {"right": tokens, "others": others, "none": np.zeros_like(tokens)}

    def loss(params, images, keys, t, tokens):
        predict, options = diffusion.predict(params, tokens), {"sigma_data": diffusion.sigma_data}
        schedule = diffusion.schedule(params)
        return diffax.denoising_loss(keys, predict, schedule, diffusion.prediction, images, t, **options)

    loss, result = over_batch(jax.jit(loss)), {name: np.zeros(len(images)) for name in captions}
    for draw in range(draws):
        noise, time = jax.random.split(jax.random.fold_in(jax.random.key(seed), draw))
        keys = diffax.random.keys_at(noise, np.arange(len(images)))
        t = np.asarray((draw + jax.random.uniform(time, (len(images),))) / draws)
        for name, condition in captions.items():
            result[name] += loss(model.params, images, keys, t, condition) / draws
    return result


def summary(values):
    """Mean and standard error of (N,) values."""
    return {"mean": float(np.mean(values)), "stderr": float(np.std(values, ddof=1) / math.sqrt(len(values)))}


def main(argv):
    """Open the model and its data, compute the losses, write and print."""
    del argv
    with usage_errors():
        folder = path_of("checkpoint", CHECKPOINT.value)
        model = load(folder)
        if model.tokenizer is None or model.latents is not None:
            raise ValueError(f"checkpoint must be a model of captioned pixels, got {folder}")
        check_count("num", NUM.value, 2)
        check_count("draws", DRAWS.value)
        data = model.dataset
        dataset = open_dataset(data["name"], DATA_DIR.value or data["data_dir"], data["labels"])
        split = SPLIT.value or data["test_split"]
        images, _ = dataset.arrays(split)
        if NUM.value > len(images):
            raise ValueError(f"num must be at most the {len(images)} images of split {split!r}, got {NUM.value}")
        tokens = model.tokenizer.encode(dataset.captions(split))[: NUM.value]
    values = losses(model, images[: NUM.value], tokens, DRAWS.value, SEED.value)
    values |= {f"{name} - right": values[name] - values["right"] for name in ("others", "none")}
    result = {name: summary(value) for name, value in values.items()}
    write_json(folder / "captions.json", (read_json(folder / "captions.json") or {}) | {split: result})
    print(f"step {model.step} of {folder}: {NUM.value} images of split {split!r}, {DRAWS.value} times each")
    for name, value in result.items():
        print(f"  {name:14s} {value['mean']:.4f} +- {value['stderr']:.4f}")


if __name__ == "__main__":
    launch(main)
