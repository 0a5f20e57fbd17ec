"""Grids of images with titles."""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffax.pretrained import Units

WIDTH = 480  # pixels; a grid of small images is enlarged to about this width
TITLED = 64  # pixels; the least width of a column with a title


def grid(images: Any, columns: int, titles: Sequence[str] = ()) -> np.ndarray:
    """Images (N, H, W, C) in [-1, 1] as one picture (H', W', 3) uint8, row by row, enlarged by whole pixels.

    titles: one above each column, or none.
    """
    images = Units().denormalise(np.nan_to_num(images, nan=-1.0))  # values that are not finite become black
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
