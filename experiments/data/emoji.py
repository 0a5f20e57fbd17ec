"""`emoji`: 1,391 colour emoji of 32x32 pixels with their Unicode names, from the font Noto Color Emoji (Google, OFL).

The font is that of Debian's package fonts-noto-color-emoji, or the file $NOTO_COLOR_EMOJI. Names are those of Python's
Unicode tables: 14.0 in Python 3.11. Newer tables add examples; the existing ones stay in their splits.
"""

import io
import os
import unicodedata
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from experiments.data.digits import Embedded

FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
SIZE = 32
FIRST = 0x2000  # below it are digits and signs, which are emoji only in sequences with other characters
BLOCKS = {  # label: the first code point after it
    "symbols": 0x1F000,
    "letters": 0x1F300,
    "pictographs": 0x1F600,
    "emoticons": 0x1F650,
    "transport": 0x1F700,
    "supplement": 0x110000,
}


def read_font(path: Path) -> Iterator[tuple[int, Any]]:
    """(code point, PNG) of each character with a picture, in the first size of the font (table CBDT).

    Raises:
      ValueError: if the font is missing or cannot be read; the error names the package to install.
    """
    try:
        from fontTools.ttLib import TTFont, TTLibError
    except ImportError as error:
        raise ValueError("dataset.name = 'emoji' needs a package: pip install fonttools") from error
    if not path.is_file():
        raise ValueError(
            f"dataset.name = 'emoji' needs the font {path}: apt-get install fonts-noto-color-emoji, "
            "or set NOTO_COLOR_EMOJI to its file"
        )
    try:
        font = TTFont(path, lazy=True)
        strike, glyphs = font["CBDT"].strikeData[0], font.getBestCmap()
    except (TTLibError, KeyError, IndexError) as error:
        raise ValueError(f"NOTO_COLOR_EMOJI must be a font with pictures (table CBDT), got {path}") from error
    for code, glyph in sorted(glyphs.items()):
        if glyph in strike:
            yield code, strike[glyph].imageData


def picture(png: bytes, size: int = SIZE) -> np.ndarray:
    """(size, size, 3) uint8: the picture in the middle of a white square, resized."""
    from PIL import Image

    image = Image.open(io.BytesIO(png)).convert("RGBA")
    side = max(image.size)
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(square.convert("RGB").resize((size, size), Image.Resampling.BOX))


def is_test(code: int) -> bool:
    """Whether a code point is in the test split, an eighth of all, by a digest of the code point."""
    return zlib.crc32(str(code).encode()) % 8 == 0


class Emoji(Embedded):
    """Colour emoji with caption (the name in lower case) and label (the Unicode block); an eighth is the test split."""

    def _info(self):
        label = tfds.features.ClassLabel(names=list(BLOCKS))
        return self._info_of((SIZE, SIZE, 3), label, caption=tfds.features.Text())

    def _split_generators(self, dl_manager):
        path = Path(os.environ.get("NOTO_COLOR_EMOJI") or FONT)
        return {"train": self._generate_examples(path, False), "test": self._generate_examples(path, True)}

    def _generate_examples(self, path, test):
        for code, png in read_font(path):
            name = unicodedata.name(chr(code), "")
            if code < FIRST or not name or is_test(code) != test:
                continue
            label = next(block for block, end in BLOCKS.items() if code < end)
            yield code, {"image": picture(png), "caption": name.lower(), "label": label}
