"""Metrics between two lines of a log: they stay on the devices until they are read, and steps may be skipped."""

from typing import Any

import jax
import numpy as np

from diffax.typing import Tree


class NotFiniteError(RuntimeError):
    """More steps in a row than allowed had a loss or a gradient that is not finite.

    step: the last of them. failed: {index of a run: error}, if each of several runs failed.
    """

    def __init__(self, message: str, step: int, failed: "dict[int, NotFiniteError] | None" = None) -> None:
        super().__init__(message)
        self.step, self.failed = step, failed or {}


class RunningMetrics:
    """The metrics of the steps since the last line of the log.

    A step whose metric `finite` is False was skipped (`train_step`) and does not count in the means. With a leading
    axis of runs, each metric has shape (K,), and a run that failed is left out from then on.

    Args:
      max_skipped: the number of steps in a row that a run may skip.
      saved: the result of `save`, from a checkpoint.

    Attributes:
      failed: {index of a run: error} of the runs that skipped more steps; index 0 without an axis of runs.
    """

    def __init__(self, max_skipped: int = 0, saved: dict[str, Any] | None = None) -> None:
        saved = saved or {"taken": [], "skipped": 0, "in_row": 0, "failed": {}}
        self._max_skipped = max_skipped
        self._on_device: list[tuple[int, Tree]] = []
        self._taken: list[dict[str, Any]] = saved["taken"]  # numbers, or lists of K numbers; NaN where skipped
        self._skipped, self._in_row = np.asarray(saved["skipped"]), np.asarray(saved["in_row"])
        self.failed = {int(index): NotFiniteError(*error) for index, error in saved["failed"].items()}

    def add(self, step: int, metrics: Tree) -> None:
        """Add the metrics of a step. They are not read, so the host does not wait for the devices."""
        self._on_device.append((step, metrics))

    def read(self) -> None:
        """Wait for the devices and read the metrics that were added.

        Raises:
          NotFiniteError: if a run, or each of the K runs, skipped more than `max_skipped` steps in a row.
        """
        waiting, self._on_device = jax.device_get(self._on_device), []
        for step, metrics in waiting:
            finite = np.asarray(metrics["finite"])
            values = {name: np.asarray(value, np.float64) for name, value in metrics.items() if name != "finite"}
            self._taken.append({name: np.where(finite, value, np.nan).tolist() for name, value in values.items()})
            self._skipped = self._skipped + ~finite
            self._in_row = np.where(finite, 0, self._in_row + 1)
            for index in np.flatnonzero(self._in_row > self._max_skipped):
                numbers = ", ".join(f"{name} {np.ravel(value)[index]:g}" for name, value in values.items())
                count = np.ravel(self._in_row)[index]
                message = f"step {step} is not finite ({numbers}); skipped steps in a row: {count}"
                self.failed.setdefault(int(index), NotFiniteError(message, step))
            if len(self.failed) == finite.size:
                last = max(self.failed.values(), key=lambda error: error.step)
                raise NotFiniteError(str(last), last.step, self.failed)

    def newest(self) -> dict[str, Any]:
        """The metrics of the newest step that was not skipped, {} if there is none."""
        self.read()
        return next((row for row in reversed(self._taken) if not _is_skipped(row)), {})

    def line(self) -> dict[str, Any]:
        """The means over the steps that were not skipped, and `skipped` if some were; then start again.

        With an axis of runs the values have shape (K,), with NaN for a run that took no step.
        """
        self.read()
        taken, skipped = self._taken, self._skipped
        self._taken, self._skipped = [], np.zeros_like(skipped)
        names = taken[0] if taken else {}
        means = {name: _mean([row[name] for row in taken]) for name in names}
        if np.ndim(skipped) == 0:
            means = {name: value for name, value in means.items() if not np.isnan(value)}
            return means | ({"skipped": int(skipped)} if skipped else {})
        return means | ({"skipped": skipped} if skipped.any() else {})

    def save(self) -> dict[str, Any]:
        """The content for a checkpoint (JSON), so that the next line after a restart is what it would have been."""
        self.read()
        failed = {index: [str(error), error.step] for index, error in self.failed.items()}
        counts = {"skipped": self._skipped.tolist(), "in_row": self._in_row.tolist()}
        return {"taken": list(self._taken), "failed": failed, **counts}


def _is_skipped(row: dict[str, Any]) -> bool:
    return bool(np.isnan(np.asarray(list(row.values()))).all())


def _mean(values: list[Any]) -> Any:
    """The mean over steps of numbers or of lists of K numbers, without those that are NaN."""
    table = np.asarray(values, np.float64)
    if table.ndim == 1:
        kept = table[~np.isnan(table)]
        return float(np.mean(kept)) if len(kept) else float("nan")
    return np.array([_mean(list(column)) for column in table.T])
