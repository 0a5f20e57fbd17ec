"""Captions of a run: its tokenizer, and the tokens of captions to draw."""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from diffax.pretrained import Tokenizer


def tokenizer(dataset: Any, train_split: str, vocab_size: int, max_length: int, words: Any = None) -> Tokenizer:
    """The tokenizer of a run. words: its vocabulary; None for that of the training captions.

    Raises:
      ValueError: if the data set has no captions.
    """
    if words is not None:
        return Tokenizer(words, max_length)
    return Tokenizer.of(dataset.captions(train_split), vocab_size, max_length)


def chosen(tokenizer: Tokenizer | None, captions: Sequence[str], labels: Sequence[str] = ()) -> np.ndarray | None:
    """The tokens (N, m) of captions to draw; None for no captions. Prints a warning for unknown words.

    tokenizer: of the model, None for a model without captions.

    Raises:
      ValueError: if the model has no captions, a caption is too long, or there are labels as well.
    """
    if tokenizer is None:
        raise ValueError(f"captions must be empty for a model without text, got {','.join(captions)}")
    if labels:
        raise ValueError(f"labels must be empty for a model of captions, got {','.join(labels)}")
    for caption in captions:
        if (count := len(tokenizer.split(caption))) > tokenizer.max_length:
            raise ValueError(f"captions must have at most {tokenizer.max_length} words, got {count} in {caption!r}")
    if unknown := tokenizer.unknown(captions):
        print(f"warning: the vocabulary of the model lacks {', '.join(unknown)}", file=sys.stderr)
    return tokenizer.encode(captions) if captions else None
