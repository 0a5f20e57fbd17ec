"""The EDM schedule: a power of sigma is linear in t."""

from typing import Any

import jax.numpy as jnp

from diffax._checks import check, positive
from diffax._pytrees import pytree, static
from diffax.schedules._curve import Curve, check_range, early
from diffax.typing import Array, Scaling


@pytree
class EDM(Curve):
    """The EDM schedule: sigma^(1 / rho) linear in t; lambda = -2 log sigma.

        sigma = (a + (b - a) t)^rho,   a = sigma_min^(1 / rho), b = sigma_max^(1 / rho)

    Karras et al. 2022, eq. 5: uniform times give the step grid of their samplers. As rho grows, the schedule tends to
    `LogLinear`; with rho = 1, sigma is linear in t.

    Args:
      sigma_min: noise level at t = 0, > 0.
      sigma_max: noise level at t = 1, > sigma_min.
      rho: > 0.
      scaling: "vp", "ve", "sub_vp" or "flow".

    Raises:
      ValueError: if not 0 < sigma_min < sigma_max, or rho is not positive.

    >>> [round(float(EDM()(t).sigma), 3) for t in (1.0, 0.75, 0.5, 0.25, 0.0)]
    [80.0, 17.528, 2.515, 0.17, 0.002]
    """

    sigma_min: Any = 0.002
    sigma_max: Any = 80.0
    rho: Any = 7.0
    scaling: Scaling = static(default="ve")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(("sigma_min", "sigma_max"), self.sigma_min, self.sigma_max)
        check("rho", self.rho, positive)

    @property
    def _ends(self) -> Any:
        return tuple(early(lambda xp, v, rho: v ** (1 / rho), v, self.rho) for v in (self.sigma_min, self.sigma_max))

    def curve(self, t: Array) -> Any:
        low, high = self._ends
        return -2 * self.rho * jnp.log(low + (high - low) * t)

    def ratio(self, t: Array) -> Any:
        low, high = self._ends
        return (low + (high - low) * t) ** self.rho

    def uncurve(self, log_snr: Array) -> Any:
        low, high = self._ends
        return (jnp.exp(-log_snr / (2 * self.rho)) - low) / (high - low)
