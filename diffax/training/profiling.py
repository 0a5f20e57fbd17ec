"""A profiler trace of some steps of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax


class Profile:
    """A trace of the steps first .. last, both included, in a folder; of no step for ().

    Raises:
      ValueError: if `steps` is neither () nor (first, last) with 1 <= first <= last.
    """

    def __init__(self, steps: Sequence[int], folder: str | Path) -> None:
        steps = tuple(steps)
        if steps and not (len(steps) == 2 and 1 <= steps[0] <= steps[1]):
            raise ValueError(f"profile must be () or two steps (first, last), got {steps}")
        self._first, self._last = steps or (0, 0)
        self._folder, self._is_on = Path(folder).expanduser(), False

    def before(self, step: int) -> None:
        """Start the trace at the first step."""
        if step == self._first:
            jax.profiler.start_trace(self._folder)
            self._is_on = True

    def after(self, step: int, result: Any) -> None:
        """End the trace after the last step, once its result is computed."""
        if self._is_on and step == self._last:
            self.close(result)

    def close(self, result: Any = None) -> None:
        """End a trace that is under way."""
        if self._is_on:
            jax.block_until_ready(result)
            jax.profiler.stop_trace()
            self._is_on = False
