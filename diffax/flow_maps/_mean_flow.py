"""MeanFlow and improved MeanFlow: d/dt X(x_t, t, s) = 0 along the path, solved for the network."""

from collections.abc import Callable
from typing import Any

from diffax._pytrees import combine
from diffax.flow_maps._maps import MapPredict, checked, diagonal, ordered, velocity
from diffax.flow_maps._parts import Losses, Velocity, adaptive, derivatives, draw, minus, stop, weighted
from diffax.typing import Array, Key, Kind, PerExample, Predict, Schedule, Times, Tree


def mean_flow_loss(
    key: Key,
    predict: MapPredict,
    schedule: Schedule,
    kind: Kind,
    x0: Tree,
    t: Times,
    s: Times,
    *,
    rate: Velocity | None = None,
    weight: Callable[[Array], Array] | None = adaptive,
    sigma_data: PerExample = 0.5,
    eps: Tree | None = None,
) -> Losses:
    """The MeanFlow loss |y - stop_gradient(y*)|^2, where y* solves d/dt X(x_t, t, s) = 0 for y.

        y* = -(c_x' x_t + c_x dx/dt + c_y dy/dt) / c_y',     X = c_x x + c_y y
        velocity on `Flow`: y* = dx/dt - (t - s) dy/dt

    dy/dt is the total derivative along (dx/dt, 1, 0), by one `jax.jvp`. With s = t it is `denoising_loss`.

    Args:
      key: () or (B,); consumed.
      predict: (x, t, s) -> y, with a forward-mode derivative: attention by `implementation="xla"`.
      schedule: noise schedule.
      kind: the prediction y.
      x0: (B, ...) clean data.
      t: () or (B,), the time of x_t.
      s: () or (B,), the time of X, in [0, t].
      rate: (x_t, t, conditional velocity) -> dx/dt: a teacher's velocity, or a guided one (`guided`). None (default)
        is the conditional velocity.
      weight: sum of squares (B,) -> loss; None for the plain mean of squares. Default `adaptive`.
      sigma_data: standard deviation of the data; only `edm` uses it.
      eps: the other end of the path, as of `denoising_loss`; None (default) for noise.

    Returns:
      (B,) losses.

    Raises:
      ValueError: as `flow_map`, and for an x0 that is not of a float type.

    Source: Geng et al. 2025, eq. 9 to 11 and 22.

    >>> import jax, jax.numpy as jnp
    >>> from diffax.schedules import Flow
    >>> x0 = jnp.ones((2, 3))
    >>> loss = mean_flow_loss(jax.random.key(0), lambda x, t, s: 0 * x, Flow(), "velocity", x0, 0.5, 0.5, weight=None)
    >>> loss.shape
    (2,)
    """
    predict, (t, s) = checked(predict, schedule, kind), ordered(t, s)
    _, x, dx = draw(key, "mean_flow_loss", schedule, x0, t, eps)
    dx = dx if rate is None else stop(rate(x, t, dx))
    y, dy, (c_x, c_y), (dc_x, dc_y) = derivatives(predict, schedule, kind, x, dx, t, s, sigma_data)
    goal = combine((-dc_x / dc_y, x), (-c_x / dc_y, dx), (-c_y / dc_y, dy))
    return weighted(minus(y, stop(goal)), weight)


def guided(
    conditional: Predict, unconditional: Predict, *, weight: PerExample = 1.0, mixing: PerExample = 0.0
) -> Velocity:
    """The guided velocity of MeanFlow's training: w v + (1 - w - k) v_null + k v_label, for `rate`.

        the effective weight of classifier-free guidance is w / (1 - k)

    Args:
      conditional: (x, t) -> velocity of the network at s = t with the label; see `velocity` and `diagonal`.
      unconditional: likewise without.
      weight: w, () or (B,); 1 with mixing 0 is the velocity of the draw.
      mixing: k, () or (B,), in [0, 1).

    Source: Geng et al. 2025, eq. 19 and appendix.
    """

    def rate(x: Tree, t: Times, v: Tree) -> Any:
        return combine((weight, v), (1 - weight - mixing, unconditional(x, t)), (mixing, conditional(x, t)))

    return rate


def improved_mean_flow_loss(
    key: Key,
    predict: MapPredict,
    schedule: Schedule,
    kind: Kind,
    x0: Tree,
    t: Times,
    s: Times,
    *,
    rate: Velocity | None = None,
    weight: Callable[[Array], Array] | None = adaptive,
    sigma_data: PerExample = 0.5,
    eps: Tree | None = None,
) -> Losses:
    """The improved MeanFlow loss: a regression on dx/dt, with the network's own velocity as the tangent, and at s = t.

        R = (c_x' x + c_x dx/dt + c_y' y + c_y stop_gradient(dy/dt)) / c_y',   dy/dt along (own velocity, 1, 0)
        loss = w(|R|^2) + w(|y(x, t, t) - y_t|^2)
        velocity on `Flow`: R = y + (t - s) dy/dt - dx/dt

    Since the tangent does not depend on the draw, R is an error of dx/dt alone, so the loss has a lower variance than
    `mean_flow_loss`. Arguments, returns and errors as of `mean_flow_loss`.

    Source: Geng et al. 2025b (improved mean flows), section 4.
    """
    predict, (t, s) = checked(predict, schedule, kind), ordered(t, s)
    _, x, dx = draw(key, "improved_mean_flow_loss", schedule, x0, t, eps)
    dx = dx if rate is None else stop(rate(x, t, dx))
    own = stop(velocity(diagonal(predict), schedule, kind, sigma_data=sigma_data)(x, t))
    y, dy, (c_x, c_y), (dc_x, dc_y) = derivatives(predict, schedule, kind, x, own, t, s, sigma_data)
    residual = combine((1.0, y), (dc_x / dc_y, x), (c_x / dc_y, dx), (c_y / dc_y, stop(dy)))
    y_t, _, (a_x, _), (da_x, da_y) = derivatives(predict, schedule, kind, x, own, t, t, sigma_data)
    diagonal_residual = combine((1.0, y_t), (da_x / da_y, x), (a_x / da_y, dx))
    return weighted(residual, weight) + weighted(diagonal_residual, weight)
