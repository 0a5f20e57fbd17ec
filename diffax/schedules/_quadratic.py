"""The schedule with sqrt(beta) linear in t."""

from typing import Any

import jax
import jax.numpy as jnp

from diffax._pytrees import pytree, static
from diffax.schedules._curve import Curve, check_range, early
from diffax.typing import Array, Scaling


@pytree
class Quadratic(Curve):
    """The VP schedule with sqrt(beta) linear in t: beta(t) = (a + c t)^2, a = sqrt(beta_min), a + c = sqrt(beta_max).

    B(t) = ((a + c t)^3 - a^3) / (3 c) = a^2 t + a c t^2 + c^2 t^3 / 3. It is the continuous limit of
    `quadratic_betas`, "scaled_linear" in latent diffusion's code (Rombach et al. 2022); the defaults are 1,000
    times Stable Diffusion's betas.

    Args:
      beta_min: beta at t = 0, > 0.
      beta_max: beta at t = 1, >= beta_min.
      scaling: "vp", "ve", "sub_vp" or "flow".

    Raises:
      ValueError: if not 0 < beta_min <= beta_max.

    >>> bool(abs(Quadratic(1.0, 9.0)(1.0).alpha - jnp.exp(-13 / 6)) < 1e-6)  # B(1) = 1 + 2 + 4 / 3
    True
    """

    beta_min: Any = 0.85
    beta_max: Any = 12.0
    scaling: Scaling = static(default="vp")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(("beta_min", "beta_max"), self.beta_min, self.beta_max, may_equal=True)

    def _integral(self, t: Array) -> Any:
        product = early(lambda xp, low, high: xp.sqrt(low * high) - low, self.beta_min, self.beta_max)  # a c
        square = early(lambda xp, low, high: xp.square(xp.sqrt(high) - xp.sqrt(low)) / 3, self.beta_min, self.beta_max)
        return t * (self.beta_min + t * (product + square * t))

    def curve(self, t: Array) -> Any:
        return -jnp.log(jnp.expm1(self._integral(t)))

    def ratio(self, t: Array) -> Any:
        return jnp.sqrt(jnp.expm1(self._integral(t)))

    def uncurve(self, log_snr: Array) -> Any:
        integral = jax.nn.softplus(-log_snr)
        a = jnp.sqrt(self.beta_min)
        # With u = a + c t, u^3 - a^3 = 3 c B. So t = (u - a) / c = 3 B / (u^2 + u a + a^2), which does not divide by c:
        # c may be 0.
        u = jnp.cbrt(a**3 + 3 * (jnp.sqrt(self.beta_max) - a) * integral)
        return 3 * integral / (u * u + u * a + a * a)
