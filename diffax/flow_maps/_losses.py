"""Losses of flow maps: three identities of the exact map X(x, t, s), each with a family of losses.

    Eulerian     d/dt X(x_t, t, s) = 0 along the flow     mean_flow_loss, improved_mean_flow_loss,
                                                          continuous_consistency_loss, consistency_loss (finite steps)
    Lagrangian   d/ds X(x, t, s) = velocity(X, s)         lagrangian_loss
    semigroup    X(t -> s) = X(m -> s) o X(t -> m)        semigroup_loss, progressive_loss

All draw x_t = alpha x0 + sigma eps and return (B,). The *conditional* velocity alpha' x0 + sigma' eps is that of the
draw; the *marginal* one is its mean given x_t, which a teacher has. At the exact map with the marginal velocity the
losses of derivatives are zero; with the conditional one the expectation of their gradient is.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffax import random
from diffax._checks import check_float, check_function, check_like, check_per_example, choose
from diffax._masks import dimensions, mean, total
from diffax._pytrees import combine
from diffax.flow_maps._maps import MapPredict, checked, coefficients, diagonal, flow_map, stretched, velocity
from diffax.predictions import diffuse, split
from diffax.samplers._base import Sampler, State
from diffax.samplers._ddim import ddim
from diffax.samplers._heun import heun
from diffax.schedules import rates
from diffax.typing import Array, Denoiser, Float, Key, Kind, PerExample, Predict, Scalar, Schedule, Times, Tree

stop = jax.lax.stop_gradient
Losses = Float[Array, " batch"]
Velocity = Callable[[Any, Any, Any], Any]  # (x, t, conditional velocity) -> velocity
SOLVERS: dict[str, Callable[..., Sampler]] = {"heun": heun, "ddim": ddim}


def _draw(key: Key, stream: str, schedule: Schedule, x0: Tree, t: Times, eps: Tree | None) -> tuple[Any, Any, Any]:
    """(eps, x_t, the conditional velocity). eps: None to draw it."""
    check_float("x0", x0)
    check_per_example(x0, t=t)
    eps = random.noise(random.stream(key, stream), x0) if eps is None else eps
    check_like("eps", eps, x0)
    a, b = rates(schedule, t)
    return eps, diffuse(schedule, x0, eps, t), combine((a, x0), (b, eps))


def _minus(u: Tree, v: Tree) -> Any:
    return jax.tree.map(jnp.subtract, u, v)


def _squares(u: Tree) -> Any:
    return jax.tree.map(jnp.square, u)


def adaptive(squares: Array, *, power: Scalar = 1.0, offset: Scalar = 0.01) -> Array:
    """S / stop_gradient((S + offset)^power) for sums of squares S (B,): the adaptive weight of MeanFlow.

    power = 0 is S, and 0.5 is close to the pseudo-Huber loss. With a conditional velocity each draw is weighted by its
    own residual, so the exact map is the minimum only where residuals are symmetric about 0, as of a Gaussian.

    Source: Geng et al. 2025, eq. 22; Geng et al. 2024 (ECT).
    """
    return squares / stop((squares + offset) ** power)


def squared(u: Tree) -> Array:
    """The mean square of each example: (B,)."""
    result: Array = mean(_squares(u))
    return result


def pseudo_huber(c: Scalar | None = None) -> Callable[[Any], Array]:
    """The distance sqrt(|u|^2 + c^2) - c of each example; c = None is 0.00054 sqrt(D).

    Source: Song & Dhariwal 2024, section 3.3.
    """

    def distance(u: Tree) -> Array:
        width = 0.00054 * jnp.sqrt(1.0 * dimensions(u)) if c is None else c
        result: Array = jnp.sqrt(total(_squares(u)) + jnp.square(width)) - width
        return result

    return distance


def _derivatives(
    predict: MapPredict, schedule: Schedule, kind: Kind, x: Tree, dx: Tree, t: Times, s: Times, sigma_data: PerExample
) -> tuple[Any, Any, tuple[Any, Any], tuple[Any, Any]]:
    """y and dy/dt along the tangent (dx, 1, 0); (c_x, c_y) and their derivatives in t."""
    one = jnp.ones_like(t)
    y, dy = jax.jvp(lambda x, t: predict(x, t, s), (x, t), (dx, one))
    c, dc = jax.jvp(lambda t: coefficients(kind, schedule, t, s, sigma_data=sigma_data), (t,), (one,))
    return y, dy, c, dc


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

    >>> from diffax.schedules import Flow
    >>> x0 = jnp.ones((2, 3))
    >>> loss = mean_flow_loss(jax.random.key(0), lambda x, t, s: 0 * x, Flow(), "velocity", x0, 0.5, 0.5, weight=None)
    >>> loss.shape
    (2,)
    """
    predict, (t, s) = checked(predict, schedule, kind), stretched(t, s)
    _, x, dx = _draw(key, "mean_flow_loss", schedule, x0, t, eps)
    dx = dx if rate is None else stop(rate(x, t, dx))
    y, dy, (c_x, c_y), (dc_x, dc_y) = _derivatives(predict, schedule, kind, x, dx, t, s, sigma_data)
    goal = combine((-dc_x / dc_y, x), (-c_x / dc_y, dx), (-c_y / dc_y, dy))
    return _weighted(_minus(y, stop(goal)), weight)


