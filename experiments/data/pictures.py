"""Pictures of a run while it trains: files in the workdir, and TensorBoard."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffax.training import Progress, TensorBoardLog
from diffax.training.processes import is_first
from experiments.data import images


class Pictures:
    """Writes samples/step_0000400.png in the workdir, from the first process."""

    def __init__(self, workdir: Path, board: TensorBoardLog, progress: Progress) -> None:
        self._folder, self._board, self.message = workdir / "samples", board, progress.message

    def save(self, step: int, x: Any, columns: int, titles: Sequence[str] = ()) -> None:
        """Write images (N, *shape) in [-1, 1] as one picture; a full disk is a warning."""
        if not is_first():
            return
        path = self._folder / f"step_{step:07d}.png"
        try:
            self._board.picture(step, "samples", images.save_png(path, x, columns, titles))
            self.message(f"samples: {path}")
        except OSError as error:
            self.message(f"warning: {path} cannot be written ({error.strerror})")
