"""VP and sub-VP schedules given by beta(t), with B(t) = int_0^t beta. The equations head `diffax.schedules`."""

from typing import Any

import jax
import jax.numpy as jnp

from diffax._pytrees import pytree, static
from diffax.curves import Curve, check_range, early


def _beta_integral(low: Any, high: Any, t: Any) -> Any:
    """B(t) of beta = low + (high - low) t."""
    return t * (low + 0.5 * (high - low) * t)


def _beta_time(low: Any, high: Any, integral: Any) -> Any:
    """The t of B(t), the root of a quadratic in the form that survives high = low."""
    return 2 * integral / (low + jnp.sqrt(low**2 + 2 * (high - low) * integral))


@pytree
class Linear(Curve):
    """The linear-beta VP schedule: beta(t) = beta_min + (beta_max - beta_min) t.

    With B(t) = int_0^t beta: alpha^2 = exp(-B), lambda = -log(exp(B) - 1). It is the continuous limit of
    DDPM's linear betas (Ho et al. 2020) as given by Song et al. 2021, eq. 33.

    Args:
      beta_min: beta at t = 0, > 0.
      beta_max: beta at t = 1, >= beta_min.
      scaling: a key of `diffax.curves.SCALINGS`, as for every schedule.

    Raises:
      ValueError: if not 0 < beta_min <= beta_max.

    >>> bool(abs(Linear()(1.0).alpha - jnp.exp(-0.25 * 19.9 - 0.05)) < 1e-6)
    True
    """

    beta_min: Any = 0.1
    beta_max: Any = 20.0
    scaling: str = static(default="vp")

    def __post_init__(self):
        super().__post_init__()
        check_range(("beta_min", "beta_max"), self.beta_min, self.beta_max, may_equal=True)

    def curve(self, t):
        return -jnp.log(jnp.expm1(_beta_integral(self.beta_min, self.beta_max, t)))

    def ratio(self, t):
        return jnp.sqrt(jnp.expm1(_beta_integral(self.beta_min, self.beta_max, t)))

    def uncurve(self, log_snr):
        return _beta_time(self.beta_min, self.beta_max, jax.nn.softplus(-log_snr))


@pytree
class Quadratic(Curve):
    """The VP schedule with sqrt(beta) linear in t: beta(t) = (a + c t)^2, a = sqrt(beta_min), a + c = sqrt(beta_max).

    B(t) = ((a + c t)^3 - a^3) / (3 c) = a^2 t + a c t^2 + c^2 t^3 / 3. It is the continuous limit of
    `quadratic_betas`, "scaled_linear" in latent diffusion's code (Rombach et al. 2022); the defaults are 1,000
    times Stable Diffusion's betas.

    Args:
      beta_min: beta at t = 0, > 0.
      beta_max: beta at t = 1, >= beta_min.
      scaling: a key of `diffax.curves.SCALINGS`.

    Raises:
      ValueError: if not 0 < beta_min <= beta_max.

    >>> bool(abs(Quadratic(1.0, 9.0)(1.0).alpha - jnp.exp(-13 / 6)) < 1e-6)  # B(1) = 1 + 2 + 4 / 3
    True
    """

    beta_min: Any = 0.85
    beta_max: Any = 12.0
    scaling: str = static(default="vp")

    def __post_init__(self):
        super().__post_init__()
        check_range(("beta_min", "beta_max"), self.beta_min, self.beta_max, may_equal=True)

    def _integral(self, t):
        product = early(lambda xp, low, high: xp.sqrt(low * high) - low, self.beta_min, self.beta_max)  # a c
        square = early(lambda xp, low, high: xp.square(xp.sqrt(high) - xp.sqrt(low)) / 3, self.beta_min, self.beta_max)
        return t * (self.beta_min + t * (product + square * t))

    def curve(self, t):
        return -jnp.log(jnp.expm1(self._integral(t)))

    def ratio(self, t):
        return jnp.sqrt(jnp.expm1(self._integral(t)))

    def uncurve(self, log_snr):
        integral = jax.nn.softplus(-log_snr)
        a = jnp.sqrt(self.beta_min)
        # u = a + c t, and u^3 - a^3 = 3 c B: divided by u^2 + u a + a^2 instead of c, which may be 0.
        u = jnp.cbrt(a**3 + 3 * (jnp.sqrt(self.beta_max) - a) * integral)
        return 3 * integral / (u * u + u * a + a * a)


@pytree
class SubVP(Curve):
    """The sub-VP SDE's schedule: alpha = exp(-B / 2), sigma = 1 - exp(-B), beta as in `Linear`.

    lambda = -2 log(2 sinh(B / 2)). Song et al. 2021, eq. 28 and 29: f = -beta / 2, g^2 = beta (1 - exp(-2 B)).
    (`Linear(scaling="sub_vp")` has the log-SNR of the VP SDE under this scaling.)

    Args:
      beta_min: beta at t = 0, > 0.
      beta_max: beta at t = 1, >= beta_min.
      scaling: a key of `diffax.curves.SCALINGS`.

    Raises:
      ValueError: if not 0 < beta_min <= beta_max.

    >>> bool(abs(SubVP()(0.5).sigma - (1 - jnp.exp(-0.05 - 19.9 / 8))) < 1e-6)
    True
    """

    beta_min: Any = 0.1
    beta_max: Any = 20.0
    scaling: str = static(default="sub_vp")

    def __post_init__(self):
        super().__post_init__()
        check_range(("beta_min", "beta_max"), self.beta_min, self.beta_max, may_equal=True)

    def curve(self, t):
        integral = _beta_integral(self.beta_min, self.beta_max, t)
        return -2 * jnp.log(-jnp.expm1(-integral)) - integral

    def ratio(self, t):
        integral = _beta_integral(self.beta_min, self.beta_max, t)
        return -jnp.expm1(-integral) * jnp.exp(integral / 2)

    def uncurve(self, log_snr):
        integral = 2 * jnp.arcsinh(jnp.exp(-log_snr / 2) / 2)
        return _beta_time(self.beta_min, self.beta_max, integral)
