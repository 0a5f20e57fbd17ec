"""Metrics of samples and their floors, the same metrics of equally many real images. `families` lists the metrics."""

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from diffax import metrics as library
from experiments.evaluation.extractors import Extractor
from experiments.evaluation.families import FAMILIES, check_counts, check_names
from experiments.evaluation.features import look, look_at_all, stream_moments

MAX_IMAGES = 10_000  # of a set whose features are in memory at once; a larger set is sampled at random
PART = 1000  # images of a stream that are computed at once


class Settings(NamedTuple):
    """Settings of the measurement of samples.

    extractor: a name of `evaluation.extractors`, None for the default of the data; inception_weights is the file of
    inception_v3.
    metrics: names of `evaluation.families`, or ("all",) for all that this number of images allows; None for those of
    `comparison.default_metrics`.
    repeats: random choices of n, >= 1. seed: of these choices and of the classifier, >= 0.
    reference: "test", or "train" to compare with the training images, and test images with them as floor.
    allow_few: whether fd may use fewer examples than features.
    classifier_steps: of its training. classifier_file: its file, which is read if it exists and written otherwise.
    """

    extractor: str | None = None
    metrics: Sequence[str] | None = None
    repeats: int = 20
    seed: int = 0
    reference: str = "test"
    allow_few: bool = False
    classifier_steps: int = 1500
    classifier_file: str | Path | None = None
    inception_weights: str | None = None


class Real(NamedTuple):
    """Normalised real examples (N, *shape), such as images in [-1, 1], and their labels (N,).

    train: the training set of the model; test: others. Data with masks are in the form of `values.with_masks`.
    """

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray


class Measures(NamedTuple):
    """Metrics and their floors, {name: value}.

    conditions: the extractor, counts and settings, numbers and strings. spread: {name: standard deviations of the
    metric and of its floor over the random choices}. class_counts: of the samples by the judge, None without a judge.
    channels: the result of `physical.channels`, None if not measured.
    """

    metrics: dict[str, float]
    floors: dict[str, float]
    conditions: dict[str, Any]
    spread: dict[str, tuple[float, float]]
    class_counts: list[int] | None = None
    channels: list[dict[str, Any]] | None = None


def measure(
    extractor: Extractor,
    samples: np.ndarray,
    real: Real,
    *,
    labels: np.ndarray | None = None,
    names: Sequence[str] = ("fd",),
    judge: Extractor | None = None,
    normalise: Callable[[np.ndarray], np.ndarray] = np.asarray,
    settings: Settings = Settings(),  # noqa: B008
    memory: dict[Any, Any] | None = None,
) -> Measures:
    """Metrics of samples. The same arguments give the same numbers, bit for bit on the same machine.

    With more than `MAX_IMAGES` samples, fd uses all of them, from moments; the other metrics use a random choice.

    Args:
      extractor: of the features; it is also the judge if it classifies and `judge` is None.
      samples: (N, H, W, C).
      real: images of the same shape and classes.
      labels: (N,) that the samples were drawn with; None without.
      names: of the metrics, or "all".
      judge: an extractor that classifies, for accuracy and class_balance.
      normalise: samples to [-1, 1].
      settings: repeats, seed, reference and allow_few of these.
      memory: cache of results that depend only on the real images, for further calls with the same ones; {} at first.

    Raises:
      ValueError: for bad names, too few examples, features that are not finite, or a metric without a value for the
        features: no convergence, images that are all alike.
    """
    judge, memory = extractor if judge is None else judge, {} if memory is None else memory
    names, whole = check_names(names, judge.classify is not None, labels is not None), None
    if "fd" in names and len(samples) > MAX_IMAGES:
        parts = (normalise(part) for part in _parts(samples))
        whole = stream_fd(extractor, parts, real, settings, memory)
        names = tuple(name for name in names if name != "fd")
        if not names:
            return whole
    sets = {"samples": samples, "train": real.train, "test": real.test}
    counts = {what: min(len(images), MAX_IMAGES) for what, images in sets.items()}
    n = check_counts(extractor.name, extractor.dimension, names, counts, settings.allow_few)
    rng = np.random.default_rng(settings.seed)
    rows = {what: _subset(rng, len(sets[what])) for what in ("train", "test")}
    rows["samples"] = _subset(np.random.default_rng(settings.seed), len(samples))
    x = normalise(samples[rows["samples"]])
    seen = look_at_all(extractor, x, real, rows, memory)
    features = {what: pair[1] for what, pair in seen.items()}

    values, spread = _of_families(extractor, features, names, rng, n, settings, memory)
    if "memorisation" in names:
        values["memorisation"] = _memorisation(extractor, features, real.train, rng)
    class_counts = None
    if judge.classify is not None:
        seen = seen if judge is extractor else look_at_all(judge, x, real, rows, memory)
        predictions = {what: pair[0] for what, pair in seen.items()}
        expected = {"train": real.train_labels[rows["train"]], "test": real.test_labels[rows["test"]]}
        expected["samples"] = None if labels is None else labels[rows["samples"]]
        label_values, class_counts = _by_label(predictions, expected, names)
        values |= label_values

    conditions = _conditions(extractor)
    conditions |= {} if judge is extractor else {"judge": judge.name, "judge_hash": judge.digest[:16]}
    conditions |= {f"num_{what}": count for what, count in counts.items()}
    conditions |= {"n": n, "reference": settings.reference, "repeats": settings.repeats, "measure_seed": settings.seed}
    metrics, floors = ({name: values[name][side] for name in names} for side in (0, 1))
    if whole is not None:
        conditions |= {f"fd_{key}": value for key, value in whole.conditions.items() if key.startswith("num_")}
        metrics, floors = whole.metrics | metrics, whole.floors | floors
    return Measures(metrics, floors, conditions, spread, class_counts)


