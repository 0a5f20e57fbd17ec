"""From samples and the settings of their data set to metrics, floors and conditions (`evaluation.measures`).

`open_case` opens the data and makes the extractor, which may train, once; `compare` measures any number of samples.

    case = open_case(config.dataset.to_dict(), labels, Settings(), len(samples))
    result = compare(case, samples, labels)
"""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffax._checks import check_count, choose
from experiments.data.datasets import Dataset, open_dataset
from experiments.evaluation.extractors import DIMENSIONS, Extractor, of_classifier, pretrained
from experiments.evaluation.families import BY_LABEL, check_counts, check_names, least_count
from experiments.evaluation.measures import Measures, Real, Settings, measure


class Case(NamedTuple):
    """Everything that measures samples. judge: None where no metric needs one; memory: of `measure`."""

    dataset: Dataset
    real: Real
    extractor: Extractor
    judge: Extractor | None
    names: tuple[str, ...]
    settings: Settings
    memory: dict[Any, Any]


def open_case(data: dict[str, Any], labels: np.ndarray | None, settings: Settings, count: int) -> Case:
    """Open the data set and make the extractor, and a judge if a metric needs one.

    Args:
      data: the settings of config.dataset: name, data_dir, and the splits train, test and classifier.
      labels: of the samples; only real images of these classes are used. None for all.
      settings: how they are measured.
      count: of the samples. Too few raise before anything is trained.

    Raises:
      ValueError: for bad settings, too few samples or images, data without labels for a classifier, or weights that
        do not fit.
    """
    width = choose("extractor", settings.extractor, DIMENSIONS)
    choose("reference", settings.reference, ("test", "train"))
    check_count("repeats", settings.repeats)
    check_count("seed", settings.seed, 0)  # NumPy's generators refuse a negative seed
    by_classifier = settings.extractor == "classifier"
    wanted = settings.metrics
    if wanted is None:
        wanted = ("fd", "accuracy") if by_classifier and labels is not None else ("fd",)
    dataset = open_dataset(data["name"], data["data_dir"])
    names = check_names(wanted, dataset.num_classes is not None, labels is not None)

    train, test = (_of_classes(*dataset.arrays(data[f"{part}_split"]), labels) for part in ("train", "test"))
    counts = {"samples": count, "train": len(train[0]), "test": len(test[0])}
    if "all" in wanted:
        n = min(counts.values())
        names = tuple(name for name in names if n >= least_count(name, width, settings.allow_few))
    check_counts(settings.extractor, width, names, counts, settings.allow_few)

    path = settings.classifier_file
    make_classifier = functools.partial(
        of_classifier,
        dataset,
        data["classifier_split"],
        num_steps=settings.classifier_steps,
        seed=settings.seed,
        path=Path(path) if path else None,
    )
    extractor = make_classifier() if by_classifier else pretrained(settings.extractor, settings.inception_weights)
    judge = make_classifier() if not by_classifier and set(names) & set(BY_LABEL) else None
    return Case(dataset, Real(*train, *test), extractor, judge, names, settings, {})


def _of_classes(images, image_labels, labels):
    keep = slice(None) if labels is None else np.isin(image_labels, labels)
    return images[keep], image_labels[keep]


def compare(case: Case, samples: np.ndarray, labels: np.ndarray | None) -> Measures:
    """Metrics, floors and conditions of samples.

    Args:
      case: of `open_case`.
      samples: (N, H, W, C) in the pixels of the data.
      labels: (N,) that they were drawn with; None without.

    Raises:
      ValueError: for samples of another shape than the data, or as `measure`.
    """
    shape = case.dataset.shape
    if samples.shape[1:] != shape:
        raise ValueError(f"samples must be images of shape {shape}, got {samples.shape[1:]}")
    return measure(
        case.extractor,
        samples,
        case.real,
        labels=labels,
        names=case.names,
        judge=case.judge,
        normalise=case.dataset.normalise,
        settings=case.settings,
        memory=case.memory,
    )
