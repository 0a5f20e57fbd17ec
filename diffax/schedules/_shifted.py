"""The log-SNR shift for resolution: an image with s times the side needs s times the noise-to-signal ratio.

lambda'(t) = lambda(t) - 2 log s,   sigma' / alpha' = s sigma / alpha
"""

from typing import Any

import jax.numpy as jnp

from diffax._checks import check, positive
from diffax._pytrees import concrete, pytree
from diffax.schedules._curve import Curve, early
from diffax.schedules._scalings import SCALINGS
from diffax.schedules._tabulated import Tabulated
from diffax.typing import Array, Scalar, Scaling, Schedule


@pytree
class Shifted(Curve):
    """Another schedule with sigma / alpha times `shift` and the same scaling. Build it with `shifted`."""

    schedule: Any
    shift: Any

    @property
    def scaling(self) -> Scaling:
        """The scaling of the inner schedule."""
        scaling: Scaling = self.schedule.scaling
        return scaling

    def curve(self, t: Array) -> Any:
        # Shift the curve before clipping, where the inner schedule has one, so that only the shifted curve is clipped.
        inner_curve = self.schedule.curve if isinstance(self.schedule, Curve) else self.schedule.log_snr
        return inner_curve(t) - 2 * self._log_shift

    def ratio(self, t: Array) -> Any:
        if isinstance(self.schedule, Curve):
            return self.shift * self.schedule.ratio(t)
        return self.shift * jnp.exp(-self.schedule.log_snr(t) / 2)

    def uncurve(self, log_snr: Array) -> Any:
        inner_inverse = self.schedule.uncurve if isinstance(self.schedule, Curve) else self.schedule.inverse
        return inner_inverse(log_snr + 2 * self._log_shift)

    @property
    def _log_shift(self) -> Any:
        return early(lambda xp, v: xp.log(v), self.shift)


def shifted(schedule: Any, shift: Scalar) -> Schedule:
    """`schedule` with sigma / alpha times s = `shift` at every t: lambda'(t) = lambda(t) - 2 log s, clipped to 20.

    s > 1 adds noise. For images of side d and a schedule made for side d0, s = d / d0 (Hoogeboom et al. 2023,
    section 3.1: lambda + 2 log(d0 / d)). For `Flow` it is the same as the change of time
    t -> s t / (1 + (s - 1) t) of Stable Diffusion 3 (Esser et al. 2024, eq. 23), since (1 - t') / t' = (1 - t) / (s t).
    So use either the shifted schedule with plain times or the plain schedule with shifted times, not both.
    Shifts multiply: shifted(shifted(schedule, 2), 3) is shifted(schedule, 6).

    Args:
      schedule: any schedule with a `scaling`. If it is a table, so is the result: a last level without signal keeps
        zero SNR, and t = 0 is still clean data.
      shift: s, () and > 0; may be traced.

    Raises:
      ValueError: if shift is not positive (a traced shift is not checked), or the schedule has no scaling.

    >>> from diffax.schedules import Flow
    >>> round(float(shifted(Flow(), 3.0)(0.5).sigma), 4)  # t' = 3 / 2 / (1 + 1)
    0.75
    """
    check("shift", shift, positive)
    if getattr(schedule, "scaling", None) not in SCALINGS:
        raise ValueError(f"schedule must have one of the scalings {', '.join(SCALINGS)}, got {schedule!r}")
    if not isinstance(schedule, Tabulated):
        return Shifted(schedule, shift)
    table, log_shift = concrete(schedule.log_snr_table), early(lambda xp, v: xp.log(v), shift)
    table = schedule.log_snr_table if table is None else table
    return Tabulated(table - 2 * log_shift, scaling=schedule.scaling)
