"""The sub-VP schedule."""

from typing import Any

import jax.numpy as jnp

from diffax._pytrees import pytree, static
from diffax.schedules._beta_integral import beta_integral, beta_time
from diffax.schedules._curve import Curve, check_range
from diffax.typing import Array, Scaling


@pytree
class SubVP(Curve):
    """The sub-VP SDE's schedule: alpha = exp(-B / 2), sigma = 1 - exp(-B), beta as in `Linear`.

    lambda = -2 log(2 sinh(B / 2)). Song et al. 2021, eq. 28 and 29: f = -beta / 2, g^2 = beta (1 - exp(-2 B)).
    `Linear(scaling="sub_vp")` is another schedule: it has the log-SNR of the VP SDE.

    Args:
      beta_min: beta at t = 0, > 0.
      beta_max: beta at t = 1, >= beta_min.
      scaling: "vp", "ve", "sub_vp" or "flow".

    Raises:
      ValueError: if not 0 < beta_min <= beta_max.

    >>> bool(abs(SubVP()(0.5).sigma - (1 - jnp.exp(-0.05 - 19.9 / 8))) < 1e-6)
    True
    """

    beta_min: Any = 0.1
    beta_max: Any = 20.0
    scaling: Scaling = static(default="sub_vp")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(("beta_min", "beta_max"), self.beta_min, self.beta_max, may_equal=True)

    def curve(self, t: Array) -> Any:
        integral = beta_integral(self.beta_min, self.beta_max, t)
        return -2 * jnp.log(-jnp.expm1(-integral)) - integral

    def ratio(self, t: Array) -> Any:
        integral = beta_integral(self.beta_min, self.beta_max, t)
        return -jnp.expm1(-integral) * jnp.exp(integral / 2)

    def uncurve(self, log_snr: Array) -> Any:
        integral = 2 * jnp.arcsinh(jnp.exp(-log_snr / 2) / 2)
        return beta_time(self.beta_min, self.beta_max, integral)
