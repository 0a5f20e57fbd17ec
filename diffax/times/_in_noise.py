"""Step grids that are evenly spaced in a function of sigma / alpha."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from diffax._checks import above, below, check, check_count, check_schedule, positive
from diffax._pytrees import as_float, concrete
from diffax.times._ends import SIGMA_MAX, SIGMA_MIN, noise_end
from diffax.times._grid import between, entries
from diffax.typing import Array, Float, PerExample, Scalar, Schedule, Times, Values


def uniform_log_snr(
    schedule: Schedule,
    n: int,
    *,
    t_max: Times | None = None,
    t_min: Times | None = None,
    sigma_max: Scalar | None = None,
    sigma_min: Scalar | None = None,
) -> Float[Array, " n"]:
    """(n,) times evenly spaced in log-SNR. Arguments as in `karras`.

    The commands use this grid by default.

    Source: Lu et al. 2022, section 3.4.

    >>> from diffax.schedules import LogLinear
    >>> [round(float(t), 4) for t in uniform_log_snr(LogLinear(0.01, 100.0), 3, t_max=1.0, t_min=0.5)]
    [1.0, 0.75, 0.5]
    """
    return _in_noise(schedule, n, t_max, t_min, _log_linear, sigma_max, sigma_min)


def polyexponential(
    schedule: Schedule,
    n: int,
    *,
    rho: Scalar = 1.0,
    t_max: Times | None = None,
    t_min: Times | None = None,
    sigma_max: Scalar | None = None,
    sigma_min: Scalar | None = None,
) -> Float[Array, " n"]:
    """(n,) times at log r = log r_min + u^rho (log r_max - log r_min), u evenly spaced from 1 to 0; r = sigma / alpha.

    rho = 1 is `uniform_log_snr`; rho > 1 puts more times near data. Arguments as in `karras`.

    Source: `get_sigmas_polyexponential` of k-diffusion (Crowson 2022).

    Raises:
      ValueError: as in `karras`.

    >>> from diffax.schedules import LogLinear
    >>> [round(float(t), 4) for t in polyexponential(LogLinear(0.01, 100.0), 3, rho=2.0, t_max=1.0, t_min=0.0)]
    [1.0, 0.25, 0.0]
    """
    check("rho", rho, positive)

    def curve(ramp: Scalar, first: Scalar, last: Scalar) -> Any:
        return last + (1 - ramp) ** rho * (first - last)

    return _in_noise(schedule, n, t_max, t_min, curve, sigma_max, sigma_min)


def karras(
    schedule: Schedule,
    n: int,
    *,
    rho: Scalar = 7.0,
    t_max: Times | None = None,
    t_min: Times | None = None,
    sigma_max: Scalar | None = None,
    sigma_min: Scalar | None = None,
) -> Float[Array, " n"]:
    """(n,) times evenly spaced in (sigma / alpha)^(1 / rho). Karras et al. 2022, eq. 5.

    With the schedule `EDM` and the ends of that schedule, this grid is `uniform`. The ends of the paper are
    sigma_max=80 and sigma_min=0.002.

    Args:
      schedule: noise schedule with any scaling; sigma / alpha is its noise-to-signal ratio.
      n: entries.
      rho: > 0; a larger rho is closer to `uniform_log_snr`.
      t_max: first time; ignored if sigma_max is given; from `default_ends` if None.
      t_min: last time; ignored if sigma_min is given; from `default_ends` if None.
      sigma_max: sigma / alpha at the first time, limited to the range of the schedule.
      sigma_min: sigma / alpha at the last time, < sigma_max, limited to the range of the schedule.

    Raises:
      ValueError: if not 0 < sigma_min < sigma_max, rho is not positive, or as in `uniform`.

    >>> from diffax.schedules import EDM
    >>> [round(float(t), 4) for t in karras(EDM(), 3, t_min=0.0)]
    [1.0, 0.5, 0.0]
    """
    check("rho", rho, positive)

    def curve(ramp: Scalar, first: Scalar, last: Scalar) -> Any:
        # Factor exp(first / rho) out of the sum, so that nothing overflows for a small rho.
        return first + rho * jnp.log1p(ramp * jnp.expm1((last - first) / rho))

    return _in_noise(schedule, n, t_max, t_min, curve, sigma_max, sigma_min)


def arctan(
    schedule: Schedule,
    n: int,
    *,
    scale: PerExample = 0.7,
    power: Scalar = 1.25,
    t_max: Times | None = None,
    t_min: Times | None = None,
) -> Float[Array, " n"]:
    """(n,) times at which atan((r / scale)^(1 / power)) is evenly spaced, r = sigma / alpha; both ends included.

    The grid is dense around r = scale, which should be about the standard deviation of the data. Towards both ends the
    density falls as a power of r, so t_max=1 and t_min=0 take few entries. With power = 1 the grid is uniform in the
    theta of `gaussian_adams` for std = scale. With scale = power = 1 it is `uniform` under `Cosine`. For the sampler
    wrapper `noise_floor`, pass `NoiseFloor(schedule, std)` as the schedule.

    Args:
      schedule: noise schedule with any scaling; sigma / alpha is its noise-to-signal ratio.
      n: entries.
      scale: > 0, may be traced.
      power: > 0, may be traced; a larger power is closer to `uniform_log_snr`.
      t_max: first time, as in `uniform`.
      t_min: last time, as in `uniform`.

    Raises:
      ValueError: for a scale or power that is not positive, or as in `uniform`.

    >>> from diffax.schedules import Cosine
    >>> [round(float(t), 3) for t in arctan(Cosine(), 5, scale=1.0, power=1.0, t_max=1.0, t_min=0.0)]
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    for name, value in (("scale", scale), ("power", power)):
        check(name, value, positive)
    log_scale = jnp.log(as_float(scale))

    def inner(first: Scalar, last: Scalar, ramp: Scalar) -> Any:
        low, high = (jnp.arctan(jnp.exp((-schedule.log_snr(t) / 2 - log_scale) / power)) for t in (first, last))
        theta = low + (high - low) * ramp
        return schedule.inverse(-2 * (log_scale + power * jnp.log(jnp.tan(theta))))

    return entries(schedule, n, t_max, t_min, inner)


