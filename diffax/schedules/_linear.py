"""The linear-beta schedule."""

from typing import Any

import jax
import jax.numpy as jnp

from diffax._pytrees import pytree, static
from diffax.schedules._beta_integral import beta_integral, beta_time
from diffax.schedules._curve import Curve, check_range
from diffax.typing import Array, Scaling


@pytree
class Linear(Curve):
    """The linear-beta VP schedule: beta(t) = beta_min + (beta_max - beta_min) t.

    With B(t) = int_0^t beta: alpha^2 = exp(-B), lambda = -log(exp(B) - 1). It is the continuous limit of
    DDPM's linear betas (Ho et al. 2020) as given by Song et al. 2021, eq. 33.

    Args:
      beta_min: beta at t = 0, > 0.
      beta_max: beta at t = 1, >= beta_min.
      scaling: "vp", "ve", "sub_vp" or "flow".

    Raises:
      ValueError: if not 0 < beta_min <= beta_max.

    >>> bool(abs(Linear()(1.0).alpha - jnp.exp(-0.25 * 19.9 - 0.05)) < 1e-6)
    True
    """

    beta_min: Any = 0.1
    beta_max: Any = 20.0
    scaling: Scaling = static(default="vp")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(("beta_min", "beta_max"), self.beta_min, self.beta_max, may_equal=True)

    def curve(self, t: Array) -> Any:
        return -jnp.log(jnp.expm1(beta_integral(self.beta_min, self.beta_max, t)))

    def ratio(self, t: Array) -> Any:
        return jnp.sqrt(jnp.expm1(beta_integral(self.beta_min, self.beta_max, t)))

    def uncurve(self, log_snr: Array) -> Any:
        return beta_time(self.beta_min, self.beta_max, jax.nn.softplus(-log_snr))
