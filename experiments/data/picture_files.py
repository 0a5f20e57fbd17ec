"""Picture files as arrays: rotated by EXIF, scaled to 8 bits, composited on a background, cropped or padded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageOps

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif")
FITS = ("crop", "random_crop", "pad")


def open_picture(path: Path, ground: str = "white") -> Image.Image:
    """A picture in its displayed orientation, with mode L or RGB.

    16-bit values are divided by 257; float values must be in [0, 1] and are multiplied by 255. ground: the background
    colour of transparent pictures.

    Raises:
      ValueError: if the file is not a picture, is damaged, or has float values outside [0, 1].
    """
    try:
        with Image.open(path) as file:
            file.load()
            picture = ImageOps.exif_transpose(file)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as a picture ({error})") from error
    if picture.mode.startswith("I"):
        values = np.asarray(picture, np.float64)
        return Image.fromarray(np.clip(np.rint(values / 257), 0, 255).astype(np.uint8))
    if picture.mode == "F":
        values = np.asarray(picture, np.float64)
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise ValueError(f"{path} must have float values in [0, 1], got [{values.min():g}, {values.max():g}]")
        return Image.fromarray(np.rint(255 * values).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        below = Image.new("RGBA", picture.size, ground_colour(ground))
        return Image.alpha_composite(below, picture).convert("RGB")
    return picture.convert("L" if picture.mode in ("1", "L", "LA") else "RGB")


def ground_colour(name: str) -> tuple[int, ...]:
    """A colour by its name or "#rrggbb".

    Raises:
      ValueError: if there is no such colour.
    """
    try:
        return (*ImageColor.getrgb(name)[:3], 255)
    except ValueError as error:
        raise ValueError(f"ground must be a colour such as white or #808080, got {name!r}") from error


def fit_picture(
    picture: Image.Image,
    size: Sequence[int],
    channels: int,
    *,
    fit: str = "crop",
    ground: str = "white",
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """A picture resized to (height, width), uint8 (height, width, channels), with its aspect ratio.

    fit: "crop" keeps the middle, "random_crop" a part chosen by `rng`, "pad" all, with a border of colour `ground`.
    """
    picture = picture.convert({1: "L", 3: "RGB"}[channels])
    height, width = size
    scales = height / picture.height, width / picture.width
    scale = min(scales) if fit == "pad" else max(scales)
    inner = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    if inner != picture.size:
        # A reduced picture is averaged over boxes; an enlarged one is interpolated.
        picture = picture.resize(inner, Image.Resampling.BOX if scale < 1 else Image.Resampling.LANCZOS)
    if fit == "pad":
        colour = ground_colour(ground)[:3]
        whole = Image.new("RGB", (width, height), colour).convert(picture.mode)
        whole.paste(picture, ((width - inner[0]) // 2, (height - inner[1]) // 2))
        return np.asarray(whole).reshape(height, width, channels)
    spare = inner[1] - height, inner[0] - width
    if fit == "random_crop" and rng is not None:
        top, left = (int(rng.integers(0, n + 1)) for n in spare)
    else:
        top, left = (n // 2 for n in spare)
    return np.asarray(picture).reshape(inner[1], inner[0], channels)[top : top + height, left : left + width]


def load_picture(path: Path, data: Any) -> np.ndarray:
    """A picture file as an example (H, W, C) of the data of a model, for `--init_image`; cropped to their aspect ratio.

    The 256 levels of the file are scaled to the range of the data.

    Raises:
      ValueError: if the file is not a picture, or the data are not images.
    """
    shape = data.shape
    if data.units.kind != "image":
        raise ValueError(f"init_image needs a network for images, got one for data of kind {data.units.kind!r}")
    try:
        picture = open_picture(path)
    except ValueError as error:
        raise ValueError(f"init_image must be a picture file, got {error}") from error
    low, high = data.units.range
    return fit_picture(picture, shape[:2], shape[-1]) / 255 * (high - low) + low
