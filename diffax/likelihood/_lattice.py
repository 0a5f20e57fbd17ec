"""Data on a lattice, such as pixels: its range, dequantization, and bits per dimension."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from diffax import random
from diffax._checks import Condition, at_least, check, positive
from diffax._pytrees import batch_size, concrete, float_fields, floating, pytree
from diffax.typing import Keys, Leaf, PerExample, Scalar, Tree


@pytree
class Lattice:
    """The values low, low + bin_width .. high, each in the middle of its bin.

    Args:
      bin_width: > 0. For images in [-1, 1]: 2 / 255 for 256 levels, 2 / 16 for the 17 levels of the digits.
      low: the first value; default -1.
      high: the last value; default 1.

    Raises:
      ValueError: if bin_width is not positive, or high < low.
    """

    bin_width: Any
    low: Any = -1.0
    high: Any = 1.0

    def __post_init__(self) -> None:
        float_fields(self)
        check("bin_width", self.bin_width, positive)
        low = concrete(self.low)
        if low is not None:
            check("high", self.high, at_least(low, "low"))

    def check(self, name: str, x: Tree) -> None:
        """Raise `ValueError` if x, an array or a pytree, has a concrete value beyond the first or the last bin.

        >>> Lattice(2 / 255).check("x0", jnp.array([0.0, 255.0]))
        Traceback (most recent call last):
        ...
        ValueError: x0 must be in [-1.0, 1.0], got 255.0
        """
        low, high, half = map(concrete, (self.low, self.high, self.bin_width / 2))
        for leaf in map(concrete, jax.tree.leaves(x)):
            if any(v is None for v in (leaf, low, high, half)):
                continue
            outside = leaf[~((leaf >= low - half) & (leaf <= high + half))]
            if outside.size:
                raise ValueError(f"{name} must be in [{low}, {high}], got {outside.flat[0]}")


def dequantize(key: Keys, x: Tree, lattice: Lattice) -> Any:
    """x + bin_width (u - 1/2) with u uniform on [0, 1), which turns data on a lattice into data with a density.

    The log-density of the result, plus log bin_width for each dimension, is on average at most the log-probability
    of x.

    Args:
      key: () or (B,); consumed.
      x: (B, ...), on the lattice.
      lattice: `Lattice`.

    Raises:
      ValueError: if a concrete x is outside the lattice.

    Source: Theis, van den Oord & Bethge 2016, section 3.1.

    >>> x = dequantize(jax.random.key(0), jnp.zeros((1, 4)), Lattice(0.5))
    >>> bool((abs(x) <= 0.25).all())
    True
    """
    lattice.check("x", x)
    leaves, structure = jax.tree.flatten(jax.tree.map(floating, x))
    keys = random.per_example(random.stream(key, "dequantize"), batch_size(x))

    def dequantized(index: int, leaf: Leaf) -> Any:
        u = jax.vmap(lambda k: jax.random.uniform(k, leaf.shape[1:], leaf.dtype))(random.fold_in(keys, index))
        return leaf + lattice.bin_width * (u - 0.5)

    return jax.tree.unflatten(structure, [dequantized(i, leaf) for i, leaf in enumerate(leaves)])


def bits_per_dim(log_prob: Scalar, dimensions: int, *, bin_width: Scalar) -> Any:
    """-(log_prob / D + log bin_width) / log 2: bits per dimension of lattice data from a log-density in nats.

    Args:
      log_prob: any shape, log-density of the dequantized data in the units of x.
      dimensions: D, an int >= 1.
      bin_width: > 0, of the lattice in the units of x; 1 if log_prob is a log-probability, which has no units.

    Returns:
      Bits per dimension, of the shape of log_prob.

    Raises:
      ValueError: if dimensions < 1 or bin_width is not positive.

    >>> round(float(bits_per_dim(-2 * jnp.log(2.0), 2, bin_width=2 / 256)), 4)  # uniform on [-1, 1]^2, 256 levels
    8.0
    """
    check("bin_width", bin_width, positive)
    check("dimensions", dimensions, Condition(">= 1", lambda v: v >= 1))
    return -(jnp.asarray(log_prob) / dimensions + jnp.log(bin_width)) / math.log(2)


def decoder_log_prob(x0: Tree, mean: Tree, std: PerExample, lattice: Lattice | None = None) -> Any:
    """log p(x0) of each entry: the density of a Gaussian, or on a lattice its probability of the bin around x0.

    The first and the last bin extend to infinity, so the probabilities of all bins add up to 1.

    Args:
      x0: data, on the lattice if there is one.
      mean: of the Gaussian, broadcasts.
      std: of the Gaussian, broadcasts.
      lattice: the lattice of the data; None (default) for the density.

    Raises:
      ValueError: if a concrete x0 is outside the lattice.

    Source: Ho et al. 2020, eq. 13.

    >>> round(float(jnp.exp(decoder_log_prob(jnp.linspace(-1.0, 1.0, 5), 0.3, 0.4, Lattice(0.5))).sum()), 4)
    1.0
    """
    if lattice is None:
        return -jnp.square((x0 - mean) / std) / 2 - jnp.log(std) - 0.5 * math.log(2 * math.pi)
    lattice.check("x0", x0)
    half, low, high = lattice.bin_width / 2, lattice.low, lattice.high
    upper = jnp.where(x0 > high - half, jnp.inf, (x0 + half - mean) / std)
    lower = jnp.where(x0 < low + half, -jnp.inf, (x0 - half - mean) / std)
    # Reflect the bin into the lower tail: there the logs of both CDFs differ the most, so their difference is accurate.
    flip = x0 < mean
    a, b = jnp.where(flip, lower, -upper), jnp.where(flip, upper, -lower)
    return _log_difference(a, b)


def _log_difference(a: Scalar, b: Scalar) -> Any:
    """log(Phi(b) - Phi(a)) for a < b, finite and with a finite slope also where a or b is infinite."""
    a_infinite, b_infinite = jnp.isneginf(a), jnp.isposinf(b)
    log_a = jax.scipy.special.log_ndtr(jnp.where(a_infinite, 0.0, a))
    log_b = jnp.where(b_infinite, 0.0, jax.scipy.special.log_ndtr(jnp.where(b_infinite, 0.0, b)))
    gap = jnp.where(a_infinite, -1.0, log_a - log_b)
    return log_b + jnp.where(a_infinite, 0.0, jnp.log(-jnp.expm1(jnp.minimum(gap, -1e-30))))
