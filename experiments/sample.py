"""Draw samples from a checkpoint.

    python -m experiments.sample --checkpoint=DIR --out=DIR --num=1000 [--sampler=ddim --num_steps=50 ...]

--checkpoint is the workdir of a training run or a folder of `experiments.export`. --out receives settings.json and
shard_00000.npz ... with `samples` in the units of the data and `labels`. The first 100 are also written as samples.png
and in the file formats of the kind of data (NetCDF, CSV ...). Sample i depends only on --seed and i, not on the batch
size. Run the same command again to draw missing shards.

--guidance=W is the weight of classifier-free guidance, which acts at the times --guidance_interval=LOW,HIGH if set.
--classifier=DIR adds guidance by a classifier trained by `experiments.train`, with --classifier_scale; with
--guidance=0 it replaces classifier-free guidance.

A model of captions accepts --captions="grinning face,red heart", which are repeated in turn like labels; without
captions, the samples have no condition. A model with an array condition gets the conditions of its test split in turn;
the shards have them as `conditions`. Samples of a model in latents are decoded by its autoencoder; set
--autoencoder=DIR if that folder was moved. img2img: --init_image=FILE --noise_level=T adds noise to a picture up to
time T and samples from there.

--from_diffusers=DIR replaces --checkpoint by a folder saved by diffusers, with its schedule and, without --grid, its
steps; --variant=fp16 reads the weight files of that name. --context=FILE.npy has (m, E) embeddings for a network with
cross-attention, --null_context=FILE.npy those of the empty prompt, which guidance needs.

--pairs stores the noise of each sample with it; a run with --config.dataset.pairs=OUT trains on these pairs (reflow).
"""

import dataclasses
import functools
import math

from absl import flags

from diffax.training import Progress
from experiments.configs import default, settings
from experiments.data import kinds
from experiments.data.pictures import save_picture
from experiments.models import captions, diffusers_folder, samplers
from experiments.models.drawing import draw, labels_of
from experiments.run import devices, loading, sample_folder, sources
from experiments.run.command import launch, path_of, usage_errors

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run's workdir, or an export.")
FROM = flags.DEFINE_string("from_diffusers", None, "In place of --checkpoint, a folder saved by diffusers.")
CONTEXT = flags.DEFINE_string("context", None, "For --from_diffusers: a .npy file of embeddings for cross-attention.")
VARIANT = flags.DEFINE_string("variant", None, "For --from_diffusers: variant of the weight files, such as fp16.")
NULL = flags.DEFINE_string("null_context", None, "For --from_diffusers: embeddings of the empty prompt, for guidance.")
OUT = flags.DEFINE_string("out", None, "Folder for the samples.", required=True)
NUM = flags.DEFINE_integer("num", 100, "Number of samples.")
BATCH = flags.DEFINE_integer("batch_size", 200, "Samples drawn at a time.")
SHARD = flags.DEFINE_integer("shard_size", 1000, "Samples in a shard.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the samples.")
LABELS = flags.DEFINE_list("labels", [], "Labels, repeated in turn; all classes in turn if empty.")
CAPTIONS = flags.DEFINE_list("captions", [], "Captions, repeated in turn, for a model of captions.")
PAIRS = flags.DEFINE_bool("pairs", False, "Also store the noise of each sample, for config.dataset.pairs.")
SAMPLING = {  # the defaults are those of config.sampling
    "sampler": flags.DEFINE_string("sampler", None, "Sampler. Default: that of the config."),
    "num_steps": flags.DEFINE_integer("num_steps", None, "Denoiser calls. Default: those of the config."),
    "grid": flags.DEFINE_string("grid", None, "Step grid. Default: that of the config."),
    "eta": flags.DEFINE_float("eta", None, "Noise of the sampler. Default: that of the config or of the sampler."),
    "guidance": flags.DEFINE_float("guidance", None, "Guidance weight, 1 for none. Default: that of the config."),
    "guidance_interval": flags.DEFINE_list("guidance_interval", None, "LOW,HIGH: the times at which guidance acts."),
    "guidance_rescale": flags.DEFINE_float("guidance_rescale", None, "phi of Lin et al. 2024, 0 for none."),
}
CLASSIFIER = flags.DEFINE_string("classifier", None, "Workdir of a classifier of noisy images, for guidance.")
SCALE = flags.DEFINE_float("classifier_scale", 1.0, "Scale of the classifier's guidance.")
AUTOENCODER = flags.DEFINE_string("autoencoder", None, "Folder of the model's autoencoder, if it was moved.")
INIT = flags.DEFINE_string("init_image", None, "img2img: the initial picture.")
LEVEL = flags.DEFINE_float("noise_level", 0.6, "img2img: the time up to which noise is added to the picture.")