def _weighted(residual: Tree, weight: Callable[[Array], Array] | None) -> Array:
    squares = _squares(residual)
    result: Array = mean(squares) if weight is None else weight(total(squares))
    return result


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
    predict, (t, s) = checked(predict, schedule, kind), stretched(t, s)
    _, x, dx = _draw(key, "improved_mean_flow_loss", schedule, x0, t, eps)
    dx = dx if rate is None else stop(rate(x, t, dx))
    own = stop(velocity(diagonal(predict), schedule, kind, sigma_data=sigma_data)(x, t))
    y, dy, (c_x, c_y), (dc_x, dc_y) = _derivatives(predict, schedule, kind, x, own, t, s, sigma_data)
    residual = combine((1.0, y), (dc_x / dc_y, x), (c_x / dc_y, dx), (c_y / dc_y, stop(dy)))
    y_t, _, (a_x, _), (da_x, da_y) = _derivatives(predict, schedule, kind, x, own, t, t, sigma_data)
    diagonal_residual = combine((1.0, y_t), (da_x / da_y, x), (a_x / da_y, dx))
    return _weighted(residual, weight) + _weighted(diagonal_residual, weight)


def continuous_consistency_loss(
    key: Key,
    predict: MapPredict,
    schedule: Schedule,
    kind: Kind,
    x0: Tree,
    t: Times,
    s: Times = 0.0,
    *,
    rate: Velocity | None = None,
    warmup: Scalar = 1.0,
    normalise: Scalar | None = 0.1,
    sigma_data: PerExample = 0.5,
    eps: Tree | None = None,
) -> Losses:
    """The loss of simplified continuous-time consistency models (sCM): |y - stop_gradient(y + g)|^2, the mean square.

        g = -c_x^2 / c_y' (c_y' y + c_x dx/dt + r (c_x' x + c_y dy/dt)),   then g / (|g| + normalise)
        v on `Cosine`: g = -cos^2(h) (y - dx/dh) - r cos(h) sin(h) (x + dy/dh),   h = pi / 2 t

    with |g| the root of the mean square. At r = 1 the bracket is d/dt X(x_t, t, s).

    Args:
      key: () or (B,); consumed.
      predict: (x, t, s) -> y.
      schedule: noise schedule; in the paper `Cosine`, for data of standard deviation 1.
      kind: in the paper `v`.
      x0: (B, ...) clean data.
      t: () or (B,), the time of x_t.
      s: () or (B,), the end of the map; default 0.
      rate: as of `mean_flow_loss`; a teacher's velocity for distillation.
      warmup: r in [0, 1], in the paper from 0 to 1 over the first 10,000 steps.
      normalise: the constant c of the normalised tangent; None for none, as the exact statements need.
      sigma_data: standard deviation of the data; only `edm` uses it.
      eps: the other end of the path, as of `denoising_loss`; None (default) for noise.

    Returns:
      (B,) losses.

    Source: Lu & Song 2025, eq. 6 and algorithm 1.
    """
    predict, (t, s) = checked(predict, schedule, kind), stretched(t, s)
    _, x, dx = _draw(key, "continuous_consistency_loss", schedule, x0, t, eps)
    dx = dx if rate is None else stop(rate(x, t, dx))
    y, dy, (c_x, c_y), (dc_x, dc_y) = _derivatives(predict, schedule, kind, x, dx, t, s, sigma_data)
    scale = -(c_x**2) / dc_y
    g = combine((scale * dc_y, y), (scale * c_x, dx), (scale * warmup * dc_x, x), (scale * warmup * c_y, dy))
    if normalise is not None:
        g = combine((1 / (jnp.sqrt(squared(g)) + normalise), g))
    return squared(_minus(_minus(y, stop(y)), stop(g)))


