"""Arrays in the page: integers with one scale, in base64, which `decode` of js/plot.js reads."""

import base64
from typing import Any

import numpy as np


def pack(values: Any, dtype: str = "int16") -> dict[str, Any]:
    """An array as {shape, scale, dtype, data}: value = scale * integer, little endian, C order.

    Args:
      values: finite numbers of any shape.
      dtype: "int16", with steps of max|value| / 32767, or "int8", with steps of max|value| / 127.

    Raises:
      ValueError: if a value is not finite.
    """
    values = np.asarray(values, np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"values must be finite, got {np.count_nonzero(~np.isfinite(values))} that are not")
    largest = np.iinfo(dtype).max
    scale = float(f"{max(abs(values).max(), 1e-12) / largest:.6g}")
    integers = np.clip(np.rint(values / scale), -largest, largest).astype(np.dtype(dtype).newbyteorder("<"))
    data = base64.b64encode(integers.tobytes()).decode()
    return {"shape": list(values.shape), "scale": scale, "dtype": dtype, "data": data}


def unpack(packed: dict[str, Any]) -> np.ndarray:
    """The array of `pack`, in float64.

    >>> unpack(pack([[1.0, -0.5]], "int8")).round(2).tolist()
    [[1.0, -0.5]]
    """
    integers = np.frombuffer(base64.b64decode(packed["data"]), np.dtype(packed["dtype"]).newbyteorder("<"))
    return integers.astype(np.float64).reshape(packed["shape"]) * packed["scale"]


def is_packed(value: Any) -> bool:
    """Whether the value is a result of `pack`."""
    return isinstance(value, dict) and "scale" in value and "data" in value


def numbers(values: Any, digits: int = 7) -> Any:
    """Nested lists of the values, each rounded to this number of significant digits."""
    if isinstance(values, (list, tuple)):
        return [numbers(value, digits) for value in values]
    array = np.asarray(values, np.float64)
    return float(f"{array:.{digits}g}") if array.ndim == 0 else [numbers(value, digits) for value in array]
