"""The base class of schedules: a clipped log-SNR curve times a scaling.

The docstring of `diffax.schedules` has the equations.
"""

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
    """`f(xp, *values)`, computed in float64 where all values are Python numbers.

    In that case xp is NumPy and the result is a Python float; otherwise xp is `jax.numpy`. So a constant that is
    computed from Python hyperparameters is rounded only once, to the dtype of the array that it is combined with.
    """
    if all(isinstance(v, (int, float)) for v in values):
        return float(f(np, *values))
    return f(jnp, *(as_float(v) for v in values))


def floored(v: Array, least: Scalar) -> Any:
    """max(v, least) with the derivative of v.

    It keeps a time v or 1 - v away from 0, so that logs and quotients are finite; `least` is beyond the clip of
    log-SNR. In float32, 1 - t is 0 for every t > 1 - 6e-8.
    """
    return straight_through(v, jnp.maximum(v, least))


def check_range(names: tuple[str, str], low: PerExample, high: PerExample, *, may_equal: bool = False) -> None:
    """Raise `ValueError` unless 0 < low < high, or 0 < low <= high with `may_equal`. Traced values pass."""
    check(names[0], low, positive)
    bound = concrete(low)
    if bound is not None:
        sign = ">=" if may_equal else ">"
        check(
            names[1], high, Condition(f"{sign} {names[0]} = {bound}", lambda v: v >= bound if may_equal else v > bound)
        )


class Curve(abc.ABC):
    """Base class of schedules: it clips the log-SNR curve of a subclass and applies the scaling.

    A subclass is a pytree with a static field `scaling` and two methods: `curve(t)`, the log-SNR before clipping, and
    `uncurve(log_snr)`, the inverse of `curve`. It also overrides `ratio(t)` where exp(-curve(t) / 2) would lose digits.
    """

    scaling: Scaling

    def __post_init__(self) -> None:
        """Check the name of the scaling and convert integer parameters to floats."""
        float_fields(self)
        choose("scaling", self.scaling, SCALINGS)

    @abc.abstractmethod
    def curve(self, t: Array) -> Any:
        """Log-SNR at t before clipping; it may be infinite at the ends of [0, 1]."""

    @abc.abstractmethod
    def uncurve(self, log_snr: Array) -> Any:
        """The inverse of `curve`."""

    def ratio(self, t: Array) -> Any:
        """Sigma / alpha at t: exp(-curve(t) / 2)."""
        return jnp.exp(-self.curve(t) / 2)

    def _clipped(self, f: Callable[[Any], Any], t: Array, at_data: Scalar, at_noise: Scalar) -> Any:
        """f(t), replaced by `at_data` where log-SNR > 20 and by `at_noise` where log-SNR < -20.

        The derivative in the replaced parts is the one-sided derivative from inside (docs/how_it_works.md, "Slopes at
        the clip").
        """
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
        # Compute the ratio directly: in float32 the rounding of a log-SNR of 20 would give sigma an error of 5e-7.
        ratio = self._clipped(self.ratio, as_float(t), 1 / RATIO_MAX, RATIO_MAX)
        return Level(*SCALINGS[self.scaling](ratio), self.log_snr(t))
