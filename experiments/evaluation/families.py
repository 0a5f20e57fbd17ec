"""The metrics of samples by name; each is reported beside its floor, the same number of real data against real data.

    fd                  Fréchet distance
    fd_infinity         its limit for infinitely many samples
    kid                 kernel distance
    precision, recall   by balls of 3 neighbours
    density, coverage   by balls of 5
    sliced_wasserstein
    sinkhorn            needs ott-jax
    memorisation        median distance of the samples to their nearest training image, over that of test images: 1 if
                        samples are as far from the training images as test images, less if they are copies
    accuracy            of the labels that the samples were drawn with; its floor is that of test images
    class_balance       total variation between the classes of the samples, by the judge, and their labels

The first seven rows compare n features of samples with n of test examples, the reference. Their floor compares n
training examples with the same n test examples; n is the smallest of the three counts. For sets of more than n examples
they are means over `repeats` random choices (fd_infinity and sinkhorn: one choice). The floor of memorisation compares
two halves of the test examples; those of accuracy and class_balance are of real images by the same judge.
"""

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from diffax import metrics as library
from diffax._checks import choose


class Family(NamedTuple):
    """Metrics that one call computes.

    of: (key, features, reference, allow_few) -> values. least: D -> the smallest number of examples. once: measured on
    one random choice only, because it is slow.
    """

    names: tuple[str, ...]
    of: Callable[[Any, np.ndarray, np.ndarray, bool], Sequence[float]]
    least: Callable[[int], int]
    once: bool = False


FAMILIES = [
    Family(("fd",), lambda key, x, y, few: [library.frechet_distance(x, y, allow_few=few)], lambda d: d + 1),
    Family(
        ("fd_infinity",),
        lambda key, x, y, few: [library.frechet_infinity(key, x, y).value],
        lambda d: 2 * d + 1,
        once=True,
    ),
    Family(("kid",), lambda key, x, y, few: [library.kernel_distance(x, y)], lambda d: 2),
    Family(("precision", "recall"), lambda key, x, y, few: library.precision_recall(y, x), lambda d: 4),
    Family(("density", "coverage"), lambda key, x, y, few: library.density_coverage(y, x), lambda d: 6),
    Family(("sliced_wasserstein",), lambda key, x, y, few: [library.sliced_wasserstein(key, x, y)], lambda d: 1),
    Family(("sinkhorn",), lambda key, x, y, few: [library.sinkhorn_divergence(x, y)], lambda d: 2, once=True),
]
BY_LABEL = ("accuracy", "class_balance")
NAMES = [*(name for family in FAMILIES for name in family.names), "memorisation", *BY_LABEL]


def add(name: str, function: Callable[[np.ndarray, np.ndarray], float]) -> None:
    """Add a metric: (features of samples (n, D), features of real images (n, D)) -> a number."""
    if name not in NAMES:
        FAMILIES.append(Family((name,), lambda key, x, y, few: [function(x, y)], lambda d: 2))
        NAMES.insert(len(FAMILIES) - 1, name)


def check_names(names: Sequence[str], judged: bool, labelled: bool = True) -> tuple[str, ...]:
    """The metrics of these names; "all" stands for all that can be measured.

    judged: whether there is a judge. labelled: whether samples are drawn with labels.

    Raises:
      ValueError: for no name, an unknown one, or one that needs a judge, labels or a package that is missing.
    """
    ott = importlib.util.find_spec("ott") is not None
    if "all" in names:
        possible = {"sinkhorn": ott, "accuracy": judged and labelled, "class_balance": judged}
        return tuple(name for name in NAMES if possible.get(name, True))
    if not names:
        raise ValueError(f"metrics must have at least one of {', '.join(NAMES)}, got none")
    for name in names:
        choose("metrics", name, tuple(NAMES))
        if name in BY_LABEL and not judged:
            raise ValueError(f"metric {name} needs a judge, a classifier of the data's labels")
    if "accuracy" in names and not labelled:
        raise ValueError("accuracy needs samples that were drawn with labels")
    if "sinkhorn" in names and not ott:
        raise ValueError("metric sinkhorn needs ott-jax: pip install '.[metrics]'")
    return tuple(names)


def check_counts(extractor: str, dimension: int, names: Sequence[str], counts: dict[str, int], allow_few: bool) -> int:
    """The smallest count, n.

    Raises:
      ValueError: if n is too small for one of the metrics; the error has the metric, the features and all counts.
    """
    n = min(counts.values())
    for name in names:
        least = least_count(name, dimension, allow_few)
        if n < least:
            few = " (or allow_few)" if name == "fd" and n > 1 else ""
            raise ValueError(
                f"{name} needs at least {least} examples of each set{few} in the {dimension} features of "
                f"{extractor}, got {', '.join(f'{count} {what}' for what, count in counts.items())}"
            )
    return n


def least_count(name: str, dimension: int, allow_few: bool = False) -> int:
    """The number of images of each set that a metric needs. allow_few: whether 2 are enough for fd."""
    if name == "fd" and allow_few:
        return 2
    return next((family.least(dimension) for family in FAMILIES if name in family.names), 2)
