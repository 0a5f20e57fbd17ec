"""Features of images in memory by an extractor, and moments of the features of more images than fit into memory."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from diffax import metrics as library
from experiments.evaluation.extractors import Extractor


def look(extractor: Extractor, what: str, images: np.ndarray, numbers: Any) -> tuple[Any, np.ndarray]:
    """(predicted labels or None, features (N, D)) of images (N, H, W, C). numbers: (N,) of the images, for the error.

    Raises:
      ValueError: if a feature is not finite; the error has the extractor and the first such image.
    """
    labels, features = extractor.classify(images) if extractor.classify else (None, extractor.features(images))
    finite = np.isfinite(features).all(1)
    if not finite.all():
        at = int(np.argmin(finite))
        value = features[at][~np.isfinite(features[at])][0]
        image = " (the image itself is not finite)" if not np.isfinite(images[at]).all() else ""
        where = f"{value} of number {numbers[at]}{image}"
        raise ValueError(f"features of {what} by extractor {extractor.name} must be finite, got {where}")
    return labels, features


def look_at_all(
    extractor: Extractor, samples: np.ndarray, real: Any, rows: dict[str, np.ndarray], memory: dict[Any, Any]
) -> dict[str, Any]:
    """{"samples", "train", "test": (predicted labels or None, features)}; those of real images are kept in `memory`.

    samples: only the images of `rows["samples"]`. real: all images; this function selects their rows.
    """
    result = {"samples": look(extractor, "samples", samples, rows["samples"])}
    for what, images in (("train", real.train), ("test", real.test)):
        key = ("look", extractor.name, extractor.digest, what, rows[what].tobytes())
        if key not in memory:
            memory[key] = look(extractor, what, images[rows[what]], rows[what])
        result[what] = memory[key]
    return result


def stream_moments(extractor: Extractor, what: str, parts: Iterable[np.ndarray]) -> library.FeatureMoments:
    """The moments of the features of all images; the features of one part are in memory at a time.

    Args:
      extractor: of the features.
      what: a name of the images, for errors.
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
