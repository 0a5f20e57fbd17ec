"""What a schedule is made of: a log-SNR curve, clipped, times a scaling. The equations head `diffax.schedules`."""

import abc
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffax._checks import Condition, check, choose, positive
from diffax._pytrees import as_float, concrete, float_fields
from diffax.schedules._scalings import SCALINGS
from diffax.typing import Array, Level, PerExample, Scalar, Scaling, Times

LOG_SNR_MAX = 20.0


RATIO_MAX = math.exp(LOG_SNR_MAX / 2)


def straight_through(value: Scalar, clipped: Scalar) -> Any:
    """The value of `clipped` with the derivative of `value`."""
    return jax.lax.stop_gradient(clipped) + (value - jax.lax.stop_gradient(value))


def early(f: Callable[..., Any], *values: Scalar) -> Any:
    """f(numpy or jax.numpy, *values): in float64, as a Python float, where all values are Python numbers.

    So a constant that is made of hyperparameters is rounded once, to whatever precision it meets.
    """
    if all(isinstance(v, (int, float)) for v in values):
        return float(f(np, *values))
    return f(jnp, *(as_float(v) for v in values))


def floored(v: Array, least: Scalar) -> Any:
    """V kept from 0 by a floor beyond the clip: float32 knows no time between 1 - 6e-8 and 1."""
    return straight_through(v, jnp.maximum(v, least))


def check_range(names: tuple[str, str], low: PerExample, high: PerExample, *, may_equal: bool = False) -> None:
    """0 < low < high, or <= where they may be equal."""
    check(names[0], low, positive)
    known = concrete(low)
    if known is not None:
        sign = ">=" if may_equal else ">"
        check(
            names[1], high, Condition(f"{sign} {names[0]} = {known}", lambda v: v >= known if may_equal else v > known)
        )


class Curve(abc.ABC):
    """What diffax's schedules share: clipping and scaling of the functions a subclass gives.

    A subclass is a pytree with `curve(t)`, the log-SNR before clipping, `uncurve(log_snr)`, its inverse,
    and a static field `scaling`. It gives `ratio(t)` too where exp(-curve(t) / 2) would lose digits.
    """

    scaling: Scaling

    def __post_init__(self) -> None:
        """Checks the name of the scaling; integer parameters become floats."""
        float_fields(self)
        choose("scaling", self.scaling, SCALINGS)

    @abc.abstractmethod
    def curve(self, t: Array) -> Any:
        """log-SNR at t, may be infinite at the ends of [0, 1]."""

    @abc.abstractmethod
    def uncurve(self, log_snr: Array) -> Any:
        """The inverse of `curve`."""

    def ratio(self, t: Array) -> Any:
        """Sigma / alpha at t: exp(-curve(t) / 2)."""
        return jnp.exp(-self.curve(t) / 2)

    def _clipped(self, f: Callable[[Any], Any], t: Array, at_data: Scalar, at_noise: Scalar) -> Any:
        """f(t), at_data before |log-SNR| = 20 and at_noise beyond it; the slopes there are one-sided, from inside."""
        first, last = self.inverse(jnp.asarray([LOG_SNR_MAX, -LOG_SNR_MAX], t.dtype))
        inside = f(straight_through(t, jnp.clip(t, first, last)))
        clipped = jnp.clip(inside, min(at_data, at_noise), max(at_data, at_noise))
        clipped = jnp.where(t < first, at_data, jnp.where(t > last, at_noise, clipped))
        return straight_through(inside, clipped)

    def log_snr(self, t: Times) -> Any:
        """log(alpha^2 / sigma^2) at t, clipped to [-20, 20]; any shape."""
        return self._clipped(self.curve, as_float(t), LOG_SNR_MAX, -LOG_SNR_MAX)

    def inverse(self, log_snr: Scalar) -> Any:
        """The t in [0, 1] at which the schedule has this log-SNR; any shape."""
        return jnp.clip(self.uncurve(as_float(log_snr)), 0.0, 1.0)

    def __call__(self, t: Times) -> Level:
        """The level (alpha, sigma, log_snr) at t; any shape."""
        # Not by way of log-SNR: in float32 the rounding of a log-SNR of 20 alone costs sigma 5e-7.
        ratio = self._clipped(self.ratio, as_float(t), 1 / RATIO_MAX, RATIO_MAX)
        return Level(*SCALINGS[self.scaling](ratio), self.log_snr(t))
