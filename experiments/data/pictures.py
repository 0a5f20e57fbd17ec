"""Pictures of examples of any kind, and pictures during a training run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffax.pretrained import Units
from diffax.training import Logs, Progress
from diffax.training.processes import is_first
from experiments.data import kinds


def save_picture(
    path: Path, x: Any, units: Units, columns: int = 10, titles: Sequence[str] = (), mask: Any = None
) -> np.ndarray:
    """Write a picture of normalised examples (N, *shape), and return it.

    titles: one above each column, or none.
    """
    picture: np.ndarray = kinds.of(units.kind).picture(x, units, columns, titles, mask)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    return picture


class Pictures:
    """Pictures during a training run: samples/step_0000400.png in the workdir, and in the logs."""

    def __init__(self, workdir: Path, logs: Logs, progress: Progress, units: Units) -> None:
        self._folder, self._logs, self._units, self.message = workdir / "samples", logs, units, progress.message

    def save(self, step: int, x: Any, columns: int, titles: Sequence[str] = (), mask: Any = None) -> None:
        """Write examples (N, *shape) as one picture, on the first process; a full disk is a warning."""
        if not is_first():
            return
        path = self._folder / f"step_{step:07d}.png"
        try:
            self._logs.picture(step, "samples", save_picture(path, x, self._units, columns, titles, mask))
            self.message(f"samples: {path}")
        except OSError as error:
            self.message(f"warning: {path} cannot be written ({error.strerror})")
