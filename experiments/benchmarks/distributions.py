r"""Error in distribution of samplers with noise.

    gaussian   every step is affine in x and in its noise, so that mean and deviations follow without sampling: one
               example is the mean, one starts one deviation away from it, and each draw of noise is 1 in a separate
               example. The coordinates are independent, and the distance to the data's distribution is Wasserstein's:
                   W^2 = mean over coordinates of (m - m*)^2 + (s - s*)^2
    mixture    draws, projected on fixed directions, against the exact quantiles of the projected mixture (the sliced
               Wasserstein distance); the floor is the distance of equally many exact draws

As in `accuracy`, one compilation serves all grids and budgets, and `order` is measured at the grid's last level.
"""

import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import diffax
from diffax import analytic
from experiments.benchmarks import problems
from experiments.benchmarks.accuracy import rounded
from experiments.benchmarks.problems import SCHEDULES, Case
from experiments.benchmarks.rows import Row

DRAWS = 2  # at most, in a step
GRIDS = ("uniform", "quadratic", "log_snr", "karras")


def wasserstein(mean: Any, std: Any, law: Any, level: Any = analytic.CLEAN) -> Any:
    """The distance of independent normal coordinates from the marginal of the distribution at a level."""
    exact = jnp.sqrt(level.alpha**2 * law.variances + level.sigma**2)
    return jnp.sqrt(jnp.mean((mean - level.alpha * law.mean) ** 2 + (std - exact) ** 2))


def moments(ends: Any) -> tuple[Any, Any]:
    """(mean, deviation) from the end points of `unit_examples`."""
    return ends[0], jnp.sqrt(jnp.sum(jnp.square(ends[1:] - ends[0]), 0))


def unit_examples(law: Any, level: Any, draws: int) -> Any:
    """(2 + draws, D): the mean, the mean plus one deviation, and the mean again for each draw of noise."""
    start = jnp.broadcast_to(level.alpha * law.mean, (2 + draws, len(law.mean)))
    return start.at[1].add(jnp.sqrt(level.alpha**2 * law.variances + level.sigma**2))


def unit_noise() -> Any:
    """A patch of the noise: draw d of step k is 1 in example 2 + DRAWS k + d, and 0 elsewhere."""
    streams: dict[Any, int] = {}

    def fold_in(key, data):
        return (*key, data) if isinstance(key, tuple) else (data,)

    def noise(key, like):
        index, *stream = key
        which = streams.setdefault(tuple(stream), len(streams))
        if which >= DRAWS:
            raise ValueError(f"a step must draw at most {DRAWS} times, got draw {which + 1}")
        rows = jnp.arange(len(like)) == 2 + DRAWS * index + which
        return jnp.broadcast_to(rows[:, None], like.shape).astype(like.dtype)

    return mock.patch.multiple(diffax.random, fold_in=fold_in, noise=noise)


def gaussian_law(
    build: Callable[..., Any], schedule: str, grids: Any, entries: Any, hyper: Any = None
) -> tuple[np.ndarray, int]:
    """Distances (G, 3) of x0, x as x0, x at its own level, (H, G, 3) with `hyper` (H,); the number of traces."""
    levels, law, traces = SCHEDULES[schedule], problems.gaussian(), []
    denoise = law.denoiser(levels)
    x = unit_examples(law, levels(problems.start_time(schedule)), DRAWS * (grids.shape[1] - 1))

    def every(hyper, grids, entries):
        traces.append(schedule)

        def one(inputs):
            times, n = inputs
            args = (levels, len(times) / n) if hyper is None else (levels, len(times) / n, hyper)
            with unit_noise():
                end = diffax.integrate(jax.random.key(0), problems.skipping(build(*args)), denoise, x, times).x
            at_end = moments(end)
            return jnp.stack(
                [
                    wasserstein(*moments(denoise(end, times[-1])), law),
                    wasserstein(*at_end, law),
                    wasserstein(*at_end, law, levels(times[-1])),
                ]
            )

        return jax.lax.map(one, (grids, entries))

    run = jax.jit(every if hyper is None else jax.vmap(every, (0, None, None)))
    return np.asarray(run(hyper, grids, entries)), len(traces)


