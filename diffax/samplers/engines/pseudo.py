r"""Pseudo-numerical methods: classical multistep weights for eps, DDIM as transfer (Liu et al. 2022, eq. 11 to 15).

    phi(x, e, t, s) = alpha_s / alpha_t x + (sigma_s - sigma_t alpha_s / alpha_t) e
    x_s = phi(x_t, e', t, s)
    e'  = (55 e_t - 59 e_1 + 37 e_2 - 9 e_3) / 24           Adams-Bashforth weights of equal steps, on any grid

The transfer phi is exact only for constant eps, so the order of the method is 2 for weights of any order >= 2.
"""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffax._checks import check_schedule
from diffax._pytrees import combine, of_rank, promoted, select, widen
from diffax.samplers._base import Sampler, unless_still
from diffax.samplers.engines.forms import FORMS, begins_in_noise, cross, evaluate
from diffax.typing import Denoiser, Grid, Keys, Leaf, Level, SamplerState, Schedule, Times, Tree

WEIGHTS = np.array(
    [[1, 0, 0, 0], [3 / 2, -1 / 2, 0, 0], [23 / 12, -16 / 12, 5 / 12, 0], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]
)


EPS = FORMS["eps"]


class Pseudo(NamedTuple):
    """The state of a pseudo-numerical method.

    x: (B, ...).
    values: (p, B, ...) the last p eps, in a ring buffer.
    count: the number of eps so far; the next one is written to slot count mod p, so that the others need no copy.
    last: the time of the newest eps.
    arrived: the time at which the last step ended.
    """

    x: Any
    values: Any
    count: Any
    last: Any
    arrived: Any


class Start(NamedTuple):
    """The start of PNDM.

    steps: the number of first steps.
    slope: (schedule, denoise, x, e, t, s) -> e' of such a step.
    calls: the extra denoiser calls of each.
    """

    steps: int
    slope: Callable[..., Any]
    calls: int


def pseudo_multistep(schedule: Schedule, order: int, start: Start | None) -> Sampler:
    """The method at the head of this module, with weights of `order` and the first steps of `start`.

    Without `start` the first steps have weights of order 1, 2 .. p - 1.
    """
    check_schedule(schedule)

    def init(x: Tree, times: Grid) -> SamplerState:
        x = widen(x)
        values = jax.tree.map(lambda v: jnp.zeros((order, *v.shape), v.dtype), x)
        return Pseudo(x, values, jnp.zeros(jnp.shape(times[0]), int), times[0], times[0])

    def step(key: Keys, denoise: Denoiser, state: SamplerState, t: Times, s: Times) -> SamplerState:
        level_t = schedule(t)
        e_t = evaluate(EPS, schedule, denoise, state.x, t, level_t)
        # If the grid turned back or the last step ended elsewhere, the history belongs to another path: drop it.
        turned = (state.last - t) * (t - s) < 0
        count = jnp.where(turned | (t != state.arrived), 0, state.count)
        # Write e_t into the ring before any read, and read it from the ring below, so that XLA updates it in place.
        values = jax.tree.map(lambda ring, v: _write_slot(ring, v, count % order), state.values, e_t)
        c_x, c_e = _transfer(level_t, schedule(s))

        def weighted_sum() -> Any:
            return combine(*zip(_weights(count, order, t), _slots(values, order), strict=True))

        def multistep() -> Any:
            return combine((c_x, state.x), (c_e, weighted_sum()))

        def first_step(start: Start) -> Any:
            e_t = jax.tree.map(lambda ring: _read_slot(ring, count % order), values)
            starts = (count < start.steps) & ~jnp.asarray(begins_in_noise(schedule, t))
            slope = select(starts, start.slope(schedule, denoise, state.x, e_t, t, s), weighted_sum())
            return combine((c_x, state.x), (c_e, slope))

        # Each branch computes x itself, so that XLA fuses the transfer with the weighted sum.
        if start is None:
            x = multistep()
        else:
            x = jax.lax.cond(jnp.any(count < start.steps), lambda: first_step(start), multistep)
        # The weights assume equal steps, so a step of length zero is not counted and its slot is overwritten.
        last, arrived = (jnp.broadcast_to(v, jnp.shape(state.last)) for v in (t, s))
        old = state.count, state.last, state.arrived
        return Pseudo(x, values, *unless_still(t, s, (count + 1, last, arrived), old))

    start_calls = 0 if start is None else start.steps * start.calls
    return Sampler(
        init, step, order=min(order, 2), calls=1, start_calls=start_calls, memory=order > 1, schedule=schedule
    )


def _transfer(level_t: Level, level_s: Level) -> Any:
    """The coefficients of x and e in phi."""
    return level_s.alpha / level_t.alpha, cross(level_t, level_s) / level_t.alpha


def eps_after(schedule: Schedule, denoise: Denoiser, x: Tree, e: Tree, t: Times, s: Times) -> Any:
    """The eps at s, evaluated at phi(x, e, t, s)."""
    level_s = schedule(s)
    c_x, c_e = _transfer(schedule(t), level_s)
    return evaluate(EPS, schedule, denoise, combine((c_x, x), (c_e, e)), s, level_s)


def _write_slot(ring: Leaf, value: Leaf, slot: Leaf) -> Any:
    """The ring with `value` in a slot; slot: () for all examples, or (B,)."""
    update = jax.lax.dynamic_update_index_in_dim
    if slot.ndim == 0:
        return update(ring, value, slot, 0)
    return jax.vmap(lambda ring, value, slot: update(ring, value, slot, 0), (1, 0, 0), 1)(ring, value, slot)


def _read_slot(ring: Leaf, slot: Leaf) -> Any:
    """The value in a slot of the ring; slot: () for all examples, or (B,)."""
    index = jax.lax.dynamic_index_in_dim
    if slot.ndim == 0:
        return index(ring, slot, 0, keepdims=False)
    return jax.vmap(lambda ring, slot: index(ring, slot, 0, keepdims=False), (1, 0))(ring, slot)


def _slots(values: Tree, order: int) -> Any:
    return [jax.tree.map(operator.itemgetter(j), values) for j in range(order)]


def _weights(count: Leaf, order: int, t: Times) -> Any:
    """The weight of each slot of the ring, which depends on the age of its value."""
    rows = jnp.asarray(WEIGHTS[:order, :order], promoted(t, jnp.float32))[jnp.minimum(count, order - 1)]
    age = (count[..., None] - of_rank(jnp.arange(order), count[..., None])) % order
    return jnp.moveaxis(jnp.take_along_axis(rows, age, -1), -1, 0)
