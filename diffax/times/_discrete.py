"""Step grids over the timesteps of a table, computed on the host."""

import jax.numpy as jnp
import numpy as np

from diffax._checks import Condition, check, check_count, check_schedule, interval, whole
from diffax.typing import Array, Float, Schedule, Values


def leading(schedule: Schedule, n: int, *, num_train_steps: int | None = None, offset: int = 0) -> Float[Array, " n"]:
    """(n,) times of timesteps i = offset + k floor(T / n), k = n - 1 .. 0. Ho et al. 2020.

    DDPM, DDIM and most later samplers use this grid.

    Args:
      schedule: noise schedule; its table gives T.
      n: entries, an int in 1 .. T.
      num_train_steps: T; if None, the length of the schedule's table, or 1,000 for a schedule in continuous time.
      offset: added to each timestep.

    Raises:
      ValueError: for n outside 1 .. T, or an offset that moves a timestep outside 0 .. T - 1. `trailing` and `linspace`
        raise the same.

    >>> from diffax.schedules import Cosine
    >>> [round(1000 * float(t)) - 1 for t in leading(Cosine(), 4)]
    [750, 500, 250, 0]
    """
    count = _check_table(schedule, n, num_train_steps)
    return _offset(np.arange(n)[::-1] * (count // n), offset, count)


def trailing(schedule: Schedule, n: int, *, num_train_steps: int | None = None, offset: int = 0) -> Float[Array, " n"]:
    """(n,) times of timesteps i = offset + round(T - k T / n) - 1, k = 0 .. n - 1. Lin et al. 2024.

    The grid starts at pure noise. Arguments as in `leading`.

    >>> from diffax.schedules import Cosine
    >>> [round(1000 * float(t)) - 1 for t in trailing(Cosine(), 4)]
    [999, 749, 499, 249]
    """
    count = _check_table(schedule, n, num_train_steps)
    return _offset(np.round(count * (1 - np.arange(n) / n)) - 1, offset, count)


def linspace(schedule: Schedule, n: int, *, num_train_steps: int | None = None, offset: int = 0) -> Float[Array, " n"]:
    """(n,) times of timesteps i evenly spaced from T - 1 to `offset`, both included. Nichol & Dhariwal 2021.

    Arguments as in `leading`.

    >>> from diffax.schedules import Cosine
    >>> [round(1000 * float(t)) - 1 for t in linspace(Cosine(), 4)]
    [999, 666, 333, 0]
    """
    count = _check_table(schedule, n, num_train_steps)
    check("offset", offset, whole)
    check("offset", offset, interval(f"[0, {count - 1}]"))
    return _discrete(np.round(np.linspace(count - 1, offset, n)), count)


def lcm(
    schedule: Schedule, n: int, *, num_train_steps: int | None = None, original_steps: int = 50
) -> Float[Array, " n"]:
    """(n,) times: n of the `original_steps` timesteps that LCM and TCD models were distilled on, evenly by index.

    The distillation used the timesteps i = k j - 1, j = 1 .. original_steps, k = floor(T / original_steps). Of these,
    sorted from the noisiest on, the grid takes the indices floor(m original_steps / n), m = 0 .. n - 1.

    Args:
      schedule: noise schedule; its table gives T.
      n: entries, an int in 1 .. original_steps.
      num_train_steps: T, as in `leading`.
      original_steps: steps of the distillation, an int in 1 .. T.

    Raises:
      ValueError: unless 1 <= n <= original_steps <= T.

    Source: Luo et al. 2023, section 4.3 (skipping steps); `set_timesteps` of diffusers' LCMScheduler and TCDScheduler.

    >>> from diffax.schedules import Cosine
    >>> [round(1000 * float(t)) - 1 for t in lcm(Cosine(), 4)]
    [999, 759, 499, 259]
    """
    count = _check_table(schedule, 1, num_train_steps)
    for name, value, upper in (("n", n, original_steps), ("original_steps", original_steps, count)):
        check_count(name, value)
        if value > upper:
            raise ValueError(f"{name} must be at most {upper}, got {value}")
    steps = np.arange(original_steps, 0, -1) * (count // original_steps)
    return jnp.asarray(steps[np.arange(n) * original_steps // n] / count, dtype=float)


def from_timesteps(num_train_steps: int, timesteps: Values) -> Float[Array, " n"]:
    """(n,) times of a list of integer timesteps i in [0, T - 1].

    Raises:
      ValueError: if a timestep is not a whole number in [0, T - 1].

    >>> [round(float(t), 4) for t in from_timesteps(1000, [999, 499, 0])]
    [1.0, 0.5, 0.001]
    """
    check_count("num_train_steps", num_train_steps)
    check("timesteps", timesteps, Condition("whole numbers", lambda v: v == np.round(v)))
    check("timesteps", timesteps, interval(f"[0, {num_train_steps - 1}]"))
    return _discrete(np.asarray(timesteps), num_train_steps)


def table_length(schedule: Schedule) -> int:
    """T, the number of levels of a discrete-time schedule; 1,000 for a continuous one.

    >>> from diffax.schedules import Cosine, Tabulated
    >>> table_length(Cosine()), table_length(Tabulated(np.array([4.0, 0.0, -4.0])))
    (1000, 3)
    """
    return getattr(schedule, "num_train_steps", None) or 1000


def _check_table(schedule: Schedule, n: int, num_train_steps: int | None) -> int:
    """Check the arguments that discrete grids share; return T, the length of the table."""
    check_schedule(schedule)
    length = table_length(schedule) if num_train_steps is None else num_train_steps
    check_count("n", n)
    check_count("num_train_steps", length)
    if n > length:
        raise ValueError(f"n must be at most num_train_steps = {length}, got {n}")
    return length


def _offset(steps: np.ndarray, offset: int, num_train_steps: int) -> Array:
    check("offset", offset, whole)
    steps = steps + offset
    if steps[-1] < 0 or steps[0] >= num_train_steps:
        raise ValueError(f"offset must keep timesteps in [0, {num_train_steps - 1}], got {offset}")
    return _discrete(steps, num_train_steps)


def _discrete(steps: np.ndarray, num_train_steps: int) -> Array:
    return jnp.asarray((steps + 1) / num_train_steps, dtype=float)
