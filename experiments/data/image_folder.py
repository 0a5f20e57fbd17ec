"""A folder of pictures as a data set: sizes, classes from subfolders, captions from NAME.txt or metadata.jsonl."""

import collections
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.picture_files import FITS, SUFFIXES, fit_picture, ground_colour, open_picture
from experiments.data.sources import Source

METADATA = "metadata.jsonl"  # as Hugging Face's imagefolder
CAPTION_KEYS = ("text", "caption", "prompt")


def image_folder(
    folder: Path,
    *,
    size: int | None = None,
    fit: str = "crop",
    ground: str = "white",
    skip_bad: bool = False,
    seed: int = 0,
) -> Source:
    """The pictures of a folder.

    Args:
      folder: pictures, or a subfolder of pictures for each class.
      size: height and width; None if all pictures have one size.
      fit: "crop", "random_crop" or "pad", how a picture becomes a square of this size.
      ground: colour behind transparent pictures, and around padded ones.
      skip_bad: skip files that cannot be read, instead of an error.
      seed: of random crops.

    Raises:
      ValueError: for a folder without pictures, files that cannot be read, several sizes without `size`, a class
        without pictures, or captions for only some of the files.
    """
    if fit not in FITS:
        raise ValueError(f"fit must be one of {', '.join(FITS)}, got {fit!r}")
    ground_colour(ground)
    if size is not None and size < 1:
        raise ValueError(f"size must be >= 1, got {size}")
    if not folder.is_dir():
        raise ValueError(f"images must be a folder, got {folder}")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and not _hidden(path, folder))
    if not files:
        others = len([path for path in folder.rglob("*") if path.is_file()])
        known = " ".join(SUFFIXES)
        raise ValueError(f"images must be a folder with pictures ({known}), got {folder} with {others} other files")
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(_size_or_error, files))
    bad = [result for result in results if isinstance(result, str)]
    if bad and not skip_bad:
        shown = "; ".join(bad[:5]) + (f"; and {len(bad) - 5} more" if len(bad) > 5 else "")
        raise ValueError(f"{len(bad)} of {len(files)} files cannot be read: {shown}. --skip_bad leaves them out")
    files = [path for path, result in zip(files, results, strict=True) if not isinstance(result, str)]
    sizes = [result for result in results if not isinstance(result, str)]
    if not files:
        raise ValueError(f"images must have readable pictures, got {bad[0]}")
    shapes = collections.Counter((width, height) for width, height, _ in sizes)
    if size is None and len(shapes) > 1:
        common = ", ".join(f"{w} x {h}" for (w, h), _ in shapes.most_common(3))
        raise ValueError(f"size must be given for pictures of {len(shapes)} sizes ({common} ...): --size=64")
    width, height = next(iter(shapes)) if size is None else (size, size)
    channels = 1 if all(mode == "L" for *_, mode in sizes) else 3
    classes, labels = _classes(folder, files)
    captions = _captions(folder, files)

    def example(index: int) -> dict[str, Any]:
        rng = np.random.default_rng([seed, index])
        picture = open_picture(files[index], ground)
        x = fit_picture(picture, (height, width), channels, fit=fit, ground=ground, rng=rng)
        own: dict[str, Any] = {"x": x}
        if classes:
            own["label"] = labels[index]
        if captions:
            own["caption"] = captions[index]
        return own

    sides = sorted(side for width, height, _ in sizes for side in (width, height))
    lines = [
        f"{len(files)} pictures, sides of {sides[0]} to {sides[-1]} pixels -> {height} x {width} x {channels} ({fit})",
        *([f"{len(bad)} files left out: {'; '.join(bad[:5])}"] if bad else []),
        *([f"captions, such as {captions[0]!r}"] if captions else []),
    ]
    return Source(
        example,
        len(files),
        (height, width, channels),
        "uint8",
        kind="image",
        range=(0.0, 255.0),
        classes=classes,
        features=("label",) * bool(classes) + ("caption",) * bool(captions),
        report=tuple(lines),
    )


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _size_or_error(path: Path) -> tuple[int, int, str] | str:
    """(width, height, mode) of a picture, or the error if it cannot be read; the whole file is decoded."""
    try:
        picture = open_picture(path)
    except ValueError as error:
        return str(error)
    return (*picture.size, picture.mode)


def _classes(folder: Path, files: Any) -> tuple[tuple[str, ...], list[int]]:
    """The subfolders as classes, and the class of each file; ((), []) without subfolders."""
    tops = [path.relative_to(folder).parts[0] for path in files]
    below = [len(path.relative_to(folder).parts) > 1 for path in files]
    if not any(below):
        return (), []
    if not all(below):
        raise ValueError(
            f"images must all be in subfolders of classes or none, got {below.count(False)} of {len(files)} beside them"
        )
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if empty := sorted(set(classes) - set(tops)):
        raise ValueError(f"each class must have a picture, got none in {', '.join(empty)}")
    number = {name: i for i, name in enumerate(classes)}
    return tuple(classes), [number[top] for top in tops]


def _captions(folder: Path, files: Any) -> list[str]:
    """The caption of each file, from metadata.jsonl or a text file with its name; [] if there are none.

    Raises:
      ValueError: if only some of the files have captions.
    """
    metadata, texts = folder / METADATA, {}
    if metadata.exists():
        for number, line in enumerate(metadata.read_text().splitlines(), 1):
            try:
                row = json.loads(line)
                key = next(key for key in CAPTION_KEYS if key in row)
                texts[folder / row["file_name"]] = str(row[key])
            except (ValueError, KeyError, StopIteration, TypeError) as error:
                keys = f"file_name and {' or '.join(CAPTION_KEYS)}"
                raise ValueError(f"line {number} of {metadata} must be JSON with {keys}, got {line[:60]!r}") from error
    else:
        texts = {path: own.read_text().strip() for path in files if (own := path.with_suffix(".txt")).exists()}
    if not texts:
        return []
    if missing := [path for path in files if path not in texts]:
        raise ValueError(
            f"captions must exist for all pictures or for none, got {len(missing)} of {len(files)} without, such as "
            f"{missing[0].relative_to(folder)}"
        )
    return [texts[path] for path in files]
