"""Step grids: (n,) times that fall from noise to data.

A grid is an ordinary array: write your own, differentiate through it, reverse it for inversion.
`sample` over n entries costs n denoiser calls of a one-call sampler.

    in time      uniform, quadratic, beta
    in noise     uniform_log_snr, karras, exponential, polyexponential, arctan; from_sigmas for a list of your own
    discrete     leading, trailing, linspace, lcm; from_timesteps for a list: timestep i of T is t = (i + 1) / T
    learned      `diffax.learn_grid`

    quadratic         sqrt(t) evenly spaced
    beta              t at evenly spaced quantiles of a Beta distribution
    uniform_log_snr   log(sigma / alpha) evenly spaced; k-diffusion's `exponential`
    polyexponential   log(sigma / alpha) a power of an even ramp
    karras            (sigma / alpha)^(1 / rho) evenly spaced
    arctan            atan((sigma / alpha / scale)^(1 / power)) evenly spaced

Every grid is called `(schedule, n, *, t_max=None, t_min=None)`, the discrete ones `(schedule, n, *,
num_train_steps=None)`. The grids in time and in noise run from t_max to t_min, both included. Their default ends, those
of `default_ends`, lie at sigma / alpha = 80 and 0.02, or at the schedule's own ends where it does not reach that far:
from a larger sigma / alpha, such as 22,026 at t = 1 of `Cosine` or `Flow`, a second-order step multiplies the error of
the first denoiser call by the ratio of the two levels. Most grids in noise also take sigma_max and sigma_min, ends in
sigma / alpha, in place of t_max and t_min. Likelihood and inversion need t_max=1 and t_min=0.

A table with zero terminal SNR has no level near 80 that a network was trained at, so its grids start with t = 1,
followed by a grid of n - 1 entries from the level at 80. Samplers take the first move there at order 1.

Every number may be traced, except n and the arguments of the discrete grids, which are tables made on the host.
The discrete names are those of Lin et al. 2024, table 2, and of the diffusers library; those in noise are
k-diffusion's, whose `vp` is `uniform` under a `Linear` schedule from t_max=1 to t_min=1e-3.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffax._pytrees import as_float, check, check_count, concrete, promoted
from diffax.quantiles import beta_quantile
from diffax.schedules._curve import straight_through
from diffax.typing import Array, Float, Schedule, check_schedule

SIGMA_MAX, SIGMA_MIN = 80.0, 0.02  # sigma / alpha at the default ends


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
    t_max = as_float(1.0) if zero is True else _noise_end(schedule, SIGMA_MAX)
    return jnp.where(zero, 1.0, t_max), _data_end(schedule)


def _noise_end(schedule: Schedule, sigma: Any) -> Any:
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


def _data_end(schedule: Schedule) -> Any:
    """The time at which sigma / alpha = 0.02, or the schedule's own end."""
    steps = getattr(schedule, "num_train_steps", None)
    own, log_snr = as_float(0.0 if steps is None else 1 / steps), -2 * math.log(SIGMA_MIN)
    reached = schedule.log_snr(own) > log_snr + 2e-5
    return jnp.where(reached, jnp.maximum(schedule.inverse(as_float(log_snr)), own), own)


def table_length(schedule: Schedule) -> int:
    """T, the number of levels of a discrete-time schedule; 1,000 for a continuous one.

    >>> from diffax.schedules import Cosine, Tabulated
    >>> table_length(Cosine()), table_length(Tabulated(np.array([4.0, 0.0, -4.0])))
    (1000, 3)
    """
    return getattr(schedule, "num_train_steps", None) or 1000


def _check_table(schedule: Schedule, n: int, num_train_steps: int | None) -> int:
    """The length of the table."""
    check_schedule(schedule)
    most = table_length(schedule) if num_train_steps is None else num_train_steps
    check_count("n", n)
    check_count("num_train_steps", most)
    if n > most:
        raise ValueError(f"n must be at most num_train_steps = {most}, got {n}")
    return most


