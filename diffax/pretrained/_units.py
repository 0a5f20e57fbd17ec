"""Between stored data and the values that a model sees."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from diffax.typing import Array, Examples

STD = 0.5  # standard deviation of standardised data, the default sigma_data


@dataclasses.dataclass(frozen=True)
class Units:
    """How stored values correspond to the values that a model sees.

        with a range       x = 2 (stored - low) / (high - low) - 1, in [-1, 1]
        without            x = STD (stored - mean) / std for each channel, with standard deviation STD = 0.5

    Attributes:
      dtype: type of the stored values; integers are rounded and clipped.
      range: (low, high) of the stored values; None to standardise.
      mean, std: of each channel, where there is no range.
      kind: of data: "image", "field", "points", ...
      channels, units: names of the channels and their units, or ().
    """

    dtype: str = "uint8"
    range: tuple[float, float] | None = (0.0, 255.0)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    kind: str = "image"
    channels: tuple[str, ...] = ()
    units: tuple[str, ...] = ()

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "Units":
        """The units of `dataclasses.asdict`, also after JSON."""
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
            for key, value in content.items()
        }
        return cls(**values)

    @property
    def bin_width(self) -> float:
        """The distance between neighbouring integers in what the model sees; 0 for floats or without a range."""
        if self.range is None or not np.issubdtype(np.dtype(self.dtype), np.integer):
            return 0.0
        return 2 / (self.range[1] - self.range[0])

    def normalise(self, x: Examples) -> np.ndarray:
        """Stored values (..., C) as a model sees them, float32."""
        x = np.asarray(x)
        if self.range is not None:
            low, high = self.range
            return np.asarray(2 * (x.astype(np.float32) - low) / (high - low) - 1, np.float32)
        mean, std = np.asarray(self.mean), np.asarray(self.std)
        return np.asarray(STD * (x.astype(np.float64) - mean) / std, np.float32)

    def standardise(self, x: Examples) -> Array:
        """`normalise` for units without a range, as a JAX function in float32, so that x may be traced."""
        mean, std = (jnp.asarray(value, jnp.float32) for value in (self.mean, self.std))
        return STD * (jnp.asarray(x, jnp.float32) - mean) / std

    def denormalise(self, x: Examples) -> np.ndarray:
        """The stored values (..., C) of what a model sees.

        Raises:
          ValueError: for values that are not finite; names the first example that has one.
        """
        x = np.asarray(x)
        finite = np.isfinite(x)
        if not finite.all():
            place = tuple(np.argwhere(~finite)[0])
            raise ValueError(f"samples must be finite, got {x[place]} in sample {place[0]}")
        if self.range is not None:
            low, high = self.range
            values = (x.astype(np.float64) + 1) / 2 * (high - low) + low
        else:
            values = x.astype(np.float64) / STD * np.asarray(self.std) + np.asarray(self.mean)
        dtype = np.dtype(self.dtype)
        if np.issubdtype(dtype, np.integer):
            bounds = self.range or (np.iinfo(dtype).min, np.iinfo(dtype).max)
            values = np.clip(np.rint(values), *bounds)
        return values.astype(dtype)
