"""Metrics of samples beside their floors: the same metrics of as many real images. See `families` for the metrics."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from diffax import metrics as library
from diffax._checks import check_count, choose
from experiments.evaluation.extractors import Extractor
from experiments.evaluation.families import FAMILIES, check_counts, check_names

HELD = 10_000  # images of a set whose features are in memory at once; random ones, where there are more


class Real(NamedTuple):
    """Real images (N, H, W, C) in [-1, 1] and their labels (N,): those that the model was trained on, and others."""

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray


class Measures(NamedTuple):
    """metrics, floors: {name: value}. conditions: how they were measured, numbers and strings.

    spread: {name: standard deviation over the random choices, of the metric and of its floor}; class_counts: of the
    samples by the judge, None without one.
    """

    metrics: dict[str, float]
    floors: dict[str, float]
    conditions: dict[str, Any]
    spread: dict[str, tuple[float, float]]
    class_counts: list[int] | None = None


def look(extractor: Extractor, what: str, images: np.ndarray, numbers: Any) -> tuple[Any, np.ndarray]:
    """(labels or None, features (N, D)) of images (N, H, W, C). numbers: (N,) which they are, for the message.

    Raises:
      ValueError: if a feature is not finite: names the extractor and the first such image.
    """
    found, features = extractor.classify(images) if extractor.classify else (None, extractor.features(images))
    finite = np.isfinite(features).all(1)
    if not finite.all():
        at = int(np.argmin(finite))
        value = features[at][~np.isfinite(features[at])][0]
        image = " (the image itself is not finite)" if not np.isfinite(images[at]).all() else ""
        where = f"{value} of number {numbers[at]}{image}"
        raise ValueError(f"features of {what} by extractor {extractor.name} must be finite, got {where}")
    return found, features


def measure(
    extractor: Extractor,
    samples: np.ndarray,
    real: Real,
    *,
    labels: np.ndarray | None = None,
    names: Sequence[str] = ("fd",),
    judge: Extractor | None = None,
    reference: str = "test",
    allow_few: bool = False,
    repeats: int = 20,
    seed: int = 0,
    memory: dict[Any, Any] | None = None,
) -> Measures:
    """Metrics of samples. The same arguments give the same numbers, bit for bit on the same machine.

    Args:
      extractor: what the features are; the judge too, if it classifies and none is given.
      samples: (N, H, W, C) in [-1, 1].
      real: images of the same shape and classes.
      labels: (N,) that the samples were drawn with; None without.
      names: of the metrics, or "all".
      judge: an extractor that classifies, for accuracy and class_balance.
      reference: "test", or "train" to compare with the training images, and test images with them as floor.
      allow_few: whether fd may do with fewer examples than features.
      repeats: random choices of n.
      seed: of these.
      memory: keeps what was computed of the real images alone, for further calls with the same ones; {} at first.

    Raises:
      ValueError: for bad names, too few examples, features that are not finite, or that have no such metric: no
        convergence, images that are all alike.
    """
    judge, memory = extractor if judge is None else judge, {} if memory is None else memory
    names = check_names(names, judge.classify is not None)
    if "accuracy" in names and labels is None:
        raise ValueError("accuracy needs samples that were drawn with labels")
    check_count("repeats", repeats)
    choose("reference", reference, ("test", "train"))
    counts = {"samples": len(samples), "train": len(real.train), "test": len(real.test)}
    held = {what: min(count, HELD) for what, count in counts.items()}
    n = check_counts(extractor.name, extractor.dimension, names, held, allow_few)
    rng = np.random.default_rng(seed)
    chosen = {what: _held(rng, count) for what, count in counts.items()}
    images = {"samples": samples, "train": real.train, "test": real.test}
    seen = _look_at(extractor, images, chosen, memory)
    features = {what: found[1] for what, found in seen.items()}
    metrics, floors, spread = _compare(
        features, reference, n, names, rng, allow_few, repeats, seed, (memory, extractor)
    )
    if "memorisation" in names:
        metrics["memorisation"], floors["memorisation"] = _memorisation(extractor, features, real.train, rng)
    of_judge = None
    if judge.classify is not None:
        seen = seen if judge is extractor else _look_at(judge, images, chosen, memory)
        wanted = {"train": real.train_labels[chosen["train"]], "test": real.test_labels[chosen["test"]]}
        wanted["samples"] = None if labels is None else labels[chosen["samples"]]
        of_judge = _by_label({what: pair[0] for what, pair in seen.items()}, wanted, names, metrics, floors)
    conditions = _conditions(extractor, judge, chosen)
    conditions |= {"n": n, "reference": reference, "repeats": repeats, "measure_seed": seed}
    order = [name for name in names if name in metrics]
    return Measures({k: metrics[k] for k in order}, {k: floors[k] for k in order}, conditions, spread, of_judge)


def _conditions(extractor, judge, chosen):
    """By what and of how many images."""
    return {
        "extractor": extractor.name,
        "extractor_hash": extractor.digest[:16],
        "dimension": extractor.dimension,
        **({} if judge is extractor else {"judge": judge.name, "judge_hash": judge.digest[:16]}),
        **{f"num_{what}": len(rows) for what, rows in chosen.items()},
    }


def _look_at(extractor, images, chosen, memory):
    """What `look` gives of each set; that of real images is kept."""
    found = {}
    for what, rows in chosen.items():
        at = ("look", extractor.name, extractor.digest, what, rows.tobytes())
        if what == "samples" or at not in memory:
            memory[at] = look(extractor, what, images[what][rows], rows)
        found[what] = memory.pop(at) if what == "samples" else memory[at]
    return found


def _held(rng, count):
    return np.arange(count) if count <= HELD else np.sort(rng.permutation(count)[:HELD])


def _compare(features, against, n, names, rng, allow_few, repeats, seed, kept):
    """Metrics, floors and spread of the families."""
    chosen = rng.permutation(len(features[against]))[:n]
    reference, other, sides = features[against][chosen], "train" if against == "test" else "test", []
    for what in ("samples", other):
        choices = [rng.permutation(len(features[what]))[:n] for _ in range(repeats)]
        sides.append(choices if len(features[what]) > n else choices[:1])
    key, values, (memory, extractor) = jax.random.key(seed), ({}, {}), kept
    same = (extractor.name, extractor.digest, against, seed, allow_few, np.stack([chosen, *sides[1]]).tobytes())
    for family in FAMILIES:
        if not set(family.names) & set(names):
            continue

        def of(what, side, family=family):
            # The same key for both sides: the same projections.
            choices = side[: 1 if family.once else None]
            try:
                rows = [family.of(key, features[what][rows], reference, allow_few) for rows in choices]
            except ValueError as error:  # the library names its own arguments, and not the metric
                raise ValueError(f"{', '.join(family.names)} of {what}: {error}") from error
            return dict(zip(family.names, np.array(rows, np.float64).T, strict=True))

        at = ("floor", family.names, *same)
        if at not in memory:
            memory[at] = of(other, sides[1])
        values[0].update(of("samples", sides[0]))
        values[1].update(memory[at])
    metrics, floors = ({k: float(v.mean()) for k, v in found.items() if k in names} for found in values)
    return metrics, floors, {k: (float(values[0][k].std()), float(values[1][k].std())) for k in metrics}


def _memorisation(extractor, features, train, rng):
    if len(train) <= HELD:
        parts = [features["train"]]
    else:
        blocks = (range(at, min(at + HELD, len(train))) for at in range(0, len(train), HELD))
        parts = (look(extractor, "train", train[rows.start : rows.stop], rows)[1] for rows in blocks)
    new = features["test"]
    both = np.concatenate([features["samples"], new])
    nearest = functools.reduce(np.minimum, (library.nearest_neighbours(both, part).distance for part in parts))
    of_samples, of_new = nearest[: -len(new)], nearest[-len(new) :]
    halves = np.array_split(of_new[rng.permutation(len(new))], 2)
    middles = [float(np.median(part)) for part in (of_samples, of_new, *halves) if len(part)]
    if len(middles) < 4 or not all(middles[1:]):
        raise ValueError(f"memorisation needs two test images at least that are not training images, got {len(new)}")
    return middles[0] / middles[1], middles[2] / middles[3]


def _by_label(found, wanted, names, metrics, floors):
    """Puts in what the judge says; returns the counts of the samples' classes."""
    classes = 1 + max(int(array.max()) for array in (*found.values(), *wanted.values()) if array is not None)
    count = functools.partial(np.bincount, minlength=classes)
    if "accuracy" in names:
        metrics["accuracy"] = library.accuracy(found["samples"], wanted["samples"])
        floors["accuracy"] = library.accuracy(found["test"], wanted["test"])
    if "class_balance" in names:
        asked = wanted["train"] if wanted["samples"] is None else wanted["samples"]
        for to, what, of in ((metrics, "samples", asked), (floors, "test", wanted["test"])):
            # Not `library.class_balance`: classes that nobody asked for have p = 0.
            gap = count(found[what]) / len(found[what]) - count(of) / len(of)
            to["class_balance"] = float(np.abs(gap).sum() / 2)
    return count(found["samples"]).tolist()