def _grid(
    schedule: Schedule, n: int, t_max: Any, t_min: Any, inner: Callable[[Any, Any, Any], Any]
) -> Float[Array, " n"]:
    """Times from t_max to t_min, None for the default ends. Both ends are exact; powers and logs are smooth between.

    inner: (first, last, ramp) -> times between the ends; ramp: evenly spaced in (0, 1).
    """
    check_schedule(schedule)
    check_count("n", n)
    for name, value in (("t_max", t_max), ("t_min", t_min)):
        if value is not None:
            check(name, value, "in [0, 1]", lambda v: (v >= 0) & (v <= 1))
            if np.ndim(value):
                raise ValueError(f"{name} must have shape (), got {np.shape(value)}")
    if t_min is None:
        t_min = _data_end(schedule)
    zero = t_max is None and n > 1 and getattr(schedule, "zero_terminal_snr", False)
    if t_max is None:
        t_max = _noise_end(schedule, SIGMA_MAX) if n > 1 else default_ends(schedule)[0]
    low = concrete(t_min)
    if n > 1 and low is not None:
        check("t_max", t_max, f"> t_min = {low:.6g}", lambda v: v > low)

    def grid(from_noise):
        times = _between(as_float(t_max), as_float(t_min), n - from_noise, inner)
        return jnp.concatenate([jnp.ones(1, times.dtype), times]) if from_noise else times

    # With zero terminal SNR: t = 1, and the others from sigma / alpha = 80.
    return grid(zero) if isinstance(zero, bool) else jnp.where(zero, grid(True), grid(False))


def _between(first: Any, last: Any, n: int, inner: Callable[[Any, Any, Any], Any]) -> Any:
    dtype = promoted(first, last)
    parts = first[None], inner(first, last, jnp.linspace(0.0, 1.0, n)[1:-1]), last[None]
    return jnp.concatenate([v.astype(dtype) for v in parts])[:n]


def _even(first: Any, last: Any, ramp: Any) -> Any:
    return first * (1 - ramp) + last * ramp


def uniform(schedule: Schedule, n: int, *, t_max: Any = None, t_min: Any = None) -> Float[Array, " n"]:
    """(n,) times evenly spaced from t_max to t_min, both included.

    Args:
      schedule: noise schedule, for the default ends.
      n: entries, an int >= 1.
      t_max: first time in [0, 1]; that of `default_ends` if None.
      t_min: last time, < t_max; that of `default_ends` if None.

    Raises:
      ValueError: for n < 1, an end outside [0, 1], or t_max <= t_min where n > 1. So do all grids.

    >>> from diffax.schedules import Cosine
    >>> uniform(Cosine(), 3, t_max=1.0, t_min=0.0).tolist()
    [1.0, 0.5, 0.0]
    """
    return _grid(schedule, n, t_max, t_min, _even)


def quadratic(schedule: Schedule, n: int, *, t_max: Any = None, t_min: Any = None) -> Float[Array, " n"]:
    """(n,) times whose square roots are evenly spaced. Arguments as in `uniform`.

    Song, Meng & Ermon 2021, appendix D.2 ("quadratic", there from t_max = 0.8); `time_quadratic` in DPM-Solver's code.

    >>> from diffax.schedules import Cosine
    >>> [round(float(t), 4) for t in quadratic(Cosine(), 3, t_max=0.64, t_min=0.04)]
    [0.64, 0.25, 0.04]
    """

    def inner(first, last, ramp):
        return (jnp.sqrt(first) * (1 - ramp) + _root(last) * ramp) ** 2

    return _grid(schedule, n, t_max, t_min, inner)


def _root(t: Any) -> Any:
    """sqrt(t), with a finite slope at 0."""
    return jnp.where(t > 0, jnp.sqrt(jnp.where(t > 0, t, 1.0)), 0.0)


