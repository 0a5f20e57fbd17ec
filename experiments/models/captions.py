"""Captions of a run: its vocabulary, and the tokens of its data sets."""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.data.captions import SPECIAL, Tokenizer, split, vocabulary


def check(config: Any) -> None:
    """Raises `ValueError` for settings of config.text that cannot be."""
    text = config.text
    if not text.enabled:
        return
    if config.network.conditional:
        raise ValueError("config.network.conditional must be False with config.text.enabled: captions or classes")
    for key, least in {"vocab_size": SPECIAL + 1, "max_length": 1, "width": 4, "depth": 0, "num_heads": 1}.items():
        if text[key] < least:
            raise ValueError(f"config.text.{key} must be >= {least}, got {text[key]}")
    if text.width % 2 or text.width % text.num_heads:
        raise ValueError(f"config.text.width must be even and a multiple of num_heads, got {text.width}")


def tokenizer(config: Any, dataset: Any, words: Sequence[str] | None = None) -> Tokenizer | None:
    """The tokenizer of a run, None without captions.

    words: a vocabulary that there is already; else that of the training captions.

    Raises:
      ValueError: if the data set has no captions.
    """
    if not config.text.enabled:
        return None
    if words is None:
        words = vocabulary(dataset.captions(config.dataset.train_split), config.text.vocab_size)
    return Tokenizer(words, config.text.max_length)


def examples(dataset: Any, split: str, count: int) -> list[str]:
    """Captions of a split, evenly spaced."""
    captions = dataset.captions(split)
    return [captions[i] for i in np.linspace(0, len(captions) - 1, count).astype(int)]


def tokens(model: Any, dataset: Any, split: str) -> np.ndarray:
    """The captions of a split as a trained model reads them: (N, max_length)."""
    return Tokenizer(model.words, model.config.text.max_length).encode(dataset.captions(split))


def chosen(model: Any, captions: Sequence[str], labels: Sequence[str] = ()) -> np.ndarray | None:
    """The tokens (N, m) of captions that a model shall draw; None for none: no condition. Says which words are unknown.

    Raises:
      ValueError: if the model takes no captions, one is too long, or there are labels.
    """
    if not model.config.text.enabled:
        raise ValueError(f"captions must be empty for a model without text, got {','.join(captions)}")
    if labels:
        raise ValueError(f"labels must be empty for a model of captions, got {','.join(labels)}")
    known = Tokenizer(model.words, model.config.text.max_length)
    for caption in captions:
        if (count := len(split(caption))) > known.max_length:
            raise ValueError(f"captions must have at most {known.max_length} words, got {count} in {caption!r}")
    if unknown := known.unknown(captions):
        print(f"warning: the model does not know {', '.join(unknown)}", file=sys.stderr)
    return known.encode(captions) if captions else None
