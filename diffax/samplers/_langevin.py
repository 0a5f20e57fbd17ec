r"""Langevin dynamics: as a corrector after the steps of any sampler, and annealed as a sampler.

With score g = (alpha x0 - x) / sigma^2, x0 = denoise(x, t), a Langevin step of size epsilon is

    x <- x + epsilon g + sqrt(2 epsilon) z,   z ~ N(0, I)

In terms of k, with epsilon = 2 (k sigma)^2, no term is divided by a small sigma:

    x <- x + 2 k^2 (alpha x0 - x) + 2 k sigma z

    fixed step      k = step_size                              (Song & Ermon 2019)
    scaled by SNR   k = r |z| sigma / |x - alpha x0|           (Song et al. 2021), epsilon = 2 (r |z| / |g|)^2

For x_t ~ N(alpha m, c) and the exact score, a step multiplies the deviation from alpha m by a = 1 - 2 k^2 sigma^2 / c
and adds noise of variance 4 k^2 sigma^2. The stationary variance is therefore c / (1 - k^2 sigma^2 / c). Its relative
error is at most k^2 / (1 - k^2), since c >= sigma^2. The iteration is stable for k < 1.
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
    """A move that (nearly) preserves the distribution at level t.

    move: (key, denoise, x, t) -> x at the same time t.
    calls: denoiser calls in a move.
    """

    move: Callable[[Any, Any, Any, Any], Any]
    calls: int


def _norm(x: Tree) -> Any:
    """Euclidean norms (B,) of the examples of a tree, at least in float32."""

    def square(leaf: Leaf) -> Any:
        leaf = leaf.astype(promoted(leaf.dtype, jnp.float32))
        return jnp.sum(jnp.square(leaf), tuple(range(1, leaf.ndim)))

    return safe_sqrt(sum(square(leaf) for leaf in jax.tree.leaves(x)))


def langevin(
    schedule: Schedule, *, snr: Weight | None = None, step_size: Weight | None = None, num_steps: int = 1
) -> Corrector:
    """A corrector of `num_steps` Langevin steps, of fixed size or scaled by a signal-to-noise ratio r.

        x <- x + epsilon g + sqrt(2 epsilon) z,   g = (alpha x0 - x) / sigma^2

        step_size   epsilon = 2 (step_size sigma)^2            affine in x and z if the denoiser is affine
        snr         epsilon = 2 (r |z| / |g|)^2                Song et al. 2021, algorithm 4

    Norms are those of each example; the paper's code averages both over the batch, so that examples depend on each
    other. In one or two dimensions |g| can be near 0, and then the scaled step is not bounded: use it in many
    dimensions. Algorithm 5 (VP) has an additional factor 1 - beta_i in epsilon, beta_i from the table, between 0.98 and
    1; that is `snr=lambda t: r * jnp.sqrt(1 - beta(t))`.

    Args:
      schedule: noise schedule.
      snr: r, () or (B,) >= 0, or a function t -> r.
      step_size: k, () or (B,) >= 0, or a function t -> k; in units of sigma, stable below 1.
      num_steps: number of Langevin steps, with one denoiser call each; the loop is unrolled. Default 1.

    Raises:
      ValueError: unless exactly one of snr and step_size is given; if it is known to be negative; if num_steps is not
        an int >= 0.

    Source: Song et al. 2021, algorithms 4 and 5; Song & Ermon 2019, eq. 4 and algorithm 1.

    >>> from diffax.schedules import Cosine
    >>> corrector = langevin(Cosine(), step_size=0.0)
    >>> corrector.move(jax.random.key(0), lambda x, t: 0 * x, jnp.ones((1, 2)), 0.5).tolist()
    [[1.0, 1.0]]
    """
    check_schedule(schedule)
    if (snr is None) == (step_size is None):
        raise ValueError(f"exactly one of snr and step_size must be None, got snr = {snr} and step_size = {step_size}")
    check_count("num_steps", num_steps, 0)
    name, size = ("step_size", step_size) if snr is None else ("snr", snr)
    check(name, size, non_negative)

    def move(key: Keys, denoise: Denoiser, x: Tree, t: Times) -> Any:
        alpha, sigma, _ = schedule(t)
        value = jnp.asarray(size(t) if callable(size) else size)
        check_per_example(x, **{name: value})
        for i in range(num_steps):
            z = random.noise(random.fold_in(key, i), x)
            x0 = denoise(x, t)
            k = value
            if snr is not None:
                distance = _norm(combine((1.0, x), (-alpha, x0)))
                k = value * _norm(z) * sigma * jnp.where(distance > 0, 1 / jnp.where(distance > 0, distance, 1.0), 0.0)
            # x has the coefficient 1 here, so k = 0 returns x unchanged to the last bit.
            x = combine((1.0, x), (2 * k**2 * alpha, x0), (-2 * k**2, x), (2 * k * sigma, z))
        return x

    return Corrector(move, calls=num_steps)


def annealed_langevin(schedule: Schedule, *, step_size: Weight | None = None, snr: Weight | None = None) -> Sampler:
    """Annealed Langevin dynamics: one Langevin step at each level.

        x <- alpha_s / alpha_t x_t
        x_s = x + 2 k^2 (alpha_s x0 - x) + 2 k sigma_s z,   x0 = denoise(x, s)

    For n steps at each level repeat the levels in the grid, `jnp.repeat(times, n)`: in this sampler a step of length
    zero also moves x. In u = x / alpha the dynamics are the same for every scaling. One denoiser call a step. Order 0:
    at a fixed level x tends to the stationary distribution at the head of this module, whose variance has a relative
    error of at most k^2 / (1 - k^2). On a grid with a single level, `jnp.full(n, t)`, it is the unadjusted Langevin
    algorithm for p_t.

    Args:
      schedule: noise schedule.
      step_size: k, () or (B,) >= 0, or a function t -> k. Song & Ermon's epsilon is (2 k sigma_min)^2: their 2e-5 at
        sigma_min = 0.01 is k = 0.22, with n = 100.
      snr: r in place of step_size, as for `langevin`.

    Raises:
      ValueError: unless exactly one of step_size and snr is given; if it is known to be negative.

    Source: Song & Ermon 2019, algorithm 1; the final denoising step in `sample` is Jolicoeur-Martineau et al. 2021.

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
