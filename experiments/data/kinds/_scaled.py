"""Values that are scaled by their units only: images, fields and points."""

from typing import Any

import numpy as np

from diffax.pretrained import Units


def normalise(x: Any, units: Units) -> np.ndarray:
    """Stored values in [-1, 1] if they have a range, otherwise with standard deviation 0.5 in each channel."""
    return units.normalise(x)


def denormalise(x: Any, units: Units) -> np.ndarray:
    """The values in their own units."""
    return units.denormalise(x)