def from_sigmas(schedule: Schedule, sigmas: Values) -> Float[Array, " n"]:
    """(n,) times at which sigma / alpha equals the entries of `sigmas`, limited to the range of the schedule.

    Lists of noise levels from other libraries end with a 0. Omit it: `sample` ends with a denoiser call instead.

    Raises:
      ValueError: if an entry is not positive. Traced entries are not checked.

    >>> from diffax.schedules import LogLinear
    >>> [round(float(t), 4) for t in from_sigmas(LogLinear(0.01, 100.0), jnp.array([100.0, 1.0]))]
    [1.0, 0.5]
    """
    check_schedule(schedule)
    check("sigmas", sigmas, positive)
    return schedule.inverse(-2 * jnp.log(as_float(sigmas)))


def path(schedule: Schedule, n: int, t: Times, s: Times) -> Float[Array, " n"]:
    """(n,) times from t to s, in either direction, evenly spaced in log-SNR; t and s may be traced.

    >>> from diffax.schedules import LogLinear
    >>> [round(float(t), 4) for t in path(LogLinear(0.01, 100.0), 3, 0.5, 1.0)]
    [0.5, 0.75, 1.0]
    """
    check_count("n", n)
    return between(as_float(t), as_float(s), n, _by_log_snr(schedule, _log_linear))


def _in_noise(
    schedule: Schedule,
    n: int,
    t_max: Times | None,
    t_min: Times | None,
    curve: Callable[[Any, Any, Any], Any],
    sigma_max: Scalar | None = None,
    sigma_min: Scalar | None = None,
) -> Array:
    """(n,) times at which log(sigma / alpha) = curve(ramp, first, last), for ramp in (0, 1).

    `first` and `last` are log(sigma / alpha) at the ends. sigma_max replaces t_max, and sigma_min replaces t_min.
    """
    check_schedule(schedule)
    for name, value in (("sigma_max", sigma_max), ("sigma_min", sigma_min)):
        if value is not None:
            check(name, value, positive)
    low = concrete(SIGMA_MIN if sigma_min is None and t_min is None else sigma_min)
    if n > 1 and sigma_max is not None and low is not None:
        check("sigma_max", sigma_max, above(low, "sigma_min"))
    elif n > 1 and sigma_min is not None and t_max is None:
        check("sigma_min", sigma_min, below(SIGMA_MAX, "sigma_max"))
    if sigma_max is not None:
        t_max = noise_end(schedule, sigma_max)
    if sigma_min is not None:
        t_min = schedule.inverse(-2 * jnp.log(as_float(sigma_min)))
    return entries(schedule, n, t_max, t_min, _by_log_snr(schedule, curve))


def _by_log_snr(schedule: Schedule, curve: Callable[[Any, Any, Any], Any]) -> Callable[[Any, Any, Any], Any]:
    def inner(first: Scalar, last: Scalar, ramp: Scalar) -> Any:
        return schedule.inverse(-2 * curve(ramp, -schedule.log_snr(first) / 2, -schedule.log_snr(last) / 2))

    return inner


def _log_linear(ramp: Scalar, first: Scalar, last: Scalar) -> Any:
    return first + ramp * (last - first)
