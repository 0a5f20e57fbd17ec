r"""Langevin dynamics: as a corrector behind any sampler, and annealed as a sampler of its own.

With score g = (alpha x0 - x) / sigma^2, x0 = denoise(x, t), a Langevin step of size epsilon is

    x <- x + epsilon g + sqrt(2 epsilon) z,   z ~ N(0, I)

Written in k, epsilon = 2 (k sigma)^2, nothing is divided by a small sigma:

    x <- x + 2 k^2 (alpha x0 - x) + 2 k sigma z

    fixed step      k = step_size                              (Song & Ermon 2019)
    scaled by SNR   k = r |z| sigma / |x - alpha x0|           (Song et al. 2021), epsilon = 2 (r |z| / |g|)^2

What it does to x_t ~ N(alpha m, c), exact score: the deviation from alpha m shrinks by a = 1 - 2 k^2 sigma^2 / c, and
noise of variance 4 k^2 sigma^2 is added, so that the stationary variance is c / (1 - k^2 sigma^2 / c): too large, by a
share of at most k^2 / (1 - k^2) since c >= sigma^2. It is stable for k < 1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffax import random
from diffax._checks import check, check_count, check_per_example, check_schedule, non_negative
from diffax._pytrees import combine, promoted, safe_sqrt
from diffax.samplers._base import Sampler, State, init
from diffax.typing import Denoiser, Keys, Leaf, SamplerState, Schedule, Times, Tree, Weight


class Corrector(NamedTuple):
    """A move that leaves the law at level t (nearly) as it is.

    move: (key, denoise, x, t) -> x at the same time t.
    calls: denoiser calls that a move makes.
    """

    move: Callable[[Any, Any, Any, Any], Any]
    calls: int


def _norm(x: Tree) -> Any:
    """(B,) Euclidean norms of the examples of a tree, at least in float32."""

    def square(leaf: Leaf) -> Any:
        leaf = leaf.astype(promoted(leaf.dtype, jnp.float32))
        return jnp.sum(jnp.square(leaf), tuple(range(1, leaf.ndim)))

    return safe_sqrt(sum(square(leaf) for leaf in jax.tree.leaves(x)))


def langevin(
    schedule: Schedule, *, snr: Weight | None = None, step_size: Weight | None = None, num_steps: int = 1
) -> Corrector:
    """`num_steps` Langevin steps at a level, with steps of fixed size or scaled by a signal-to-noise ratio r.

        step_size   epsilon = 2 (step_size sigma)^2            affine in x and z where the denoiser is
        snr         epsilon = 2 (r |z| / |g|)^2                Song et al. 2021, algorithm 4

    Norms are taken for each example; the paper's code averages both over the batch, which makes an example depend
    on its neighbours. In one or two dimensions |g| comes near 0 and the scaled step has no bound: it is meant for
    many. Algorithm 5 (VP) has another factor in epsilon, 1 - beta_i of the table, between 0.98 and 1: that is
    `snr=lambda t: r * jnp.sqrt(1 - beta(t))`.

    Args:
      schedule: noise schedule.
      snr: r, () or (B,) >= 0, or a function t -> r.
      step_size: k, () or (B,) >= 0, or a function t -> k; in units of sigma, stable below 1.
      num_steps: Langevin steps, one denoiser call each; unrolled.

    Raises:
      ValueError: unless just one of snr and step_size is given; if it is known to be negative; if num_steps is not
        an int >= 0.

    Source: Song et al. 2021, algorithms 4 and 5; Song & Ermon 2019, eq. 4 and algorithm 1.

    >>> from diffax.schedules import Cosine
    >>> corrector = langevin(Cosine(), step_size=0.0)
    >>> corrector.move(jax.random.key(0), lambda x, t: 0 * x, jnp.ones((1, 2)), 0.5).tolist()
    [[1.0, 1.0]]
    """
    check_schedule(schedule)
    if (snr is None) == (step_size is None):
        raise ValueError(f"one of snr and step_size must be given, got snr = {snr} and step_size = {step_size}")
    check_count("num_steps", num_steps, 0)
    name, size = ("step_size", step_size) if snr is None else ("snr", snr)
    check(name, size, non_negative)

    def move(key: Keys, denoise: Denoiser, x: Tree, t: Times) -> Any:
        alpha, sigma, _ = schedule(t)
        given = jnp.asarray(size(t) if callable(size) else size)
        check_per_example(x, **{name: given})
        for i in range(num_steps):
            z = random.noise(random.fold_in(key, i), x)
            x0 = denoise(x, t)
            k = given
            if snr is not None:
                distance = _norm(combine((1.0, x), (-alpha, x0)))
                k = given * _norm(z) * sigma * jnp.where(distance > 0, 1 / jnp.where(distance > 0, distance, 1.0), 0.0)
            # One sum, so that k = 0 leaves x as it is to the last bit.
            x = combine((1.0, x), (2 * k**2 * alpha, x0), (-2 * k**2, x), (2 * k * sigma, z))
        return x

    return Corrector(move, calls=num_steps)


def annealed_langevin(schedule: Schedule, *, step_size: Weight | None = None, snr: Weight | None = None) -> Sampler:
    """Annealed Langevin dynamics: at each level one Langevin step and nothing else.

        x <- alpha_s / alpha_t x_t
        x_s = x + 2 k^2 (alpha_s x0 - x) + 2 k sigma_s z,   x0 = denoise(x, s)

    For n steps at each level repeat the levels in the grid, `jnp.repeat(times, n)`: here a step of length zero is a
    step like any other. In u = x / alpha it is the same dynamics for every scaling. One denoiser call a step. Order 0:
    at a level it tends to the law of the module's head, its variance too large by a share of at most k^2 / (1 - k^2).
    On a grid of one level alone, `jnp.full(n, t)`, it is the unadjusted Langevin algorithm for p_t.

    Args:
      schedule: noise schedule.
      step_size: k, () or (B,) >= 0, or a function t -> k. Song & Ermon's epsilon is (2 k sigma_min)^2: their 2e-5 at
        sigma_min = 0.01 is k = 0.22, with n = 100.
      snr: r in place of step_size, as for `langevin`.

    Raises:
      ValueError: unless just one of step_size and snr is given; if it is known to be negative.

    Source: Song & Ermon 2019, algorithm 1; `sample` adds the denoising at the end of Jolicoeur-Martineau et al. 2021.

    >>> from diffax.schedules import LogLinear
    >>> sampler = annealed_langevin(LogLinear(0.01, 10.0), step_size=0.0)
    >>> sampler.step(jax.random.key(0), lambda x, t: 0 * x, State(jnp.ones((1, 1))), 0.5, 0.4).x.tolist()
    [[1.0]]
    """
    corrector = langevin(schedule, step_size=step_size, snr=snr)

    def step(key: Keys, denoise: Denoiser, state: SamplerState, t: Times, s: Times) -> SamplerState:
        x = combine((schedule(s).alpha / schedule(t).alpha, state.x))
        return State(corrector.move(key, denoise, x, s))

    return Sampler(init, step, order=0, calls=1, noisy=True, schedule=schedule)
