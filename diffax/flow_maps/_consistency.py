"""Consistency models: finite steps along a path, and continuous time (sCM)."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from diffax import random
from diffax._checks import check_function, check_like, check_per_example, choose
from diffax._pytrees import combine
from diffax.flow_maps._maps import MapPredict, checked, ordered
from diffax.flow_maps._parts import Losses, Velocity, derivatives, draw, minus, squared, stop
from diffax.predictions import diffuse
from diffax.samplers._base import Sampler, State
from diffax.samplers._ddim import ddim
from diffax.samplers._heun import heun
from diffax.typing import Array, Denoiser, Key, Kind, PerExample, Scalar, Schedule, Times, Tree

SOLVERS: dict[str, Callable[..., Sampler]] = {"heun": heun, "ddim": ddim}


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
    t, s = ordered(t, s, strict=True)
    eps, x, _ = draw(key, "consistency_loss", schedule, x0, t, eps)
    check_per_example(x0, s=s)
    if teacher is None:
        x_s = diffuse(schedule, x0, eps, s)
    else:
        x_s = sampler.step(random.stream(key, "consistency_loss.step"), teacher, State(x), t, s).x
    value = f(x, t)
    check_like("f(x, t)", value, x0)
    return distance(minus(value, stop((target or f)(stop(x_s), s))))


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
    predict, (t, s) = checked(predict, schedule, kind), ordered(t, s)
    _, x, dx = draw(key, "continuous_consistency_loss", schedule, x0, t, eps)
    dx = dx if rate is None else stop(rate(x, t, dx))
    y, dy, (c_x, c_y), (dc_x, dc_y) = derivatives(predict, schedule, kind, x, dx, t, s, sigma_data)
    scale = -(c_x**2) / dc_y
    g = combine((scale * dc_y, y), (scale * c_x, dx), (scale * warmup * dc_x, x), (scale * warmup * c_y, dy))
    if normalise is not None:
        g = combine((1 / (jnp.sqrt(squared(g)) + normalise), g))
    return squared(minus(minus(y, stop(y)), stop(g)))
