"""From samples and the settings of their data set to metrics, floors and conditions (`evaluation.measures`).

`open_case` opens the data and makes the extractor once, which may train a classifier; `compare` measures samples.

    case = open_case(config.dataset.to_dict(), labels, Settings(), len(samples))
    result = compare(case, samples, labels)
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffax._checks import check_count, choose
from experiments.data.datasets import Dataset, open_dataset
from experiments.evaluation import extractors, physical
from experiments.evaluation.extractors import Extractor
from experiments.evaluation.families import BY_LABEL, check_counts, check_names, least_count
from experiments.evaluation.measures import Measures, Real, Settings, measure
from experiments.evaluation.values import of_values, with_masks


class Case(NamedTuple):
    """Data, extractor and settings to measure samples with.

    judge: None if no metric needs one. memory: of `measure`. left_out: the default metric that is not measured, with
    the reason, or "".
    """

    dataset: Dataset
    real: Real
    extractor: Extractor
    judge: Extractor | None
    names: tuple[str, ...]
    settings: Settings
    memory: dict[Any, Any]
    left_out: str = ""


def open_case(data: dict[str, Any], labels: np.ndarray | None, settings: Settings, count: int) -> Case:
    """Open the data set and make the extractor, and a judge if a metric needs one.

    Args:
      data: the settings of config.dataset: name, data_dir, and the splits train, test and classifier.
      labels: of the samples; only real examples of these classes are used. None for all.
      settings: of the measurement.
      count: number of samples. Too few raise an error before anything is trained.

    Raises:
      ValueError: for bad settings, too few samples or examples, an extractor that does not fit the data, or weights
        that do not fit.
    """
    _check_settings(settings)
    dataset = open_dataset(data["name"], data["data_dir"])
    name = settings.extractor or extractors.default_of(dataset)
    extractors.check(name, dataset)
    values = of_values(dataset) if name == "values" else None
    width = extractors.DIMENSIONS[name] if values is None else values.dimension
    wanted = default_metrics(name, labels is not None) if settings.metrics is None else settings.metrics
    names = check_names(wanted, extractors.is_classified(dataset), labels is not None)

    train, test = (_of_classes(*_examples(dataset, data[f"{part}_split"]), labels) for part in ("train", "test"))
    counts, left_out = {"samples": count, "train": len(train[0]), "test": len(test[0])}, ""
    least = {metric: least_count(metric, width, settings.allow_few) for metric in names}
    if "all" in wanted:
        names = tuple(metric for metric in names if min(counts.values()) >= least[metric])
    elif settings.metrics is None and values is not None and min(counts.values()) < least["fd"]:
        names = tuple(metric for metric in names if metric != "fd")
        left_out = f"fd, which needs at least {least['fd']} examples of each set, or --allow_few"
    check_counts(name, width, names, counts, settings.allow_few)

    extractor = values or _trained(name, dataset, data["classifier_split"], settings)
    needs_judge = extractor.classify is None and set(names) & set(BY_LABEL)
    judge = _trained("classifier", dataset, data["classifier_split"], settings) if needs_judge else None
    return Case(dataset, Real(*train, *test), extractor, judge, names, settings, {}, left_out)


def _check_settings(settings):
    if settings.extractor is not None:
        choose("extractor", settings.extractor, extractors.DIMENSIONS)
    choose("reference", settings.reference, ("test", "train"))
    check_count("repeats", settings.repeats)
    check_count("seed", settings.seed, 0)  # NumPy's generators raise for a negative seed


def _trained(name, dataset, split, settings):
    """The classifier of a split, or a pretrained network."""
    if name != "classifier":
        return extractors.pretrained(name, settings.inception_weights)
    path = Path(settings.classifier_file) if settings.classifier_file else None
    return extractors.of_classifier(dataset, split, num_steps=settings.classifier_steps, seed=settings.seed, path=path)


def default_metrics(extractor: str, labelled: bool) -> tuple[str, ...]:
    """The names of the metrics for samples, drawn with labels or not."""
    if extractor == "values":
        return ("fd", "sliced_wasserstein")
    return ("fd", "accuracy") if extractor == "classifier" and labelled else ("fd",)


def _examples(dataset: Dataset, split: str) -> tuple[np.ndarray, np.ndarray]:
    images, labels = dataset.arrays(split)
    return with_masks(images, dataset.masks(split)), labels


def _of_classes(images, image_labels, labels):
    keep = slice(None) if labels is None else np.isin(image_labels, labels)
    return images[keep], image_labels[keep]


def compare(case: Case, samples: np.ndarray, labels: np.ndarray | None, masks: np.ndarray | None = None) -> Measures:
    """Metrics, floors and conditions of samples; with the default metrics and data other than images also `physical`.

    Args:
      case: of `open_case`.
      samples: (N, *shape) in the units of the data.
      labels: (N,) that they were drawn with; None without.
      masks: (N, *mask) of the samples, for data with masks.

    Raises:
      ValueError: for samples or masks of another shape than those of the data, or as `measure`.
    """
    dataset, settings = case.dataset, case.settings
    normalise: Callable[[np.ndarray], np.ndarray] = dataset.normalise
    check_shapes(dataset, samples, masks)
    if masks is not None:
        samples, normalise = with_masks(normalise(samples), masks), np.asarray
    result = measure(
        case.extractor,
        samples,
        case.real,
        labels=labels,
        names=case.names,
        judge=case.judge,
        normalise=normalise,
        settings=settings,
        memory=case.memory,
    )
    if case.left_out:
        result.conditions["left_out"] = case.left_out
    if settings.metrics is not None or dataset.units.kind == "image":
        return result
    x = normalise(samples)
    if dataset.units.kind == "field" and masks is None:
        both = physical.spectral(x, case.real, settings.reference, settings.seed)
        if both is not None:
            result.metrics[physical.SPECTRUM], result.floors[physical.SPECTRUM] = both
    return result._replace(channels=physical.channels(dataset, x, case.real))


def check_shapes(dataset: Dataset, samples: np.ndarray, masks: np.ndarray | None) -> None:
    """Raise `ValueError` unless samples (N, *shape) and their masks have the shapes of the data."""
    if samples.shape[1:] != dataset.shape:
        raise ValueError(f"samples must be examples of shape {dataset.shape}, got {samples.shape[1:]}")
    if (got := None if masks is None else masks.shape[1:]) != dataset.mask:
        expected = f"of shape {dataset.mask}" if dataset.mask else "none"
        raise ValueError(f"masks of the samples must be {expected}, as those of the data, got {got}")
