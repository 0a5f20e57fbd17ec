"""The Lagrangian identity d/ds X(x, t, s) = velocity(X, s): flow-map distillation and self-distillation."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffax.flow_maps._maps import MapPredict, diagonal, flow_map, stretched, velocity
from diffax.flow_maps._parts import Losses, draw, minus, stop, weighted
from diffax.typing import Array, Key, Kind, PerExample, Predict, Schedule, Times, Tree


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
    _, x, _ = draw(key, "lagrangian_loss", schedule, x0, t, eps)
    own = velocity(diagonal(predict), schedule, kind, sigma_data=sigma_data) if rate is None else rate
    moved, slope = jax.jvp(lambda s: move(x, t, s), (s,), (jnp.ones_like(s),))
    return weighted(minus(slope, stop(own(stop(moved), s))), weight)