def _conditions(extractor):
    return {
        "extractor": extractor.name,
        "extractor_hash": extractor.digest[:16],
        "dimension": extractor.dimension,
    } | ({"features": extractor.about} if extractor.about else {})


def _parts(images):
    return (images[at : at + PART] for at in range(0, len(images), PART))


def _subset(rng, count):
    return np.arange(count) if count <= MAX_IMAGES else np.sort(rng.permutation(count)[:MAX_IMAGES])


def _of_families(extractor, features, names, rng, n, settings, memory):
    """({metric: (value, floor)}, {metric: (standard deviation, that of the floor)})."""
    reference, seed, allow_few = settings.reference, settings.seed, settings.allow_few
    other = "train" if reference == "test" else "test"
    rows = rng.permutation(len(features[reference]))[:n]
    y, key, choices = features[reference][rows], jax.random.key(seed), {}
    for what in ("samples", other):
        permutations = [rng.permutation(len(features[what]))[:n] for _ in range(settings.repeats)]
        choices[what] = permutations if len(features[what]) > n else permutations[:1]

    def compute(family, what):
        """(choices, metrics of the family). The key is the same for samples and floor: the same projections."""
        chosen = choices[what][:1] if family.once else choices[what]
        try:
            return np.array([family.of(key, features[what][x], y, allow_few) for x in chosen], np.float64)
        except ValueError as error:  # the library's message does not name the metric
            raise ValueError(f"{', '.join(family.names)} of {what}: {error}") from error

    indices = np.stack([rows, *choices[other]]).tobytes()
    values, spread = {}, {}
    for family in FAMILIES:
        if not set(family.names) & set(names):
            continue
        floor = ("floor", family.names, extractor.name, extractor.digest, reference, seed, allow_few, indices)
        if floor not in memory:
            memory[floor] = compute(family, other)
        both = compute(family, "samples"), memory[floor]
        for i, name in enumerate(family.names):
            if name in names:
                values[name] = tuple(float(side[:, i].mean()) for side in both)
                spread[name] = tuple(float(side[:, i].std()) for side in both)
    return values, spread


def _memorisation(extractor, features, train, rng):
    """(value, floor)."""
    if len(train) <= MAX_IMAGES:
        parts = [features["train"]]
    else:
        blocks = np.array_split(np.arange(len(train)), range(MAX_IMAGES, len(train), MAX_IMAGES))
        parts = (look(extractor, "train", train[rows], rows)[1] for rows in blocks)
    new = features["test"]
    both = np.concatenate([features["samples"], new])
    nearest = functools.reduce(np.minimum, (library.nearest_neighbours(both, part).distance for part in parts))
    sample_distances, new_distances = nearest[: -len(new)], nearest[-len(new) :]
    halves = np.array_split(new_distances[rng.permutation(len(new))], 2)
    medians = [float(np.median(part)) for part in (sample_distances, new_distances, *halves) if len(part)]
    if len(medians) < 4 or not all(medians[1:]):
        raise ValueError(f"memorisation needs at least two test images that are not training images, got {len(new)}")
    return medians[0] / medians[1], medians[2] / medians[3]


def _by_label(predictions, labels, names):
    """({metric: (value, floor)}, counts of the predicted classes of the samples).

    predictions, labels: {set: (N,)}; labels of the samples may be None.
    """
    arrays = [array for array in (*predictions.values(), *labels.values()) if array is not None]
    count = functools.partial(np.bincount, minlength=1 + max(int(array.max()) for array in arrays))

    def variation(x, y):
        # Not `library.class_balance`, which raises for classes with p = 0.
        return float(np.abs(count(x) / len(x) - count(y) / len(y)).sum() / 2)

    values = {}
    if "accuracy" in names:
        values["accuracy"] = tuple(library.accuracy(predictions[what], labels[what]) for what in ("samples", "test"))
    if "class_balance" in names:
        expected = labels["train"] if labels["samples"] is None else labels["samples"]
        floor = variation(predictions["test"], labels["test"])
        values["class_balance"] = variation(predictions["samples"], expected), floor
    return values, count(predictions["samples"]).tolist()


def stream_fd(
    extractor: Extractor,
    samples: Iterable[np.ndarray],
    real: Real,
    settings: Settings = Settings(),  # noqa: B008
    memory: dict[Any, Any] | None = None,
) -> Measures:
    """fd of all samples against all of the reference, from moments. Its floor uses as many real images as samples.

    samples: parts of images (N, H, W, C) in [-1, 1]. The other arguments are those of `measure`.

    Raises:
      ValueError: for too few images, or features that are not finite.
    """
    reference, memory = settings.reference, {} if memory is None else memory
    moments = {"samples": stream_moments(extractor, "samples", samples)}
    other = "train" if reference == "test" else "test"
    floor = getattr(real, other)[: int(moments["samples"].examples)]
    for what, source, images in (("floor", other, floor), ("reference", reference, getattr(real, reference))):
        key = ("moments", extractor.name, extractor.digest, source, len(images))
        if key not in memory:
            memory[key] = stream_moments(extractor, what, _parts(images))
        moments[what] = memory[key]
    counts = {what: int(value.examples) for what, value in moments.items()}
    check_counts(extractor.name, extractor.dimension, ("fd",), counts, settings.allow_few)
    value, least = (
        library.frechet_from_moments(moments[what], moments["reference"], allow_few=settings.allow_few)
        for what in ("samples", "floor")
    )
    conditions = _conditions(extractor) | {"fd": "of all, from moments"}
    conditions |= {f"num_{what}": count for what, count in counts.items()} | {"reference": reference}
    return Measures({"fd": value}, {"fd": least}, conditions, {})
