"""Schedules given by alpha, sigma or log-SNR as functions of t. The equations head `diffax.schedules`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffax._pytrees import as_float, check, concrete, pytree, static
from diffax.curves import LOG_SNR_MAX, Curve, early, straight_through
from diffax.typing import Level


@pytree
class Cosine(Curve):
    """The cosine schedule: alpha = cos(pi t / 2), sigma = sin(pi t / 2); lambda = -2 log tan(pi t / 2).

    Nichol & Dhariwal 2021, eq. 17, without the offset s of the discrete version (`cosine_betas` has it).

    >>> round(float(Cosine()(1 / 3).alpha), 4)
    0.866
    """

    scaling: str = static(default="vp")

    def curve(self, t):
        return -2 * jnp.log(self.ratio(t))

    def ratio(self, t):
        # The sine of pi/2 - . rather than a cosine: exact near t = 1.
        return jnp.sin(jnp.pi / 2 * t) / jnp.sin(jnp.pi / 2 * (1 - t))

    def uncurve(self, log_snr):
        return 2 / jnp.pi * jnp.arctan(jnp.exp(-log_snr / 2))


@pytree
class Flow(Curve):
    """The rectified-flow schedule: alpha = 1 - t, sigma = t; lambda = 2 log((1 - t) / t).

    Liu et al. 2023 and Lipman et al. 2023, with time running from data to noise.

    >>> [round(float(v), 4) for v in Flow()(0.25)]
    [0.75, 0.25, 2.1972]
    """

    scaling: str = static(default="flow")

    def curve(self, t):
        return 2 * (jnp.log1p(-t) - jnp.log(t))

    def ratio(self, t):
        return t / (1 - t)

    def uncurve(self, log_snr):
        return jax.nn.sigmoid(-log_snr / 2)

    def __call__(self, t: Any) -> Level:
        """The level at t; any shape. Of the scaling flow, the slopes have all digits too."""
        level = super().__call__(t)
        if self.scaling != "flow":
            return level
        # By way of the clipped t they would have no more than 1 - t has: three in float32 at the noise end.
        t = as_float(t)
        alpha, sigma = straight_through(1 - t, level.alpha), straight_through(t, level.sigma)
        return Level(alpha, sigma, straight_through(2 * jnp.log(alpha / sigma), level.log_snr))


def _floored(v: Any, least: Any) -> Any:
    """V kept from 0 by a floor beyond the clip: float32 knows no time between 1 - 6e-8 and 1."""
    return straight_through(v, jnp.maximum(v, least))


@pytree
class Sigmoid(Curve):
    """The sigmoid schedule: alpha^2 = (S(1) - S(t)) / (S(1) - S(0)), S(t) = sigmoid((start + (end - start) t) / tau).

    With w = (end - start) / (2 tau):

        r^2 = sinh(w t) / sinh(w (1 - t)) k,   k = cosh(end / (2 tau)) / cosh(start / (2 tau))

    Jabri et al. 2022; Chen 2023, algorithm 1, which names start, end and tau.

    Args:
      start: where the sigmoid starts.
      end: where it ends, > start.
      tau: temperature, > 0; for large tau alpha^2 = 1 - t.
      scaling: a key of `diffax.curves.SCALINGS`; alpha^2 above is that of vp.

    Raises:
      ValueError: if not tau > 0 and start < end.

    >>> round(float(Sigmoid()(0.5).alpha ** 2), 4)
    0.5
    """

    start: Any = -3.0
    end: Any = 3.0
    tau: Any = 1.0
    scaling: str = static(default="vp")

    def __post_init__(self):
        super().__post_init__()
        check("tau", self.tau, "> 0", lambda v: v > 0)
        start = concrete(self.start)
        if start is not None:
            check("end", self.end, f"> start = {start}", lambda v: v > start)

    @property
    def _half_width(self):
        return (self.end - self.start) / (2 * self.tau)

    @property
    def _log_k(self):
        def of(xp, start, end, tau):
            a, b = xp.abs(start / tau), xp.abs(end / tau)
            return (b - a) / 2 + xp.log1p(xp.exp(-b)) - xp.log1p(xp.exp(-a))

        return early(of, self.start, self.end, self.tau)

    def curve(self, t):
        return -2 * jnp.log(self.ratio(t))

    def ratio(self, t):
        w, left = self._half_width, _floored(1 - t, 1e-12)
        # sinh(x) = -exp(x) expm1(-2 x) / 2: no overflow, and digits kept at both ends.
        of_ends = jnp.expm1(-2 * w * t) / jnp.expm1(-2 * w * left)
        return jnp.sqrt(of_ends) * jnp.exp(w * (t - 0.5) + self._log_k / 2)

    def uncurve(self, log_snr):
        w, log_q = self._half_width, -log_snr - self._log_k
        part = (jax.nn.softplus(w - jnp.abs(log_q)) - jax.nn.softplus(-w - jnp.abs(log_q))) / (2 * w)
        return jnp.where(log_q > 0, 1 - part, part)


@pytree
class Laplace(Curve):
    """The Laplace schedule: uniform t draws log-SNR from a Laplace law with this mean and width.

        lambda = mean - width sign(1/2 - t) log(1 - 2 |t - 1/2|)

    Hang et al. 2024, table 1 (mu = 0, b = 0.5): training spends its time around lambda = mean.

    Args:
      mean: mu, the log-SNR at t = 1/2.
      width: b, > 0.
      scaling: a key of `diffax.curves.SCALINGS`.

    Raises:
      ValueError: if width is not positive, or the mean not finite.

    >>> round(float(Laplace(mean=1.0, width=0.5).log_snr(0.25)), 4)  # 1 + 0.5 log 2
    1.3466
    """

    mean: Any = 0.0
    width: Any = 0.5
    scaling: str = static(default="vp")

    def __post_init__(self):
        super().__post_init__()
        check("mean", self.mean, "finite", np.isfinite)
        check("width", self.width, "> 0", lambda v: v > 0)

    def _tail(self, t):
        """1 - 2 |t - 1/2|, and the sign of t - 1/2."""
        first_half = t < 0.5
        least = jnp.maximum(0.25 * jnp.exp(-(LOG_SNR_MAX + jnp.abs(self.mean)) / self.width), 1e-20)
        tail = 2 * _floored(jnp.where(first_half, t, 1 - t), least)
        return tail, jnp.where(first_half, -1.0, 1.0).astype(t.dtype)

    def curve(self, t):
        tail, sign = self._tail(t)
        return self.mean + sign * self.width * jnp.log(tail)

    def ratio(self, t):
        tail, sign = self._tail(t)
        return early(lambda xp, mean: xp.exp(-mean / 2), self.mean) * tail ** (-sign * self.width / 2)

    def uncurve(self, log_snr):
        from_mean = log_snr - self.mean
        half = 0.5 * jnp.exp(-jnp.abs(from_mean) / self.width)
        return jnp.where(from_mean > 0, half, 1 - half)
