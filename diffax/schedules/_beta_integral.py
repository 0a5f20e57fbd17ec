"""B(t), the integral of a linear beta(t) from 0 to t, and its inverse."""

from typing import Any

import jax.numpy as jnp

from diffax.typing import PerExample, Scalar, Times


def beta_integral(low: PerExample, high: PerExample, t: Times) -> Any:
    """B(t) of beta = low + (high - low) t."""
    return t * (low + 0.5 * (high - low) * t)


def beta_time(low: PerExample, high: PerExample, integral: Scalar) -> Any:
    """The t of B(t), the root of a quadratic in the form that survives high = low."""
    return 2 * integral / (low + jnp.sqrt(low**2 + 2 * (high - low) * integral))
