"""Every sampler x grid x number of calls against exact answers, and beside other libraries.

    python -m experiments.benchmark samplers --out=docs/benchmarks
    python -m experiments.benchmark samplers --samplers=ddim,unipc --budgets=5,10,20    some rows and budgets
    python -m experiments.benchmark samplers --quick                                    a quick test

Writes samplers.md, samplers.json and samplers.png. Budgets are denoiser calls: `sample` over n entries costs
calls * (n - 1) + 1, `integrate` over n + 1 entries calls * n. Where k-diffusion or diffusers is installed, their
samplers run on the same problem and their loops are timed in turn with ours.
"""

import functools
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import diffax
from diffax import samplers
from experiments.benchmarks import accuracy, distributions, peer_rows, peers, problems, report, rows, speed
from experiments.benchmarks.problems import SCHEDULES

OUT = flags.DEFINE_string("out", "runs/benchmark", "Folder for samplers.md, samplers.json and samplers.png.")
SAMPLERS = flags.DEFINE_list("samplers", None, "Rows or families of rows, all if not given.")
BUDGETS = flags.DEFINE_list("budgets", None, "Denoiser calls; 5,8,10,15,20,40,80,160 if not given.")
QUICK = flags.DEFINE_bool("quick", False, "A few samplers, one schedule, two budgets, few repeats, no other libraries.")

ALL_BUDGETS = (5, 8, 10, 15, 20, 40, 80, 160)
PROBLEMS = (("linear", 2), ("cosine", 2), ("flow", 2), ("edm", 2), ("linear", 64), ("flow", 64))
DRAWN = (("linear", 2, 8192), ("linear", 64, 2048))
EXAMPLES = {2: 128, 64: 32}
QUICKLY = ["ddim", "unipc-3", "ddpm"]


def budgets_of(texts: list[str] | None, quick: bool) -> tuple[int, ...]:
    """Budgets in increasing order.

    Raises:
      ValueError: for a budget that is not an int >= 2.
    """
    if texts is None:
        return (5, 10) if quick else ALL_BUDGETS
    if not texts or not all(v.strip().isdigit() and int(v) >= 2 for v in texts):
        raise ValueError(f"budgets must be ints >= 2, got {','.join(texts)!r}")
    return tuple(sorted({int(v) for v in texts}))


def say(text: str, start: float) -> None:
    """Print a line of progress with the time since `start`."""
    print(f"[{time.perf_counter() - start:6.0f} s] {text}", flush=True)


def without_noise(chosen: dict, budgets: tuple[int, ...], quick: bool, start: float) -> dict[str, Any]:
    """{problem: {row: errors}} of the samplers without noise, ours and those of other libraries."""
    results: dict[str, Any] = {}
    grids, ends = (("log_snr", "quadratic"), (0,)) if quick else (tuple(problems.GRIDS), (0, 1, 2))
    for schedule, dimension in PROBLEMS[: 1 if quick else None]:
        problem = problems.problem(schedule, dimension, EXAMPLES[dimension])
        results[problem.name] = table = {}
        for name, row in chosen.items():
            if runs := problems.cases(row, budgets, grids, ends):
                table[name] = accuracy.tabulate(runs, accuracy.measure(row, problem, runs), budgets)
        say(f"{problem.name}: {len(table)} samplers", start)
        if schedule == "linear" and not quick:
            u = np.asarray(problem.x) / float(SCHEDULES["linear"](1.0).alpha)
            error = functools.partial(_distance, np.asarray(problem.x0))
            of_peers(table, False, problem.law, u, budgets, error, peers.draws, start, chosen)
    return results


def _distance(exact, end):
    return np.sqrt(np.mean((end - exact) ** 2))


def _in_law(data, end):
    return distributions.wasserstein(*distributions.moments(jnp.asarray(end)), data)


def _in_slices(exact, end):
    return float(distributions.sliced(jnp.asarray(end), exact))


def of_peers(table, stochastic, data, u, budgets, error, noise, start, chosen, settings=None):
    """Add the rows of other libraries whose counterpart is among the chosen ones."""
    for name, peer in peer_rows.PEERS.items():
        wanted = peer.library in peers.libraries() and peer.stochastic == stochastic and peer.ours in chosen
        if wanted and peer.name not in peer_rows.LEVELS_OF_ITS_OWN:
            runs = [s for s in peer_rows.settings(peer) if settings is None or s in settings]
            table[name] = peers.measure(peer, data, u, budgets, error, runs, noise)
    say("other libraries", start)


def with_noise(chosen: dict, budgets: tuple[int, ...], quick: bool, start: float) -> dict[str, Any]:
    """{schedule: {row: errors in distribution on the Gaussian}}."""
    results: dict[str, Any] = {}
    for schedule in ("linear",) if quick else SCHEDULES:
        results[schedule] = table = {}
        for name, row in chosen.items():
            if runs := problems.cases(
                row, budgets, distributions.GRIDS[-2:] if quick else distributions.GRIDS, (0,) if quick else (0, 1)
            ):
                table[name] = accuracy.tabulate(runs, distributions.measure(row, schedule, runs), budgets)
        say(f"distribution, Gaussian, {schedule}: {len(table)} samplers", start)
        if schedule == "linear" and not quick:
            data, alpha = problems.gaussian(), float(SCHEDULES["linear"](1.0).alpha)
            x = distributions.unit_examples(data, SCHEDULES["linear"](1.0), 2 * max(budgets) + 8)
            error = functools.partial(_in_law, data)
            settings = [
                (grid, end, ending)
                for grid in distributions.GRIDS
                for end in problems.ENDS[:2]
                for ending in rows.ENDINGS
            ]
            settings += [(grid, 0.0, "sample") for grid in peer_rows.DIFFUSERS_GRIDS]
            of_peers(
                table, True, data, np.asarray(x) / alpha, budgets, error, peers.unit_noise, start, chosen, settings
            )
    return results


