"""Step grids: (n,) times that fall from noise to data.

A grid is an ordinary array: write your own, differentiate through it, reverse it for inversion.
`sample` over n entries costs n denoiser calls of a one-call sampler.

    in time      uniform, quadratic, beta
    in noise     uniform_log_snr, karras, exponential, polyexponential; from_sigmas for a list of your own
    discrete     leading, trailing, linspace; from_timesteps for a list: timestep i of T is t = (i + 1) / T
    learned      `diffax.learn_grid`

    quadratic         sqrt(t) evenly spaced
    beta              t at evenly spaced quantiles of a Beta law
    uniform_log_snr   log(sigma / alpha) evenly spaced; k-diffusion's `exponential`
    polyexponential   log(sigma / alpha) a power of an even ramp
    karras            (sigma / alpha)^(1 / rho) evenly spaced

All grids but the discrete ones run from t_max to t_min, both included (1 and 1e-3 if not given); those in noise take
sigma_max and sigma_min in their place, for ends in sigma / alpha. Every number may be traced, but for n and
what the discrete ones take: they are tables made on the host.
The names of the discrete ones are those of Lin et al. 2024, table 2, and of the diffusers library; those in noise are
k-diffusion's, whose `vp` is `uniform` under a `Linear` schedule.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from diffax.pytrees import as_float, check, check_count, concrete, promoted
from diffax.quantiles import beta_quantile
from diffax.typing import Array, Float, Schedule


def check_grid(times: Any, *, may_turn: bool = False) -> None:
    """Raises `ValueError` for a grid that is known now to leave [0, 1] or, unless it may, to turn back.

    times: (n, ...), n >= 1; a grid may repeat a point.
    """
    if np.ndim(times) < 1 or np.shape(times)[0] < 1:
        raise ValueError(f"times must have shape (n, ...) with n >= 1, got {np.shape(times)}")
    known = concrete(times)
    if known is None:
        return
    bad = ~((known >= 0) & (known <= 1))
    if bad.any():
        raise ValueError(f"times must lie in [0, 1], got {known[bad].flat[0]:g}")
    if may_turn:
        return
    moves = np.diff(known, axis=0)
    turns = (moves > 0).any(0) & (moves < 0).any(0)
    if turns.any():
        raise ValueError(f"times must be monotone, got {_short(known)}")


def _short(grid: np.ndarray) -> str:
    return np.array2string(grid, precision=4, threshold=8, edgeitems=3).replace("\n", "")


def _check_table(n: int, most: int) -> None:
    check_count("n", n)
    check_count("num_train_steps", most)
    if n > most:
        raise ValueError(f"n must be at most num_train_steps = {most}, got {n}")


def _ends(t_max: Any, t_min: Any) -> tuple[Any, Any]:
    for name, value in (("t_max", t_max), ("t_min", t_min)):
        check(name, value, "in [0, 1]", lambda v: (v >= 0) & (v <= 1))
    return as_float(t_max), as_float(t_min)


def _inner(n: int) -> Any:
    """The even ramp from 0 to 1 without its ends, which every grid has exactly: powers and logs are smooth there."""
    check_count("n", n)
    return jnp.linspace(0.0, 1.0, n)[1:-1]


def _between(first: Any, inner: Any, last: Any, n: int) -> Any:
    dtype = promoted(first, last)
    return jnp.concatenate([v.astype(dtype) for v in (first[None], inner, last[None])])[:n]


def uniform(n: int, *, t_max: Any = 1.0, t_min: Any = 1e-3) -> Float[Array, " n"]:
    """(n,) times evenly spaced from t_max to t_min, both included.

    The default t_min = 1e-3 is that of Song et al. 2021: the last denoiser call makes up for the rest.

    >>> uniform(3, t_min=0.0).tolist()
    [1.0, 0.5, 0.0]
    """
    check_count("n", n)
    return jnp.linspace(*_ends(t_max, t_min), n)


def quadratic(n: int, *, t_max: Any = 1.0, t_min: Any = 1e-3) -> Float[Array, " n"]:
    """(n,) times whose square roots are evenly spaced.

    Song, Meng & Ermon 2021, appendix D.2 ("quadratic", there from t_max = 0.8); `time_quadratic` in DPM-Solver's code.

    >>> [round(float(t), 4) for t in quadratic(3, t_max=0.64, t_min=0.04)]
    [0.64, 0.25, 0.04]
    """
    ramp = _inner(n)
    first, last = _ends(t_max, t_min)
    return _between(first, (jnp.sqrt(first) * (1 - ramp) + _root(last) * ramp) ** 2, last, n)


def _root(t: Any) -> Any:
    """sqrt(t), with a finite slope at 0."""
    return jnp.where(t > 0, jnp.sqrt(jnp.where(t > 0, t, 1.0)), 0.0)


def beta(n: int, *, a: Any = 0.6, b: Any = 0.6, t_max: Any = 1.0, t_min: Any = 1e-3) -> Float[Array, " n"]:
    """(n,) times t_min + (t_max - t_min) q(p), q the quantile function of Beta(a, b), p evenly spaced from 1 to 0.

    a = b < 1 puts more times near both ends, a = b = 1 is `uniform`. Lee et al. 2024, section 4.1 (alpha = beta = 0.6).

    Args:
      n: entries.
      a: alpha of the law, > 0: the smaller, the more times near data.
      b: beta of the law, > 0: the smaller, the more times near noise.
      t_max: first time.
      t_min: last time.

    Raises:
      ValueError: if a or b is not positive, or an end lies outside [0, 1].

    >>> [round(float(t), 4) for t in beta(5, a=0.5, b=0.5, t_min=0.0)]  # sin^2(pi p / 2)
    [1.0, 0.8536, 0.5, 0.1464, 0.0]
    """
    for name, value in (("a", a), ("b", b)):
        check(name, value, "> 0", lambda v: v > 0)
    ramp = _inner(n)
    first, last = _ends(t_max, t_min)
    return _between(first, last + (first - last) * beta_quantile(1 - ramp, a, b), last, n)


def _noise_ends(schedule: Schedule, t_max: Any, t_min: Any, sigma_max: Any, sigma_min: Any) -> tuple[Any, Any]:
    """The ends as times: sigma, where it is given, takes the place of t."""
    for name, value in (("sigma_max", sigma_max), ("sigma_min", sigma_min)):
        if value is not None:
            check(name, value, "> 0", lambda v: v > 0)
    low = concrete(sigma_min)
    if low is not None and sigma_max is not None:
        check("sigma_max", sigma_max, f">= sigma_min = {low}", lambda v: v >= low)
    first, last = _ends(t_max, t_min)
    if sigma_max is not None:
        first = schedule.inverse(-2 * jnp.log(as_float(sigma_max)))
    if sigma_min is not None:
        last = schedule.inverse(-2 * jnp.log(as_float(sigma_min)))
    return first, last


def _in_noise(schedule: Schedule, n: int, ends: tuple[Any, Any], curve: Callable[[Any, Any, Any], Any]) -> Any:
    """Times at curve(ramp, first, last) of log(sigma / alpha), ramp in (0, 1)."""
    ramp = _inner(n)
    first, last = ends
    log_snr = -2 * curve(ramp, -schedule.log_snr(first) / 2, -schedule.log_snr(last) / 2)
    return _between(first, schedule.inverse(log_snr), last, n)


def uniform_log_snr(
    schedule: Schedule,
    n: int,
    *,
    t_max: Any = 1.0,
    t_min: Any = 1e-3,
    sigma_max: Any = None,
    sigma_min: Any = None,
) -> Float[Array, " n"]:
    """(n,) times evenly spaced in log-SNR. Lu et al. 2022, section 3.4. Arguments as in `karras`.

    >>> from diffax.schedules import LogLinear
    >>> [round(float(t), 4) for t in uniform_log_snr(LogLinear(0.01, 100.0), 3, t_min=0.5)]
    [1.0, 0.75, 0.5]
    """
    ends = _noise_ends(schedule, t_max, t_min, sigma_max, sigma_min)
    return _in_noise(schedule, n, ends, lambda ramp, first, last: first + ramp * (last - first))


def exponential(schedule: Schedule, n: int, **ends: Any) -> Float[Array, " n"]:
    """`uniform_log_snr`, under k-diffusion's name.

    >>> from diffax.schedules import LogLinear
    >>> [round(float(t), 4) for t in exponential(LogLinear(0.01, 100.0), 3, sigma_max=100.0, sigma_min=1.0)]
    [1.0, 0.75, 0.5]
    """
    return uniform_log_snr(schedule, n, **ends)


def polyexponential(
    schedule: Schedule,
    n: int,
    *,
    rho: Any = 1.0,
    t_max: Any = 1.0,
    t_min: Any = 1e-3,
    sigma_max: Any = None,
    sigma_min: Any = None,
) -> Float[Array, " n"]:
    """(n,) times at log r = log r_min + u^rho (log r_max - log r_min), u evenly spaced from 1 to 0; r = sigma / alpha.

    rho = 1 is `uniform_log_snr`; rho > 1 puts more times near data. k-diffusion's `get_sigmas_polyexponential`
    (Crowson 2022). Arguments as in `karras`.

    Raises:
      ValueError: as `karras`.

    >>> from diffax.schedules import LogLinear
    >>> [round(float(t), 4) for t in polyexponential(LogLinear(0.01, 100.0), 3, rho=2.0, t_min=0.0)]
    [1.0, 0.25, 0.0]
    """
    check("rho", rho, "> 0", lambda v: v > 0)
    ends = _noise_ends(schedule, t_max, t_min, sigma_max, sigma_min)
    return _in_noise(schedule, n, ends, lambda ramp, first, last: last + (1 - ramp) ** rho * (first - last))


def karras(
    schedule: Schedule,
    n: int,
    *,
    rho: Any = 7.0,
    t_max: Any = 1.0,
    t_min: Any = 1e-3,
    sigma_max: Any = None,
    sigma_min: Any = None,
) -> Float[Array, " n"]:
    """(n,) times evenly spaced in (sigma / alpha)^(1 / rho). Karras et al. 2022, eq. 5.

    Under a schedule whose sigma / alpha is huge at t = 1 (`Cosine`, `Flow`: 22026, at the clip), give sigma_max = 80
    or so, or many a step is spent where nothing happens. Under `EDM` with the same ends it is `uniform`.

    Args:
      schedule: noise schedule; sigma / alpha is its noise-to-signal ratio, whatever its scaling.
      n: entries.
      rho: > 0; the larger, the closer to `uniform_log_snr`.
      t_max: first time, unless sigma_max is given.
      t_min: last time, unless sigma_min is given.
      sigma_max: first sigma / alpha, as far as the schedule reaches.
      sigma_min: last sigma / alpha, as far as the schedule reaches.

    Raises:
      ValueError: if an end lies outside [0, 1], or not 0 < sigma_min <= sigma_max, or rho is not positive.

    >>> from diffax.schedules import EDM
    >>> [round(float(t), 4) for t in karras(EDM(), 3, t_min=0.0)]
    [1.0, 0.5, 0.0]
    """
    check("rho", rho, "> 0", lambda v: v > 0)

    def curve(ramp, first, last):
        # exp(first / rho) times what the bracket adds up to, so that nothing overflows for a small rho.
        return first + rho * jnp.log1p(ramp * jnp.expm1((last - first) / rho))

    return _in_noise(schedule, n, _noise_ends(schedule, t_max, t_min, sigma_max, sigma_min), curve)


def from_sigmas(schedule: Schedule, sigmas: Any) -> Float[Array, " n"]:
    """(n,) times at which sigma / alpha is what the list says, as far as the schedule reaches.

    Lists of noise levels from other libraries end with a 0; leave it out: `sample` ends with the denoiser.

    Raises:
      ValueError: if one of them is known not to be positive.

    >>> from diffax.schedules import LogLinear
    >>> [round(float(t), 4) for t in from_sigmas(LogLinear(0.01, 100.0), jnp.array([100.0, 1.0]))]
    [1.0, 0.5]
    """
    check("sigmas", sigmas, "> 0", lambda v: v > 0)
    return schedule.inverse(-2 * jnp.log(as_float(sigmas)))


def from_timesteps(num_train_steps: int, timesteps: Any) -> Float[Array, " n"]:
    """(n,) times of a list of integer timesteps i in [0, T - 1].

    Raises:
      ValueError: if a timestep lies outside.

    >>> [round(float(t), 4) for t in from_timesteps(1000, [999, 499, 0])]
    [1.0, 0.5, 0.001]
    """
    check_count("num_train_steps", num_train_steps)
    check("timesteps", timesteps, "whole numbers", lambda v: v == np.round(v))
    check("timesteps", timesteps, f"in [0, {num_train_steps - 1}]", lambda v: (v >= 0) & (v < num_train_steps))
    return _discrete(np.asarray(timesteps), num_train_steps)


def leading(num_train_steps: int, n: int, *, offset: int = 0) -> Float[Array, " n"]:
    """(n,) times of timesteps i = offset + k floor(T / n), k = n - 1 .. 0. DDPM, DDIM and most of their heirs."""
    _check_table(n, num_train_steps)
    return _offset(np.arange(n)[::-1] * (num_train_steps // n), offset, num_train_steps)


def trailing(num_train_steps: int, n: int, *, offset: int = 0) -> Float[Array, " n"]:
    """(n,) times of timesteps i = offset + round(T - k T / n) - 1, k = 0 .. n - 1: from pure noise. Lin et al. 2024."""
    _check_table(n, num_train_steps)
    return _offset(np.round(num_train_steps * (1 - np.arange(n) / n)) - 1, offset, num_train_steps)


def linspace(num_train_steps: int, n: int, *, offset: int = 0) -> Float[Array, " n"]:
    """(n,) times of timesteps i evenly spaced from T - 1 to `offset`, both included. Nichol & Dhariwal 2021."""
    _check_table(n, num_train_steps)
    check("offset", offset, "a whole number", lambda v: v == np.round(v))
    check("offset", offset, f"in [0, {num_train_steps - 1}]", lambda v: (v >= 0) & (v < num_train_steps))
    return _discrete(np.round(np.linspace(num_train_steps - 1, offset, n)), num_train_steps)


def _offset(steps: np.ndarray, offset: int, num_train_steps: int) -> Array:
    check("offset", offset, "a whole number", lambda v: v == np.round(v))
    steps = steps + offset
    if steps[-1] < 0 or steps[0] >= num_train_steps:
        raise ValueError(f"offset must keep timesteps in [0, {num_train_steps - 1}], got {offset}")
    return _discrete(steps, num_train_steps)


def _discrete(steps: np.ndarray, num_train_steps: int) -> Array:
    return jnp.asarray((steps + 1) / num_train_steps, dtype=float)
