r"""Distributions, schedules, starts, exact answers, step grids. Everything in float64.

    mixture     sum_k w_k N(m_k, s^2 I): in two dimensions that of the reference cases, in 64 one of eight components
    gaussian    independent coordinates of deviation 1, 0.5 and 0.1: an affine sampler's distribution is known exactly
    start       at t = 1, or at sigma / alpha = 80 where the schedule's end is the clip

The exact answer is the probability-flow ODE's limit at sigma = 0, by Runge-Kutta down to t = 0 and half a denoiser step
from there, u + (E[x0 | x] - u) / 2 with u = x / alpha, which is accurate to O(sigma^4).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import diffax
from diffax import analytic
from diffax.typing import Schedule

SCHEDULES: dict[str, Schedule] = {
    "linear": diffax.Linear(),
    "cosine": diffax.Cosine(),
    "flow": diffax.Flow(),
    "edm": diffax.EDM(),
}
LARGEST = 80.0
ENDS = (0.05, 0.01, 0.001)  # sigma / alpha of the last grid point, as far as the schedule reaches
GRIDS: dict[str, Callable[..., Any]] = {
    "uniform": diffax.times.uniform,
    "quadratic": diffax.times.quadratic,
    "log_snr": diffax.times.uniform_log_snr,
    "karras": diffax.times.karras,
    "beta": diffax.times.beta,
    "poly": functools.partial(diffax.times.polyexponential, rho=2.0),
    "arctan": diffax.times.arctan,
}
LETTERS = {"uniform": "u", "quadratic": "q", "log_snr": "l", "karras": "k", "beta": "b", "poly": "p", "arctan": "a"}
RUNGE_KUTTA = 1500


def time_at(schedule: Schedule, rho: float) -> float:
    """t at which sigma / alpha is rho, as far as the schedule reaches."""
    return float(schedule.inverse(jnp.asarray(-2 * np.log(rho), jnp.result_type(float))))


def start_time(name: str) -> float:
    """The first time of the grids of a schedule."""
    return 1.0 if name in ("linear", "edm") else time_at(SCHEDULES[name], LARGEST)


_KNOWN: dict[tuple[str, str, int, float], np.ndarray] = {}


def prepare(schedule: str, lengths: set[int]) -> None:
    """Compute all grids of these lengths in one compiled program, instead of compiling one program for each."""
    levels, first = SCHEDULES[schedule], start_time(schedule)
    names = [(grid, n) for grid in GRIDS for n in sorted(lengths) if (schedule, grid, n, ENDS[0]) not in _KNOWN]
    if not names:
        return
    last = jnp.asarray([time_at(levels, end) for end in ENDS])
    every = jax.jit(jax.vmap(lambda last: [GRIDS[grid](levels, n, t_max=first, t_min=last) for grid, n in names]))
    for (grid, n), grids in zip(names, every(last), strict=True):
        for end, times in zip(ENDS, np.asarray(grids), strict=True):
            _KNOWN[schedule, grid, n, end] = times


def step_grid(schedule: str, grid: str, n: int, end: float) -> np.ndarray:
    """(n,) times of a named grid that ends at sigma / alpha = end, one of `ENDS`."""
    prepare(schedule, {n})
    return _KNOWN[schedule, grid, n, end]


def padded(times: np.ndarray, n: int) -> np.ndarray:
    """The grid with its first point repeated to n entries; its last points do not change."""
    return np.concatenate([np.full(n - len(times), times[0]), times])


def mixture(dimension: int) -> analytic.Mixture:
    """The mixture in 2 or in 64 dimensions."""
    if dimension == 2:
        means = np.array([[-1.5, 0.5], [1.0, 1.2], [0.3, -1.4]])
        return analytic.Mixture(np.array([0.2, 0.5, 0.3]), means, 0.3)
    draw = np.random.RandomState(0)
    return analytic.Mixture(draw.dirichlet(np.full(8, 3.0)), draw.normal(size=(8, dimension)), 0.3)


def gaussian() -> analytic.Gaussian:
    """The Gaussian whose mean and deviations are computed exactly."""
    return analytic.Gaussian(np.array([0.7, -0.4, 0.1]), np.eye(3), np.array([1.0, 0.25, 0.01]))


class Problem(NamedTuple):
    """A mixture under a schedule: starts x (B, D) at t, x0 (B, D), and the flow's points at each of `ENDS`."""

    schedule: str
    law: analytic.Mixture
    x: Any
    x0: Any
    at_ends: Any

    @property
    def name(self) -> str:
        """Schedule and dimension."""
        return f"{self.schedule}, {self.x.shape[-1]}-D"


def exact(schedule: str, law: analytic.Mixture, x: Any) -> tuple[Any, Any]:
    """The flow from starts x (B, D): x0 (B, D), and its points at each of `ENDS`; call it under `jax.enable_x64`."""
    levels, t = SCHEDULES[schedule], start_time(schedule)
    denoise = law.denoiser(levels)

    @jax.jit
    def answers(x, ends):
        at = jax.lax.map(lambda s: analytic.flow(levels, denoise, x, t, s, num_steps=RUNGE_KUTTA), ends)
        u = at[-1] / levels(ends[-1]).alpha
        return u + (denoise(at[-1], ends[-1]) - u) / 2, at[:-1]

    return answers(x, jnp.asarray([*(time_at(levels, end) for end in ENDS), 0.0]))


def problem(schedule: str, dimension: int, examples: int) -> Problem:
    """Starts and their exact answers; call it under `jax.enable_x64`."""
    law, levels, t = mixture(dimension), SCHEDULES[schedule], start_time(schedule)
    x = jnp.asarray(levels(t).sigma * np.random.RandomState(1).normal(size=(examples, dimension)))
    return Problem(schedule, law, x, *exact(schedule, law, x))


class Case(NamedTuple):
    """One run: a grid that ends at ENDS[end], its ending, its budget, and the resulting moves and calls."""

    grid: str
    end: int
    ending: str
    budget: int
    moves: int
    calls: int


def cases(row: Any, budgets: tuple[int, ...], grids: tuple[str, ...], ends: tuple[int, ...]) -> list[Case]:
    """All runs of a row that fit into the budgets."""
    return [
        Case(grid, end, ending, budget, moves, row.spent(moves, ending))
        for grid in grids
        for end in ends
        for ending in ("sample", "integrate")
        for budget in budgets
        if (moves := row.moves(budget, ending))
    ]


def padded_grids(schedule: str, runs: list[Case]) -> tuple[Any, Any]:
    """(G, P) grids, padded to the longest, and (G,) their numbers of entries without padding."""
    longest = max(case.moves for case in runs) + 1
    prepare(schedule, {case.moves + 1 for case in runs})
    grids = [padded(step_grid(schedule, c.grid, c.moves + 1, ENDS[c.end]), longest) for c in runs]
    return jnp.asarray(np.stack(grids)), jnp.asarray([c.moves + 1 for c in runs])


def skipping(sampler: Any) -> Any:
    """The sampler without the work of zero-length steps, so that padding costs nothing."""

    def step(key, denoise, state, t, s):
        return jax.lax.cond(t == s, lambda: state, lambda: sampler.step(key, denoise, state, t, s))

    return sampler._replace(step=step)
