"""Features of examples without a network, for data without a suitable classifier or pretrained network.

    fields, signals, volumes, points (D,)   the normalised values, projected to 64 dimensions if there are more
    sets of points (n, d)                   quantiles of the points along 32 directions, projected likewise, and with
                                            masks the number of points as a share of n

Entries outside a mask are ignored. `diffax.metrics._values` describes the effect of a projection on each distance.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from diffax.metrics import orthonormal_projection, set_quantiles, unit_directions
from experiments.data.datasets import Dataset
from experiments.evaluation.extractors import Extractor
from experiments.models.digests import digest

WIDTH = 64  # as many features as the classifier's, so that fd needs more than 64 examples
DIRECTIONS, QUANTILES, SEED = 32, 16, 0
PART = 1000  # examples that are computed at once


def with_masks(x: np.ndarray, masks: np.ndarray | None) -> np.ndarray:
    """Normalised examples (N, *space, 2 C): the channels, 0 outside the masks, and the mask of each; x without masks.

    masks: of the shape of the leading axes of x.
    """
    if masks is None:
        return x
    inside = np.broadcast_to(masks.reshape(masks.shape + (1,) * (x.ndim - masks.ndim)), x.shape)
    return np.concatenate([np.where(inside, x, np.float32(0)), inside.astype(np.float32)], -1)


def split_masks(x: np.ndarray, dataset: Dataset) -> tuple[np.ndarray, np.ndarray | None]:
    """(x, bool masks), both (N, *space, C), of `with_masks`; None for data without masks."""
    count = dataset.shape[-1]
    return (x, None) if dataset.mask is None else (x[..., :count], x[..., count:] > 0)


def of_values(dataset: Dataset) -> Extractor:
    """The extractor of the examples of a data set; data with masks are in the form of `with_masks`."""
    shape, is_set = dataset.shape, dataset.units.kind == "points" and len(dataset.shape) == 2
    directions = unit_directions(DIRECTIONS, shape[-1], seed=SEED) if shape[-1] > 1 else np.ones((1, 1), np.float32)
    quantiles = DIRECTIONS * QUANTILES // len(directions)
    entries = len(directions) * quantiles if is_set else math.prod(shape)
    projection = orthonormal_projection(entries, WIDTH, seed=SEED) if entries > WIDTH else None
    counted = is_set and dataset.mask is not None

    def features(x: np.ndarray) -> np.ndarray:
        x, masks = split_masks(x, dataset)
        points = None if masks is None or not is_set else np.asarray(masks.all(-1))
        z = set_quantiles(x, directions, quantiles, mask=points) if is_set else x.reshape(len(x), entries)
        z = z if projection is None else z @ projection
        return z if points is None else np.concatenate([z, points.mean(1, keepdims=True)], 1)

    width = min(entries, WIDTH)
    parts = [f"{entries} quantiles along {len(directions)} directions" if is_set else f"{entries} normalised values"]
    parts += [f"projected to {width} dimensions"] if projection is not None else []
    parts += ["number of points"] if counted else []
    own: dict[str, Any] = {"directions": directions} if is_set else {}
    own |= {} if projection is None else {"projection": projection}
    mark = digest("values", list(shape), quantiles if is_set else 0, int(counted), own)
    return Extractor("values", mark, width + counted, in_parts(features), about=", ".join(parts))


def in_parts(features: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """The same function, over `PART` examples at a time."""
    return lambda x: np.concatenate([features(x[at : at + PART]) for at in range(0, len(x), PART)])
