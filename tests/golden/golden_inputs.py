"""Inputs that the rows share, in the precision of the row."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np

from diffax import analytic

BATCH, DIMENSIONS = 4, 3

MIXTURE = lambda: analytic.Mixture(
    jnp.array([0.2, 0.5, 0.3]), jnp.array([[-1.5, 0.5, 0.2], [1.0, 1.2, -0.3], [0.3, -1.4, 0.7]]), 0.3
)
GAUSSIAN = lambda: analytic.Gaussian.from_covariance(
    np.array([0.7, -0.4, 0.2], jnp.zeros(()).dtype),
    np.array([[0.4, 0.15, 0.05], [0.15, 0.2, -0.02], [0.05, -0.02, 0.3]], jnp.zeros(()).dtype),
)
DENOISER = lambda law, schedule: law.denoiser(schedule)


def key(name):
    """A key for a name."""
    return jax.random.key(zlib.crc32(name.encode()))


def array(name, *shape):
    """Standard normal numbers for a name, by NumPy: independent of the JAX version."""
    seed = zlib.crc32(name.encode())
    return jnp.asarray(np.random.RandomState(seed).normal(size=shape).astype(jnp.zeros(()).dtype))


def data():
    """x0 (BATCH, DIMENSIONS)."""
    return array("data", BATCH, DIMENSIONS)


def times():
    """One time for each example."""
    return jnp.array([0.15, 0.4, 0.7, 0.9])


def grid():
    """A step grid of 7 entries."""
    return jnp.array([0.98, 0.85, 0.65, 0.5, 0.35, 0.15, 0.02])


def compiled(f):
    """f() with `jax.jit` on: for loops that `jax.disable_jit` cannot run, and for programs of many operations."""
    with jax.disable_jit(False):
        return jax.tree.map(jnp.asarray, jax.jit(f)())
