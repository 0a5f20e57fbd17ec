"""Feature extractors by name: from images to the features that the metrics of `diffax.metrics` compare.

    classifier          a small classifier of the data set itself, trained on images that no model sees: 64 features
    efficientnet_lite0  trained on ImageNet, from a package (extra `features`): 1,280
    inception_v3        the one of FID, from a file that the user provides: 2,048

Numbers are comparable only for the same extractor and the same hash of its parameters.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffax._checks import check_count, choose
from experiments.data.datasets import Dataset
from experiments.evaluation import classifier
from experiments.evaluation.batches import in_batches
from experiments.evaluation.extractors import convolutions, efficientnet, inception
from experiments.evaluation.extractors.torch_file import load_tensors
from experiments.models.digests import digest

NETWORKS = {"efficientnet_lite0": efficientnet.NETWORK, "inception_v3": inception.NETWORK}
DIMENSIONS = {"classifier": classifier.FEATURES, **{name: network.width for name, network in NETWORKS.items()}}


class Extractor(NamedTuple):
    """Features of images.

    digest: of its parameters. features: (N, H, W, C) in [-1, 1] to (N, dimension), NumPy, any N >= 1, spread over all
    devices. classify: the same images to (labels (N,), features (N, dimension)); None if it knows no labels.
    """

    name: str
    digest: str
    dimension: int
    features: Callable[[np.ndarray], np.ndarray]
    classify: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None


def pretrained(name: str, inception_weights: str | None = None) -> Extractor:
    """A pretrained network. inception_weights: the file of inception_v3.

    Raises:
      ValueError: for an unknown name, or a file of weights that is missing, cannot be read or does not fit.
    """
    network = choose("extractor", name, NETWORKS)
    path = efficientnet.packaged() if name == "efficientnet_lite0" else inception_weights
    if not path:
        file = "pt_inception-2015-12-05-6726825d.pth of pytorch-fid"
        raise ValueError(f"extractor {name} needs inception_weights=FILE: {file}")
    params = convolutions.fold(network, load_tensors(path))
    features = in_batches(functools.partial(convolutions.features, network), params, 32)
    return Extractor(name, digest(params), network.width, features)


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
