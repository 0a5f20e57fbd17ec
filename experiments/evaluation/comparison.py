"""From samples and the settings of their data set to metrics, floors and conditions (`evaluation.measures`).

`open_case` opens the data and makes an extractor, which may train, once; `compare` measures any number of samples.

    case = open_case(config.dataset.to_dict(), labels, Settings())
    found = compare(case, samples, labels)
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffax._checks import check_count, choose
from experiments.data.datasets import Dataset, open_dataset
from experiments.evaluation.extractors import DIMENSIONS, MAKERS, Extractor, Options, make_extractor
from experiments.evaluation.families import BY_LABEL, check_counts, check_names, least_count
from experiments.evaluation.measures import HELD, Measures, Real, measure
from experiments.evaluation.moments import stream_fd

PART = 1000  # images of a stream at a time


class Settings(NamedTuple):
    """How samples are measured.

    metrics: names of `evaluation.families`, or ("all",) for all that can be measured of so many images; None: fd, and
    by the classifier, where samples have labels, accuracy. repeats, seed, reference, allow_few: as `measure`; the seed
    is the classifier's too. classifier_file: where it is kept. inception_weights: the file of inception_v3.
    """

    extractor: str = "classifier"
    metrics: tuple[str, ...] | None = None
    repeats: int = 20
    seed: int = 0
    reference: str = "test"
    allow_few: bool = False
    classifier_steps: int = 1500
    classifier_file: str | Path | None = None
    inception_weights: str | None = None


class Case(NamedTuple):
    """What samples are measured by. judge: None where no metric needs one; memory: of `measure`."""

    dataset: Dataset
    real: Real
    extractor: Extractor
    judge: Extractor | None
    names: tuple[str, ...]
    settings: Settings
    memory: dict[Any, Any]


def open_case(data: dict[str, Any], labels: np.ndarray | None, settings: Settings, count: int | None = None) -> Case:
    """Opens the data set and makes the extractor, and a judge if a metric needs one.

    Args:
      data: the settings of config.dataset: name, data_dir, and the splits train, test and classifier.
      labels: of the samples; of the real data only these classes are taken. None for all.
      settings: how they are measured.
      count: of the samples, to say that they are too few before anything is trained.

    Raises:
      ValueError: for bad settings, too few samples or images, data without labels for a classifier, or weights that
        do not fit.
    """
    choose("extractor", settings.extractor, MAKERS)
    choose("reference", settings.reference, ("test", "train"))
    check_count("repeats", settings.repeats)
    check_count("seed", settings.seed, 0)  # of NumPy's generators too, which take none below
    by_classifier = settings.extractor == "classifier"
    names = settings.metrics
    if names is None:
        names = ("fd", "accuracy") if by_classifier and labels is not None else ("fd",)
    dataset = open_dataset(data["name"], data["data_dir"])
    names = check_names(names, dataset.num_classes is not None)
    if labels is None and "accuracy" in names:
        if "all" not in (settings.metrics or ()):
            raise ValueError("accuracy needs samples that were drawn with labels")
        names = tuple(name for name in names if name != "accuracy")
    train, test = (_of_classes(*dataset.arrays(data[f"{part}_split"]), labels) for part in ("train", "test"))
    counts = {} if count is None else {"samples": count}
    counts |= {"train": len(train[0]), "test": len(test[0])}
    width, few = DIMENSIONS[settings.extractor], settings.allow_few
    if "all" in (settings.metrics or ()):
        names = tuple(name for name in names if min(counts.values()) >= least_count(name, width, few))
    check_counts(settings.extractor, width, names, counts, few)
    split = data["classifier_split"]
    options = Options(
        known=lambda: dataset.arrays(split),
        num_classes=dataset.num_classes,
        trained_on=f"{dataset.name} {split}",
        classifier_steps=settings.classifier_steps,
        classifier_seed=settings.seed,
        classifier_file=Path(settings.classifier_file) if settings.classifier_file else None,
        inception_weights=settings.inception_weights,
    )
    extractor = make_extractor(settings.extractor, options)
    judge = make_extractor("classifier", options) if not by_classifier and set(names) & set(BY_LABEL) else None
    return Case(dataset, Real(*train, *test), extractor, judge, names, settings, {})


def _of_classes(images, of, labels):
    if labels is None:
        return images, of
    keep = np.isin(of, labels)
    return images[keep], of[keep]


def compare(case: Case, samples: np.ndarray, labels: np.ndarray | None) -> Measures:
    """Metrics, floors and conditions of samples.

    Of more than `HELD` samples, fd is that of all, from moments; the other metrics are of so many of them.

    Args:
      case: of `open_case`.
      samples: (N, H, W, C) in the data's own pixels.
      labels: (N,) that they were drawn with; None without.

    Raises:
      ValueError: for samples of another shape than the data's, or as `measure`.
    """
    settings, normalise = case.settings, case.dataset.normalise
    if samples.shape[1:] != case.dataset.shape:
        raise ValueError(f"samples must be images of shape {case.dataset.shape}, got {samples.shape[1:]}")
    names = case.names
    streamed = "fd" in names and len(samples) > HELD
    whole = _stream(case, samples) if streamed else None
    if whole is not None:
        names = tuple(name for name in names if name != "fd")
    if whole is not None and not names:
        return whole
    if len(samples) > HELD:
        rows = np.sort(np.random.default_rng(settings.seed).permutation(len(samples))[:HELD])
        samples, labels = samples[rows], None if labels is None else labels[rows]
    found = measure(
        case.extractor,
        normalise(samples),
        case.real,
        labels=labels,
        names=names,
        judge=case.judge,
        reference=settings.reference,
        allow_few=settings.allow_few,
        repeats=settings.repeats,
        seed=settings.seed,
        memory=case.memory,
    )
    if whole is None:
        return found
    conditions = found.conditions | {f"fd_{k}": v for k, v in whole.conditions.items() if k.startswith("num_")}
    return found._replace(
        metrics=whole.metrics | found.metrics, floors=whole.floors | found.floors, conditions=conditions
    )


def _stream(case, samples):
    other, against = case.real.train, case.real.test
    if case.settings.reference == "train":
        other, against = against, other
    parts = (case.dataset.normalise(part) for part in _parts(samples))
    memory = case.memory.setdefault(("stream", case.settings.reference), {})
    how = {"allow_few": case.settings.allow_few, "memory": memory}
    found = stream_fd(case.extractor, parts, _parts(other), _parts(against), **how)
    return found._replace(conditions=found.conditions | {"reference": case.settings.reference})


def _parts(images: np.ndarray) -> Iterator[np.ndarray]:
    return (images[at : at + PART] for at in range(0, len(images), PART))
