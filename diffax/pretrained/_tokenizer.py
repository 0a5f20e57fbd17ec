"""Captions as tokens: words by a vocabulary of the training captions.

Token 0 is padding, as for `nn.text.TextEncoder`; 1 is a word that is not in the vocabulary; i + 2 is its word i.
"""

import collections
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

PADDING, UNKNOWN, SPECIAL = 0, 1, 2


class Tokenizer(NamedTuple):
    """Captions to tokens.

    Attributes:
      words: the vocabulary.
      max_length: the number of words of a caption that are kept.
    """

    words: Sequence[str]
    max_length: int

    @classmethod
    def of(cls, captions: Iterable[str], vocab_size: int, max_length: int) -> "Tokenizer":
        """The tokenizer of the most frequent words of these captions; equally frequent words in alphabetical order.

        Args:
          captions: such as those of the training data.
          vocab_size: the number of tokens with the two special ones, so at most vocab_size - 2 words are kept.
          max_length: the number of words of a caption that are kept.

        >>> Tokenizer.of(["red heart", "blue heart", "red"], 4, 8).words
        ['heart', 'red']
        """
        counts = collections.Counter(word for caption in captions for word in cls.split(caption))
        words = sorted(counts, key=lambda word: (-counts[word], word))
        return cls(words[: vocab_size - SPECIAL], max_length)

    @staticmethod
    def split(caption: str) -> list[str]:
        """The words of a caption: runs of letters and digits, in lower case.

        >>> Tokenizer.split("Smiling cat-face, with 3 hearts")
        ['smiling', 'cat', 'face', 'with', '3', 'hearts']
        """
        return re.findall(r"[^\W_]+", caption.lower())

    def encode(self, captions: Sequence[str]) -> np.ndarray:
        """(N, max_length) int32; the empty caption is zeros.

        >>> Tokenizer(["heart", "red"], 3).encode(["Red heart", "green heart", ""]).tolist()
        [[3, 2, 0], [1, 2, 0], [0, 0, 0]]
        """
        number = {word: i + SPECIAL for i, word in enumerate(self.words)}
        result = np.full((len(captions), self.max_length), PADDING, np.int32)
        for row, caption in zip(result, captions, strict=True):
            tokens = [number.get(word, UNKNOWN) for word in self.split(caption)[: self.max_length]]
            row[: len(tokens)] = tokens
        return result

    def unknown(self, captions: Sequence[str]) -> list[str]:
        """The words of these captions that the vocabulary lacks, each once."""
        return sorted({word for caption in captions for word in self.split(caption)} - set(self.words))
