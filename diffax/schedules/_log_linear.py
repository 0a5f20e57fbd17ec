"""The variance-exploding schedule, geometric in sigma."""

from typing import Any

import jax.numpy as jnp

from diffax._pytrees import pytree, static
from diffax.schedules._curve import Curve, check_range, early
from diffax.typing import Array, Scaling


@pytree
class LogLinear(Curve):
    """The variance-exploding schedule: sigma = sigma_min (sigma_max / sigma_min)^t; lambda = -2 log sigma.

    Song & Ermon 2019; Song et al. 2021, eq. 30. As for every schedule, |lambda| is clipped to 20: with the ve scaling,
    sigma stays in [4.5e-5, 22026].

    Args:
      sigma_min: noise level at t = 0, > 0.
      sigma_max: noise level at t = 1, > sigma_min.
      scaling: "vp", "ve", "sub_vp" or "flow".

    Raises:
      ValueError: if not 0 < sigma_min < sigma_max.

    >>> round(float(LogLinear(0.01, 100.0)(0.75).sigma), 4)
    10.0
    """

    sigma_min: Any
    sigma_max: Any
    scaling: Scaling = static(default="ve")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(("sigma_min", "sigma_max"), self.sigma_min, self.sigma_max)

    @property
    def _ends(self) -> Any:
        return early(lambda xp, v: xp.log(v), self.sigma_min), early(lambda xp, v: xp.log(v), self.sigma_max)

    def curve(self, t: Array) -> Any:
        low, high = self._ends
        return -2 * (low + (high - low) * t)

    def ratio(self, t: Array) -> Any:
        low, high = self._ends
        # Relative to the geometric mean of the ends, the exponent is smallest, and so is its rounding error.
        middle = early(lambda xp, a, b: xp.sqrt(a * b), self.sigma_min, self.sigma_max)
        return middle * jnp.exp((high - low) * (t - 0.5))

    def uncurve(self, log_snr: Array) -> Any:
        low, high = self._ends
        return (-log_snr / 2 - low) / (high - low)
