"""The default ends of step grids."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from diffax._pytrees import as_float
from diffax.schedules._curve import straight_through
from diffax.typing import Scalar, Schedule

SIGMA_MAX = 80.0
"""sigma / alpha at the default start of step grids."""
SIGMA_MIN = 0.02
"""sigma / alpha at the default end of step grids."""


def default_ends(schedule: Schedule) -> tuple[Any, Any]:
    """(t_max, t_min), each (): the times at sigma / alpha = 80 and 0.02, the default ends of all grids.

    t_max is the largest floating-point time at which sigma / alpha does not exceed 80. If the schedule does not reach
    80, t_max is 1. If it does not reach 0.02, t_min is 0, or the first level of a table. With zero terminal SNR t_max
    is 1.

    Source of 80: Karras et al. 2022, table 1.

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
    """The largest floating-point time at which sigma / alpha <= sigma; 1 if the schedule does not reach sigma.

    The inverse may round up, with `Laplace` even to t = 1. So the floats near it are tested too.
    """
    t = as_float(schedule.inverse(-2 * jnp.log(as_float(sigma))))
    bits = jnp.int64 if t.dtype == jnp.float64 else jnp.int32
    t_bits, one_bits = (jax.lax.bitcast_convert_type(v, bits) for v in (jax.lax.stop_gradient(t), jnp.ones_like(t)))
    # Non-negative floats have the same order as their bits read as integers, so t_bits + k is the k-th float after t.
    nearby_bits = jnp.clip(t_bits + jnp.arange(-512, 513, dtype=bits), 0, one_bits)
    candidates = jnp.append(jax.lax.bitcast_convert_type(nearby_bits, t.dtype), jnp.ones((), t.dtype))
    level = schedule(candidates)
    ratio = level.sigma / level.alpha
    largest = jnp.max(jnp.where(ratio <= sigma, candidates, candidates[0]))
    return jnp.where(ratio[-1] > sigma * (1 + 1e-5), straight_through(t, largest), 1.0)


def data_end(schedule: Schedule) -> Any:
    """The time at which sigma / alpha = 0.02, or the first time of the schedule if it does not reach 0.02."""
    steps = getattr(schedule, "num_train_steps", None)
    first, log_snr = as_float(0.0 if steps is None else 1 / steps), -2 * math.log(SIGMA_MIN)
    reached = schedule.log_snr(first) > log_snr + 2e-5
    return jnp.where(reached, jnp.maximum(schedule.inverse(as_float(log_snr)), first), first)
