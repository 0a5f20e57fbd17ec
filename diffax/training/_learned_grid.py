"""Step grids learned by gradient descent, for one sampler, one number of steps and one data distribution.

    kappa_0 = log(sigma / alpha) at times[0],   kappa_k = kappa_0 - sum_{j < k} g_j
    g_j = L ((1 - floor) softmax(theta)_j + floor / m),   m gaps of a total length L

theta and log L minimise log E |sampler(times) - target|^2; the gradient is taken through the loop of `diffax.sampling`.
Every gap is at least floor L / m > 0, so that the times stay monotonic and do not collapse onto one point.
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
    """times: (n,), the best grid of all iterations; errors: (num_steps,), root-mean-square error at each iteration."""

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
    """A step grid of the length of `times` that minimises the error of `sampler`.

    Adam minimises log E |end - target|^2 over the initial states x; validate the grid on other initial states. The
    method is meant for deterministic samplers: with a noisy sampler the error is that of each path, not of the
    distribution. Every sampler works, since all of them can be traced.

    Args:
      key: shape () or (B,); only noisy samplers use it.
      sampler: the sampler to learn the grid for.
      schedule: the schedule of the sampler.
      denoise: (x, t) -> x0.
      x: (B, ...) initial states at times[0], which stays fixed. About a hundred suffice to learn a dozen times.
      times: (n,), n >= 3, decreasing: the initial grid.
      target: (B, ...) the desired result from x. None for the solution of the probability-flow ODE at t = 0 ("sample")
        or at times[-1] ("integrate"), computed by 200 Runge-Kutta steps (800 denoiser calls).
      ending: "sample" to learn for `diffax.sample`, "integrate" for `diffax.integrate`.
      learn_end: whether times[-1] is learned too. "integrate" needs False or an explicit target, since the default
        target is the solution at the initial times[-1].
      num_steps: number of gradient steps, >= 1.
      learning_rate: initial learning rate of Adam; it decays linearly to 0.
      floor: smallest gap in log-SNR, as a fraction of the mean gap, in (0, 1).

    Returns:
      `LearnedGrid(times, errors)`. On x the error is at most that of the initial grid, after the gaps of that grid were
      raised to `floor`.

    Raises:
      ValueError: if ending is unknown, ending is "integrate" with learn_end and no target, there are fewer than 3 times
        or they do not decrease, num_steps < 1, target does not have the shape of x, or floor is outside (0, 1).

    Source: direct differentiation through the sampler, towards the aim of Watson et al. 2022 (learned samplers) and
    Sabour et al. 2024 (Align Your Steps).

    >>> import diffax
    >>> data, schedule = diffax.analytic.Gaussian.from_covariance([0.7, -0.4], 0.1), diffax.Cosine()
    >>> x, times = jnp.array([[1.0, 0.5], [-0.3, 0.8]]), jnp.array([0.99, 0.9, 0.5, 0.01])
    >>> learned = learn_grid(
    ...     jax.random.key(0), diffax.ddim(schedule), schedule, data.denoiser(schedule), x, times, num_steps=30,
    ...     target=data.flow(x, schedule(times[0]), schedule(0.0)),
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

    parameters, losses = _minimise(loss, _initial_parameters(schedule, times, floor), num_steps, learning_rate)
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


def _initial_parameters(schedule: Schedule, times: Leaf, floor: Scalar) -> tuple[Any, Any]:
    """(theta, log L) of the initial grid. A gap below the floor is raised to just above it."""
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


def _minimise(loss: Callable[[Any], Any], parameters: Params, num_steps: int, learning_rate: Scalar) -> tuple[Any, Any]:
    """Adam (Kingma & Ba 2015, algorithm 1) with a learning rate that decays linearly to 0.

    Returns the parameters with the smallest loss, and all losses.
    """
    zeros = jax.tree.map(jnp.zeros_like, parameters)

    def step(carry: tuple[Any, ...], i: Leaf) -> Any:
        current, mean, square, best, best_value = carry
        (value, _), gradient = jax.value_and_grad(loss, has_aux=True)(current)
        better = value < best_value
        best = jax.tree.map(lambda a, b: jnp.where(better, a, b), current, best)
        mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, gradient)
        square = jax.tree.map(lambda v, g: 0.99 * v + 0.01 * g**2, square, gradient)
        rate = learning_rate * (1 - i / num_steps)
        count = (i + 1).astype(float)

        def update(p: Leaf, m: Leaf, v: Leaf) -> Any:
            mean_correction, square_correction = ((1 - decay**count).astype(p.dtype) for decay in (0.9, 0.99))
            return p - rate * m / mean_correction / (jnp.sqrt(v / square_correction) + 1e-8)

        current = jax.tree.map(update, current, mean, square)
        return (current, mean, square, best, jnp.where(better, value, best_value)), value

    start = (parameters, zeros, zeros, parameters, jnp.inf)
    (_, _, _, best, _), losses = jax.lax.scan(step, start, jnp.arange(num_steps))
    return best, losses
