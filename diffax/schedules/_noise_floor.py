"""The schedule of data whose noise floor counts as noise."""

from typing import Any

import jax.numpy as jnp

from diffax._checks import check, check_schedule, non_negative
from diffax._pytrees import as_float, float_fields, pytree
from diffax.typing import Level, Scalar, Times


@pytree
class NoiseFloor:
    """The schedule (alpha, sigma') of the centres y of data x0 = y + std n: sigma'^2 = sigma^2 + alpha^2 std^2.

    Args:
      base: noise schedule of x0. Its times and its alpha are those of the new schedule.
      std: () standard deviation of the noise floor, >= 0.

    Raises:
      ValueError: if base is not a schedule, or std is negative.

    >>> import diffax
    >>> level = NoiseFloor(diffax.Flow(), 0.3)(0.0)
    >>> round(float(level.sigma), 4), round(float(jnp.exp(-level.log_snr / 2)), 4)
    (0.3, 0.3)
    """

    base: Any
    std: Any

    def __call__(self, t: Times) -> Level:
        """(alpha, sigma', log-SNR) at t; any shape."""
        level = self.base(t)
        sigma = jnp.sqrt(jnp.square(level.sigma) + jnp.square(level.alpha * self.std))
        return Level(level.alpha, sigma, self._add_floor(level.log_snr))

    def __post_init__(self) -> None:
        """Check the fields and convert integers to floats."""
        float_fields(self)
        check_schedule(self.base)
        check("std", self.std, non_negative)

    @property
    def zero_terminal_snr(self) -> bool:
        """`zero_terminal_snr` of the base; False if it has none."""
        return getattr(self.base, "zero_terminal_snr", False)

    @property
    def ends_in_noise(self) -> bool:
        """`ends_in_noise` of the base; False if it has none."""
        return getattr(self.base, "ends_in_noise", False)

    @property
    def num_train_steps(self) -> int | None:
        """Number of levels of the base if it is a table, else None."""
        return getattr(self.base, "num_train_steps", None)

    def log_snr(self, t: Times) -> Any:
        """log(alpha^2 / sigma'^2) at t, at most -2 log std; any shape."""
        return self._add_floor(self.base.log_snr(t))

    def inverse(self, log_snr: Scalar) -> Any:
        """The t at which this schedule has this log-SNR; any shape.

        For a log-SNR above the maximum -2 log std, it is the time at which the log-SNR of the base is 20.
        """
        ratio_squared = jnp.exp(-as_float(log_snr)) - jnp.square(self.std)  # of the base
        return self.base.inverse(-jnp.log(jnp.maximum(ratio_squared, RHO_MIN**2)))

    def _add_floor(self, log_snr: Scalar) -> Any:
        """The log-SNR of this schedule from that of the base."""
        return -jnp.log(jnp.exp(-log_snr) + jnp.square(self.std))


RHO_MIN = 4.5399929762484854e-05  # exp(-10): sigma / alpha at log-SNR 20, where schedules clip
