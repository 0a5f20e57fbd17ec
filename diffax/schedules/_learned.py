r"""A learned noise schedule: -log-SNR is a monotone network between two end points, which may be learned too.

    gamma(t) = gamma_0 + (gamma_1 - gamma_0) (f(t) - f(0)) / (f(1) - f(0)),     lambda = -gamma
    f(t) = a t + sum_j c_j sigmoid(w_j t + b_j),     a, c_j, w_j > 0 as softplus of the parameters

In continuous time the variational bound depends only on the end points (Kingma et al. 2021, eq. 18). The curve between
them changes only the variance of the estimate of the bound. `diffax.losses.vdm_loss` trains both.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffax import random
from diffax._checks import Condition, check, check_count, interval
from diffax._pytrees import as_float, of_rank, pytree, static
from diffax.schedules._curve import LOG_SNR_MAX, Curve, straight_through
from diffax.typing import Array, Keys, Scalar, Scaling, Times

BISECTIONS = 40


SMALLEST_RANGE = 0.1  # smallest difference in log-SNR between the two ends


@pytree
class Learned(Curve):
    """VDM's learned schedule. Build one with `Learned.init`; every leaf may be trained, traced and vmapped.

    Kingma et al. 2021, section 4 and appendix H. The f of the paper composes its two layers. Here the layers are added,
    which is as general and keeps the slope of f away from 0.

    Args:
      ends: (2,) log-SNR at t = 0 and at t = 1. Both are clipped to [-20, 20], as for every schedule, and the second is
        at least 0.1 below the first. An end that is clipped has gradient 0.
      slope: () a, the slope of the linear part, before softplus.
      weights: (J,) w, before softplus.
      biases: (J,) b.
      heights: (J,) c, before softplus.
      scaling: "vp", "ve", "sub_vp" or "flow".

    >>> schedule = Learned.init(jax.random.key(0), log_snr_max=10.0, log_snr_min=-10.0)
    >>> [round(float(schedule.log_snr(t)), 3) for t in (0.0, 1.0)]
    [10.0, -10.0]
    """

    ends: Any
    slope: Any
    weights: Any
    biases: Any
    heights: Any
    scaling: Scaling = static(default="vp")

    @classmethod
    def init(
        cls,
        key: Keys,
        *,
        log_snr_max: float = 13.3,
        log_snr_min: float = -5.0,
        units: int = 64,
        scaling: Scaling = "vp",
    ) -> "Learned":
        """A schedule close to linear in log-SNR, with VDM's end points (Kingma et al. 2021, section 6).

        Args:
          key: () for the initial weights; consumed.
          log_snr_max: log-SNR at t = 0.
          log_snr_min: log-SNR at t = 1.
          units: J, an int >= 1.
          scaling: "vp", "ve", "sub_vp" or "flow".

        Raises:
          ValueError: for units < 1, ends outside [-20, 20] or less than 0.1 apart, or an unknown scaling.
        """
        for name, value in (("log_snr_max", log_snr_max), ("log_snr_min", log_snr_min)):
            check(name, value, interval(f"[-{LOG_SNR_MAX:g}, {LOG_SNR_MAX:g}]"))
        upper = log_snr_max - SMALLEST_RANGE
        check(
            "log_snr_min",
            log_snr_min,
            Condition(f"<= log_snr_max - {SMALLEST_RANGE} = {upper:g}", lambda v: v <= upper),
        )
        check_count("units", units)
        weights_key, biases_key = jax.random.split(random.threefry(key))
        weights = 2.0 + jax.random.normal(weights_key, (units,))
        # With these biases the middle of each sigmoid is in [0, 1].
        biases = -jax.nn.softplus(weights) * jax.random.uniform(biases_key, (units,))
        heights = jnp.full((units,), -4.0)
        return cls(jnp.asarray([log_snr_max, log_snr_min]), jnp.asarray(0.5), weights, biases, heights, scaling)

    def _f(self, t: Times) -> Any:
        t = jnp.asarray(t)[..., None]
        weights, biases, heights = (of_rank(v, t) for v in (self.weights, self.biases, self.heights))
        weights, heights = jax.nn.softplus(weights), jax.nn.softplus(heights)
        nonlinear = jnp.sum(heights * jax.nn.sigmoid(weights * t + biases), -1)
        return jax.nn.softplus(self.slope) * t[..., 0] + nonlinear

    def _clipped(self, f: Callable[[Any], Any], t: Array, at_data: Scalar, at_noise: Scalar) -> Any:
        # Both ends are inside [-20, 20], so only t is clipped. The base class would need `inverse`, a bisection.
        return f(straight_through(t, jnp.clip(t, 0.0, 1.0)))

    @property
    def _clipped_ends(self) -> Any:
        """The clipped ends: training may move them outside [-20, 20] or past each other."""
        high = jnp.clip(self.ends[0], -LOG_SNR_MAX + SMALLEST_RANGE, LOG_SNR_MAX)
        return high, jnp.clip(self.ends[1], -LOG_SNR_MAX, high - SMALLEST_RANGE)

    def curve(self, t: Array) -> Any:
        f, (first, last) = self._f(t), self._f(jnp.asarray([0.0, 1.0], jnp.asarray(t).dtype))
        high, low = self._clipped_ends
        return high + (low - high) * (f - first) / (last - first)

    def uncurve(self, log_snr: Array) -> Any:
        """The inverse of `curve`, by bisection. A Newton step after it carries the derivative."""
        log_snr = as_float(log_snr)
        frozen, target = jax.lax.stop_gradient((self, log_snr))

        def halve(_: Array, bounds: tuple[Array, Array]) -> Any:
            low, high = bounds
            middle = (low + high) / 2
            root_is_later = frozen.curve(middle) > target
            return jnp.where(root_is_later, middle, low), jnp.where(root_is_later, high, middle)

        bounds = (jnp.zeros_like(target), jnp.ones_like(target))
        t = jax.lax.stop_gradient(sum(jax.lax.fori_loop(0, BISECTIONS, halve, bounds)) / 2)
        _, slope = jax.jvp(frozen.curve, (t,), (jnp.ones_like(t),))
        high, low = frozen._clipped_ends
        above_range, below_range = target > high, target < low
        return jnp.where(above_range, 0.0, jnp.where(below_range, 1.0, t + (log_snr - self.curve(t)) / slope))
