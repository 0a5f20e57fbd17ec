"""The sigmoid schedule."""

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from diffax._checks import above, check, positive
from diffax._pytrees import concrete, pytree, static
from diffax.schedules._curve import Curve, early, floored
from diffax.typing import Array, Scalar, Scaling


@pytree
class Sigmoid(Curve):
    """The sigmoid schedule: alpha^2 = (S(1) - S(t)) / (S(1) - S(0)), S(t) = sigmoid((start + (end - start) t) / tau).

    With w = (end - start) / (2 tau):

        r^2 = sinh(w t) / sinh(w (1 - t)) k,   k = cosh(end / (2 tau)) / cosh(start / (2 tau))

    Jabri et al. 2022; Chen 2023, algorithm 1, which names start, end and tau.

    Args:
      start: argument of the sigmoid at t = 0, before the division by tau.
      end: argument of the sigmoid at t = 1, > start.
      tau: temperature, > 0; for large tau, alpha^2 tends to 1 - t.
      scaling: "vp", "ve", "sub_vp" or "flow"; the alpha^2 above holds for vp.

    Raises:
      ValueError: if not tau > 0 and start < end.

    >>> round(float(Sigmoid()(0.5).alpha ** 2), 4)
    0.5
    """

    start: Any = -3.0
    end: Any = 3.0
    tau: Any = 1.0
    scaling: Scaling = static(default="vp")

    def __post_init__(self) -> None:
        super().__post_init__()
        check("tau", self.tau, positive)
        start = concrete(self.start)
        if start is not None:
            check("end", self.end, above(start, "start"))

    @property
    def _half_width(self) -> Any:
        return (self.end - self.start) / (2 * self.tau)

    @property
    def _log_k(self) -> Any:
        def log_k(xp: ModuleType, start: Scalar, end: Scalar, tau: Scalar) -> Any:
            a, b = xp.abs(start / tau), xp.abs(end / tau)
            return (b - a) / 2 + xp.log1p(xp.exp(-b)) - xp.log1p(xp.exp(-a))

        return early(log_k, self.start, self.end, self.tau)

    def curve(self, t: Array) -> Any:
        return -2 * jnp.log(self.ratio(t))

    def ratio(self, t: Array) -> Any:
        w, remaining = self._half_width, floored(1 - t, 1e-12)
        # sinh(x) = -exp(x) expm1(-2 x) / 2 does not overflow, and it is accurate near both ends.
        expm1_ratio = jnp.expm1(-2 * w * t) / jnp.expm1(-2 * w * remaining)
        return jnp.sqrt(expm1_ratio) * jnp.exp(w * (t - 0.5) + self._log_k / 2)

    def uncurve(self, log_snr: Array) -> Any:
        w, log_q = self._half_width, -log_snr - self._log_k
        part = (jax.nn.softplus(w - jnp.abs(log_q)) - jax.nn.softplus(-w - jnp.abs(log_q))) / (2 * w)
        return jnp.where(log_q > 0, 1 - part, part)
