"""Draw samples from a checkpoint.

    python -m experiments.sample --checkpoint=DIR --out=DIR --num=1000 [--sampler=ddim --num_steps=50 ...]

--checkpoint is the workdir of a training run or a folder of `experiments.export`. --out receives settings.json,
samples.png (the first 100) and shard_00000.npz ...: `samples` in the units of the data, and `labels`. Sample i depends
on --seed and i alone, whatever the batch size. The same command again draws only the shards that are missing.

--guidance=W is classifier-free guidance, at the times --guidance_interval=LOW,HIGH if given. --classifier=DIR guides by
a classifier that `experiments.train` trained, at --classifier_scale: as well, or instead with --guidance=0.

A model of captions takes --captions="grinning face,red heart", repeated in turn as labels are; without them the samples
have no condition. Samples of a model in latents are decoded by the autoencoder of its training; --autoencoder=DIR if
that was moved. img2img: --init_image=FILE --noise_level=T adds noise to a picture up to time T and samples from there.

--from_diffusers=DIR in place of --checkpoint: a folder that diffusers saved, with its schedule and, unless --grid names
another, its steps; --variant=fp16 reads the weights' files of that name. --context=FILE.npy: (m, E) embeddings for a
network that attends to them; --null_context=FILE.npy: those of the empty prompt, which guidance needs.
"""

import hashlib
import math
import os
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from diffax.training import Progress
from diffax.training.parallel import over_batch
from experiments.configs import default, settings
from experiments.data import images
from experiments.models import captions, diffusers_folder, samplers
from experiments.models.drawing import Source, draw
from experiments.run import loading
from experiments.run.command import launch, path_of, usage_errors
from experiments.run.workdir import check_writable, lock, read_json, write_json

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run's workdir, or an export.")
FROM = flags.DEFINE_string("from_diffusers", None, "In place of --checkpoint, a folder that diffusers saved.")
CONTEXT = flags.DEFINE_string("context", None, "Of --from_diffusers: a .npy file of embeddings to attend to.")
VARIANT = flags.DEFINE_string("variant", None, "Of --from_diffusers: of the weights' files, such as fp16.")
NULL = flags.DEFINE_string("null_context", None, "Of --from_diffusers: embeddings of the empty prompt, for guidance.")
OUT = flags.DEFINE_string("out", None, "Folder for the samples.", required=True)
NUM = flags.DEFINE_integer("num", 100, "Number of samples.")
BATCH = flags.DEFINE_integer("batch_size", 200, "Samples drawn at a time.")
SHARD = flags.DEFINE_integer("shard_size", 1000, "Samples in a shard.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the samples.")
LABELS = flags.DEFINE_list("labels", [], "Labels, repeated in turn; all classes in turn if empty.")
CAPTIONS = flags.DEFINE_list("captions", [], "Captions, repeated in turn, for a model of captions.")
SAMPLING = {  # config.sampling, unless given
    "sampler": flags.DEFINE_string("sampler", None, "Sampler; the config's if not given."),
    "num_steps": flags.DEFINE_integer("num_steps", None, "Denoiser calls; the config's if not given."),
    "grid": flags.DEFINE_string("grid", None, "Step grid; the config's if not given."),
    "eta": flags.DEFINE_float("eta", None, "Noise of the sampler; the config's, or the sampler's own, if not given."),
    "guidance": flags.DEFINE_float("guidance", None, "Guidance weight, 1 for none; the config's if not given."),
    "guidance_interval": flags.DEFINE_list("guidance_interval", None, "LOW,HIGH: the times at which guidance acts."),
    "guidance_rescale": flags.DEFINE_float("guidance_rescale", None, "phi of Lin et al. 2024, 0 for none."),
}
CLASSIFIER = flags.DEFINE_string("classifier", None, "Workdir of a classifier of noisy images to guide with.")
SCALE = flags.DEFINE_float("classifier_scale", 1.0, "Scale of the classifier's guidance.")
AUTOENCODER = flags.DEFINE_string("autoencoder", None, "Where the autoencoder of a model in latents is now.")
INIT = flags.DEFINE_string("init_image", None, "img2img: a picture to start from.")
LEVEL = flags.DEFINE_float("noise_level", 0.6, "img2img: the time up to which noise is added to the picture.")


