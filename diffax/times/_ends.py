"""The default ends of step grids."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from diffax._pytrees import as_float
from diffax.schedules._curve import straight_through
from diffax.typing import Scalar, Schedule

SIGMA_MAX, SIGMA_MIN = 80.0, 0.02  # sigma / alpha at the default ends


def default_ends(schedule: Schedule) -> tuple[Any, Any]:
    """(t_max, t_min), each (): the times at sigma / alpha = 80 and 0.02, the default ends of all grids.

    t_max is the largest floating-point time at which sigma / alpha does not exceed 80. Where the schedule does not
    reach 80 or 0.02 the end is its own: 1, and 0 or the first level of a table. With zero terminal SNR t_max is 1.

    Source: 80 is that of Karras et al. 2022, table 1.

    >>> from diffax.schedules import EDM, LogLinear
    >>> [round(float(t), 4) for t in default_ends(LogLinear(0.002, 800.0))]
    [0.8215, 0.1785]
    >>> float(default_ends(EDM())[0])
    1.0
    """
    zero = getattr(schedule, "zero_terminal_snr", False)
    t_max = as_float(1.0) if zero is True else noise_end(schedule, SIGMA_MAX)
    return jnp.where(zero, 1.0, t_max), data_end(schedule)


def noise_end(schedule: Schedule, sigma: Scalar) -> Any:
    """The largest time at which sigma / alpha <= sigma. The inverse may round up, for `Laplace` to t = 1."""
    t = as_float(schedule.inverse(-2 * jnp.log(as_float(sigma))))
    bits = jnp.int64 if t.dtype == jnp.float64 else jnp.int32
    place, last = (jax.lax.bitcast_convert_type(v, bits) for v in (jax.lax.stop_gradient(t), jnp.ones_like(t)))
    near = jnp.clip(place + jnp.arange(-512, 513, dtype=bits), 0, last)  # neighbours: floats >= 0 are ordered as ints
    near = jnp.append(jax.lax.bitcast_convert_type(near, t.dtype), jnp.ones((), t.dtype))
    level = schedule(near)
    ratio = level.sigma / level.alpha
    largest = jnp.max(jnp.where(ratio <= sigma, near, near[0]))
    return jnp.where(ratio[-1] > sigma * (1 + 1e-5), straight_through(t, largest), 1.0)


def data_end(schedule: Schedule) -> Any:
    """The time at which sigma / alpha = 0.02, or the schedule's own end."""
    steps = getattr(schedule, "num_train_steps", None)
    own, log_snr = as_float(0.0 if steps is None else 1 / steps), -2 * math.log(SIGMA_MIN)
    reached = schedule.log_snr(own) > log_snr + 2e-5
    return jnp.where(reached, jnp.maximum(schedule.inverse(as_float(log_snr)), own), own)
