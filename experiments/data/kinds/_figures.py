"""Figures of samples as pictures, by matplotlib."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image


def tiles(
    count: int,
    columns: int,
    draw: Callable[[Any, int], Any],
    titles: Sequence[str] = (),
    *,
    bar: str | None = None,
    size: tuple[float, float] = (1.2, 1.2),
) -> np.ndarray:
    """(H, W, 3) uint8: a figure of `count` axes, each drawn by draw(axes, index).

    bar: label of a common colour bar, None for none. size: width and height of the axes, in inches.
    """
    import matplotlib.figure

    rows = -(-count // columns)
    width, height = size[0] * columns + 0.8 * (bar is not None), size[1] * rows + 0.3
    figure = matplotlib.figure.Figure((width, height), 100)
    figure.set_layout_engine("constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    shown = None
    for index, axes in enumerate(grid.flat):
        axes.tick_params(labelsize=6)
        if index >= count:
            axes.axis("off")
            continue
        if titles and index < columns:
            axes.set_title(titles[index], fontsize=8)
        shown = draw(axes, index)
    if bar is not None and shown is not None:
        figure.colorbar(shown, ax=grid, label=bar, shrink=0.8)
    return pixels(figure)


def pixels(figure: Any) -> np.ndarray:
    """A figure as (H, W, 3) uint8."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return np.asarray(Image.open(buffer).convert("RGB"))
