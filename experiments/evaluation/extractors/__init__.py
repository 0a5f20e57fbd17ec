"""Feature extractors by name: from images to what the metrics of `diffax.metrics` compare.

    classifier          a small classifier of the data set itself, trained on images that no model sees: 64 features
    efficientnet_lite0  trained on ImageNet, from a package (extra `features`): 1,280
    inception_v3        the one of FID, from a file that the user gives: 2,048

Numbers of two extractors never compare, nor those of one name and two hashes.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffax._checks import choose
from experiments.evaluation import classifier
from experiments.evaluation.batches import in_batches
from experiments.evaluation.extractors import efficientnet, inception
from experiments.models.digests import digest

BATCH = 32


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
    """What the makers need; each takes its part.

    classifier: known() gives images and labels to train on, and is called only to train; num_classes; steps; seed;
    classifier_file: where it is kept, read if it is there; trained_on: what names the data, kept beside it.
    inception_v3: inception_weights. efficientnet_lite0: efficientnet_weights, the package's own if None.
    """

    known: Callable[[], tuple[np.ndarray, np.ndarray]] | None = None
    num_classes: int | None = None
    trained_on: str = ""
    classifier_steps: int = 1500
    classifier_seed: int = 0
    classifier_file: Path | None = None
    inception_weights: str | None = None
    efficientnet_weights: str | None = None


def of_classifier(options: Options) -> Extractor:
    """The classifier, trained or read.

    Raises:
      ValueError: without labelled images, fewer than one step, or as `classifier.trained`.
    """
    if options.known is None or options.num_classes is None:
        raise ValueError("extractor classifier needs a data set with labels to train on")
    if options.classifier_steps < 1:
        raise ValueError(f"classifier_steps must be >= 1, got {options.classifier_steps}")
    settings = {"data": options.trained_on, "num_steps": options.classifier_steps, "seed": options.classifier_seed}
    params = classifier.trained(options.classifier_file, settings, options.known, options.num_classes)
    judge = classifier.judge(params)
    return Extractor("classifier", digest(params), classifier.FEATURES, lambda images: judge(images)[1], judge)


def of_network(name: str, params: Any, network: Any) -> Extractor:
    """One of the pretrained networks with its parameters."""
    return Extractor(name, digest(params), network.WIDTH, in_batches(network.features, params, BATCH))


MAKERS: dict[str, Callable[[Options], Extractor]] = {
    "classifier": of_classifier,
    "efficientnet_lite0": lambda options: of_network(
        "efficientnet_lite0", efficientnet.load(options.efficientnet_weights), efficientnet
    ),
    "inception_v3": lambda options: of_network("inception_v3", inception.load(options.inception_weights), inception),
}
DIMENSIONS = {
    "classifier": classifier.FEATURES,
    "efficientnet_lite0": efficientnet.WIDTH,
    "inception_v3": inception.WIDTH,
}


def make_extractor(name: str, options: Options = Options()) -> Extractor:  # noqa: B008
    """The extractor of a name.

    Raises:
      ValueError: for another name, what its maker lacks, or weights that do not fit.
    """
    return choose("extractor", name, MAKERS)(options)
