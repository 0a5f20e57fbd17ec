"""Points (d,), or sets of points (n, d) with a mask: CSV; XYZ and PLY for sets in three dimensions; scatter plots."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffax.pretrained import Units
from experiments.data.kinds._figures import pixels, tiles
from experiments.data.kinds._scaled import denormalise, normalise

__all__ = ["denormalise", "normalise", "picture", "save"]
RANKS = (1, 2)
DTYPES: tuple[str, ...] = ()
CHANNELS: tuple[int, ...] = ()
SHOWN = 40  # sets of a picture


def save(path: Path, x: Any, units: Units, mask: Any = None) -> list[Path]:
    """Write path.csv with a row for each point; sets (N, n, 3) also as path.xyz, and each set as path_00000.ply."""
    import pandas as pd

    x, names = np.asarray(x), list(units.channels) or [f"x{i}" for i in range(np.shape(x)[-1])]
    file = path.with_suffix(".csv")
    if x.ndim == 2:
        pd.DataFrame(x, columns=names).to_csv(file, index=False)
        return [file]
    sets = [points if mask is None else points[np.asarray(mask[i], bool)] for i, points in enumerate(x)]
    number = np.repeat(np.arange(len(sets)), [len(points) for points in sets])
    pd.DataFrame({"sample": number, **dict(zip(names, np.concatenate(sets).T, strict=True))}).to_csv(file, index=False)
    if x.shape[-1] != 3:
        return [file]
    xyz = path.with_suffix(".xyz")
    xyz.write_text("".join(f"{len(points)}\nsample {i}\n{_rows(points, 'X ')}" for i, points in enumerate(sets)))
    clouds = [path.with_name(f"{path.name}_{i:05d}.ply") for i in range(len(sets))]
    for cloud, points in zip(clouds, sets, strict=True):
        axes = "".join(f"property float {axis}\n" for axis in "xyz")
        cloud.write_text(f"ply\nformat ascii 1.0\nelement vertex {len(points)}\n{axes}end_header\n{_rows(points)}")
    return [file, xyz, *clouds]


def _rows(points: np.ndarray, prefix: str = "") -> str:
    return "".join(prefix + " ".join(f"{value:.7g}" for value in point) + "\n" for point in points)


def picture(x: Any, units: Units, columns: int = 10, titles: Sequence[str] = (), mask: Any = None) -> np.ndarray:
    """The first two coordinates: one scatter plot of all points (N, d), or one for each set (N, n, d)."""
    import matplotlib.figure

    values = units.denormalise(np.nan_to_num(np.asarray(x)))
    sets = [values] if values.ndim == 2 else list(values[:SHOWN])
    if values.ndim == 3 and mask is not None:
        sets = [points[np.asarray(own, bool)] for points, own in zip(sets, mask, strict=False)]
    # A set in one dimension is drawn on the diagonal.
    sets = [points[:, [0, min(1, points.shape[1] - 1)]] for points in sets]
    low, high = np.quantile(np.concatenate(sets), [0.002, 0.998], axis=0)
    pad = 0.1 * (high - low) + 1e-9

    def draw(axes: Any, index: int) -> None:
        axes.scatter(*sets[index].T, s=6 if values.ndim == 2 else 3, linewidths=0)
        axes.set_xlim(low[0] - pad[0], high[0] + pad[0])
        axes.set_ylim(low[1] - pad[1], high[1] + pad[1])

    if values.ndim == 3:
        return tiles(len(sets), min(columns, len(sets)), draw, titles)
    figure = matplotlib.figure.Figure((4.8, 4.8), 100)
    axes = figure.subplots()
    draw(axes, 0)
    axes.set_xlabel(units.channels[0] if units.channels else "x0")
    axes.set_ylabel(units.channels[1] if len(units.channels) > 1 else f"x{min(1, values.shape[1] - 1)}")
    return pixels(figure)
