"""Error of samplers without noise against the exact flow map, the root of the mean square over all coordinates.

One compilation serves all grids, lengths and budgets of a sampler on a problem, since shorter grids are padded. An
error is recorded for

    sample       the last denoiser call
    integrate    x at the last grid point, which is alpha x0 + sigma eps
    order        x at the last grid point against the flow to the same level: the error of the steps alone
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffax
from experiments.benchmarks import problems
from experiments.benchmarks.problems import SCHEDULES, Case, Problem
from experiments.benchmarks.rows import Row

ORDER_GRID, ORDER_END = "log_snr", 0
ROUND_OFF = 1e-10  # below it the slope is that of round-off


def rms(error: Any) -> Any:
    """The root of the mean square."""
    return jnp.sqrt(jnp.mean(jnp.square(error)))


def measure(row: Row, problem: Problem, runs: list[Case]) -> np.ndarray:
    """(G, 3) errors of all runs: of x0, of x as x0, of x at its own level."""
    schedule = SCHEDULES[problem.schedule]
    denoise = problem.law.denoiser(schedule)
    grids, entries = problems.padded_grids(problem.schedule, runs)

    @jax.jit
    def every(grids, entries, ends):
        def one(inputs):
            times, n, end = inputs
            sampler = problems.skipping(row.build(schedule, len(times) / n))
            x = diffax.integrate(jax.random.key(0), sampler, denoise, problem.x, times).x
            x0 = denoise(x, times[-1])
            return jnp.stack([rms(x0 - problem.x0), rms(x - problem.x0), rms(x - problem.at_ends[end])])

        return jax.lax.map(one, (grids, entries, ends))

    return np.asarray(every(grids, entries, jnp.asarray([case.end for case in runs])))


def slope(moves: list[int], errors: list[float]) -> float | None:
    """The order between the two longest runs, None at round-off or with fewer than two runs."""
    if len(moves) < 2 or errors[-1] < ROUND_OFF or moves[-1] == moves[-2]:
        return None
    return float(np.log(errors[-2] / errors[-1]) / np.log(moves[-1] / moves[-2]))


def tabulate(runs: list[Case], errors: np.ndarray, budgets: tuple[int, ...]) -> dict[str, Any]:
    """{"calls": {ending: [..]}, "errors": {"grid end ending": [error at each budget]}, "order": measured}."""
    table: dict[str, list[float | None]] = {}
    calls: dict[str, list[int | None]] = {}
    for case, (x0_error, x_error, _) in zip(runs, errors, strict=True):
        at = budgets.index(case.budget)
        name = f"{case.grid} {problems.ENDS[case.end]:g} {case.ending}"
        error = x0_error if case.ending == "sample" else x_error
        table.setdefault(name, [None] * len(budgets))[at] = rounded(error)
        calls.setdefault(case.ending, [None] * len(budgets))[at] = case.calls
    order_runs = sorted(
        (case.moves, error[2])
        for case, error in zip(runs, errors, strict=True)
        if (case.grid, case.end, case.ending) == (ORDER_GRID, ORDER_END, "integrate")
    )
    order = slope([m for m, _ in order_runs], [e for _, e in order_runs])
    return {"calls": calls, "errors": table, "order": None if order is None else round(order, 2)}


def rounded(error: Any) -> float | None:
    """The error to four digits, None if it is not finite."""
    return float(f"{float(error):.3e}") if np.isfinite(error) else None


def best(errors: dict[str, list[float | None]], at: int) -> tuple[float, str] | None:
    """(least error, setting) at a budget."""
    candidates = [(row[at], name) for name, row in errors.items() if row[at] is not None]
    return min(candidates) if candidates else None  # type: ignore[type-var, return-value]