def measure(row: Row, schedule: str, runs: list[Case]) -> np.ndarray:
    """(G, 3) distances of all runs of a row on the Gaussian."""
    return gaussian_law(row.build, schedule, *problems.padded_grids(schedule, runs))[0]


# The mixture


def directions(dimension: int, count: int = 24) -> np.ndarray:
    """(D, count) fixed unit vectors."""
    v = np.random.RandomState(2).normal(size=(dimension, count))
    return v / np.linalg.norm(v, axis=0)


def quantiles(law: analytic.Mixture, n: int) -> np.ndarray:
    """(n, count) quantiles at (i + 1/2) / n of the mixture along each direction."""
    centres = np.asarray(law.means) @ directions(law.means.shape[1])
    std = float(law.std)
    fine = np.linspace(centres.min() - 8 * std, centres.max() + 8 * std, 20001)
    erf = np.vectorize(math.erf)
    bell = 0.5 * (1 + erf((np.linspace(-8, 8, 8001)) / np.sqrt(2)))
    levels = (np.arange(n) + 0.5) / n
    columns = []
    for column in centres.T:
        z = (fine[:, None] - column) / std
        cdf = np.interp(z, np.linspace(-8, 8, 8001), bell) @ np.asarray(law.weights)
        keep = np.concatenate([[True], np.diff(cdf) > 1e-15])
        columns.append(np.interp(levels, cdf[keep], fine[keep]))
    return np.stack(columns, 1)


def sliced(x: Any, exact: Any) -> Any:
    """The sliced Wasserstein distance of draws x (n, D) from a distribution with these quantiles."""
    projected = jnp.matmul(x, directions(x.shape[-1]), precision="highest")
    return jnp.sqrt(jnp.mean(jnp.square(jnp.sort(projected, 0) - exact)))


def floor(law: analytic.Mixture, exact: Any, repeats: int = 20) -> tuple[float, float]:
    """(median, largest) distance of equally many exact draws, over `repeats` sets of draws."""
    keys = jax.random.split(jax.random.key(7), repeats)
    distances = jax.jit(lambda keys: jax.lax.map(lambda key: sliced(law.sample(key, len(exact)), exact), keys))(keys)
    return float(jnp.median(distances)), float(distances.max())


def measure_mixture(row: Row, schedule: str, law: Any, exact: Any, runs: list[Case]) -> np.ndarray:
    """(G, 3) sliced distances of all runs of a row; the last column is not used."""
    levels = SCHEDULES[schedule]
    denoise, t = law.denoiser(levels), problems.start_time(schedule)
    grids, entries = problems.padded_grids(schedule, runs)

    @jax.jit
    def every(grids, entries, exact):
        def one(inputs):
            times, n, i = inputs
            start, steps = jax.random.split(jax.random.fold_in(jax.random.key(3), i))
            x_0, z = law.sample(start, len(exact)), jax.random.normal(steps, (len(exact), law.means.shape[1]))
            x = levels(t).alpha * x_0 + levels(t).sigma * z
            sampler = problems.skipping(row.build(levels, len(times) / n))
            x = diffax.integrate(jax.random.fold_in(steps, 1), sampler, denoise, x, times).x
            ends = sliced(denoise(x, times[-1]), exact), sliced(x, exact)
            return jnp.stack([*ends, jnp.zeros(())])

        return jax.lax.map(one, (grids, entries, jnp.arange(len(grids))))

    return np.asarray(every(grids, entries, jnp.asarray(exact)))


def sweep(build: Callable[..., Any], schedule: str, values: list[float], budgets: tuple[int, ...]) -> dict[str, Any]:
    """Errors on the Gaussian for all values of a hyperparameter and all budgets, compiled once with `vmap`."""
    row = Row(lambda levels, stretch: build(levels, stretch, values[-1]))
    runs = [c for c in problems.cases(row, budgets, ("log_snr",), (1,)) if c.ending == "sample"]
    distances, traces = gaussian_law(build, schedule, *problems.padded_grids(schedule, runs), hyper=jnp.asarray(values))
    return {
        "schedule": schedule,
        "values": values,
        "budgets": [case.budget for case in runs],
        "calls": [case.calls for case in runs],
        "errors": [[rounded(e) for e in line[:, 0]] for line in distances],
        "compiles": traces,
    }
