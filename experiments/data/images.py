"""Pictures: from [-1, 1] back to the data's pixels, PNG grids, and a picture to start from."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffax.training import Progress, TensorBoardLog
from diffax.training.processes import is_first

WIDTH = 480  # pixels that a grid of small images is enlarged to, about
TITLED = 64  # pixels that a column under a title has at least


def to_pixels(images: Any, low: float, high: float) -> np.ndarray:
    """Images (N, ..., C) in [-1, 1] in the units they were stored in: uint8, rounded, clipped to [low, high].

    Raises:
      ValueError: for values that are not finite; names the first image that has one.
    """
    is_finite = np.isfinite(images)
    if not is_finite.all():
        where = tuple(np.argwhere(~is_finite)[0])
        raise ValueError(f"samples must be finite, got {np.asarray(images)[where]} in sample {where[0]}")
    scaled = low + (np.asarray(images, np.float64) + 1) / 2 * (high - low)
    return np.round(np.clip(scaled, low, high)).astype(np.uint8)


def grid(images: Any, columns: int, titles: Sequence[str] = ()) -> np.ndarray:
    """Images (N, H, W, C) in [-1, 1] as one picture (H', W', 3) uint8, row by row, enlarged by whole pixels.

    titles: one above each column, or none.
    """
    images = to_pixels(np.nan_to_num(images, nan=-1.0), 0, 255)  # a picture shows where values are not finite
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    tiles = np.zeros((rows * columns, height + 1, width + 1, channels), np.uint8)
    tiles[:count, :height, :width] = images
    tiles = tiles.reshape(rows, columns, height + 1, width + 1, channels)
    picture = tiles.transpose(0, 2, 1, 3, 4).reshape(rows * (height + 1), columns * (width + 1), channels)
    zoom = max(1, WIDTH // picture.shape[1], -(-TITLED // (width + 1)) if titles else 1)
    picture = picture.repeat(zoom, 0).repeat(zoom, 1)
    picture = picture[..., :3] if channels >= 3 else picture[..., :1].repeat(3, -1)
    return np.concatenate([_header(titles, picture.shape[1]), picture]) if titles else picture


def _header(titles: Sequence[str], width: int) -> np.ndarray:
    """(H, width, 3): each title over its column, wrapped to the width of the column."""
    font, column = ImageFont.load_default(10), width // len(titles)
    fitting = max(1, int(column / font.getlength("n")))  # a line of wider letters is cut at the column's end
    texts = ["\n".join(textwrap.wrap(title, fitting)) for title in titles]
    height = 13 * max(text.count("\n") + 1 for text in texts) + 3
    band = np.full((height, width, 3), 255, np.uint8)
    for number, text in enumerate(texts):
        title = Image.new("RGB", (column, height), "white")
        ImageDraw.Draw(title).multiline_text((1, 1), text, "black", font, spacing=2)
        band[:, number * column : (number + 1) * column] = np.asarray(title)
    return band


def save_png(path: Path, images: Any, columns: int = 10, titles: Sequence[str] = ()) -> np.ndarray:
    """Write the grid and return it."""
    picture = grid(images, columns, titles)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    return picture


class Pictures:
    """Pictures of a run while it trains: samples/step_0000400.png in the workdir, and TensorBoard."""

    def __init__(self, workdir: Path, board: TensorBoardLog, progress: Progress) -> None:
        self._folder, self._board, self.message = workdir / "samples", board, progress.message

    def save(self, step: int, x: Any, columns: int) -> None:
        """Write images (N, *shape) in [-1, 1] as one picture, on the first process; a full disk is a warning."""
        if not is_first():
            return
        path = self._folder / f"step_{step:07d}.png"
        try:
            self._board.picture(step, "samples", save_png(path, x, columns))
            self.message(f"samples: {path}")
        except OSError as error:
            self.message(f"warning: {path} cannot be written ({error.strerror})")


def load_picture(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A picture file as (*shape) in [-1, 1], resized to the network's size.

    Raises:
      ValueError: if the file is no picture, or the channels are neither 1 nor 3.
    """
    modes = {1: "L", 3: "RGB"}
    if len(shape) != 3 or shape[-1] not in modes:
        raise ValueError(f"init_image needs a network for pictures with 1 or 3 channels, got shape {shape}")
    try:
        with Image.open(path) as picture:
            resized = picture.convert(modes[shape[-1]]).resize((shape[1], shape[0]), Image.Resampling.BOX)
    except OSError as error:
        raise ValueError(f"init_image must be a picture file, got {path} ({error})") from error
    return np.asarray(resized, np.float32).reshape(shape) / 127.5 - 1
