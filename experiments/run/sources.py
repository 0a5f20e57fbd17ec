"""A run or an export as a source of samples: its conditions, a classifier to guide with, a picture to start from."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from diffax.training.parallel import over_batch
from experiments.data.images import load_picture
from experiments.models import samplers
from experiments.models.captions import chosen
from experiments.models.drawing import Source, labels_of
from experiments.models.latents import Latents
from experiments.run import loading
from experiments.run.loading import Trained


def of_run(
    trained: Trained,
    labels: Sequence[str],
    captions: Sequence[str],
    *,
    autoencoder: str | None,
    guidance: tuple[Path | None, float],
    start: tuple[Path | None, float],
) -> Source:
    """A trained model as a source of samples, which get the labels or captions in turn.

    autoencoder: where that of a model in latents is now. guidance: (workdir of a classifier of noisy images, scale).
    start: (file of a picture, the time up to which noise is added to it). None for no such part.

    Raises:
      ValueError: for a condition, an autoencoder, a classifier or a picture that does not fit the model.
    """
    diffusion, space = trained.model.diffusion, loading.latents_of(trained, autoencoder)
    (folder, scale), (file, level) = guidance, start
    classifier = None if folder is None else _classifier(folder, trained, space)
    times, x0 = None, None
    if file is not None:
        grid = np.asarray(diffusion.times(trained.params))
        times = jnp.asarray([level, *grid[grid < level]], jnp.float32)
        picture = load_picture(file, trained.data.shape)
        x0 = picture if space is None else space.code(picture)
    samplers.report_rounding(diffusion.sampling.sampler, diffusion.schedule(), diffusion.sampling.num_steps)
    classify = classifier and classifier.model.log_prob(classifier.params, diffusion.schedule(trained.params))
    options = {"times": times, "start": x0, "classify": classify, "scale": scale}
    generate = over_batch(jax.jit(lambda params, keys, which: diffusion.generate(params, keys, which, **options)))
    if captions or trained.tokenizer is not None:
        cycle = chosen(trained.tokenizer, captions, labels)
    else:
        classes = diffusion.num_classes if diffusion.condition == "label" else None
        cycle = labels_of(labels, classes if classifier is None else classifier.data.num_classes)
    settings = {
        "checkpoint": str(trained.folder.resolve()),
        "captions": captions or None,
        "init_image": file and hashlib.sha256(file.read_bytes()).hexdigest(),
        "noise_level": file and level,
        "classifier": classifier and str(classifier.folder.resolve()),
        "classifier_step": classifier and classifier.step,
        "classifier_scale": classifier and scale,
        "autoencoder": space and space.identity(),
    }
    images = generate if space is None else space.decoded(generate)
    value_range, dataset, sampling = trained.data.range, trained.dataset, trained.sampling
    return Source(images, trained.params, cycle, trained.step, value_range, dataset, sampling, settings)


def _classifier(folder: Path, trained: Trained, space: Latents | None) -> Trained:
    """A classifier of noisy images that fits the model."""
    if trained.tokenizer is not None:
        raise ValueError(f"classifier must not be used for a model of captions, got {folder}")
    classifier = loading.load(folder, "classifier", "classifier")
    shape, (of_classifier, classes, _) = trained.data.shape if space is None else space.shape, classifier.data
    if of_classifier != shape:
        raise ValueError(f"classifier must be one of images {shape}, got {folder} of {of_classifier}")
    if trained.model.diffusion.condition and classes != trained.data.num_classes:
        raise ValueError(f"classifier must have the network's {trained.data.num_classes} classes, got {classes}")
    return classifier
