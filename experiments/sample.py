"""Draws samples from a checkpoint.

    python -m experiments.sample --checkpoint=DIR --out=DIR --num=1000 [--sampler=ddim --num_steps=50 ...]

--checkpoint is the workdir of a training run or a folder written by `experiments.export`. --out receives
settings.json, samples.png (the first 100) and shard_00000.npz ...: `samples` in the data's own pixels and
`labels`. Sample i depends on --seed and i alone, whatever the batch size. Running the same command again
draws only the shards that are missing.

--guidance=W is classifier-free guidance, at the times --guidance_interval=LOW,HIGH if given. --classifier=DIR guides
by a classifier from `experiments.train_classifier` at --classifier_scale: as well, or instead with --guidance=0.

A model of captions takes --captions="grinning face,red heart", repeated in turn as labels are; without them the samples
have no condition.

Samples of a model in latents are decoded by the autoencoder it was trained with; --autoencoder=DIR if that was moved.

img2img: --init_image=FILE --noise_level=T noises a picture to time T in (0, 1) and samples on from there.

--from_diffusers=DIR in place of --checkpoint: a folder that diffusers saved, with its schedule and, unless --grid says
otherwise, its steps; --variant=fp16 reads the weights' files of that name. --context=FILE.npy: (m, E) embeddings for a
network that attends to them; --null_context=FILE.npy: those of the empty prompt, which --guidance is against.
"""

import functools
import hashlib
import math
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import diffax
from diffax.training.parallel import over_batch
from experiments.configs import default
from experiments.data import images
from experiments.models import build, latents, noisy_classifier, samplers
from experiments.models import captions as text
from experiments.models import diffusers_folder as from_diffusers
from experiments.models.loading import load_model
from experiments.run import checks
from experiments.run.progress import Progress
from experiments.run.workdir import check_writable, launch, read_json, usage_errors, write_json

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run's workdir, or an export.")
FROM = flags.DEFINE_string("from_diffusers", None, "In place of --checkpoint, a folder that diffusers saved.")
CONTEXT = flags.DEFINE_string("context", None, "Of --from_diffusers: a .npy file of embeddings to attend to.")
VARIANT = flags.DEFINE_string("variant", None, "Of --from_diffusers: of the weights' files, fp16 say.")
NULL = flags.DEFINE_string("null_context", None, "Of --from_diffusers: those of the empty prompt, to guide against.")
OUT = flags.DEFINE_string("out", None, "Folder for the samples.", required=True)
NUM = flags.DEFINE_integer("num", 100, "Number of samples.")
BATCH = flags.DEFINE_integer("batch_size", 200, "Samples drawn at a time.")
SHARD = flags.DEFINE_integer("shard_size", 1000, "Samples in a shard.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the samples.")
LABELS = flags.DEFINE_list("labels", [], "Labels, repeated in turn; all classes in turn if empty.")
CAPTIONS = flags.DEFINE_list("captions", [], "Captions, repeated in turn, for a model of captions.")
SAMPLER = flags.DEFINE_string("sampler", None, "Sampler; the config's if not given.")
STEPS = flags.DEFINE_integer("num_steps", None, "Denoiser calls; the config's if not given.")
GRID = flags.DEFINE_string("grid", None, "Step grid; the config's if not given.")
ETA = flags.DEFINE_float("eta", None, "Noise of the sampler; the config's, else the sampler's own, if not given.")
GUIDANCE = flags.DEFINE_float("guidance", None, "Guidance weight, 1 for none; the config's if not given.")
INTERVAL = flags.DEFINE_list("guidance_interval", None, "LOW,HIGH: the times that guidance acts at; the config's.")
RESCALE = flags.DEFINE_float("guidance_rescale", None, "phi of Lin et al. 2024, 0 for none; the config's.")
CLASSIFIER = flags.DEFINE_string("classifier", None, "Workdir of a noise-aware classifier to guide with.")
SCALE = flags.DEFINE_float("classifier_scale", 1.0, "Scale of the classifier's guidance.")
AUTOENCODER = flags.DEFINE_string("autoencoder", None, "Where the autoencoder of a model in latents is now.")
INIT = flags.DEFINE_string("init_image", None, "img2img: a picture to start from.")
LEVEL = flags.DEFINE_float("noise_level", 0.6, "img2img: the time to which the picture is noised.")


def floats(name, texts):
    """A list flag as a tuple of floats."""
    try:
        return tuple(float(text) for text in texts)
    except ValueError as error:
        raise ValueError(f"{name} must be numbers, got {','.join(texts)}") from error


