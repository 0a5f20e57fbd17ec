"""Kinds of data. A kind NAME is a module `experiments.data.kinds.NAME` with four functions; it needs no registration.

    normalise(x, units)                      stored values (N, *shape) -> normalised values, the input of a model
    denormalise(x, units)                    the inverse
    save(path, x, units, mask) -> [Path]     write samples in their own units to files path.SUFFIX
    picture(x, units, columns, titles, mask) -> (H, W, 3) uint8, of normalised values

and the constants RANKS, the allowed numbers of axes of an example (*space, C), DTYPES and CHANNELS, () for any.
"""

import importlib
import pkgutil
from typing import Any

import numpy as np


def names() -> tuple[str, ...]:
    """The names of all kinds."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")))


def of(name: str) -> Any:
    """The module of a kind.

    Raises:
      ValueError: for an unknown name.
    """
    if name not in names():
        raise ValueError(f"kind must be one of {', '.join(names())}, got {name!r}")
    return importlib.import_module(f"{__name__}.{name}")


def check(name: str, shape: tuple[int, ...], dtype: str) -> None:
    """Raise `ValueError` for a kind that does not fit examples of this shape and type."""
    kind = of(name)
    if len(shape) not in kind.RANKS:
        ranks = " or ".join(map(str, kind.RANKS))
        raise ValueError(f"kind must fit the data: {name!r} takes examples with {ranks} axes, got shape {shape}")
    if kind.DTYPES and str(np.dtype(dtype)) not in kind.DTYPES:
        raise ValueError(f"kind must fit the data: {name!r} takes {' or '.join(kind.DTYPES)}, got {dtype}")
    if kind.CHANNELS and shape[-1] not in kind.CHANNELS:
        counts = " or ".join(map(str, kind.CHANNELS))
        raise ValueError(f"kind must fit the data: {name!r} takes {counts} channels, got shape {shape}")
