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


def with_norms(name, shape):
    """As `tensor`; variances of batch norm are positive, near the half of what a ReLU leaves of a signal."""
    return 0.5 + np.abs(tensor(name, shape)) if name.endswith("running_var") else tensor(name, shape)


def picture(seed, size, channels):
    """A picture with coarse and fine detail in pixels: uint8 (size, size, channels)."""
    rng = np.random.default_rng(seed)
    coarse = np.kron(rng.uniform(0, 255, (4, 4, channels)), np.ones((-(-size // 4), -(-size // 4), 1)))[:size, :size]
    return np.clip(coarse + rng.normal(0, 20, coarse.shape), 0, 255).round().astype(np.uint8)
