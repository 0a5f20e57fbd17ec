"""Weights that follow from the name of each tensor, so that fixtures and tests share them without a large file."""

import zlib

import numpy as np


def tensor(name, shape):
    """Float32 weights for a name in a state dict: scales of norms near 1; kernels keep the magnitude of signals."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    drawn = rng.standard_normal(shape, np.float32)
    if len(shape) > 1:
        return drawn / np.float32(np.sqrt(np.prod(shape[1:])))
    return 0.1 * drawn + np.float32(name.endswith("weight"))


def with_norms(name, shape):
    """As `tensor`, but variances of batch norm are 0.5, the mean square after a ReLU, plus a positive number."""
    return 0.5 + np.abs(tensor(name, shape)) if name.endswith("running_var") else tensor(name, shape)


def picture(seed, size, channels):
    """A picture with coarse and fine detail: uint8 (size, size, channels)."""
    rng = np.random.default_rng(seed)
    coarse = np.kron(rng.uniform(0, 255, (4, 4, channels)), np.ones((-(-size // 4), -(-size // 4), 1)))[:size, :size]
    return np.clip(coarse + rng.normal(0, 20, coarse.shape), 0, 255).round().astype(np.uint8)
