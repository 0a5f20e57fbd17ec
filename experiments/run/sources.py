"""A run or an export as a source of samples: its conditions, a guiding classifier, an initial picture."""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffax.training.parallel import over_batch
from experiments.data.datasets import Dataset, open_dataset
from experiments.data.picture_files import load_picture
from experiments.models import samplers
from experiments.models.captions import chosen
from experiments.models.digests import digest
from experiments.models.drawing import Source, cycle_of, generated, labels_of, paired
from experiments.models.latents import Latents
from experiments.run import loading, teachers
from experiments.run.loading import Trained


def of_run(
    trained: Trained,
    labels: Sequence[str],
    captions: Sequence[str],
    *,
    autoencoder: str | None,
    guidance: tuple[Path | None, float],
    start: tuple[Path | None, float],
    pairs: bool = False,
) -> Source:
    """A trained model as a source of samples, with the labels, the captions, or the test split's arrays in turn.

    autoencoder: folder of the autoencoder of a model in latents, None if it was not moved. guidance: (workdir of a
    classifier of noisy images or None, scale). start: (file of a picture or None, the time up to which noise is added
    to it). pairs: whether `generate` returns the samples and the noise that they were drawn from, (B, 2, *shape).

    Raises:
      ValueError: for a condition, an autoencoder, a classifier or a picture that does not fit the model; for pairs of a
        model or sampler that does not support them.
    """
    if pairs:
        _check_pairs(trained, folder=guidance[0], file=start[0])
    diffusion, space = trained.model.diffusion, loading.latents_of(trained, autoencoder)
    (folder, scale), (file, level) = guidance, start
    classifier = None if folder is None else _classifier(folder, trained, space)
    times, x0 = None, None
    if file is not None:
        grid = np.asarray(diffusion.times(trained.params))
        times = jnp.asarray([level, *grid[grid < level]], jnp.float32)
        picture = trained.data.units.normalise(load_picture(file, trained.data))
        x0 = picture if space is None else space.code(picture)
    samplers.report_rounding(diffusion.sampling.sampler, diffusion.schedule(), diffusion.sampling.num_steps)
    classify = classifier and classifier.model.log_prob(classifier.params, diffusion.schedule(trained.params))
    options = {"times": times, "start": x0, "classify": classify, "scale": scale}

    array_units = trained.data.condition_units
    draws = functools.partial(generated, diffusion, trained.data, **options)
    generate = over_batch(jax.jit(functools.partial(paired, diffusion, draws) if pairs else draws))
    cycle: Any
    if captions or trained.tokenizer is not None:
        cycle = chosen(trained.tokenizer, captions, labels)
    elif array_units is not None:
        if labels:
            raise ValueError(f"labels must be empty for a model with array conditions, got {','.join(labels)}")
        cycle = None
    else:
        classes = diffusion.num_classes if diffusion.condition == "label" else None
        cycle = labels_of(labels, classes if classifier is None else classifier.data.num_classes)
    settings = {
        "checkpoint": str(trained.folder.resolve()),
        "captions": captions or None,
        "conditions": array_units and trained.dataset["test_split"],
        "init_image": file and hashlib.sha256(file.read_bytes()).hexdigest(),
        "noise_level": file and level,
        "classifier": classifier and str(classifier.folder.resolve()),
        "classifier_step": classifier and classifier.step,
        "classifier_scale": classifier and scale,
        "autoencoder": space and space.identity(),
    }
    if pairs:
        record = teachers.pairs_record(
            diffusion, diffusion.schedule(trained.params), trained.data, trained.dataset["name"]
        )
        settings["pairs"] = record | {"digest": digest(trained.params)}
    images = generate if space is None else space.decoded(generate)
    data = trained.data
    if data.mask is not None or array_units is not None:
        cycle = cycle_of(_dataset(trained), trained.dataset["test_split"], data, cycle)
    own = trained.dataset, trained.sampling, settings, data.classes, array_units is not None
    return Source(images, trained.params, cycle, trained.step, data.units, *own)


def _check_pairs(trained: Trained, folder: Path | None, file: Path | None) -> None:
    """Raise `ValueError` for a model or sampler that does not support pairs."""
    diffusion, sampling = trained.model.diffusion, trained.model.diffusion.sampling
    for reason, is_so in (
        ("in latents", trained.latents is not None),
        ("of data with masks", trained.data.mask is not None),
        ("with captions or array conditions", diffusion.condition in ("tokens", "array")),
        ("with a classifier", folder is not None),
        ("with an init_image", file is not None),
        (f"with {sampling.sampler}, which draws noise", samplers.draws_noise(sampling.sampler, sampling.eta)),
    ):
        if is_so:
            raise ValueError(f"pairs must be False {reason}, got True")


def _dataset(trained: Trained) -> Dataset:
    """The data set of a model."""
    return open_dataset(*(trained.dataset[name] for name in ("name", "data_dir", "labels")))


def _classifier(folder: Path, trained: Trained, space: Latents | None) -> Trained:
    """A classifier of noisy images that fits the model."""
    if trained.tokenizer is not None:
        raise ValueError(f"classifier must not be used for a model of captions, got {folder}")
    if trained.data.condition is not None:
        raise ValueError(f"classifier must not be used for a model with array conditions, got {folder}")
    if trained.model.diffusion.second_time:
        raise ValueError(f"classifier must not be used for a network with a second time, got {folder}")
    classifier = loading.load(folder, "classifier", "classifier")
    shape, own_shape = trained.data.shape if space is None else space.shape, classifier.data.shape
    if own_shape != shape:
        raise ValueError(f"classifier must be one of images {shape}, got {folder} of {own_shape}")
    if trained.model.diffusion.condition and classifier.data.num_classes != trained.data.num_classes:
        raise ValueError(
            f"classifier must have the network's {trained.data.num_classes} classes, got {classifier.data.num_classes}"
        )
    return classifier
