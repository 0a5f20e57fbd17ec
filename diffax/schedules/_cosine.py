"""The cosine schedule."""

from typing import Any

import jax.numpy as jnp

from diffax._pytrees import pytree, static
from diffax.schedules._curve import Curve
from diffax.typing import Array, Scaling


@pytree
class Cosine(Curve):
    """The cosine schedule: alpha = cos(pi t / 2), sigma = sin(pi t / 2); lambda = -2 log tan(pi t / 2).

    Nichol & Dhariwal 2021, eq. 17, without the offset s of the discrete version (`cosine_betas` has it).

    >>> round(float(Cosine()(1 / 3).alpha), 4)
    0.866
    """

    scaling: Scaling = static(default="vp")

    def curve(self, t: Array) -> Any:
        return -2 * jnp.log(self.ratio(t))

    def ratio(self, t: Array) -> Any:
        # The sine of pi/2 - . rather than a cosine: exact near t = 1.
        return jnp.sin(jnp.pi / 2 * t) / jnp.sin(jnp.pi / 2 * (1 - t))

    def uncurve(self, log_snr: Array) -> Any:
        return 2 / jnp.pi * jnp.arctan(jnp.exp(-log_snr / 2))
