"""Pairs of noise and the sample that a trained model draws from it, in the folder of `experiments.sample --pairs`."""

from collections.abc import Sequence
from typing import Any

import numpy as np


class Pairs(Sequence):
    """Records {x, eps, label}: x normalised, eps the noise that x was drawn from.

    x, eps: (N, *shape). labels: (N,), -1 for none. digest: of the parameters of the model.
    """

    def __init__(self, x: np.ndarray, eps: np.ndarray, labels: np.ndarray, digest: str) -> None:
        self.digest = digest
        self._x, self._eps, self._labels = x, eps, labels

    def identity(self) -> dict[str, Any]:
        """The values that a continued run must have as well."""
        return {"digest": self.digest, "length": len(self)}

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(self, place: Any) -> Any:
        return {"x": self._x[place], "eps": self._eps[place], "label": np.int32(self._labels[place])}
