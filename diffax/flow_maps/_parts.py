"""The parts that the losses of flow maps share: draws, derivatives along a path, distances and weights."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffax import random
from diffax._checks import check_float, check_like, check_per_example
from diffax._masks import dimensions, mean, total
from diffax._pytrees import combine
from diffax.flow_maps._maps import MapPredict, coefficients
from diffax.predictions import diffuse
from diffax.schedules import rates
from diffax.typing import Array, Float, Key, Kind, PerExample, Scalar, Schedule, Times, Tree

stop = jax.lax.stop_gradient
Losses = Float[Array, " batch"]
Velocity = Callable[[Any, Any, Any], Any]  # (x, t, conditional velocity) -> velocity


def draw(key: Key, stream: str, schedule: Schedule, x0: Tree, t: Times, eps: Tree | None) -> tuple[Any, Any, Any]:
    """(eps, x_t, the conditional velocity). eps: None to draw it."""
    check_float("x0", x0)
    check_per_example(x0, t=t)
    eps = random.noise(random.stream(key, stream), x0) if eps is None else eps
    check_like("eps", eps, x0)
    a, b = rates(schedule, t)
    return eps, diffuse(schedule, x0, eps, t), combine((a, x0), (b, eps))


def minus(u: Tree, v: Tree) -> Any:
    """u - v, leaf by leaf."""
    return jax.tree.map(jnp.subtract, u, v)


def squares(u: Tree) -> Any:
    """The squares of all entries."""
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
    result: Array = mean(squares(u))
    return result


def pseudo_huber(c: Scalar | None = None) -> Callable[[Any], Array]:
    """The distance sqrt(|u|^2 + c^2) - c of each example; c = None is 0.00054 sqrt(D).

    Source: Song & Dhariwal 2024, section 3.3.
    """

    def distance(u: Tree) -> Array:
        width = 0.00054 * jnp.sqrt(1.0 * dimensions(u)) if c is None else c
        result: Array = jnp.sqrt(total(squares(u)) + jnp.square(width)) - width
        return result

    return distance


def derivatives(
    predict: MapPredict, schedule: Schedule, kind: Kind, x: Tree, dx: Tree, t: Times, s: Times, sigma_data: PerExample
) -> tuple[Any, Any, tuple[Any, Any], tuple[Any, Any]]:
    """y and dy/dt along the tangent (dx, 1, 0); (c_x, c_y) and their derivatives in t."""
    one = jnp.ones_like(t)
    y, dy = jax.jvp(lambda x, t: predict(x, t, s), (x, t), (dx, one))
    c, dc = jax.jvp(lambda t: coefficients(kind, schedule, t, s, sigma_data=sigma_data), (t,), (one,))
    return y, dy, c, dc


def weighted(residual: Tree, weight: Callable[[Array], Array] | None) -> Array:
    """The loss (B,) of a residual: the mean square, or the weight of its sum of squares."""
    terms = squares(residual)
    result: Array = mean(terms) if weight is None else weight(total(terms))
    return result
