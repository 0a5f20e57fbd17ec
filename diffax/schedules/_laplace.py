"""The schedule whose log-SNR has a Laplace distribution."""

from typing import Any

import jax.numpy as jnp

from diffax._checks import check, finite, positive
from diffax._pytrees import pytree, static
from diffax.schedules._curve import LOG_SNR_MAX, Curve, early, floored
from diffax.typing import Array, Scaling


@pytree
class Laplace(Curve):
    """The Laplace schedule: for uniform t, log-SNR has a Laplace distribution with this mean and width.

        lambda = mean - width sign(1/2 - t) log(1 - 2 |t - 1/2|)

    Hang et al. 2024, table 1 (mu = 0, b = 0.5): most training times have a log-SNR near the mean.

    Args:
      mean: mu, the log-SNR at t = 1/2.
      width: b, > 0.
      scaling: "vp", "ve", "sub_vp" or "flow".

    Raises:
      ValueError: if width is not positive, or mean is not finite.

    >>> round(float(Laplace(mean=1.0, width=0.5).log_snr(0.25)), 4)  # 1 + 0.5 log 2
    1.3466
    """

    mean: Any = 0.0
    width: Any = 0.5
    scaling: Scaling = static(default="vp")

    def __post_init__(self) -> None:
        super().__post_init__()
        check("mean", self.mean, finite)
        check("width", self.width, positive)

    def _tail(self, t: Array) -> Any:
        """1 - 2 |t - 1/2|, kept above 0, and the sign of t - 1/2."""
        first_half = t < 0.5
        least = jnp.maximum(0.25 * jnp.exp(-(LOG_SNR_MAX + jnp.abs(self.mean)) / self.width), 1e-20)
        tail = 2 * floored(jnp.where(first_half, t, 1 - t), least)
        return tail, jnp.where(first_half, -1.0, 1.0).astype(t.dtype)

    def curve(self, t: Array) -> Any:
        tail, sign = self._tail(t)
        return self.mean + sign * self.width * jnp.log(tail)

    def ratio(self, t: Array) -> Any:
        tail, sign = self._tail(t)
        return early(lambda xp, mean: xp.exp(-mean / 2), self.mean) * tail ** (-sign * self.width / 2)

    def uncurve(self, log_snr: Array) -> Any:
        from_mean = log_snr - self.mean
        half = 0.5 * jnp.exp(-jnp.abs(from_mean) / self.width)
        return jnp.where(from_mean > 0, half, 1 - half)