def main(argv):
    """Open, draw, picture."""
    del argv
    # ---------------------------------------------------------------- open: the model, the folder
    with usage_errors():
        for name, value in (("num", NUM.value), ("batch_size", BATCH.value), ("shard_size", SHARD.value)):
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        if (CHECKPOINT.value is None) == (FROM.value is None):
            given = f"{CHECKPOINT.value} and {FROM.value}"
            raise ValueError(f"either checkpoint or from_diffusers must be used, got {given}")
        source = of_run() if FROM.value is None else of_diffusers()
        out = path_of("out", OUT.value)
        check_writable(out, "out")
        lock(out, "out")
        now = source.settings | {
            "step": source.step,
            "num": NUM.value,
            "shard_size": SHARD.value,
            "seed": SEED.value,
            "labels": LABELS.value,
            "sampling": source.sampling,
            "dataset": source.dataset,
            "range": list(source.range),
        }
        before = read_json(out / "settings.json")
        if changed := [] if before is None else [key for key in now if before.get(key) != now[key]]:
            key = changed[0]
            raise ValueError(
                f"out {out} has samples with {key} = {before.get(key)!r}, got {now[key]!r}; choose another --out"
            )
    write_json(out / "settings.json", now)

    # ---------------------------------------------------------------- draw the shards that are missing
    progress = Progress("sample", NUM.value, unit="samples")
    for number, first in enumerate(range(0, NUM.value, SHARD.value)):
        path, index = out / f"shard_{number:05d}.npz", np.arange(first, min(first + SHARD.value, NUM.value))
        if is_intact(path):
            continue
        size = min(BATCH.value, NUM.value, SHARD.value)
        x = draw(
            source.generate,
            source.params,
            SEED.value,
            index,
            source.cycle,
            batch_size=size,
            update=lambda last: progress.update(last + 1),
        )
        of_classes = source.cycle is not None and source.cycle.ndim == 1
        labels = source.cycle[index % len(source.cycle)] if of_classes else np.full(len(index), -1)
        with usage_errors():  # samples are not finite if guidance is too strong
            pixels = images.to_pixels(x, *source.range)
        part = out / f".{path.name}.part"
        with part.open("wb") as file:
            np.savez(file, samples=pixels, labels=labels)
        os.replace(part, path)

    # ---------------------------------------------------------------- picture: the first 100
    shown, (low, high) = -(-min(100, NUM.value) // SHARD.value), source.range
    first = np.concatenate([np.load(out / f"shard_{i:05d}.npz")["samples"] for i in range(shown)])[:100]
    titles = CAPTIONS.value if 1 < len(CAPTIONS.value) <= 20 else ()
    normalised = 2 * (first.astype(np.float32) - low) / (high - low) - 1
    images.save_png(out / "samples.png", normalised, len(titles) or 10, titles)
    print(f"{NUM.value} samples in {out}, the first {len(first)} in {out / 'samples.png'}")
    print(f"next: python -m experiments.evaluate --samples={OUT.value}")


def of_run():
    """A run's workdir, or an export."""
    for flag in (CONTEXT, NULL, VARIANT):
        if flag.value is not None:
            raise ValueError(f"{flag.name} is for --from_diffusers, got {flag.value} without it")
    used = {}

    def override(config):
        used["sampling"] = override_sampling(config.sampling)
        settings.check_guidance("guidance", config.sampling, settings.can_guide(config))
        return config

    trained = loading.load(path_of("checkpoint", CHECKPOINT.value), override=override)
    diffusion, space = trained.model.diffusion, loading.latents_of(trained, AUTOENCODER.value)
    guide = classifier_of(trained, space)
    times, start = starting_from(diffusion, trained, space)
    samplers.report_rounding(diffusion.sampling.sampler, diffusion.schedule(), diffusion.sampling.num_steps)
    classify = None if guide is None else guide.model.log_prob(guide.params, diffusion.schedule(trained.params))
    how = {"times": times, "start": start, "classify": classify, "scale": SCALE.value}
    generate = over_batch(jax.jit(lambda params, keys, which: diffusion.generate(params, keys, which, **how)))
    own = {
        "checkpoint": str(path_of("checkpoint", CHECKPOINT.value).resolve()),
        "captions": CAPTIONS.value or None,
        "init_image": INIT.value and hashlib.sha256(path_of("init_image", INIT.value).read_bytes()).hexdigest(),
        "noise_level": LEVEL.value if INIT.value else None,
        "classifier": guide and str(guide.folder.resolve()),
        "classifier_step": guide and guide.step,
        "classifier_scale": guide and SCALE.value,
        "autoencoder": space and space.identity(),
    }
    return Source(
        generate if space is None else space.decoded(generate),
        trained.params,
        cycle_of(diffusion, trained.tokenizer, guide),
        trained.step,
        trained.data.range,
        trained.dataset,
        used["sampling"],
        own,
    )


def override_sampling(sampling):
    """Change config.sampling as the flags say; return it as a dict."""
    given = {name: flag.value for name, flag in SAMPLING.items() if flag.value is not None}
    if "guidance_interval" in given:
        try:
            given["guidance_interval"] = tuple(float(text) for text in given["guidance_interval"])
        except ValueError as error:
            texts = ",".join(given["guidance_interval"])
            raise ValueError(f"guidance_interval must be numbers, got {texts}") from error
    sampling.update(given)
    samplers.check_sampler("sampler", sampling.sampler)
    samplers.check_grid("grid", sampling.grid)
    samplers.check_eta("eta", sampling.sampler, sampling.eta)
    return sampling.to_dict()


def classifier_of(trained, space):
    """The classifier to guide with, or None."""
    if CLASSIFIER.value is None:
        if flags.FLAGS["classifier_scale"].present:
            raise ValueError(f"classifier_scale needs a --classifier, got {SCALE.value} without one")
        return None
    if trained.tokenizer is not None:
        raise ValueError(f"classifier must not be used for a model of captions, got {CLASSIFIER.value}")
    if not math.isfinite(SCALE.value):
        raise ValueError(f"classifier_scale must be finite, got {SCALE.value}")
    guide = loading.load(path_of("classifier", CLASSIFIER.value), "classifier", "classifier")
    shape = trained.data.shape if space is None else space.shape
    if guide.data.shape != shape:
        raise ValueError(f"classifier must be one of images {shape}, got {CLASSIFIER.value} of {guide.data.shape}")
    classes = trained.data.num_classes
    if trained.model.diffusion.condition and guide.data.num_classes != classes:
        raise ValueError(f"classifier must have the network's {classes} classes, got {guide.data.num_classes}")
    return guide


def cycle_of(diffusion, tokenizer, guide=None):
    """The conditions to repeat: labels or tokens; None where neither the network nor the classifier has any."""
    if CAPTIONS.value or tokenizer is not None:
        return captions.chosen(tokenizer, CAPTIONS.value, LABELS.value)
    classes = diffusion.num_classes if diffusion.condition == "label" else None
    return labels_of(classes if guide is None else guide.data.num_classes)


def labels_of(classes):
    """The labels to repeat, of so many classes."""
    if not LABELS.value:
        return None if classes is None else np.arange(classes)
    if classes is None:
        raise ValueError(f"labels must be empty for a network without classes, got {','.join(LABELS.value)}")
    for text in LABELS.value:
        if not text.strip().isdigit() or int(text) >= classes:
            raise ValueError(f"labels must be ints in [0, {classes - 1}], got {text!r}")
    return np.asarray([int(text) for text in LABELS.value])


def starting_from(diffusion, trained, space):
    """(grid, x0 to start from): for img2img the part of the grid below the noise level; (None, None) without."""
    if INIT.value is None:
        if flags.FLAGS["noise_level"].present:
            raise ValueError(f"noise_level needs an --init_image, got {LEVEL.value} without one")
        return None, None
    if not 0 < LEVEL.value < 1:
        raise ValueError(f"noise_level must be in (0, 1), got {LEVEL.value}")
    times = np.asarray(diffusion.times(trained.params))
    picture = images.load_picture(path_of("init_image", INIT.value), trained.data.shape)
    grid = jnp.asarray([LEVEL.value, *times[times < LEVEL.value]], jnp.float32)
    return grid, picture if space is None else space.code(picture)


def of_diffusers():
    """A folder that diffusers saved."""
    for flag in (CLASSIFIER, AUTOENCODER, INIT, SAMPLING["guidance_rescale"], SAMPLING["guidance_interval"]):
        if flag.value is not None:
            raise ValueError(f"{flag.name} is for --checkpoint, got {flag.value} with --from_diffusers")
    if CAPTIONS.value:
        captions.chosen(None, CAPTIONS.value)
    sampling = default.get_config().sampling
    override_sampling(sampling)
    folder = path_of("from_diffusers", FROM.value)
    files = {flag.name: flag.value and str(path_of(flag.name, flag.value)) for flag in (CONTEXT, NULL)}
    files["variant"] = VARIANT.value
    return diffusers_folder.source(folder, sampling, SAMPLING["grid"].value, labels_of, **files)


def is_intact(path):
    """Whether a shard is there and can be read."""
    try:
        with np.load(path) as shard:
            return {"samples", "labels"} <= set(shard.files)
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


if __name__ == "__main__":
    launch(main)
