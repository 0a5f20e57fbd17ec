"""Step grids that are evenly spaced in a function of t."""

from typing import Any

import jax.numpy as jnp

from diffax._checks import check, positive
from diffax.times._beta_quantile import beta_quantile
from diffax.times._grid import entries
from diffax.typing import Array, Float, Scalar, Schedule, Times


def uniform(
    schedule: Schedule, n: int, *, t_max: Times | None = None, t_min: Times | None = None
) -> Float[Array, " n"]:
    """(n,) times evenly spaced from t_max to t_min, both included.

    Args:
      schedule: noise schedule, for the default ends.
      n: entries, an int >= 1.
      t_max: first time in [0, 1]; from `default_ends` if None.
      t_min: last time, < t_max; from `default_ends` if None.

    Raises:
      ValueError: for n < 1, an end outside [0, 1], or t_max <= t_min for n > 1. All grids raise the same.

    >>> from diffax.schedules import Cosine
    >>> uniform(Cosine(), 3, t_max=1.0, t_min=0.0).tolist()
    [1.0, 0.5, 0.0]
    """
    return entries(schedule, n, t_max, t_min, _even)


def _even(first: Scalar, last: Scalar, ramp: Scalar) -> Any:
    return first * (1 - ramp) + last * ramp


def starts(schedule: Schedule, n: int, *, t_max: Times | None = None, t_min: Times | None = None) -> Float[Array, " n"]:
    """(n,) starts of n equally long moves from t_max to t_min: t_max - k / n (t_max - t_min), k = 0 .. n - 1.

    The last call of `sample` moves from the last entry to t = 0 if the denoiser is a flow map or a consistency
    function, so a grid of n entries is one of n calls.

    Args:
      schedule: noise schedule, for the default of t_max.
      n: entries, an int >= 1.
      t_max: first time in [0, 1]; from `default_ends` if None.
      t_min: end of the last move, < t_max; 0 if None.

    >>> from diffax.schedules import Cosine
    >>> starts(Cosine(), 4, t_max=1.0).tolist()
    [1.0, 0.75, 0.5, 0.25]
    """
    return entries(schedule, n + 1, t_max, 0.0 if t_min is None else t_min, _even)[:-1]


def quadratic(
    schedule: Schedule, n: int, *, t_max: Times | None = None, t_min: Times | None = None
) -> Float[Array, " n"]:
    """(n,) times whose square roots are evenly spaced. Arguments as in `uniform`.

    Source: Song, Meng & Ermon 2021, appendix D.2 ("quadratic", from t_max = 0.8). The code of DPM-Solver calls it
    `time_quadratic`.

    >>> from diffax.schedules import Cosine
    >>> [round(float(t), 4) for t in quadratic(Cosine(), 3, t_max=0.64, t_min=0.04)]
    [0.64, 0.25, 0.04]
    """

    def inner(first: Scalar, last: Scalar, ramp: Scalar) -> Any:
        return (jnp.sqrt(first) * (1 - ramp) + _root(last) * ramp) ** 2

    return entries(schedule, n, t_max, t_min, inner)


def _root(t: Times) -> Any:
    """sqrt(t) with derivative 0 at t = 0."""
    return jnp.where(t > 0, jnp.sqrt(jnp.where(t > 0, t, 1.0)), 0.0)


def beta(
    schedule: Schedule,
    n: int,
    *,
    a: Scalar = 0.6,
    b: Scalar = 0.6,
    t_max: Times | None = None,
    t_min: Times | None = None,
) -> Float[Array, " n"]:
    """(n,) times t_min + (t_max - t_min) q(p), q the quantile function of Beta(a, b), p evenly spaced from 1 to 0.

    a = b < 1 puts more times near both ends, a = b = 1 is `uniform`.

    Source: Lee et al. 2024, section 4.1 (alpha = beta = 0.6).

    Args:
      schedule: noise schedule, for the default ends.
      n: entries.
      a: alpha of the distribution, > 0; a smaller a puts more times near data.
      b: beta of the distribution, > 0; a smaller b puts more times near noise.
      t_max: first time, as in `uniform`.
      t_min: last time, as in `uniform`.

    Raises:
      ValueError: if a or b is not positive, or as in `uniform`.

    >>> from diffax.schedules import Cosine
    >>> grid = beta(Cosine(), 5, a=0.5, b=0.5, t_max=1.0, t_min=0.0)
    >>> [round(float(t), 4) for t in grid]  # sin^2(pi p / 2)
    [1.0, 0.8536, 0.5, 0.1464, 0.0]
    """
    for name, value in (("a", a), ("b", b)):
        check(name, value, positive)

    def inner(first: Scalar, last: Scalar, ramp: Scalar) -> Any:
        return last + (first - last) * beta_quantile(1 - ramp, a, b)

    return entries(schedule, n, t_max, t_min, inner)
