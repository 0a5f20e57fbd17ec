"""Captions as tokens: words by a vocabulary of the training captions.

Token 0 is padding, 1 a word that is not in the vocabulary, i + 2 its word i.
"""

import collections
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

PADDING, UNKNOWN, SPECIAL = 0, 1, 2


def split(caption: str) -> list[str]:
    """The words of a caption: runs of letters and digits, in lower case.

    >>> split("Smiling cat-face, with 3 hearts")
    ['smiling', 'cat', 'face', 'with', '3', 'hearts']
    """
    return re.findall(r"[^\W_]+", caption.lower())


def vocabulary(captions: Iterable[str], size: int) -> list[str]:
    """The most frequent words, in the order of the alphabet where they are equally frequent.

    size: tokens there may be, the two special ones among them, so size - 2 words at most.

    >>> vocabulary(["red heart", "blue heart", "red"], 4)
    ['heart', 'red']
    """
    counts = collections.Counter(word for caption in captions for word in split(caption))
    return sorted(counts, key=lambda word: (-counts[word], word))[: size - SPECIAL]


class Tokenizer(NamedTuple):
    """Captions to tokens. words: of `vocabulary`; max_length: words of a caption that are kept."""

    words: Sequence[str]
    max_length: int

    def encode(self, captions: Sequence[str]) -> np.ndarray:
        """(N, max_length) int32; the empty caption is zeros.

        >>> Tokenizer(["heart", "red"], 3).encode(["Red heart", "green heart", ""]).tolist()
        [[3, 2, 0], [1, 2, 0], [0, 0, 0]]
        """
        number = {word: i + SPECIAL for i, word in enumerate(self.words)}
        found = np.full((len(captions), self.max_length), PADDING, np.int32)
        for row, caption in zip(found, captions, strict=True):
            tokens = [number.get(word, UNKNOWN) for word in split(caption)[: self.max_length]]
            row[: len(tokens)] = tokens
        return found

    def unknown(self, captions: Sequence[str]) -> list[str]:
        """The words of these captions that the vocabulary lacks, each once."""
        return sorted({word for caption in captions for word in split(caption)} - set(self.words))