def main(argv):
    """Open, claim, draw, end."""
    del argv
    devices.use_cores()
    # ---------------------------------------------------------------- open: the model, its conditions, the folder
    with usage_errors():
        check_flags()
        if FROM.value is None:
            trained = loading.load(path_of("checkpoint", CHECKPOINT.value), override=override)
            source = sources.of_run(
                trained,
                LABELS.value,
                CAPTIONS.value,
                autoencoder=AUTOENCODER.value,
                guidance=(path_in(CLASSIFIER), SCALE.value),
                start=(path_in(INIT), LEVEL.value),
                pairs=PAIRS.value,
            )
        else:
            sampling = default.get_config().sampling
            override_sampling(sampling)
            source = diffusers_folder.source(
                path_in(FROM),
                sampling,
                SAMPLING["grid"].value,
                functools.partial(labels_of, LABELS.value),
                variant=VARIANT.value,
                **{flag.name: flag.value and str(path_in(flag)) for flag in (CONTEXT, NULL)},
            )
        out = path_in(OUT)
        own = {flag.name: flag.value for flag in (NUM, SHARD, SEED, LABELS)}
        own |= {"sampling": source.sampling, "dataset": source.dataset, "units": dataclasses.asdict(source.units)}
        sample_folder.claim(out, {**source.settings, "step": source.step, **own})

    # ---------------------------------------------------------------- draw the missing shards
    kind = kinds.of(source.units.kind)
    progress = Progress("sample", NUM.value, unit="samples")
    options = {"batch_size": min(BATCH.value, NUM.value, SHARD.value), "update": lambda last: progress.update(last + 1)}
    for path, index in sample_folder.missing_shards(out, NUM.value, SHARD.value):
        x = draw(source.generate, source.params, SEED.value, index, source.cycle, **options)
        columns = source.columns(index)
        if PAIRS.value:
            x, columns["eps"] = x[:, 0], x[:, 1]
            columns["x0"] = x
        with usage_errors():  # samples may not be finite if guidance is too strong
            stored = kind.denormalise(x, source.units)
        sample_folder.save_shard(path, stored, **columns)

    # ---------------------------------------------------------------- end: the first 100 as a picture and in own format
    first, _, mask = sample_folder.load_samples(out, min(100, NUM.value), SHARD.value)
    titles = CAPTIONS.value if 1 < len(CAPTIONS.value) <= 20 else source.classes if len(source.classes) <= 10 else ()
    own = kind.save(out / "samples", first, source.units, mask)
    save_picture(
        out / "samples.png", kind.normalise(first, source.units), source.units, len(titles) or 10, titles, mask
    )
    names = [path.name for path in own if path.suffix != ".png"][:3]
    print(f"{NUM.value} samples in {out}, the first {len(first)} in {', '.join(['samples.png', *names])}")
    print(f"next: python -m experiments.evaluate --samples={OUT.value}")


def check_flags():
    """Raise `ValueError` for a flag that is out of range or does not fit the others."""
    for flag in (NUM, BATCH, SHARD):
        if flag.value < 1:
            raise ValueError(f"{flag.name} must be >= 1, got {flag.value}")
    if (CHECKPOINT.value is None) == (FROM.value is None):
        raise ValueError(f"either checkpoint or from_diffusers must be used, got {CHECKPOINT.value} and {FROM.value}")
    if FROM.value is None:
        others, use = (CONTEXT, NULL, VARIANT), "--from_diffusers, got {} without it"
    else:
        others = (CLASSIFIER, AUTOENCODER, INIT, SAMPLING["guidance_rescale"], SAMPLING["guidance_interval"])
        use = "--checkpoint, got {} with --from_diffusers"
        if PAIRS.value:
            raise ValueError("pairs must be False with from_diffusers, got True")
        if CAPTIONS.value:
            captions.chosen(None, CAPTIONS.value)
    for flag in others:
        if flag.value is not None:
            raise ValueError(f"{flag.name} is for {use.format(flag.value)}")
    for flag, other, needed in ((SCALE, CLASSIFIER, "a --classifier"), (LEVEL, INIT, "an --init_image")):
        if other.value is None and flag.present:
            raise ValueError(f"{flag.name} needs {needed}, got {flag.value} without one")
    if not math.isfinite(SCALE.value):
        raise ValueError(f"classifier_scale must be finite, got {SCALE.value}")
    if not 0 < LEVEL.value < 1:
        raise ValueError(f"noise_level must be in (0, 1), got {LEVEL.value}")


def path_in(flag):
    """The path in a flag, None for none."""
    return None if flag.value is None else path_of(flag.name, flag.value)


def override(config):
    """Change the sampling settings of a recorded config by the flags."""
    override_sampling(config.sampling)
    is_input = config.network.guidance_input
    settings.check_guidance("guidance", config.sampling, settings.can_guide(config), is_input=is_input)
    return config


def override_sampling(sampling):
    """Change config.sampling by the flags."""
    changes = {name: flag.value for name, flag in SAMPLING.items() if flag.value is not None}
    if "guidance_interval" in changes:
        texts = changes["guidance_interval"]
        try:
            changes["guidance_interval"] = tuple(map(float, texts))
        except ValueError as error:
            raise ValueError(f"guidance_interval must be numbers, got {','.join(texts)}") from error
    sampling.update(changes)
    samplers.check_sampler("sampler", sampling.sampler)
    samplers.check_grid("grid", sampling.grid)
    samplers.check_eta("eta", sampling.sampler, sampling.eta)


if __name__ == "__main__":
    launch(main)
