"""Kinds of network predictions: one row (a, b) for each kind.

    x = alpha x0 + sigma eps
    y = a x0 + b eps

    kind       a                          b
    x0         1                          0
    eps        0                          1
    score      0                          -1 / sigma
    v          -sigma                     alpha
    velocity   d alpha / dt               d sigma / dt
    edm        sigma / (sigma_data n)     -alpha sigma_data / n,     n^2 = alpha^2 sigma_data^2 + sigma^2

`split` solves these two equations for (x0, eps), with determinant alpha b - sigma a, so any kind can be converted to
any other.

`v` is from Salimans & Ho 2022. `velocity` is dx/dt of flow matching (Lipman et al. 2023). `edm` is the target of the
network F in Karras et al. 2022, eq. 7, D = c_skip x + c_out F, for any alpha:
c_skip = alpha sigma_data^2 / n^2, c_out = sigma sigma_data / n. At alpha = 1 these are the formulas of table 1.
"""

from collections.abc import Callable
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np

from diffax import random
from diffax._checks import check_per_example, check_schedule, choose
from diffax._pytrees import combine
from diffax.schedules import rates
from diffax.times import default_ends
from diffax.typing import Array, Key, Kind, Level, PerExample, Schedule, Times, Tree, X


def _edm(level: Level, sigma_data: PerExample) -> tuple[Any, Any]:
    norm = jnp.sqrt((level.alpha * sigma_data) ** 2 + level.sigma**2)
    return level.sigma / (sigma_data * norm), -level.alpha * sigma_data / norm


KINDS: dict[str, Callable[..., tuple[Any, Any]]] = {
    "x0": lambda schedule, t, level, sigma_data: (1.0, 0.0),
    "eps": lambda schedule, t, level, sigma_data: (0.0, 1.0),
    "score": lambda schedule, t, level, sigma_data: (0.0, -1 / level.sigma),
    "v": lambda schedule, t, level, sigma_data: (-level.sigma, level.alpha),
    "velocity": lambda schedule, t, level, sigma_data: rates(schedule, t),
    "edm": lambda schedule, t, level, sigma_data: _edm(level, sigma_data),
}
"""Kinds of predictions: name -> the row (a, b) as a function of (schedule, t, level, sigma_data)."""


def check_kind(kind: Kind, schedule: Schedule) -> None:
    """Raise `ValueError` for an unknown kind, and for eps or score with zero terminal SNR.

    At a level without signal, eps and score do not determine x0.
    """
    check_schedule(schedule)
    choose("kind", kind, KINDS)
    if kind in ("eps", "score") and getattr(schedule, "zero_terminal_snr", False) is True:
        raise ValueError(f"kind must be x0, v, velocity or edm with zero terminal SNR, got {kind!r}")


def row(kind: Kind, schedule: Schedule, t: Times, *, sigma_data: PerExample = 0.5) -> tuple[Any, Any]:
    """The row (a, b) of a prediction kind at t, shapes () or that of t.

    Raises:
      ValueError: for an unknown kind.
    """
    return choose("kind", kind, KINDS)(schedule, t, schedule(t), sigma_data)


def diffuse(schedule: Schedule, x0: X, eps: X, t: Times) -> X:
    """x_t = alpha x0 + sigma eps. x0, eps: (B, ...); t: () or (B,)."""
    check_schedule(schedule)
    check_per_example(x0, t=t)
    level = schedule(t)
    return combine((level.alpha, x0), (level.sigma, eps))


@overload
def initial_noise(
    key: Key, schedule: Schedule, shape: tuple[int, ...] | list[int], t: Times | None = None
) -> Array: ...
@overload
def initial_noise(key: Key, schedule: Schedule, shape: Tree, t: Times | None = None) -> Any: ...
def initial_noise(key: Key, schedule: Schedule, shape: Tree, t: Times | None = None) -> Any:
    """Noise to start sampling from: x_t = sigma(t) eps, the right scale for variance-exploding schedules too.

    Args:
      key: shape () or (B,); consumed.
      schedule: noise schedule; gives sigma.
      shape: (B, ...) for one float32 array, or a pytree of arrays or `jax.ShapeDtypeStruct`s with the shapes and dtypes
        of the result.
      t: () or (B,), the first time of the step grid. None is the default t_max of the grids in `diffax.times`, where
        sigma / alpha = 80 if the schedule reaches that far. Pass times[0] for other grids.

    The signal alpha(t) x0 is omitted. Relative to the noise it is 1 / 80 of the size of the data at the default t.

    >>> from diffax.schedules import LogLinear
    >>> x = initial_noise(jax.random.key(0), LogLinear(0.01, 348.0), (1000, 10))
    >>> bool(abs(x.std() - 80) < 4)
    True
    """
    check_schedule(schedule)
    t = default_ends(schedule)[0] if t is None else t
    is_shape = isinstance(shape, (tuple, list)) and all(isinstance(n, (int, np.integer)) for n in shape)
    like = jax.ShapeDtypeStruct(tuple(shape), jnp.float32) if is_shape else shape
    return combine((schedule(t).sigma, random.noise(random.stream(key, "initial_noise"), like)))


def target(kind: Kind, schedule: Schedule, x0: X, eps: X, t: Times, *, sigma_data: PerExample = 0.5) -> X:
    """y = a x0 + b eps, the training target of the network. x0, eps: (B, ...); t: () or (B,)."""
    a, b = row(kind, schedule, t, sigma_data=sigma_data)
    return combine((a, x0), (b, eps))


def split(kind: Kind, schedule: Schedule, y: X, x: X, t: Times, *, sigma_data: PerExample = 0.5) -> tuple[X, X]:
    """(x0, eps) from a prediction y of this kind at (x, t): the inverse of (`diffuse`, `target`).

        x0  = (b x - sigma y) / det,   eps = (alpha y - a x) / det,   det = alpha b - sigma a

    Args:
      kind: a key of `KINDS`.
      schedule: noise schedule; gives alpha and sigma.
      y: (B, ...), the prediction.
      x: (B, ...), the noisy input.
      t: () or (B,).
      sigma_data: () or (B,), standard deviation of the data; only `edm` uses it. Default 0.5.

    Returns:
      (x0, eps), each (B, ...) in the dtype of x.

    >>> from diffax.schedules import Cosine
    >>> x0, eps = jnp.ones((1, 2)), jnp.zeros((1, 2))
    >>> x, y = diffuse(Cosine(), x0, eps, 0.5), target("v", Cosine(), x0, eps, 0.5)
    >>> [bool(jnp.allclose(u, v, atol=1e-6)) for u, v in zip(split("v", Cosine(), y, x, 0.5), (x0, eps))]
    [True, True]
    """
    a, b = row(kind, schedule, t, sigma_data=sigma_data)
    alpha, sigma, _ = schedule(t)
    det = alpha * b - sigma * a
    x0 = combine((b / det, x), (-sigma / det, y))
    eps = combine((-a / det, x), (alpha / det, y))
    return x0, eps
