"""Scalings: (alpha, sigma) of the ratio sigma / alpha. The equations head `diffax.schedules`."""

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
    # The larger as 1 less the smaller: their sum, which a thousand steps divide by, is 1 in float32 too.
    alpha, sigma = 1 / (1 + ratio), ratio / (1 + ratio)
    return jnp.where(ratio < 1, 1 - sigma, alpha), jnp.where(ratio < 1, sigma, 1 - alpha)


# (alpha, sigma) of the ratio sigma / alpha. Nothing small comes of a difference, so they keep its relative precision.
SCALINGS = {
    "vp": _vp,
    "ve": lambda ratio: (jnp.ones_like(ratio), ratio),
    "sub_vp": _sub_vp,
    "flow": _flow,
}
