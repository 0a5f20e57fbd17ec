"""The schedule of data without its noise floor."""

from typing import Any

import jax.numpy as jnp

from diffax._checks import check, check_schedule, non_negative
from diffax._pytrees import as_float, float_fields, pytree
from diffax.typing import Level, Scalar, Times


@pytree
class NoiseFloor:
    """The schedule (alpha, sigma') of the centres y of data x0 = y + std n: sigma'^2 = sigma^2 + alpha^2 std^2.

    base: a schedule. std: (), >= 0. Times and alpha are those of `base`.

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
        return Level(level.alpha, sigma, self._lifted(level.log_snr))

    def __post_init__(self) -> None:
        """Checks the floor; an integer becomes a float."""
        float_fields(self)
        check_schedule(self.base)
        check("std", self.std, non_negative)

    @property
    def zero_terminal_snr(self) -> bool:
        """That of the base."""
        return getattr(self.base, "zero_terminal_snr", False)

    @property
    def ends_in_noise(self) -> bool:
        """That of the base."""
        return getattr(self.base, "ends_in_noise", False)

    @property
    def num_train_steps(self) -> int | None:
        """Number of levels of the base, where that is a table."""
        return getattr(self.base, "num_train_steps", None)

    def log_snr(self, t: Times) -> Any:
        """log(alpha^2 / sigma'^2) at t, at most -2 log std; any shape."""
        return self._lifted(self.base.log_snr(t))

    def inverse(self, log_snr: Scalar) -> Any:
        """The t at which this schedule has this log-SNR, 0 where none has; any shape."""
        square = jnp.exp(-as_float(log_snr)) - jnp.square(self.std)
        return self.base.inverse(-jnp.log(jnp.maximum(square, RHO_MIN**2)))

    def _lifted(self, log_snr: Scalar) -> Any:
        return -jnp.log(jnp.exp(-log_snr) + jnp.square(self.std))


RHO_MIN = 4.5399929762484854e-05  # where schedules clip: exp(-10)
