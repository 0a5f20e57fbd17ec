"""A step grid learned for one sampler, one number of calls and one law of data, by gradient descent.

    kappa_0 = log(sigma / alpha) at times[0],   kappa_k = kappa_0 - sum_{j < k} g_j
    g_j = L ((1 - floor) softmax(theta)_j + floor / m),   m gaps of a total length L

theta falls along the gradient of log E |sampler(times) - target|^2, through the loop of `diffax.sampling` itself. Every
gap is positive and no smaller than floor L / m, so that the grid neither turns back nor collapses onto a point.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffax._checks import (
    Condition,
    check,
    check_count,
    check_schedule,
    choose,
    interval,
)
from diffax._pytrees import as_float, widen
from diffax.analytic import flow
from diffax.samplers._base import Sampler
from diffax.sampling import integrate, sample
from diffax.times import check_grid
from diffax.typing import Array, Denoiser, Grid, Keys, Leaf, Params, Scalar, Schedule, Tree, Values

ENDINGS = {
    "sample": lambda key, sampler, denoise, x, times: sample(key, sampler, denoise, x, times),
    "integrate": lambda key, sampler, denoise, x, times: integrate(key, sampler, denoise, x, times).x,
}


class LearnedGrid(NamedTuple):
    """times: (n,), the best grid met; errors: (num_steps,), the root-mean-square error on the way."""

    times: Array
    errors: Array


def learn_grid(
    key: Keys,
    sampler: Sampler,
    schedule: Schedule,
    denoise: Denoiser,
    x: Tree,
    times: Grid,
    *,
    target: Tree = None,
    ending: str = "sample",
    learn_end: bool = True,
    num_steps: int = 200,
    learning_rate: Scalar = 0.1,
    floor: Scalar = 0.05,
) -> LearnedGrid:
    """The step grid at which `sampler` comes closest to the exact solution, with as many entries as `times`.

    Learned on the starts x, by Adam on log E |end - target|^2; check it on others. Made for samplers without noise:
    under noise the error that it lowers is that of each path. Works for any sampler, as they are all traced.

    Args:
      key: shape () or (B,), for a sampler that needs it.
      sampler: what the grid is for.
      schedule: the sampler's.
      denoise: (x, t) -> x0.
      x: (B, ...) starts at times[0], which stays; some hundred are enough for a dozen numbers.
      times: (n,), n >= 3, falling: where learning starts.
      target: (B, ...) what the sampler should reach from x. None for the probability-flow ODE's solution at t = 0
        ("sample") or times[-1] ("integrate"), by 200 steps of Runge and Kutta (800 denoiser calls).
      ending: "sample" to learn for `diffax.sample`, "integrate" for `diffax.integrate`.
      learn_end: whether times[-1] moves too. "integrate" wants False, unless a target is given: one that does not
        move with it.
      num_steps: gradient steps.
      learning_rate: of Adam.
      floor: no gap in log-SNR is smaller than this part of the mean gap, in (0, 1).

    Returns:
      `LearnedGrid(times, errors)`. The grid is never worse on x than the first one, but for what `floor` changes in it.

    Raises:
      ValueError: for another ending, "integrate" with learn_end and no target, fewer than 3 times or times that
        do not fall, num_steps < 1, a target of another shape than x, or a floor outside (0, 1).

    Source: the plain form, by differentiation through the sampler, of what Watson et al. 2022 (learned samplers) and
    Sabour et al. 2024 (Align Your Steps) look for.

    >>> import diffax
    >>> law, schedule = diffax.analytic.Gaussian.from_covariance([0.7, -0.4], 0.1), diffax.Cosine()
    >>> x, times = jnp.array([[1.0, 0.5], [-0.3, 0.8]]), jnp.array([0.99, 0.9, 0.5, 0.01])
    >>> learned = learn_grid(
    ...     jax.random.key(0), diffax.ddim(schedule), schedule, law.denoiser(schedule), x, times, num_steps=30,
    ...     target=law.flow(x, schedule(times[0]), schedule(0.0)),
    ... )
    >>> bool(learned.errors[-1] < 0.8 * learned.errors[0])
    True
    """
    check_schedule(schedule)
    run = choose("ending", ending, ENDINGS)
    _check(x, times, target, ending, learn_end, num_steps, floor)
    x, times = widen(x), as_float(times)
    if target is None:
        target = flow(schedule, denoise, x, times[0], 0.0 if ending == "sample" else times[-1], num_steps=200)

    def loss(parameters: tuple[Any, Any]) -> Any:
        grid = _grid(schedule, times, parameters, floor, learn_end)
        return jnp.log(_mean_square(run(key, sampler, denoise, x, grid), target)), grid

    parameters, losses = _descend(loss, _first(schedule, times, floor), num_steps, learning_rate)
    return LearnedGrid(_grid(schedule, times, parameters, floor, learn_end), jnp.exp(losses / 2))


def _check(x: Tree, times: Values, target: Tree, ending: str, learn_end: bool, num_steps: int, floor: Scalar) -> None:
    if ending == "integrate" and learn_end and target is None:
        raise ValueError("learn_end must be False for ending='integrate' without a target, got True")
    if np.ndim(times) != 1 or len(times) < 3:
        raise ValueError(f"times must have shape (n,) with n >= 3, got {np.shape(times)}")
    check_grid(times)
    check("times", times, Condition("falling", lambda v: np.diff(v) < 0))
    check_count("num_steps", num_steps)
    if target is not None and jax.tree.map(jnp.shape, target) != jax.tree.map(jnp.shape, x):
        shapes = tuple(jax.tree.map(jnp.shape, v) for v in (x, target))
        raise ValueError(f"target must have the shape of x, {shapes[0]}, got {shapes[1]}")
    check("floor", floor, interval("(0, 1)"))


def _first(schedule: Schedule, times: Leaf, floor: Scalar) -> tuple[Any, Any]:
    """(theta, log of the length) of the grid to start from; a gap below the floor is lifted to just above it."""
    gaps = jnp.diff(schedule.log_snr(times))
    share = gaps / gaps.sum() - floor / len(gaps)
    return jnp.log(jnp.maximum(share, 1e-3 / len(gaps))), jnp.log(gaps.sum())


def _grid(schedule: Schedule, times: Leaf, parameters: tuple[Any, Any], floor: Scalar, learn_end: bool) -> Any:
    theta, log_length = parameters
    share = (1 - floor) * jax.nn.softmax(theta) + floor / len(theta)
    first, last = schedule.log_snr(times[jnp.array([0, -1])])
    length = jnp.exp(log_length) if learn_end else last - first
    inner = schedule.inverse(first + length * jnp.cumsum(share))
    end = inner[-1:] if learn_end else times[-1:]
    return jnp.concatenate([times[:1], inner[:-1], end])


def _mean_square(y: Tree, target: Tree) -> Any:
    squares = jax.tree.map(lambda u, v: jnp.sum(jnp.square(u - v)), y, target)
    return sum(jax.tree.leaves(squares)) / sum(leaf.size for leaf in jax.tree.leaves(target))


def _descend(loss: Callable[[Any], Any], parameters: Params, num_steps: int, learning_rate: Scalar) -> tuple[Any, Any]:
    """Adam (Kingma & Ba 2015, algorithm 1), falling to no step at all; the best parameters met, and all losses."""
    zeros = jax.tree.map(jnp.zeros_like, parameters)

    def step(carry: tuple[Any, ...], i: Leaf) -> Any:
        now, mean, square, best, least = carry
        (value, _), gradient = jax.value_and_grad(loss, has_aux=True)(now)
        better = value < least
        best = jax.tree.map(lambda a, b: jnp.where(better, a, b), now, best)
        mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, gradient)
        square = jax.tree.map(lambda v, g: 0.99 * v + 0.01 * g**2, square, gradient)
        rate = learning_rate * (1 - i / num_steps)
        seen = (i + 1).astype(float)

        def moved(p: Leaf, m: Leaf, v: Leaf) -> Any:
            of_mean, of_square = ((1 - decay**seen).astype(p.dtype) for decay in (0.9, 0.99))
            return p - rate * m / of_mean / (jnp.sqrt(v / of_square) + 1e-8)

        now = jax.tree.map(moved, now, mean, square)
        return (now, mean, square, best, jnp.where(better, value, least)), value

    start = (parameters, zeros, zeros, parameters, jnp.inf)
    (_, _, _, best, _), losses = jax.lax.scan(step, start, jnp.arange(num_steps))
    return best, losses
