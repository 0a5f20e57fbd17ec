"""What a schedule is made of: a log-SNR curve, clipped, times a scaling. The equations head `diffax.schedules`."""

import abc
from typing import Any

import jax
import jax.numpy as jnp

from diffax.pytrees import as_float, choose
from diffax.typing import Level

LOG_SNR_MAX = 20.0


def _sub_vp(log_snr: Any) -> tuple[Any, Any]:
    root = 1.0 + jnp.sqrt(1.0 + 4.0 * jnp.exp(log_snr))
    return 2.0 * jnp.exp(log_snr / 2) / root, 2.0 / root


SCALINGS = {
    "vp": lambda lam: (jnp.sqrt(jax.nn.sigmoid(lam)), jnp.sqrt(jax.nn.sigmoid(-lam))),
    "ve": lambda lam: (jnp.ones_like(lam), jnp.exp(-lam / 2)),
    "sub_vp": _sub_vp,
    "flow": lambda lam: (jax.nn.sigmoid(lam / 2), jax.nn.sigmoid(-lam / 2)),
}


def straight_through(value: Any, clipped: Any) -> Any:
    """The value of `clipped` with the derivative of `value`."""
    return value + jax.lax.stop_gradient(clipped - value)


class Curve(abc.ABC):
    """What diffax's schedules share: clipping and scaling of the two functions a subclass gives.

    A subclass is a pytree with `curve(t)`, the log-SNR before clipping, `uncurve(log_snr)`, its inverse,
    and a static field `scaling`.
    """

    scaling: str

    def __post_init__(self):
        """Checks the name of the scaling."""
        choose("scaling", self.scaling, SCALINGS)

    @abc.abstractmethod
    def curve(self, t: Any) -> Any:
        """log-SNR at t, may be infinite at the ends of [0, 1]."""

    @abc.abstractmethod
    def uncurve(self, log_snr: Any) -> Any:
        """The inverse of `curve`."""

    def log_snr(self, t: Any) -> Any:
        """log(alpha^2 / sigma^2) at t, clipped to [-20, 20]; any shape."""
        t = as_float(t)
        first, last = self.inverse(jnp.asarray([LOG_SNR_MAX, -LOG_SNR_MAX], t.dtype))
        inside = self.curve(straight_through(t, jnp.clip(t, first, last)))
        at_ends = jnp.where(inside > 0, LOG_SNR_MAX, -LOG_SNR_MAX)
        beyond = (t < first) | (t > last)
        clipped = jnp.where(beyond, at_ends, jnp.clip(inside, -LOG_SNR_MAX, LOG_SNR_MAX))
        return straight_through(inside, clipped)

    def inverse(self, log_snr: Any) -> Any:
        """The t in [0, 1] at which the schedule has this log-SNR; any shape."""
        return jnp.clip(self.uncurve(as_float(log_snr)), 0.0, 1.0)

    def __call__(self, t: Any) -> Level:
        """The level (alpha, sigma, log_snr) at t; any shape."""
        log_snr = self.log_snr(t)
        return Level(*SCALINGS[self.scaling](log_snr), log_snr)
