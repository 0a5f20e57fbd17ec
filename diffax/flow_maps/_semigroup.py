"""One step equals two: shortcut models by a flow map, progressive distillation by a denoiser."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffax._checks import check_function
from diffax._pytrees import combine
from diffax.flow_maps._maps import MapPredict, checked, coefficients, flow_map, ordered, stretched
from diffax.flow_maps._parts import Losses, draw, minus, squared, stop, weighted
from diffax.predictions import split
from diffax.samplers._base import State
from diffax.samplers._ddim import ddim
from diffax.typing import Array, Denoiser, Key, Kind, PerExample, Predict, Scalar, Schedule, Times, Tree


def semigroup_loss(
    key: Key,
    predict: MapPredict,
    schedule: Schedule,
    kind: Kind,
    x0: Tree,
    t: Times,
    s: Times,
    middle: Times | None = None,
    *,
    target: MapPredict | None = None,
    limit: Scalar | None = None,
    weight: Callable[[Array], Array] | None = None,
    sigma_data: PerExample = 0.5,
    eps: Tree | None = None,
) -> Losses:
    """The semigroup loss |y(x_t, t, s) - stop_gradient(y*)|^2: one step equals two.

        X(x_t, t, s) with y*  =  X'(X'(x_t, t, m), m, s)
        velocity on `Flow` at the midpoint: y* is the mean of the two half steps' velocities (shortcut models)

    It says nothing about s = t, so train it beside `denoising_loss` of `diagonal(predict)`, on another part of the
    batch.

    Args:
      key: () or (B,); consumed.
      predict: (x, t, s) -> y.
      schedule: noise schedule.
      kind: the prediction y.
      x0: (B, ...) clean data.
      t: () or (B,), the time of x_t.
      s: () or (B,), not equal to t.
      middle: m, () or (B,), between them; None (default) is (t + s) / 2.
      target: the network of the two steps, such as that of averaged parameters; None (default) for `predict`.
      limit: the intermediate and the final x of the target are clipped to [-limit, limit]; None (default) for not.
      weight: as of `mean_flow_loss`; default None.
      sigma_data: standard deviation of the data; only `edm` uses it.
      eps: the other end of the path, as of `denoising_loss`; None (default) for noise.

    Returns:
      (B,) losses.

    Source: Frans et al. 2025, eq. 3 to 5.
    """
    predict, (t, s) = checked(predict, schedule, kind), ordered(t, s, strict=True)
    _, x, _ = draw(key, "semigroup_loss", schedule, x0, t, eps)
    move = flow_map(target or predict, schedule, kind, sigma_data=sigma_data)
    m = (t + s) / 2 if middle is None else stretched(middle, t)[0]

    def clipped(x: Tree) -> Any:
        return x if limit is None else jax.tree.map(lambda v: jnp.clip(v, -limit, limit), x)

    end = clipped(move(clipped(move(x, t, m)), m, s))
    c_x, c_y = coefficients(kind, schedule, t, s, sigma_data=sigma_data)
    goal = combine((1 / c_y, end), (-c_x / c_y, x))
    return weighted(minus(predict(x, t, s), stop(goal)), weight)


def progressive_loss(
    key: Key,
    predict: Predict,
    schedule: Schedule,
    kind: Kind,
    x0: Tree,
    t: Times,
    s: Times,
    *,
    teacher: Denoiser,
    sigma_data: PerExample = 0.5,
    eps: Tree | None = None,
) -> Losses:
    """The loss of progressive distillation, max(SNR, 1) |x0_hat - x*|^2: one DDIM step equals two of the teacher.

        x* = (x_s - sigma_s / sigma_t x_t) / (alpha_s - alpha_t sigma_s / sigma_t),   x_s by steps to (t + s) / 2 and s

    Args:
      key: () or (B,); consumed.
      predict: (x, t) -> y, the student; it starts from the teacher's parameters.
      schedule: noise schedule.
      kind: the prediction y.
      x0: (B, ...) clean data.
      t: () or (B,), in the paper (i + 1) / N for N steps of the student.
      s: () or (B,), in the paper i / N.
      teacher: a denoiser (x, t) -> x0, not clipped.
      sigma_data: standard deviation of the data; only `edm` uses it.
      eps: the other end of the path, as of `denoising_loss`; None (default) for noise.

    Returns:
      (B,) losses.

    Source: Salimans & Ho 2022, algorithm 2 and section 4 (truncated SNR).
    """
    check_function("predict", predict, "a function (x, t) -> y")
    t, s = ordered(t, s, strict=True)
    _, x, _ = draw(key, "progressive_loss", schedule, x0, t, eps)
    step, m = ddim(schedule).step, (t + s) / 2
    moved = step(key, teacher, step(key, teacher, State(x), t, m), m, s).x
    c_x, c_x0 = coefficients("x0", schedule, t, s)
    goal = combine((1 / c_x0, moved), (-c_x / c_x0, x))
    student, _ = split(kind, schedule, predict(x, t), x, t, sigma_data=sigma_data)
    level = schedule(t)
    return jnp.maximum(jnp.exp(level.log_snr), 1.0) * squared(minus(student, stop(goal)))