def override(config):
    """The config with what the flags say of sampling."""
    known = default.get_config().sampling.to_dict()
    config.sampling = {**known, **config.sampling.to_dict()}  # known: settings younger than the checkpoint
    flags_given = {
        "sampler": SAMPLER.value,
        "num_steps": STEPS.value,
        "grid": GRID.value,
        "eta": ETA.value,
        "guidance": GUIDANCE.value,
        "guidance_interval": None if INTERVAL.value is None else floats("guidance_interval", INTERVAL.value),
        "guidance_rescale": RESCALE.value,
    }
    config.sampling.update({k: v for k, v in flags_given.items() if v is not None})
    for name, value in (("num", NUM.value), ("batch_size", BATCH.value), ("shard_size", SHARD.value)):
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    samplers.check_sampler("sampler", config.sampling.sampler)
    samplers.check_grid("grid", config.sampling.grid)
    checks.check_guidance("guidance", config.sampling.guidance, config)
    if ETA.value is not None:
        samplers.check_eta("eta", config.sampling.sampler, ETA.value)
    build.sampler(config)
    build.grid(config)
    return config


def guide(model):
    """The classifier to guide with, or None."""
    if CLASSIFIER.value is None:
        if flags.FLAGS["classifier_scale"].present:
            raise ValueError(f"classifier_scale needs a --classifier, got {SCALE.value} without one")
        return None
    if model.config.text.enabled:
        raise ValueError(f"classifier must not be given for a model of captions, got {CLASSIFIER.value}")
    if not math.isfinite(SCALE.value):
        raise ValueError(f"classifier_scale must be finite, got {SCALE.value}")
    found = noisy_classifier.load(Path(CLASSIFIER.value).absolute())
    if found.shape != model.shape:
        raise ValueError(f"classifier must be one of images {model.shape}, got {CLASSIFIER.value} of {found.shape}")
    if model.config.network.conditional and found.num_classes != model.num_classes:
        raise ValueError(f"classifier must have the network's {model.num_classes} classes, got {found.num_classes}")
    return found


def chosen_labels(model, classifier):
    """The cycle of labels, or of tokens; None where neither the network nor the classifier has a condition."""
    if CAPTIONS.value or model.config.text.enabled:
        return text.chosen(model, CAPTIONS.value, LABELS.value)
    classes = model.num_classes if model.config.network.conditional else None
    classes = classes if classifier is None else classifier.num_classes
    if not LABELS.value:
        return None if classes is None else np.arange(classes)
    if classes is None:
        raise ValueError(f"labels must be empty for a network without classes, got {','.join(LABELS.value)}")
    for given in LABELS.value:
        if not given.strip().isdigit() or int(given) >= classes:
            raise ValueError(f"labels must be ints in [0, {classes - 1}], got {given!r}")
    return np.asarray([int(given) for given in LABELS.value])


def initial(model, space):
    """(x0 or None, the part of the grid that is walked)."""
    times = build.grid(model.config)
    if INIT.value is None:
        if flags.FLAGS["noise_level"].present:
            raise ValueError(f"noise_level needs an --init_image, got {LEVEL.value} without one")
        return None, times
    if not 0 < LEVEL.value < 1:
        raise ValueError(f"noise_level must be in (0, 1), got {LEVEL.value}")
    after = np.asarray(times)[np.asarray(times) < LEVEL.value]
    picture = images.load_picture(Path(INIT.value), model.shape if space is None else space.trained.shape)
    return latents.code(space, picture), jnp.asarray([LEVEL.value, *after], jnp.float32)


def sound(path):
    """Whether a shard is there and whole."""
    try:
        with np.load(path) as shard:
            return {"samples", "labels"} <= set(shard.files)
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


class Source(NamedTuple):
    """What is drawn from. settings: what of it settings.json says."""

    model: Any
    generate: Callable
    cycle: Any
    settings: dict[str, Any]


def of_run():
    """A run's workdir, or an export."""
    for flag in (CONTEXT, NULL, VARIANT):
        if flag.value is not None:
            raise ValueError(f"{flag.name} is for --from_diffusers, got {flag.value} without it")
    model = load_model(Path(CHECKPOINT.value).absolute(), override)
    classifier = guide(model)
    cycle = chosen_labels(model, classifier)
    space = latents.of_record(model.latent, AUTOENCODER.value)
    picture, times = initial(model, space)
    sampling = model.config.sampling
    samplers.report_rounding(sampling.sampler, build.schedule(model.config), sampling.num_steps)
    classify = None
    if classifier is not None:
        classify = functools.partial(noisy_classifier.log_prob, classifier, onto=build.schedule(model.config))
    generate = build.generator(model.config, model.network, model.shape, times, picture, classify, SCALE.value)
    settings = {
        "checkpoint": str(Path(CHECKPOINT.value).resolve()),
        "captions": CAPTIONS.value or None,
        "init_image": INIT.value and hashlib.sha256(Path(INIT.value).read_bytes()).hexdigest(),
        "noise_level": LEVEL.value if INIT.value else None,
        "classifier": classifier and str(Path(CLASSIFIER.value).resolve()),
        "classifier_step": classifier and classifier.step,
        "classifier_scale": classifier and SCALE.value,
        "autoencoder": space and space.identity(),
    }
    return Source(model, latents.decoded(over_batch(generate), space), cycle, settings)


