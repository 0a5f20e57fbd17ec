"""Flow maps X(x, t, s): the probability-flow ODE from time t to time s in one call of a network.

A network y(x, t, s) of any prediction kind is split into (x0, eps) at t, by the row (a, b) of its kind:

    X(x, t, s) = alpha_s x0 + sigma_s eps = c_x x + c_y y
    c_x = (alpha_s b - sigma_s a) / det,   c_y = (alpha_t sigma_s - sigma_t alpha_s) / det
    det = alpha_t b - sigma_t a

X(x, t, t) = x for any y. At s = t, y(x, t, t) is the prediction of a denoiser: dX/ds = alpha' x0 + sigma' eps there.

    kind, schedule       X(x, t, s)                                 name of y
    velocity, `Flow`     x + (s - t) y                              average velocity (MeanFlow)
    v, `Cosine`          cos(h) x - sin(h) y,  h = pi / 2 (t - s)   TrigFlow; with s = 0 the consistency function
    x0, any              the DDIM step with x0 = y
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from diffax._checks import check_function, check_per_example, check_schedule
from diffax._pytrees import combine, concrete
from diffax.denoisers import like_x
from diffax.predictions import check_kind, row, split
from diffax.samplers.engines.forms import cross
from diffax.schedules import rates
from diffax.typing import Denoiser, Kind, PerExample, Predict, Schedule, Times, Tree

if TYPE_CHECKING:
    MapPredict = Callable[[Any, Any, Any], Any]  # (x, t, s) -> y
    MapDenoiser = Callable[[Any, Any, Any], Any]  # (x, t, s) -> the x0 of the DDIM step from t to s
    FlowMap = Callable[[Any, Any, Any], Any]  # (x, t, s) -> x at s
else:  # as the aliases of diffax.typing: bad input raises the one-line errors
    MapPredict = MapDenoiser = FlowMap = Any


def coefficients(
    kind: Kind, schedule: Schedule, t: Times, s: Times, *, sigma_data: PerExample = 0.5
) -> tuple[Any, Any]:
    """(c_x, c_y) of X = c_x x + c_y y, with shapes () or (B,).

    >>> from diffax.schedules import Flow
    >>> [round(float(c), 6) for c in coefficients("velocity", Flow(), 0.75, 0.25)]
    [1.0, -0.5]
    """
    a, b = row(kind, schedule, t, sigma_data=sigma_data)
    level_t, level_s = schedule(t), schedule(s)
    det = level_t.alpha * b - level_t.sigma * a
    return (level_s.alpha * b - level_s.sigma * a) / det, cross(level_t, level_s) / det


def flow_map(predict: MapPredict, schedule: Schedule, kind: Kind, *, sigma_data: PerExample = 0.5) -> FlowMap:
    """The flow map X(x, t, s) of a network with two times.

    Args:
      predict: (x, t, s) -> y; x, y: (B, ...), t, s: () or (B,).
      schedule: the schedule that the network was trained with.
      kind: a key of `diffax.predictions.KINDS`.
      sigma_data: standard deviation of the data; only `edm` uses it. Default 0.5.

    Returns:
      (x, t, s) -> x at s, (B, ...).

    Raises:
      ValueError: for an unknown kind, or eps or score with zero terminal SNR. When it is called: for a y of another
        shape than x, or times that are neither () nor (B,).

    Source: Song et al. 2023 (s = 0); Kim et al. 2024; Geng et al. 2025, eq. 3 (`velocity` on `Flow`).

    >>> from diffax.schedules import Flow
    >>> flow_map(lambda x, t, s: 2 * x, Flow(), "velocity")(jnp.ones((1, 1)), 0.75, 0.25).tolist()
    [[0.0]]
    """
    predict = checked(predict, schedule, kind)

    def move(x: Tree, t: Times, s: Times) -> Any:
        check_per_example(x, t=t, s=s)
        c_x, c_y = coefficients(kind, schedule, t, s, sigma_data=sigma_data)
        return combine((c_x, x), (c_y, predict(x, t, s)))

    return move


def map_denoiser(predict: MapPredict, schedule: Schedule, kind: Kind, *, sigma_data: PerExample = 0.5) -> MapDenoiser:
    """The flow map as a denoiser (x, t, s) -> x0: the x0 with which the DDIM step from t to s is X(x, t, s).

    `jump` samples with it. Arguments and errors as of `flow_map`.
    """
    predict = checked(predict, schedule, kind)

    def denoise(x: Tree, t: Times, s: Times) -> Any:
        check_per_example(x, t=t, s=s)
        return split(kind, schedule, predict(x, t, s), x, t, sigma_data=sigma_data)[0]

    return denoise


def checked(predict: MapPredict, schedule: Schedule, kind: Kind) -> MapPredict:
    """The network, with checks of its schedule and kind now, and of the shape of y when it is called."""
    check_function("predict", predict, "a function (x, t, s) -> y")
    check_kind(kind, schedule)
    result: MapPredict = like_x("predict", predict)
    return result


def diagonal(predict: MapPredict) -> Predict:
    """The network at s = t: (x, t) -> y(x, t, t), for `denoising_loss` and `denoiser`."""
    return lambda x, t: predict(x, t, t)


def ending(f: FlowMap, s: Times = 0.0) -> Denoiser:
    """The flow map to a fixed time: (x, t) -> X(x, t, s). At s = 0 it is the consistency function."""
    return lambda x, t: f(x, t, s)


def of_denoiser(denoise: Denoiser) -> MapDenoiser:
    """A denoiser as one of three arguments, (x, t, s) -> denoise(x, t): `jump` with it is `ddim`."""
    return lambda x, t, s: denoise(x, t)


def velocity(predict: Predict, schedule: Schedule, kind: Kind, *, sigma_data: PerExample = 0.5) -> Predict:
    """The velocity dx/dt = alpha' x0 + sigma' eps of a network (x, t) -> y of any kind."""
    check_schedule(schedule)

    def rate(x: Tree, t: Times) -> Any:
        x0, eps = split(kind, schedule, predict(x, t), x, t, sigma_data=sigma_data)
        a, b = rates(schedule, t)
        return combine((a, x0), (b, eps))

    return rate


def ordered(t: Times, s: Times, *, strict: bool = False) -> tuple[Any, Any]:
    """As `stretched`.

    Raises:
      ValueError: for known times with s > t, with `strict` also for s = t.
    """
    values = [concrete(v) for v in (t, s)]
    if values[0] is not None and values[1] is not None:
        late, early = np.broadcast_arrays(*values)
        if (wrong := early >= late if strict else early > late).any():
            condition = "less than" if strict else "at most"
            raise ValueError(f"s must be {condition} t, got s = {early[wrong][0]:g} with t = {late[wrong][0]:g}")
    return stretched(t, s)


def stretched(t: Times, s: Times) -> tuple[Any, Any]:
    """(t, s) as float arrays of one shape, so that `jax.jvp` has a tangent of that shape for each."""
    t, s = jnp.broadcast_arrays(jnp.asarray(t, float), jnp.asarray(s, float))
    return t, s
