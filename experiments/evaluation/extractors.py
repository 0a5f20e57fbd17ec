"""Feature extractors by name: from images to features for the metrics of `diffax.metrics`.

    classifier          a small classifier of the data set, trained on images outside the training split: 64 features
    efficientnet_lite0  1,280 features of `diffax.nn.features`
    inception_v3        2,048 features of `diffax.nn.features`
    values              the values themselves, for data of any kind (`evaluation.values`): at most 65 features

Numbers are comparable only for the same extractor and the same hash of its parameters.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffax._checks import check_count, choose
from diffax.nn import features
from experiments.data.datasets import Dataset
from experiments.evaluation import classifier
from experiments.evaluation.batches import in_batches
from experiments.models.digests import digest

# By name; the number of features of `values` depends on the data and is at least 1.
DIMENSIONS = {"classifier": classifier.FEATURES} | {name: net.width for name, net in features.NETWORKS.items()}
DIMENSIONS |= {"values": 1}


class Extractor(NamedTuple):
    """Features of images.

    digest: of its parameters. features: (N, H, W, C) in [-1, 1] to (N, dimension), NumPy, any N >= 1, spread over all
    devices. classify: the same images to (labels (N,), features (N, dimension)); None if it is not a classifier. about:
    a description of the features, "" for those of a network.
    """

    name: str
    digest: str
    dimension: int
    features: Callable[[np.ndarray], np.ndarray]
    classify: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None
    about: str = ""


def is_classified(dataset: Dataset) -> bool:
    """Whether a classifier can be trained on a data set: it has labels, and examples (H, W, C) without masks."""
    return dataset.num_classes is not None and len(dataset.shape) == 3 and dataset.mask is None


def default_of(dataset: Dataset) -> str:
    """The default extractor of a data set: classifier for images with labels, values for other data."""
    return "classifier" if is_classified(dataset) and dataset.units.kind == "image" else "values"


def check(name: str, dataset: Dataset) -> None:
    """Raise `ValueError` for an extractor that does not fit the examples of a data set."""
    choose("extractor", name, DIMENSIONS)
    if name == "values":
        return
    masks = "" if dataset.mask is None else " with masks"
    if len(dataset.shape) != 3 or masks:
        raise ValueError(f"extractor must be values for examples of shape {dataset.shape}{masks}, got {name!r}")
    if name == "classifier" and dataset.num_classes is None:
        raise ValueError(f"extractor must be one without labels, such as values, for {dataset.name!r}, got {name!r}")


def pretrained(name: str, inception_weights: str | None = None) -> Extractor:
    """A pretrained network. inception_weights: the file of inception_v3.

    Raises:
      ValueError: for an unknown name, or a file of weights that is missing, cannot be read or does not fit.
    """
    choose("extractor", name, features.NETWORKS)
    is_inception = name == "inception_v3"
    if is_inception and not inception_weights:
        raise ValueError(f"extractor {name} needs inception_weights=FILE: {features.inception.FILE}")
    network = features.load(name, inception_weights if is_inception else None)
    in_parts = in_batches(network.features, network.params, 32)
    return Extractor(name, digest(network.params), network.width, in_parts)


def of_classifier(dataset: Dataset, split: str, *, num_steps: int, seed: int, path: Path | None = None) -> Extractor:
    """The classifier of a split of a data set, read from its file if that exists, otherwise trained and saved there.

    Raises:
      ValueError: for a data set without labels, fewer than one step, or as `classifier.load`.
    """
    if dataset.num_classes is None:
        raise ValueError("extractor classifier needs a data set with labels to train on")
    check_count("classifier_steps", num_steps)
    data = f"{dataset.name} {split}"
    settings = {"data": data, "num_classes": dataset.num_classes, "num_steps": num_steps, "seed": seed}
    if path is not None and path.exists():
        params = classifier.load(path, settings)
    else:
        params = classifier.train(*dataset.arrays(split), dataset.num_classes, num_steps=num_steps, seed=seed)
        if path is not None:
            classifier.save(path, params, settings)
    judge = classifier.judge(params)
    return Extractor("classifier", digest(params), classifier.FEATURES, lambda images: judge(images)[1], judge)