def beta(
    schedule: Schedule, n: int, *, a: Any = 0.6, b: Any = 0.6, t_max: Any = None, t_min: Any = None
) -> Float[Array, " n"]:
    """(n,) times t_min + (t_max - t_min) q(p), q the quantile function of Beta(a, b), p evenly spaced from 1 to 0.

    a = b < 1 puts more times near both ends, a = b = 1 is `uniform`. Lee et al. 2024, section 4.1 (alpha = beta = 0.6).

    Args:
      schedule: noise schedule, for the default ends.
      n: entries.
      a: alpha of the distribution, > 0: the smaller, the more times near data.
      b: beta of the distribution, > 0: the smaller, the more times near noise.
      t_max: first time, as in `uniform`.
      t_min: last time, as in `uniform`.

    Raises:
      ValueError: if a or b is not positive, or as `uniform`.

    >>> from diffax.schedules import Cosine
    >>> grid = beta(Cosine(), 5, a=0.5, b=0.5, t_max=1.0, t_min=0.0)
    >>> [round(float(t), 4) for t in grid]  # sin^2(pi p / 2)
    [1.0, 0.8536, 0.5, 0.1464, 0.0]
    """
    for name, value in (("a", a), ("b", b)):
        check(name, value, "> 0", lambda v: v > 0)

    def inner(first, last, ramp):
        return last + (first - last) * beta_quantile(1 - ramp, a, b)

    return _grid(schedule, n, t_max, t_min, inner)


def _in_noise(
    schedule: Schedule,
    n: int,
    t_max: Any,
    t_min: Any,
    curve: Callable[[Any, Any, Any], Any],
    sigma_max: Any = None,
    sigma_min: Any = None,
) -> Any:
    """Times at curve(ramp, first, last) of log(sigma / alpha), ramp in (0, 1). A given sigma replaces that end's t."""
    check_schedule(schedule)
    for name, value in (("sigma_max", sigma_max), ("sigma_min", sigma_min)):
        if value is not None:
            check(name, value, "> 0", lambda v: v > 0)
    low = concrete(SIGMA_MIN if sigma_min is None and t_min is None else sigma_min)
    if n > 1 and sigma_max is not None and low is not None:
        check("sigma_max", sigma_max, f"> sigma_min = {low}", lambda v: v > low)
    elif n > 1 and sigma_min is not None and t_max is None:
        check("sigma_min", sigma_min, f"< sigma_max = {SIGMA_MAX:g}", lambda v: v < SIGMA_MAX)
    if sigma_max is not None:
        t_max = _noise_end(schedule, sigma_max)
    if sigma_min is not None:
        t_min = schedule.inverse(-2 * jnp.log(as_float(sigma_min)))
    return _grid(schedule, n, t_max, t_min, _by_log_snr(schedule, curve))


def _by_log_snr(schedule: Schedule, curve: Callable[[Any, Any, Any], Any]) -> Callable[[Any, Any, Any], Any]:
    def inner(first, last, ramp):
        return schedule.inverse(-2 * curve(ramp, -schedule.log_snr(first) / 2, -schedule.log_snr(last) / 2))

    return inner


def _log_linear(ramp: Any, first: Any, last: Any) -> Any:
    return first + ramp * (last - first)


def path(schedule: Schedule, n: int, t: Any, s: Any) -> Float[Array, " n"]:
    """(n,) times from t to s, in either direction, evenly spaced in log-SNR: `uniform_log_snr` for traced ends.

    >>> from diffax.schedules import LogLinear
    >>> [round(float(t), 4) for t in path(LogLinear(0.01, 100.0), 3, 0.5, 1.0)]
    [0.5, 0.75, 1.0]
    """
    check_count("n", n)
    return _between(as_float(t), as_float(s), n, _by_log_snr(schedule, _log_linear))


