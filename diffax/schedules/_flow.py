"""The schedule of rectified flow."""

from typing import Any

import jax
import jax.numpy as jnp

from diffax._pytrees import as_float, pytree, static
from diffax.schedules._curve import Curve, straight_through
from diffax.typing import Array, Level, Scaling, Times


@pytree
class Flow(Curve):
    """The rectified-flow schedule: alpha = 1 - t, sigma = t; lambda = 2 log((1 - t) / t).

    Liu et al. 2023 and Lipman et al. 2023, with time running from data to noise.

    >>> [round(float(v), 4) for v in Flow()(0.25)]
    [0.75, 0.25, 2.1972]
    """

    scaling: Scaling = static(default="flow")

    def curve(self, t: Array) -> Any:
        return 2 * (jnp.log1p(-t) - jnp.log(t))

    def ratio(self, t: Array) -> Any:
        return t / (1 - t)

    def uncurve(self, log_snr: Array) -> Any:
        return jax.nn.sigmoid(-log_snr / 2)

    def __call__(self, t: Times) -> Level:
        """The level (alpha, sigma, log_snr) at t; any shape. With the scaling "flow" its derivatives are exact."""
        level = super().__call__(t)
        if self.scaling != "flow":
            return level
        # Take the derivatives of 1 - t and t, which are exact. The derivatives of the clipped ratio would have only as
        # many digits as 1 - t, which at the noise end are three in float32.
        t = as_float(t)
        alpha, sigma = straight_through(1 - t, level.alpha), straight_through(t, level.sigma)
        return Level(alpha, sigma, straight_through(2 * jnp.log(alpha / sigma), level.log_snr))
