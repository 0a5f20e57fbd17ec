r"""A learned noise schedule: a monotone network for -log-SNR, between end points that are fixed or learned too.

    gamma(t) = gamma_0 + (gamma_1 - gamma_0) (f(t) - f(0)) / (f(1) - f(0)),     lambda = -gamma
    f(t) = a t + sum_j c_j sigmoid(w_j t + b_j),     a, c_j, w_j > 0 as softplus of the parameters

In continuous time the bound depends on the end points alone (Kingma et al. 2021, eq. 18); the curve between them only
moves the variance of its estimate. `diffax.losses.vdm_loss` trains both.
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


SMALLEST_RANGE = 0.1  # of log-SNR between the ends


@pytree
class Learned(Curve):
    """VDM's learned schedule. Build one with `Learned.init`; every leaf may be trained, traced and vmapped.

    Kingma et al. 2021, section 4 and appendix H (f there has the two layers in sequence; here they are in parallel,
    which is as general and keeps f's slope away from 0).

    Args:
      ends: (2,) log-SNR at t = 0 and at t = 1, clipped to [-20, 20] as for every schedule, and the second to 0.1 below
        the first; an end beyond that has no gradient.
      slope: () before softplus, of the linear part.
      weights: (J,) w before softplus.
      biases: (J,) b.
      heights: (J,) c before softplus.
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
          key: () for the first weights; consumed.
          log_snr_max: at t = 0.
          log_snr_min: at t = 1.
          units: J, an int >= 1.
          scaling: as above.

        Raises:
          ValueError: for units < 1, ends outside [-20, 20] or less than 0.1 apart, an unknown scaling.
        """
        for name, value in (("log_snr_max", log_snr_max), ("log_snr_min", log_snr_min)):
            check(name, value, interval(f"[-{LOG_SNR_MAX:g}, {LOG_SNR_MAX:g}]"))
        most = log_snr_max - SMALLEST_RANGE
        check(
            "log_snr_min", log_snr_min, Condition(f"<= log_snr_max - {SMALLEST_RANGE} = {most:g}", lambda v: v <= most)
        )
        check_count("units", units)
        of_weights, of_biases = jax.random.split(random.threefry(key))
        weights = 2.0 + jax.random.normal(of_weights, (units,))
        # Each sigmoid's middle somewhere in [0, 1].
        biases = -jax.nn.softplus(weights) * jax.random.uniform(of_biases, (units,))
        heights = jnp.full((units,), -4.0)
        return cls(jnp.asarray([log_snr_max, log_snr_min]), jnp.asarray(0.5), weights, biases, heights, scaling)

    def _f(self, t: Times) -> Any:
        t = jnp.asarray(t)[..., None]
        weights, biases, heights = (of_rank(v, t) for v in (self.weights, self.biases, self.heights))
        weights, heights = jax.nn.softplus(weights), jax.nn.softplus(heights)
        bent = jnp.sum(heights * jax.nn.sigmoid(weights * t + biases), -1)
        return jax.nn.softplus(self.slope) * t[..., 0] + bent

    def _clipped(self, f: Callable[[Any], Any], t: Array, at_data: Scalar, at_noise: Scalar) -> Any:
        # The ends lie within the clip, so that no bisection is needed to find where it begins.
        return f(straight_through(t, jnp.clip(t, 0.0, 1.0)))

    @property
    def _clipped_ends(self) -> Any:
        """Training may move the ends beyond the clip, or across each other."""
        high = jnp.clip(self.ends[0], -LOG_SNR_MAX + SMALLEST_RANGE, LOG_SNR_MAX)
        return high, jnp.clip(self.ends[1], -LOG_SNR_MAX, high - SMALLEST_RANGE)

    def curve(self, t: Array) -> Any:
        f, (first, last) = self._f(t), self._f(jnp.asarray([0.0, 1.0], jnp.asarray(t).dtype))
        high, low = self._clipped_ends
        return high + (low - high) * (f - first) / (last - first)

    def uncurve(self, log_snr: Array) -> Any:
        """By bisection, and one step of Newton's that the derivative goes through."""
        log_snr = as_float(log_snr)
        frozen, wanted = jax.lax.stop_gradient((self, log_snr))

        def halve(_: Array, bounds: tuple[Array, Array]) -> Any:
            low, high = bounds
            middle = (low + high) / 2
            later = frozen.curve(middle) > wanted
            return jnp.where(later, middle, low), jnp.where(later, high, middle)

        bounds = (jnp.zeros_like(wanted), jnp.ones_like(wanted))
        t = jax.lax.stop_gradient(sum(jax.lax.fori_loop(0, BISECTIONS, halve, bounds)) / 2)
        _, slope = jax.jvp(frozen.curve, (t,), (jnp.ones_like(t),))
        high, low = frozen._clipped_ends
        before, beyond = wanted > high, wanted < low
        return jnp.where(before, 0.0, jnp.where(beyond, 1.0, t + (log_snr - self.curve(t)) / slope))
