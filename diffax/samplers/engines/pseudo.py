r"""Pseudo-numerical methods: classical weights for eps, moved by DDIM (Liu et al. 2022, eq. 11 to 15).

    phi(x, e, t, s) = alpha_s / alpha_t x + (sigma_s - sigma_t alpha_s / alpha_t) e
    x_s = phi(x_t, e', t, s)
    e'  = (55 e_t - 59 e_1 + 37 e_2 - 9 e_3) / 24           Adams-Bashforth with equal steps, whatever the grid

The transfer phi is exact for constant eps only, so the order is 2, whatever that of the weights.
"""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffax._checks import check_schedule
from diffax._pytrees import combine, expand, of_rank, promoted, widen
from diffax.samplers._base import Sampler
from diffax.samplers.engines.forms import FORMS, begins_in_noise, cross, evaluate
from diffax.typing import Denoiser, Grid, Keys, Leaf, Level, SamplerState, Scalar, Schedule, Times, Tree

WEIGHTS = np.array(
    [[1, 0, 0, 0], [3 / 2, -1 / 2, 0, 0], [23 / 12, -16 / 12, 5 / 12, 0], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]
)


EPS = FORMS["eps"]


class Pseudo(NamedTuple):
    """x: (B, ...). values: (p, B, ...) the last p eps in a ring. count: how many there were. last: the newest's time.
    arrived: where the last step ended.

    The next goes to place count mod p, so that a step writes one of them and moves none.
    """

    x: Any
    values: Any
    count: Any
    last: Any
    arrived: Any


class Start(NamedTuple):
    """The first steps of PNDM, the slope that they take in place of the weights', and the extra calls of each."""

    steps: int
    slope: Callable[..., Any]
    calls: int


def pseudo_multistep(schedule: Schedule, order: int, start: Start | None) -> Sampler:
    """The method at the head of this module, with its first steps as `start` takes them."""
    check_schedule(schedule)

    def init(x: Tree, times: Grid) -> SamplerState:
        x = widen(x)
        values = jax.tree.map(lambda v: jnp.zeros((order, *v.shape), v.dtype), x)
        return Pseudo(x, values, jnp.zeros(jnp.shape(times[0]), int), times[0], times[0])

    def step(key: Keys, denoise: Denoiser, state: SamplerState, t: Times, s: Times) -> SamplerState:
        level_t = schedule(t)
        e = evaluate(EPS, schedule, denoise, state.x, t, level_t)
        turned = (state.last - t) * (t - s) < 0
        count = jnp.where(turned | (t != state.arrived), 0, state.count)  # what lies behind is another path's
        # Written before anything reads it, and e read from there: so XLA changes the ring in place.
        values = jax.tree.map(lambda ring, v: _put(ring, v, count % order), state.values, e)
        of_x, of_slope = _transfer(level_t, schedule(s))

        def mean() -> Any:
            return combine(*zip(_weights(count, order, t), _places(values, order), strict=True))

        def later() -> Any:
            return combine((of_x, state.x), (of_slope, mean()))

        def first(start: Start) -> Any:
            e = jax.tree.map(lambda ring: _take(ring, count % order), values)
            starts = (count < start.steps) & ~jnp.asarray(begins_in_noise(schedule, t))
            slope = _select(starts, start.slope(schedule, denoise, state.x, e, t, s), mean())
            return combine((of_x, state.x), (of_slope, slope))

        # Both branches move x themselves, so that XLA makes one loop of that and the mean.
        x = later() if start is None else jax.lax.cond(jnp.any(count < start.steps), lambda: first(start), later)
        # The weights take all steps to be equal: one of length zero leaves no trace, what it wrote is written over.
        still = t == s
        then, now = (jnp.broadcast_to(v, jnp.shape(state.last)) for v in (t, s))
        pairs = (state.count, count + 1), (state.last, then), (state.arrived, now)
        kept = [jnp.where(still, u, v) for u, v in pairs]
        return Pseudo(x, values, *kept)

    start_calls = 0 if start is None else start.steps * start.calls
    return Sampler(
        init, step, order=min(order, 2), calls=1, start_calls=start_calls, memory=order > 1, schedule=schedule
    )


def _transfer(level_t: Level, level_s: Level) -> Any:
    """The factors of x and e in phi."""
    return level_s.alpha / level_t.alpha, cross(level_t, level_s) / level_t.alpha


def eps_after(schedule: Schedule, denoise: Denoiser, x: Tree, e: Tree, t: Times, s: Times) -> Any:
    """The eps at s, where phi moves x."""
    level_s = schedule(s)
    of_x, of_e = _transfer(schedule(t), level_s)
    return evaluate(EPS, schedule, denoise, combine((of_x, x), (of_e, e)), s, level_s)


def _put(ring: Leaf, value: Leaf, place: Leaf) -> Any:
    """`value` at a place of the ring, that of each example where they differ."""
    put = jax.lax.dynamic_update_index_in_dim
    if place.ndim == 0:
        return put(ring, value, place, 0)
    return jax.vmap(lambda ring, value, place: put(ring, value, place, 0), (1, 0, 0), 1)(ring, value, place)


def _take(ring: Leaf, place: Leaf) -> Any:
    """What is at a place of the ring, that of each example where they differ."""
    take = jax.lax.dynamic_index_in_dim
    if place.ndim == 0:
        return take(ring, place, 0, keepdims=False)
    return jax.vmap(lambda ring, place: take(ring, place, 0, keepdims=False), (1, 0))(ring, place)


def _places(values: Tree, order: int) -> Any:
    return [jax.tree.map(operator.itemgetter(j), values) for j in range(order)]


def _weights(count: Leaf, order: int, t: Times) -> Any:
    """Of the places of the ring: by their age, the newest first."""
    rows = jnp.asarray(WEIGHTS[:order, :order], promoted(t, jnp.float32))[jnp.minimum(count, order - 1)]
    age = (count[..., None] - of_rank(jnp.arange(order), count[..., None])) % order
    return jnp.moveaxis(jnp.take_along_axis(rows, age, -1), -1, 0)


def _select(condition: Scalar, yes: Tree, no: Tree) -> Any:
    """Of two trees, by example."""
    return jax.tree.map(lambda u, v: jnp.where(expand(condition, u), u, v), yes, no)
