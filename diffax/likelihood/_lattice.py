"""Data on a lattice, as pixels are: its range, dequantization, bits per dimension."""

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
      bin_width: > 0. Of images in [-1, 1]: 2 / 255 for 256 levels, 2 / 16 for the digits' 17.
      low: the first value.
      high: the last.

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
        """Raises `ValueError` if x, arrays or a pytree of them, is known to reach beyond the first or the last bin.

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
    """x + bin_width (u - 1/2), u uniform on [0, 1): data on a lattice becomes data with a density.

    Its log-density, plus log bin_width for each dimension, is in the mean at most the lattice's log-probability.

    Args:
      key: () or (B,); consumed.
      x: (B, ...), on the lattice.
      lattice: `Lattice`.

    Raises:
      ValueError: if x is known to lie outside.

    Source: Theis, van den Oord & Bethge 2016, section 3.1.

    >>> x = dequantize(jax.random.key(0), jnp.zeros((1, 4)), Lattice(0.5))
    >>> bool((abs(x) <= 0.25).all())
    True
    """
    lattice.check("x", x)
    leaves, structure = jax.tree.flatten(jax.tree.map(floating, x))
    keys = random.per_example(random.stream(key, "dequantize"), batch_size(x))

    def moved(place: int, leaf: Leaf) -> Any:
        u = jax.vmap(lambda k: jax.random.uniform(k, leaf.shape[1:], leaf.dtype))(random.fold_in(keys, place))
        return leaf + lattice.bin_width * (u - 0.5)

    return jax.tree.unflatten(structure, [moved(i, leaf) for i, leaf in enumerate(leaves)])


def bits_per_dim(log_prob: Scalar, dimensions: int, *, bin_width: Scalar) -> Any:
    """-(log_prob / D + log bin_width) / log 2: bits per dimension of lattice data from a log-density in nats.

    Args:
      log_prob: any shape, log-density of the dequantized data, in the units x is in.
      dimensions: D, an int >= 1.
      bin_width: of the lattice in those units, > 0; 1 for a log-probability, which has no units.

    Raises:
      ValueError: if dimensions < 1 or bin_width is not positive.

    >>> round(float(bits_per_dim(-2 * jnp.log(2.0), 2, bin_width=2 / 256)), 4)  # uniform on [-1, 1]^2, 256 levels
    8.0
    """
    check("bin_width", bin_width, positive)
    check("dimensions", dimensions, Condition(">= 1", lambda v: v >= 1))
    return -(jnp.asarray(log_prob) / dimensions + jnp.log(bin_width)) / math.log(2)


def decoder_log_prob(x0: Tree, mean: Tree, std: PerExample, lattice: Lattice | None = None) -> Any:
    """log p(x0) of each entry: a Gaussian's density, or on a lattice its probability of the bin around x0.

    The first and the last bin reach to infinity, so the probabilities of all bins add up to 1.

    Args:
      x0: data, on the lattice if there is one.
      mean: of the Gaussian, broadcasts.
      std: of the Gaussian, broadcasts.
      lattice: of the data; None for the density.

    Raises:
      ValueError: if x0 is known to lie outside the lattice.

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
    # In the lower tail, where the logarithms of two normal distribution functions differ the most.
    flip = x0 < mean
    a, b = jnp.where(flip, lower, -upper), jnp.where(flip, upper, -lower)
    return _log_difference(a, b)


def _log_difference(a: Scalar, b: Scalar) -> Any:
    """log(Phi(b) - Phi(a)), a < b, finite and with a finite slope where a or b is infinite."""
    first, second = jnp.isneginf(a), jnp.isposinf(b)
    log_a = jax.scipy.special.log_ndtr(jnp.where(first, 0.0, a))
    log_b = jnp.where(second, 0.0, jax.scipy.special.log_ndtr(jnp.where(second, 0.0, b)))
    gap = jnp.where(first, -1.0, log_a - log_b)
    return log_b + jnp.where(first, 0.0, jnp.log(-jnp.expm1(jnp.minimum(gap, -1e-30))))
