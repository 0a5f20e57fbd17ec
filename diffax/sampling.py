"""Sampling along a step grid: one loop, three functions.

    integrate   n entries, n - 1 moves, ends at the last level
    sample      integrate, then one denoiser call at times[-1]: n entries cost n calls with a sampler of one call a step
    unroll      integrate, and a record of every state

`sample` ends with a denoiser call, so no sampler has to step to sigma = 0.

x in half precision (bfloat16, float16) is carried in float32, because many short steps in half precision would be
rounded to no step at all. The denoiser receives float32, and the result has the dtype of the input. A network that
computes in half precision must cast its input, as the networks of `diffax.nn` do with their `dtype`.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffax import random
from diffax._checks import check_float, check_function, check_like
from diffax._pytrees import as_float, batch_size, concrete, narrow, widen
from diffax.denoisers import like_x
from diffax.samplers._base import Sampler, check_sampler
from diffax.times import check_grid
from diffax.typing import Denoiser, Grid, Keys, SamplerState, Tree, X, Y


def unroll(
    key: Keys,
    sampler: Sampler,
    denoise: Denoiser,
    x: Tree,
    times: Grid,
    *,
    record: Callable[[Any], Y] = lambda state: state.x,
) -> tuple[SamplerState, Y]:
    """The final state, and `record(state)` after each of the n - 1 moves, stacked along a leading axis.

    Args:
      key: shape (), or (B,) for one key per example; the noise of an example then depends only on its own key.
        Consumed.
      sampler: a `Sampler`.
      denoise: (x, t) -> x0.
      x: (B, ...), an array or a pytree of arrays, at times[0].
      times: step grid (n,), n >= 1, or (n, B) with a grid for each example; monotone in [0, 1], may repeat a point. It
        may turn back if the sampler renoises.
      record: state -> the record of this state, by default its x.

    Returns:
      (state, records); the x in the states that are returned and recorded has the dtype of the argument x. Any n >= 1
      works: multistep samplers start with order 1.

    Raises:
      ValueError: for a concrete grid that leaves [0, 1] or turns back; for a grid (n, B) whose B is not the batch size
        of x; for a sampler that is not a `Sampler`, an x that is not of a float type, and a denoiser whose result does
        not have the shape of x.
    """

    def narrowed(state: SamplerState) -> SamplerState:
        return state._replace(x=narrow(state.x, x))

    x = jax.tree.map(jnp.asarray, x)
    state, records = _walk(key, sampler, denoise, x, times, lambda state: record(narrowed(state)))
    return narrowed(state), records


def _walk(
    key: Keys, sampler: Sampler, denoise: Denoiser, x: Tree, times: Grid, record: Callable[[Any], Y]
) -> tuple[SamplerState, Y]:
    """`unroll` without the cast back: x in the states is at least float32."""
    check_sampler(sampler)
    check_function("denoise", denoise)
    check_grid(times, may_turn=sampler.renoises)
    key, times = random.threefry(key), as_float(times)
    check_float("x", x)
    denoise = like_x("denoise", denoise)
    if times.ndim > 1 and times.shape[1:] != (batch_size(x),):
        raise ValueError(
            f"times must have shape (n,) or (n, {batch_size(x)}), a grid for each example, got {times.shape}"
        )

    def move(state: SamplerState, inputs: tuple[Any, ...]) -> tuple[SamplerState, Y]:
        index, t, s = inputs
        new = sampler.step(random.fold_in(key, index), denoise, state, t, s)
        check_like("x of sampler.step's state", new.x, state.x)
        return new, record(new)

    steps = jnp.arange(len(times) - 1)
    return jax.lax.scan(move, sampler.init(widen(x), times), (steps, times[:-1], times[1:]))


def integrate(key: Keys, sampler: Sampler, denoise: Denoiser, x: Tree, times: Grid) -> SamplerState:
    """The state of the sampler after the n - 1 moves of a grid of n entries. Arguments as in `unroll`.

    >>> import diffax
    >>> schedule, times = diffax.Cosine(), jnp.linspace(1.0, 0.0, 5)
    >>> x = jnp.ones((3, 2))
    >>> integrate(jax.random.key(0), diffax.ddim(schedule), lambda x, t: 0 * x, x, times).x.shape
    (3, 2)
    """
    state, _ = unroll(key, sampler, denoise, x, times, record=lambda state: None)
    return state


def sample(key: Keys, sampler: Sampler, denoise: Denoiser, x: X, times: Grid) -> X:
    """x0: `integrate`, then `sampler.finish` at times[-1], one denoiser call. Arguments as in `unroll`.

    Raises:
      ValueError: as in `unroll`, and for a concrete x whose standard deviation differs from sigma at times[0] by a
        factor of 2 or more (checked where sigma / alpha >= 10, for at least 64 numbers).

    >>> import diffax
    >>> schedule, times = diffax.Cosine(), diffax.times.uniform_log_snr(diffax.Cosine(), 10)
    >>> x = diffax.initial_noise(jax.random.key(0), schedule, (3, 2))
    >>> denoise = lambda x, t: jnp.full_like(x, 0.5)
    >>> sample(jax.random.key(1), diffax.ddpm(schedule), denoise, x, times)[0].tolist()
    [0.5, 0.5]
    """
    check_sampler(sampler)
    _check_start(sampler, x, times)
    x = jax.tree.map(jnp.asarray, x)
    state, _ = _walk(key, sampler, denoise, x, times, lambda state: None)
    key = random.fold_in(random.threefry(key), len(times) - 1)
    return narrow(sampler.finish(key, like_x("denoise", denoise), state, as_float(times)[-1]), x)


def _check_start(sampler: Sampler, x: Tree, times: Grid) -> None:
    """Raise `ValueError` if the standard deviation of a concrete x is not within a factor of 2 of sigma at times[0].

    The likely cause is an `initial_noise` for another time. The check needs concrete x and times, so it does nothing
    inside `jit`. It applies where sigma / alpha >= 10, as the data do not change the standard deviation much there, and
    to at least 64 numbers, as fewer may differ by a factor of 2 by chance.
    """
    t, leaves = concrete(times), jax.tree.leaves(x)
    if sampler.schedule is None or t is None or t.ndim != 1 or not t.size:
        return
    level = sampler.schedule(as_float(t[0]))
    alpha, sigma, count = concrete(level.alpha), concrete(level.sigma), sum(np.size(leaf) for leaf in leaves)
    if alpha is None or sigma is None or sigma < 10 * alpha or count < 64:
        return
    # This copies x to the host, so it comes after the checks that may return.
    host_leaves = [concrete(leaf) for leaf in leaves]
    if any(leaf is None for leaf in host_leaves):
        return
    std = math.sqrt(sum(float(np.sum(np.square(leaf.astype(np.float64)))) for leaf in host_leaves) / count)
    if not sigma / 2 < std < 2 * sigma:
        raise ValueError(
            f"x must have about the standard deviation {sigma:.4g} of the noise at times[0] = {t[0]:.4g}, got {std:.4g}"
            ": draw x with initial_noise(key, schedule, shape, times[0]), or use `integrate`, which accepts any x"
        )