def uniform_log_snr(
    schedule: Schedule,
    n: int,
    *,
    t_max: Any = None,
    t_min: Any = None,
    sigma_max: Any = None,
    sigma_min: Any = None,
) -> Float[Array, " n"]:
    """(n,) times evenly spaced in log-SNR, the default grid of the commands. Arguments as in `karras`.

    Source: Lu et al. 2022, section 3.4.

    >>> from diffax.schedules import LogLinear
    >>> [round(float(t), 4) for t in uniform_log_snr(LogLinear(0.01, 100.0), 3, t_max=1.0, t_min=0.5)]
    [1.0, 0.75, 0.5]
    """
    return _in_noise(schedule, n, t_max, t_min, _log_linear, sigma_max, sigma_min)


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
    t_max: Any = None,
    t_min: Any = None,
    sigma_max: Any = None,
    sigma_min: Any = None,
) -> Float[Array, " n"]:
    """(n,) times at log r = log r_min + u^rho (log r_max - log r_min), u evenly spaced from 1 to 0; r = sigma / alpha.

    rho = 1 is `uniform_log_snr`; rho > 1 puts more times near data. k-diffusion's `get_sigmas_polyexponential`
    (Crowson 2022). Arguments as in `karras`.

    Raises:
      ValueError: as `karras`.

    >>> from diffax.schedules import LogLinear
    >>> [round(float(t), 4) for t in polyexponential(LogLinear(0.01, 100.0), 3, rho=2.0, t_max=1.0, t_min=0.0)]
    [1.0, 0.25, 0.0]
    """
    check("rho", rho, "> 0", lambda v: v > 0)

    def curve(ramp, first, last):
        return last + (1 - ramp) ** rho * (first - last)

    return _in_noise(schedule, n, t_max, t_min, curve, sigma_max, sigma_min)


def karras(
    schedule: Schedule,
    n: int,
    *,
    rho: Any = 7.0,
    t_max: Any = None,
    t_min: Any = None,
    sigma_max: Any = None,
    sigma_min: Any = None,
) -> Float[Array, " n"]:
    """(n,) times evenly spaced in (sigma / alpha)^(1 / rho). Karras et al. 2022, eq. 5.

    Under `EDM` with the same ends it is `uniform`. The paper's ends are sigma_max=80 and sigma_min=0.002.

    Args:
      schedule: noise schedule; sigma / alpha is its noise-to-signal ratio, whatever its scaling.
      n: entries.
      rho: > 0; the larger, the closer to `uniform_log_snr`.
      t_max: first time, unless sigma_max is given; that of `default_ends` if None.
      t_min: last time, unless sigma_min is given; that of `default_ends` if None.
      sigma_max: first sigma / alpha, as far as the schedule reaches.
      sigma_min: last sigma / alpha, < sigma_max, as far as the schedule reaches.

    Raises:
      ValueError: if not 0 < sigma_min < sigma_max, rho is not positive, or as `uniform`.

    >>> from diffax.schedules import EDM
    >>> [round(float(t), 4) for t in karras(EDM(), 3, t_min=0.0)]
    [1.0, 0.5, 0.0]
    """
    check("rho", rho, "> 0", lambda v: v > 0)

    def curve(ramp, first, last):
        # exp(first / rho) times what the bracket adds up to, so that nothing overflows for a small rho.
        return first + rho * jnp.log1p(ramp * jnp.expm1((last - first) / rho))

    return _in_noise(schedule, n, t_max, t_min, curve, sigma_max, sigma_min)


