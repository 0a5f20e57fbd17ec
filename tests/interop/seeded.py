"""Weights that both sides draw alike, from the name of each tensor, so that a large network needs no file of them."""

import zlib

import numpy as np


def tensor(name, shape):
    """Float32 of a state dict's name: norms near 1, the rest so that signals keep their size."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    drawn = rng.standard_normal(shape, np.float32)
    if len(shape) > 1:
        return drawn / np.float32(np.sqrt(np.prod(shape[1:])))
    return 0.1 * drawn + np.float32(name.endswith("weight"))
