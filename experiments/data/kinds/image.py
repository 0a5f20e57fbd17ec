"""Images (H, W, C), 1 or 3 channels of uint8: a grid as PNG."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffax.pretrained import Units
from experiments.data import images
from experiments.data.kinds._scaled import denormalise, normalise

__all__ = ["denormalise", "normalise", "picture", "save"]
RANKS = (3,)
DTYPES = ("uint8",)
CHANNELS = (1, 3)


def save(path: Path, x: Any, units: Units, mask: Any = None, *, columns: int = 10) -> list[Path]:
    """Write pixels (N, H, W, C) as one picture path.png."""
    file = path.with_suffix(".png")
    Image.fromarray(picture(normalise(x, units), units, columns)).save(file)
    return [file]


def picture(x: Any, units: Units, columns: int = 10, titles: Sequence[str] = (), mask: Any = None) -> np.ndarray:
    """A grid, row by row."""
    return images.grid(x, columns, titles)
