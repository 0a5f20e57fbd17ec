"""The Fréchet distance of more images than are held in memory: their features' moments, one part at a time."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from diffax import metrics as library
from experiments.evaluation.extractors import Extractor
from experiments.evaluation.families import check_counts
from experiments.evaluation.measures import Measures, look


def stream_moments(extractor: Extractor, what: str, parts: Iterable[np.ndarray]) -> library.FeatureMoments:
    """The moments of the features of all images, of one part at a time.

    Args:
      extractor: what the features are.
      what: what the images are, for messages.
      parts: images (N, H, W, C) each, N >= 1.

    Raises:
      ValueError: for no part, or features that are not finite.
    """
    total: library.FeatureMoments | None = None
    for images in parts:
        first = 0 if total is None else int(total.examples)
        part = library.moments(look(extractor, what, images, range(first, first + len(images)))[1])
        total = part if total is None else library.merge(total, part)
    if total is None:
        raise ValueError(f"{what} must have images, got none")
    return total


def stream_fd(
    extractor: Extractor,
    samples: Iterable[np.ndarray],
    floor: Iterable[np.ndarray],
    reference: Iterable[np.ndarray],
    *,
    allow_few: bool = False,
    memory: dict[Any, Any] | None = None,
) -> Measures:
    """fd of all samples against all of the reference, from moments: one part's features are in memory at a time.

    Args:
      extractor: what the features are.
      samples: parts of images (N, H, W, C) in [-1, 1].
      floor: likewise. The floor is of as many of these real images as there are samples; of all, if they are fewer.
      reference: likewise, other real images: test images, or as most papers have it training images.
      allow_few: whether fewer images than features will do.
      memory: keeps the moments of the real images, for further calls with the same ones; {} at first.

    Raises:
      ValueError: for too few images, or features that are not finite.
    """
    of_samples = stream_moments(extractor, "samples", samples)
    memory, count = {} if memory is None else memory, int(of_samples.examples)
    keys = [("moments", extractor.digest, what) for what in (("floor", count), "reference")]
    for key, what, parts in zip(keys, ("floor", "reference"), (_first(floor, count), reference), strict=True):
        if key not in memory:
            memory[key] = stream_moments(extractor, what, parts)
    of_floor, of_reference = (memory[key] for key in keys)
    three = {"samples": of_samples, "floor": of_floor, "reference": of_reference}
    counts = {what: int(found.examples) for what, found in three.items()}
    check_counts(extractor.name, extractor.dimension, ("fd",), counts, allow_few)
    value, least = (library.frechet_from_moments(x, of_reference, allow_few=allow_few) for x in (of_samples, of_floor))
    conditions = {
        "extractor": extractor.name,
        "extractor_hash": extractor.digest[:16],
        "dimension": extractor.dimension,
        "fd": "of all, from moments",
        **{f"num_{what}": count for what, count in counts.items()},
    }
    return Measures({"fd": value}, {"fd": least}, conditions, {})


def _first(parts: Iterable[np.ndarray], count: int) -> Iterator[np.ndarray]:
    """The first `count` images."""
    for images in parts:
        if count <= 0:
            return
        yield images[:count]
        count -= len(images)