def arctan(
    schedule: Schedule, n: int, *, scale: Any = 0.7, power: Any = 1.25, t_max: Any = None, t_min: Any = None
) -> Float[Array, " n"]:
    """(n,) times at which atan((r / scale)^(1 / power)) is evenly spaced, r = sigma / alpha; both ends included.

    Dense around r = scale, which should be of the order of the data's standard deviation, and sparser by the power of
    r towards both ends, so that t_max=1 and t_min=0 cost little. power = 1 is uniform in the theta of
    `gaussian_adams` for std = scale; scale = power = 1 is `uniform` under `Cosine`. Under `noise_floor` give
    `NoiseFloor(schedule, std)`.

    Args:
      schedule: noise schedule; sigma / alpha is its noise-to-signal ratio, whatever its scaling.
      n: entries.
      scale: > 0, may be traced.
      power: > 0, may be traced; the larger, the closer to `uniform_log_snr`.
      t_max: first time, as in `uniform`.
      t_min: last time, as in `uniform`.

    Raises:
      ValueError: for a scale or power that is not positive, or as `uniform`.

    >>> from diffax.schedules import Cosine
    >>> [round(float(t), 3) for t in arctan(Cosine(), 5, scale=1.0, power=1.0, t_max=1.0, t_min=0.0)]
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    for name, value in (("scale", scale), ("power", power)):
        check(name, value, "> 0", lambda v: v > 0)
    log_scale = jnp.log(as_float(scale))

    def inner(first, last, ramp):
        low, high = (jnp.arctan(jnp.exp((-schedule.log_snr(t) / 2 - log_scale) / power)) for t in (first, last))
        theta = low + (high - low) * ramp
        return schedule.inverse(-2 * (log_scale + power * jnp.log(jnp.tan(theta))))

    return _grid(schedule, n, t_max, t_min, inner)


def from_sigmas(schedule: Schedule, sigmas: Any) -> Float[Array, " n"]:
    """(n,) times at which sigma / alpha is what the list says, as far as the schedule reaches.

    Lists of noise levels from other libraries end with a 0; leave it out: `sample` ends with the denoiser.

    Raises:
      ValueError: if one of them is known not to be positive.

    >>> from diffax.schedules import LogLinear
    >>> [round(float(t), 4) for t in from_sigmas(LogLinear(0.01, 100.0), jnp.array([100.0, 1.0]))]
    [1.0, 0.5]
    """
    check_schedule(schedule)
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


def leading(schedule: Schedule, n: int, *, num_train_steps: int | None = None, offset: int = 0) -> Float[Array, " n"]:
    """(n,) times of timesteps i = offset + k floor(T / n), k = n - 1 .. 0. DDPM, DDIM and most of their heirs.

    Args:
      schedule: noise schedule, whose table is divided.
      n: entries, an int in 1 .. T.
      num_train_steps: T; that of the schedule's table if None, 1,000 for a schedule in continuous time.
      offset: added to each timestep.

    Raises:
      ValueError: for n outside 1 .. T, or an offset that leads out of the table. So do `trailing` and `linspace`.

    >>> from diffax.schedules import Cosine
    >>> [round(1000 * float(t)) - 1 for t in leading(Cosine(), 4)]
    [750, 500, 250, 0]
    """
    count = _check_table(schedule, n, num_train_steps)
    return _offset(np.arange(n)[::-1] * (count // n), offset, count)


def trailing(schedule: Schedule, n: int, *, num_train_steps: int | None = None, offset: int = 0) -> Float[Array, " n"]:
    """(n,) times of timesteps i = offset + round(T - k T / n) - 1, k = 0 .. n - 1: from pure noise. Lin et al. 2024.

    Arguments as in `leading`.

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
    check("offset", offset, "a whole number", lambda v: v == np.round(v))
    check("offset", offset, f"in [0, {count - 1}]", lambda v: (v >= 0) & (v < count))
    return _discrete(np.round(np.linspace(count - 1, offset, n)), count)


def lcm(
    schedule: Schedule, n: int, *, num_train_steps: int | None = None, original_steps: int = 50
) -> Float[Array, " n"]:
    """(n,) times: n of the `original_steps` timesteps that LCM and TCD models were distilled on, evenly by index.

    Timesteps i = k j - 1, j = 1 .. original_steps, k = floor(T / original_steps); of them, from the noisiest on, those
    at floor(m original_steps / n), m = 0 .. n - 1.

    Args:
      schedule: noise schedule, whose table is divided.
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
    for name, value, most in (("n", n, original_steps), ("original_steps", original_steps, count)):
        check_count(name, value)
        if value > most:
            raise ValueError(f"{name} must be at most {most}, got {value}")
    steps = np.arange(original_steps, 0, -1) * (count // original_steps)
    return jnp.asarray(steps[np.arange(n) * original_steps // n] / count, dtype=float)


def _offset(steps: np.ndarray, offset: int, num_train_steps: int) -> Array:
    check("offset", offset, "a whole number", lambda v: v == np.round(v))
    steps = steps + offset
    if steps[-1] < 0 or steps[0] >= num_train_steps:
        raise ValueError(f"offset must keep timesteps in [0, {num_train_steps - 1}], got {offset}")
    return _discrete(steps, num_train_steps)


def _discrete(steps: np.ndarray, num_train_steps: int) -> Array:
    return jnp.asarray((steps + 1) / num_train_steps, dtype=float)
