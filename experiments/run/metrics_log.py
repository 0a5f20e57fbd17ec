"""What is logged of a run: metrics.jsonl and TensorBoard, and the values that wait on the devices to be read."""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np


class NotFiniteError(RuntimeError):
    """More steps in a row than allowed had a loss or a gradient that is not finite. step: the last of them."""

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


class Pending:
    """Metrics of the steps since the last line of the log; they stay on the devices until they are read.

    Raises (from `read`):
      NotFiniteError: after more than `max_skipped` steps in a row that were not taken.
    """

    def __init__(self, max_skipped: int, held: dict[str, Any] | None = None):
        self._max_skipped = max_skipped
        self._on_device: list[tuple[int, Any]] = []
        held = held or {"values": [], "skipped": 0, "in_row": 0}
        self._values, self._skipped, self._in_row = held["values"], held["skipped"], held["in_row"]

    def add(self, step: int, metrics: Any) -> None:
        """The metrics of a step, unread."""
        self._on_device.append((step, metrics))

    def read(self) -> dict[str, Any]:
        """Waits for the devices. Returns what a checkpoint holds so that the next line is what it would have been."""
        read, self._on_device = jax.device_get(self._on_device), []
        for step, metrics in read:
            values = {name: float(value) for name, value in metrics.items()}
            if values.pop("finite"):
                self._values.append(values)
                self._in_row = 0
                continue
            self._skipped, self._in_row = self._skipped + 1, self._in_row + 1
            if self._in_row > self._max_skipped:
                said = ", ".join(f"{name} {value:g}" for name, value in values.items())
                raise NotFiniteError(f"step {step} is not finite ({said}), the {self._in_row}. in a row", step)
        return {"values": list(self._values), "skipped": self._skipped, "in_row": self._in_row}

    def newest(self) -> dict[str, float]:
        """The values of the last step that was taken, {} if there is none."""
        self.read()
        return self._values[-1] if self._values else {}

    def line(self) -> dict[str, float]:
        """The means over the steps that were taken, and how many were not; then starts anew."""
        self.read()
        taken, skipped = self._values, self._skipped
        self._values, self._skipped = [], 0
        means = jax.tree.map(lambda *v: float(np.mean(v)), *taken) if taken else {}
        return means | ({"skipped": skipped} if skipped else {})


class MetricsLog:
    """metrics.jsonl, one line a step; with `board` TensorBoard beside it, where tensorboardX is installed.

    Lines of steps after `first_step`, which a killed run wrote and the next will write again, are dropped. A line that
    finds the disk full waits for the next.
    """

    def __init__(self, workdir: Path, first_step: int, *, board: bool = True):
        path = workdir / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if _step_of(line) <= first_step]
        part = path.with_name(".metrics.jsonl.part")
        part.write_text("".join(line + "\n" for line in kept))
        os.replace(part, path)
        self._file, self._unwritten, self._board = path.open("ab", buffering=0), b"", None
        if not board:
            return
        with contextlib.suppress(ImportError):
            import tensorboardX

            self._board = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Logs the values of a step."""
        self._unwritten += json.dumps({"step": step, **values}).encode() + b"\n"
        self._flush()
        self._on_board(lambda board: [board.add_scalar(name, value, step) for name, value in values.items()])

    def _on_board(self, act):
        """TensorBoard is a convenience: a disk that is full ends it, not the run."""
        try:
            if self._board is not None:
                act(self._board)
        except OSError as error:
            self._board = None
            print(f"warning: TensorBoard is not written any more ({error.strerror})", file=sys.stderr, flush=True)

    def _flush(self):
        size = self._file.seek(0, os.SEEK_END)
        left = self._unwritten
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            self._file.truncate(size)
            print(f"warning: metrics.jsonl cannot be written now ({error.strerror})", file=sys.stderr, flush=True)
        else:
            self._unwritten = b""

    def sync(self) -> None:
        """What was written is on the disk: before a checkpoint after which nobody writes it again."""
        with contextlib.suppress(OSError):
            os.fsync(self._file.fileno())

    def image(self, step: int, name: str, picture: Any) -> None:
        """Shows a picture (H, W, C) uint8 on TensorBoard."""
        self._on_board(lambda board: board.add_image(name, picture, step, dataformats="HWC"))

    def close(self) -> None:
        """Flushes and closes the files."""
        self._flush()
        self._file.close()
        self._on_board(lambda board: board.close())


class NoLog:
    """The log of a process that is not the first."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """Nothing."""

    def sync(self) -> None:
        """Nothing."""

    def image(self, step: int, name: str, picture: Any) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):  # a line cut short by a kill
        return float("inf")
