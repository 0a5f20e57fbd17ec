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
from experiments.evaluation import classifier
from experiments.evaluation.batches import in_batches
from experiments.evaluation.extractors import convolutions, efficientnet, inception
from experiments.evaluation.extractors.torch_file import load_tensors
from experiments.models.digests import digest

DIMENSIONS = {
    "classifier": classifier.FEATURES,
    "efficientnet_lite0": efficientnet.NETWORK.width,
    "inception_v3": inception.NETWORK.width,
}


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


class Options(NamedTuple):
    """Options of the extractors.

    classifier: `known` returns images and labels to train on, and is called only to train; num_classes; trained_on, a
    name of the data; steps; seed; the file that keeps the classifier, which is read if it exists.
    inception_v3: inception_weights.
    """

    known: Callable[[], tuple[np.ndarray, np.ndarray]] | None = None
    num_classes: int | None = None
    trained_on: str = ""
    classifier_steps: int = 1500
    classifier_seed: int = 0
    classifier_file: Path | None = None
    inception_weights: str | None = None


def make_extractor(name: str, options: Options = Options()) -> Extractor:  # noqa: B008
    """The extractor of a name.

    Raises:
      ValueError: for an unknown name, missing options, or a file of weights that cannot be read or does not fit.
    """
    choose("extractor", name, DIMENSIONS)
    if name == "classifier":
        return _classifier(options)
    if name == "efficientnet_lite0":
        network, path = efficientnet.NETWORK, efficientnet.packaged()
    elif options.inception_weights:
        network, path = inception.NETWORK, Path(options.inception_weights)
    else:
        file = "pt_inception-2015-12-05-6726825d.pth of pytorch-fid"
        raise ValueError(f"extractor inception_v3 needs inception_weights=FILE: {file}")
    params = convolutions.fold(network, load_tensors(path))
    features = in_batches(functools.partial(convolutions.features, network), params, 32)
    return Extractor(name, digest(params), network.width, features)


def _classifier(options: Options) -> Extractor:
    """The classifier, from its file if that exists, otherwise trained and saved there."""
    known, num_classes, path = options.known, options.num_classes, options.classifier_file
    if known is None or num_classes is None:
        raise ValueError("extractor classifier needs a data set with labels to train on")
    check_count("classifier_steps", options.classifier_steps)
    steps, seed = options.classifier_steps, options.classifier_seed
    settings = {"data": options.trained_on, "num_classes": num_classes, "num_steps": steps, "seed": seed}
    if path is not None and path.exists():
        params = classifier.load(path, settings)
    else:
        params = classifier.train(*known(), num_classes, num_steps=steps, seed=seed)
        if path is not None:
            classifier.save(path, params, settings)
    judge = classifier.judge(params)
    return Extractor("classifier", digest(params), classifier.FEATURES, lambda images: judge(images)[1], judge)
