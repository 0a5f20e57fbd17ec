"""The Fréchet distance of more images than are held in memory: their features' moments, one part at a time."""

from collections.abc import Iterable, Iterator

import numpy as np

from diffax import metrics as library
from experiments.extractors import Extractor
from experiments.measures import Measures, check_counts, look


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
    train: Iterable[np.ndarray],
    test: Iterable[np.ndarray],
    *,
    allow_few: bool = False,
) -> Measures:
    """fd of all samples against all test images, from moments: one part's features are in memory at a time.

    The floor is that of as many training images as there are samples; of all of them, if they are fewer.

    Args:
      extractor: what the features are.
      samples: parts of images (N, H, W, C) in [-1, 1].
      train: likewise. What the floor is of: with train and test exchanged, fd is that against the training images,
        as most papers have it.
      test: likewise, the reference.
      allow_few: whether fewer images than features will do.

    Raises:
      ValueError: for too few images, or features that are not finite.
    """
    of_samples = stream_moments(extractor, "samples", samples)
    of_train = stream_moments(extractor, "train", _first(train, int(of_samples.examples)))
    of_test = stream_moments(extractor, "test", test)
    three = {"samples": of_samples, "train": of_train, "test": of_test}
    counts = {what: int(found.examples) for what, found in three.items()}
    check_counts(extractor, ("fd",), counts, allow_few)
    value, floor = (library.frechet_from_moments(x, of_test, allow_few=allow_few) for x in (of_samples, of_train))
    conditions = {
        "extractor": extractor.name,
        "extractor_hash": extractor.digest[:16],
        "dimension": extractor.dimension,
        **{f"num_{what}": count for what, count in counts.items()},
    }
    return Measures({"fd": value}, {"fd": floor}, conditions, {})


def _first(parts: Iterable[np.ndarray], count: int) -> Iterator[np.ndarray]:
    """The first `count` images."""
    for images in parts:
        if count <= 0:
            return
        yield images[:count]
        count -= len(images)