def of_diffusers():
    """A folder that diffusers saved."""
    ours = (CLASSIFIER, AUTOENCODER, INIT, RESCALE, INTERVAL)
    for flag in ours:
        if flag.value is not None:
            raise ValueError(f"{flag.name} is for --checkpoint, got {flag.value} with --from_diffusers")
    folder = Path(FROM.value).absolute()
    found, model = from_diffusers.open_model(folder, VARIANT.value)
    sampling = override(model.config).sampling
    context, null = from_diffusers.contexts(found, sampling, CONTEXT.value, NULL.value)
    cycle = chosen_labels(model, None) if model.num_classes or LABELS.value or CAPTIONS.value else None
    times, last = from_diffusers.steps(found.scheduler, sampling.num_steps, GRID.value, sampling.sampler)
    sampling.grid = GRID.value or from_diffusers.OWN_GRID
    each = samplers.SAMPLERS[sampling.sampler](found.scheduler.schedule, None).calls
    made = None if last is None else each * len(times)
    samplers.report_rounding(sampling.sampler, found.scheduler.schedule, sampling.num_steps, made)
    generate = over_batch(from_diffusers.generator(found, sampling, times, last, context, null))
    settings = from_diffusers.identity(found, folder) | {
        "context": digest_of(context),
        "null_context": digest_of(null),
        "times": [*np.round(np.asarray(times, np.float64), 6).tolist(), *([] if last is None else [last])],
    }
    return Source(model, from_diffusers.decoded(generate, found), cycle, settings)


def digest_of(array):
    """A digest of an array's bytes; None for none."""
    return None if array is None else hashlib.sha256(array.tobytes()).hexdigest()


def draw(source, out, settings):
    """Draws the shards that are missing."""
    model, generate, cycle, _ = source
    num, size = settings["num"], settings["shard_size"]
    batch = min(BATCH.value, num, size)
    root = jax.random.key(settings["seed"])
    progress = Progress("sample", num, unit="samples")
    for number, first in enumerate(range(0, num, size)):
        path = out / f"shard_{number:05d}.npz"
        if sound(path):
            continue
        drawn, index = [], np.arange(first, min(first + size, num))
        for at in range(0, len(index), batch):
            part = index[at : at + batch]
            # The last batch is filled up, so that every call has the shapes that were compiled.
            filled = np.resize(part, batch)
            keys = diffax.random.keys_at(root, filled)
            condition = None if cycle is None else jnp.asarray(cycle[filled % len(cycle)])
            drawn.append(generate(model.params, keys, condition)[: len(part)])
            progress.update(int(part[-1]) + 1)
        of_classes = cycle is not None and cycle.ndim == 1
        labels = cycle[index % len(cycle)] if of_classes else np.full(len(index), -1)
        with usage_errors():  # guidance that is too strong, say
            pixels = images.to_pixels(np.concatenate(drawn), *model.range)
        part_path = out / f".{path.name}.part"
        with part_path.open("wb") as file:
            np.savez(file, samples=pixels, labels=labels)
        os.replace(part_path, path)


def main(argv):
    """Checks the flags, then draws what is missing."""
    del argv
    out = Path(OUT.value).absolute()
    with usage_errors():
        if (CHECKPOINT.value is None) == (FROM.value is None):
            raise ValueError(
                f"one of checkpoint and from_diffusers must be given, got {CHECKPOINT.value} and {FROM.value}"
            )
        source = of_run() if FROM.value is None else of_diffusers()
        model = source.model
        check_writable(out, "out")
        settings = source.settings | {
            "step": model.step,
            "num": NUM.value,
            "shard_size": SHARD.value,
            "seed": SEED.value,
            "labels": LABELS.value,
            "sampling": model.config.sampling.to_dict(),
            "dataset": model.config.dataset.to_dict(),
            "range": list(model.range),
        }
        before = read_json(out / "settings.json")
        changed = [] if before is None else [k for k in settings if before.get(k) != settings[k]]
        if changed:
            key = changed[0]
            raise ValueError(
                f"out {out} holds samples with {key} = {before.get(key)!r}, got {settings[key]!r}; choose another --out"
            )
    write_json(out / "settings.json", settings)
    draw(source, out, settings)
    low, high = model.range
    shown = -(-min(100, NUM.value) // SHARD.value)
    first = np.concatenate([np.load(out / f"shard_{i:05d}.npz")["samples"] for i in range(shown)])[:100]
    first = 2 * (first.astype(np.float32) - low) / (high - low) - 1
    titles = CAPTIONS.value if 1 < len(CAPTIONS.value) <= 20 else ()
    images.save_png(out / "samples.png", first, len(titles) or 10, titles)
    print(f"{NUM.value} samples in {out}, the first {len(first)} in {out / 'samples.png'}")


if __name__ == "__main__":
    launch(main)