def drawn(chosen: dict, budgets: tuple[int, ...], quick: bool, start: float) -> dict[str, Any]:
    """{problem: {"floor": .., "rows": {row: errors in distribution}}} on the mixture, on the grid log_snr to 0.01."""
    results: dict[str, Any] = {}
    for schedule, dimension, count in (("linear", 2, 512),) if quick else DRAWN:
        data = problems.mixture(dimension)
        exact = distributions.quantiles(data, count)
        low, high = distributions.floor(data, exact, 5 if quick else 20)
        table: dict[str, Any] = {}
        results[f"{schedule}, {dimension}-D"] = {"draws": count, "floor": [low, high], "rows": table}
        for name, row in chosen.items():
            if runs := problems.cases(row, budgets, ("log_snr",), (1,)):
                errors = distributions.measure_mixture(row, schedule, data, exact, runs)
                table[name] = accuracy.tabulate(runs, errors, budgets)
        say(f"distribution, mixture, {schedule}, {dimension}-D: {len(table)} samplers", start)
        if not quick:
            level, exact_draws = SCHEDULES[schedule](1.0), np.asarray(data.sample(jax.random.key(11), count))
            u = exact_draws + float(level.sigma / level.alpha) * np.random.RandomState(5).normal(size=exact_draws.shape)
            error = functools.partial(_in_slices, exact)
            settings = [("log_snr", 0.01, "sample"), ("log_snr", 0.01, "integrate"), ("exponential", 0.0, "sample")]
            settings += [("trailing", 0.0, "sample")]
            of_peers(table, True, data, u, budgets, error, peers.draws, start, chosen, settings)
    return results


def sweeps(budgets: tuple[int, ...], quick: bool) -> dict[str, Any]:
    """Hyperparameter sweeps, each compiled once."""
    results = {
        "ddim, eta": distributions.sweep(
            lambda levels, stretch, eta: samplers.ddim(levels, eta=eta),
            "linear",
            [0.0, 0.2, 0.4, 0.6, 0.8, 1.0],
            budgets,
        )
    }
    if not quick:
        results["heun, s_churn"] = distributions.sweep(
            lambda levels, stretch, amount: samplers.heun(levels, s_churn=amount * stretch),
            "edm",
            [0.0, 0.25, 0.5, 1.0, 2.0, 4.0],
            budgets,
        )
    return results


def measure(wanted: list[str] | None, budgets: tuple[int, ...], quick: bool) -> dict[str, Any]:
    """All measurements, in the form of samplers.json."""
    start = time.perf_counter()
    deterministic, stochastic = rows.select(wanted)
    if quick and wanted is None:
        deterministic, stochastic = (
            {k: v for k, v in kind.items() if k in QUICKLY} for kind in (deterministic, stochastic)
        )
    chosen = {**deterministic, **stochastic}
    repeats = 3 if quick else 10
    if not quick and peers.libraries():
        import torch

        torch.set_num_threads(1)  # in loops this short, more threads only wait for each other
    results: dict[str, Any] = {
        "environment": {
            "device": jax.local_devices()[0].device_kind,
            "jax": jax.__version__,
            "diffax": diffax.__version__,
            "python": sys.version.split()[0],
            "numpy": np.__version__,
            "peers": {} if quick else peers.libraries(),
        },
        "budgets": list(budgets),
        "ends": list(problems.ENDS),
        "published": sorted(name for name, row in chosen.items() if row.published),
        "calls_a_step": {name: row.build(diffax.Linear(), 1.0).calls for name, row in chosen.items()},
        "claimed_order": {name: row.build(diffax.Linear(), 1.0).order for name, row in chosen.items()},
    }
    results["speed"] = [speed.measure(name, row, repeats, quick=quick) for name, row in chosen.items()]
    say("compile time and time of a step", start)
    results["overhead"] = [] if quick else speed.overhead(chosen, repeats)
    say("overhead", start)
    with jax.enable_x64(True):
        results["errors"] = without_noise(deterministic, budgets, quick, start)
        results["law"] = with_noise(stochastic, budgets, quick, start)
        results["drawn"] = drawn(stochastic, budgets, quick, start)
        results["sweeps"] = sweeps(budgets, quick)
    results["environment"]["seconds"] = round(time.perf_counter() - start)
    return results


def main(argv: list[str]) -> None:
    """Measure and write."""
    try:
        if argv[1:]:
            raise ValueError(f"flags must be --NAME=VALUE, got {' '.join(argv[1:])!r}")
        budgets = budgets_of(BUDGETS.value, QUICK.value)
        rows.select(SAMPLERS.value)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    table = measure(SAMPLERS.value, budgets, QUICK.value)
    out = Path(OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    (out / "samplers.json").write_text(json.dumps(table, separators=(",", ":")).replace('},"', '},\n"') + "\n")
    (out / "samplers.md").write_text(report.markdown(table))
    written = ["samplers.md", "samplers.json"] + (["samplers.png"] if report.plot(table, out / "samplers.png") else [])
    print(f"{', '.join(written)} in {out}")


def run() -> None:
    """The command."""
    app.run(main)
