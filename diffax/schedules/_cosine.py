"""The cosine schedule."""

from typing import Any

import jax.numpy as jnp

from diffax._pytrees import pytree, static
from diffax.schedules._curve import Curve
from diffax.typing import Array, Scaling


@pytree
class Cosine(Curve):
    """The cosine schedule: alpha = cos(pi t / 2), sigma = sin(pi t / 2); lambda = -2 log tan(pi t / 2).

    Nichol & Dhariwal 2021, eq. 17, without the offset s of the discrete table `cosine_betas`.

    >>> round(float(Cosine()(1 / 3).alpha), 4)
    0.866
    """

    scaling: Scaling = static(default="vp")

    def curve(self, t: Array) -> Any:
        return -2 * jnp.log(self.ratio(t))

    def ratio(self, t: Array) -> Any:
        # sin(pi / 2 (1 - t)) instead of cos(pi / 2 t): near t = 1 the rounding of pi / 2 t would dominate the cosine.
        return jnp.sin(jnp.pi / 2 * t) / jnp.sin(jnp.pi / 2 * (1 - t))

    def uncurve(self, log_snr: Array) -> Any:
        return 2 / jnp.pi * jnp.arctan(jnp.exp(-log_snr / 2))
