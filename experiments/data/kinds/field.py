"""Fields on a grid (*space, C) with one to four axes of space: NetCDF; lines, or maps with a colour bar."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffax.pretrained import Units
from experiments.data.kinds._figures import tiles
from experiments.data.kinds._scaled import denormalise, normalise

__all__ = ["denormalise", "normalise", "picture", "save"]
RANKS = (2, 3, 4, 5)
DTYPES: tuple[str, ...] = ()
CHANNELS: tuple[int, ...] = ()
SHOWN = 40  # panels of a picture


def save(path: Path, x: Any, units: Units, mask: Any = None) -> list[Path]:
    """Write fields (N, *space, C) to path.nc: a variable for each channel, with its units."""
    import xarray

    file, x = path.with_suffix(".nc"), np.asarray(x)
    axes = ("sample", *(f"axis_{i}" for i in range(x.ndim - 2)))
    names = _names(units, x.shape[-1])
    variables = {
        name: (axes, x[..., i], {"units": units.units[i]} if units.units else {}) for i, name in enumerate(names)
    }
    xarray.Dataset(variables).to_netcdf(file, engine="netcdf4")
    return [file]


def picture(x: Any, units: Units, columns: int = 10, titles: Sequence[str] = (), mask: Any = None) -> np.ndarray:
    """The first channel of each field, in its own units: a line, a map, or the middle slice of further axes."""
    values = units.denormalise(np.nan_to_num(np.asarray(x)[:SHOWN]))[..., 0]
    while values.ndim > 3:
        values = values[:, values.shape[1] // 2]
    count, label = len(values), _label(units)
    low, high = np.quantile(values, [0.001, 0.999])
    if high <= low:
        low, high = low - 1, high + 1

    def draw(axes: Any, index: int) -> Any:
        if values.ndim == 2:
            axes.plot(values[index], linewidth=0.6)
            axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
            return None
        axes.set_xticks([])
        axes.set_yticks([])
        return axes.imshow(values[index], vmin=low, vmax=high, cmap="viridis", interpolation="nearest")

    columns = columns if values.ndim == 3 else min(columns, 4)
    if values.ndim == 2:
        return tiles(count, min(columns, count), draw, titles, size=(3.0, 1.2))
    aspect = values.shape[1] / values.shape[2]
    return tiles(count, min(columns, count), draw, titles, bar=label, size=(1.2, min(max(1.2 * aspect, 0.5), 2.4)))


def _names(units: Units, count: int) -> Sequence[str]:
    return units.channels or [f"channel_{i}" for i in range(count)]


def _label(units: Units) -> str:
    unit = f" [{units.units[0]}]" if units.units and units.units[0] else ""
    return f"{units.channels[0] if units.channels else 'channel 0'}{unit}"