def consistency_loss(
    key: Key,
    f: Denoiser,
    schedule: Schedule,
    x0: Tree,
    t: Times,
    s: Times,
    *,
    target: Denoiser | None = None,
    teacher: Denoiser | None = None,
    solver: str = "heun",
    distance: Callable[[Any], Array] = squared,
    eps: Tree | None = None,
) -> Losses:
    """The consistency loss d(f(x_t, t) - stop_gradient(f'(x_s, s))) between two times of one path.

        training       x_s = alpha_s x0 + sigma_s eps, with the noise of x_t
        distillation   x_s = a step of the teacher's probability-flow ODE from x_t

    With fewer steps the loss has a lower variance and f a larger error, of the order of the step. Published losses:

        CD       teacher, solver "heun", target = EMA of f, t and s neighbours on the grid of Karras et al.
        CT       the same without a teacher
        iCT      target = f, `pseudo_huber()`, times 1 / (sigma_t - sigma_s); `levels` gives the number of levels
        ECT      as iCT with s of `ect_time`; at s = 0 the target is the data
        LCM      f of `latent_consistency_function`, a guided teacher, solver "ddim", target = EMA of f

    Args:
      key: () or (B,); consumed.
      f: (x, t) -> the data, a consistency function: `ending(flow_map(...))`, `denoisers.consistency_function`.
      schedule: noise schedule.
      x0: (B, ...) clean data.
      t: () or (B,).
      s: () or (B,), less than t.
      target: f', such as f with averaged parameters; None (default) for f itself. Pass the same dropout keys.
      teacher: a denoiser (x, t) -> x0 for distillation; None (default) for training.
      solver: of the teacher's step, "heun" (default) or "ddim".
      distance: difference -> (B,): `squared` (default), `pseudo_huber()` or your own.
      eps: the other end of the path, as of `denoising_loss`; None (default) for noise.

    Returns:
      (B,) losses.

    Raises:
      ValueError: for another solver, times that are neither () nor (B,), or an f whose result has another shape.

    Source: Song et al. 2023, algorithms 2 and 3; Song & Dhariwal 2024; Geng et al. 2024; Luo et al. 2023.
    """
    check_function("f", f, "a function (x, t) -> x")
    sampler: Sampler = choose("solver", solver, SOLVERS)(schedule)
    t, s = stretched(t, s)
    eps, x, _ = _draw(key, "consistency_loss", schedule, x0, t, eps)
    check_per_example(x0, s=s)
    if teacher is None:
        x_s = diffuse(schedule, x0, eps, s)
    else:
        x_s = sampler.step(random.stream(key, "consistency_loss.step"), teacher, State(x), t, s).x
    value = f(x, t)
    check_like("f(x, t)", value, x0)
    return distance(_minus(value, stop((target or f)(stop(x_s), s))))


def lagrangian_loss(
    key: Key,
    predict: MapPredict,
    schedule: Schedule,
    kind: Kind,
    x0: Tree,
    t: Times,
    s: Times,
    *,
    rate: Predict | None = None,
    weight: Callable[[Array], Array] | None = None,
    sigma_data: PerExample = 0.5,
    eps: Tree | None = None,
) -> Losses:
    """The Lagrangian loss |d/ds X(x_t, t, s) - stop_gradient(velocity(X, s))|^2, with one `jax.jvp` in s.

    Args:
      key: () or (B,); consumed.
      predict: (x, t, s) -> y.
      schedule: noise schedule.
      kind: the prediction y.
      x0: (B, ...) clean data.
      t: () or (B,), the time of x_t.
      s: () or (B,), the time of X.
      rate: (x, s) -> dx/ds, a teacher's velocity for distillation. None (default) is self-distillation by the
        network's own velocity at s = t, which has to be trained beside it: add `denoising_loss` of `diagonal(predict)`.
      weight: as of `mean_flow_loss`; default None.
      sigma_data: standard deviation of the data; only `edm` uses it.
      eps: the other end of the path, as of `denoising_loss`; None (default) for noise.

    Returns:
      (B,) losses.

    Source: Boffi et al. 2025 (flow-map matching), the Lagrangian loss; Boffi et al. 2025b (self-distillation).
    """
    move, (t, s) = flow_map(predict, schedule, kind, sigma_data=sigma_data), stretched(t, s)
    _, x, _ = _draw(key, "lagrangian_loss", schedule, x0, t, eps)
    own = velocity(diagonal(predict), schedule, kind, sigma_data=sigma_data) if rate is None else rate
    moved, slope = jax.jvp(lambda s: move(x, t, s), (s,), (jnp.ones_like(s),))
    return _weighted(_minus(slope, stop(own(stop(moved), s))), weight)


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
    predict, (t, s) = checked(predict, schedule, kind), stretched(t, s)
    _, x, _ = _draw(key, "semigroup_loss", schedule, x0, t, eps)
    move = flow_map(target or predict, schedule, kind, sigma_data=sigma_data)
    m = (t + s) / 2 if middle is None else stretched(middle, t)[0]

    def clipped(x: Tree) -> Any:
        return x if limit is None else jax.tree.map(lambda v: jnp.clip(v, -limit, limit), x)

    end = clipped(move(clipped(move(x, t, m)), m, s))
    c_x, c_y = coefficients(kind, schedule, t, s, sigma_data=sigma_data)
    goal = combine((1 / c_y, end), (-c_x / c_y, x))
    return _weighted(_minus(predict(x, t, s), stop(goal)), weight)


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
    t, s = stretched(t, s)
    _, x, _ = _draw(key, "progressive_loss", schedule, x0, t, eps)
    step, m = ddim(schedule).step, (t + s) / 2
    moved = step(key, teacher, step(key, teacher, State(x), t, m), m, s).x
    c_x, c_x0 = coefficients("x0", schedule, t, s)
    goal = combine((1 / c_x0, moved), (-c_x / c_x0, x))
    student, _ = split(kind, schedule, predict(x, t), x, t, sigma_data=sigma_data)
    level = schedule(t)
    return jnp.maximum(jnp.exp(level.log_snr), 1.0) * squared(_minus(student, stop(goal)))
