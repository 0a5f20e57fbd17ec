"""Scalings: (alpha, sigma) from the ratio sigma / alpha. The docstring of `diffax.schedules` has the equations."""

from typing import Any

import jax.numpy as jnp

from diffax.typing import Scalar


def _vp(ratio: Scalar) -> tuple[Any, Any]:
    norm = jnp.sqrt(1 + jnp.square(ratio))
    return 1 / norm, ratio / norm


def _sub_vp(ratio: Scalar) -> tuple[Any, Any]:
    alpha = 2 / (ratio + jnp.sqrt(jnp.square(ratio) + 4))
    return alpha, ratio * alpha


def _flow(ratio: Scalar) -> tuple[Any, Any]:
    # Compute the larger as 1 - smaller, so that alpha + sigma is exactly 1 in float32: every step divides by this sum.
    alpha, sigma = 1 / (1 + ratio), ratio / (1 + ratio)
    return jnp.where(ratio < 1, 1 - sigma, alpha), jnp.where(ratio < 1, sigma, 1 - alpha)


# Each function maps sigma / alpha to (alpha, sigma). No small number is computed as a difference of close numbers, so
# both keep the relative precision of the ratio.
SCALINGS = {
    "vp": _vp,
    "ve": lambda ratio: (jnp.ones_like(ratio), ratio),
    "sub_vp": _sub_vp,
    "flow": _flow,
}
