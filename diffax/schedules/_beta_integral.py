"""B(t), the integral of a linear beta(t) from 0 to t, and its inverse."""

from typing import Any

import jax.numpy as jnp

from diffax.typing import PerExample, Scalar, Times


def beta_integral(low: PerExample, high: PerExample, t: Times) -> Any:
    """B(t) = low t + (high - low) t^2 / 2, the integral of beta(t) = low + (high - low) t."""
    return t * (low + 0.5 * (high - low) * t)


def beta_time(low: PerExample, high: PerExample, integral: Scalar) -> Any:
    """The t with B(t) = integral, the root of a quadratic equation. This form does not divide by high - low."""
    return 2 * integral / (low + jnp.sqrt(low**2 + 2 * (high - low) * integral))
