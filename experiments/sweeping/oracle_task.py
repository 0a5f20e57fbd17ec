"""A run that samples a Gaussian mixture by its exact denoiser: no network, nothing learned, known answers.

One program serves all runs with one sampler, one number of calls and one schedule; grids, eta and seeds are batched.

    rms                the last denoiser call against the exact flow map from the same noise (samplers without noise)
    sliced             sliced Wasserstein distance of the samples from the exact law; its floor is that of exact draws
"""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import diffax
from diffax._checks import check_count, choose
from experiments.benchmarks import accuracy, law, problems
from experiments.models import samplers
from experiments.sweeping import budget, together
from experiments.sweeping.definition import Run
from experiments.sweeping.folder import Folder, Result, Unit

NOT_OURS = ("ddpm_learned", "restart")
STATIC = ("schedule", "dimension", "examples", "calls", "sampler")


def check(config: Any) -> None:
    """Raises `ValueError` for what is wrong with a run."""
    choose("config.schedule", config.schedule, problems.SCHEDULES)
    choose("config.grid", config.grid, problems.GRIDS)
    choose(
        "config.sampler",
        config.sampler,
        {name: make for name, make in samplers.SAMPLERS.items() if name not in NOT_OURS},
    )
    if config.end not in problems.ENDS:
        raise ValueError(f"config.end must be one of {', '.join(map(str, problems.ENDS))}, got {config.end}")
    if config.dimension not in (2, 64):
        raise ValueError(f"config.dimension must be 2 or 64, got {config.dimension}")
    check_count("config.examples", config.examples, 2)
    budget.points(config.sampler, problems.SCHEDULES[config.schedule], config.calls)
    samplers.check_eta("config.eta", config.sampler, config.eta)


def alike(config: Any) -> str:
    """The same for runs that one program serves."""
    return " ".join(f"{key}={config[key]}" for key in STATIC) + f" own={config.eta is None}"


def run(unit: Unit, folder: Folder, way: str, say: Callable) -> Iterator[tuple[Run, Result | BaseException]]:
    """Samples all runs of a unit in one program."""
    del folder, say
    with jax.enable_x64(True):
        yield from _run(unit, way)


def _run(unit, way):
    config = unit.runs[0].config
    schedule, name = problems.SCHEDULES[config.schedule], config.sampler
    points = budget.points(name, schedule, config.calls)
    seeds = sorted({run.config.seed for run in unit.runs})
    starts = _starts(config.schedule, config.dimension, config.examples, tuple(seeds))
    program = _program(config.schedule, config.dimension, name, way)

    def given(run):
        times = problems.step_grid(run.config.schedule, run.config.grid, points, run.config.end)
        place = seeds.index(run.config.seed)
        return (
            times,
            None if config.eta is None else np.float64(run.config.eta),
            np.int64(run.config.seed),
            starts.x[place],
            starts.x0[place],
        )

    rows = [given(run) for run in together.filled(unit.runs)]
    columns = [None if column[0] is None else np.stack(column) for column in zip(*rows, strict=True)]

    def compute():
        if way == "loop":
            return [jax.device_get(program(starts.quantiles, *row)) for row in rows[: len(unit.runs)]]
        return list(zip(*jax.device_get(program(starts.quantiles, *columns)), strict=True))

    compute()  # compiles
    start = time.perf_counter()
    found = compute()
    seconds = (time.perf_counter() - start) / len(unit.runs)
    for run, (rms, sliced) in zip(unit.runs, found, strict=False):
        is_noisy = samplers.draws_noise(name, run.config.eta)
        metrics = {"sliced": float(sliced)} | ({} if is_noisy else {"rms": float(rms)})
        cost = {"calls": float(samplers.spent(name, schedule, points)), "seconds": round(seconds, 6)}
        yield run, Result(metrics, {"sliced": starts.floor}, starts.conditions, cost)


@functools.lru_cache(maxsize=1)
def _program(of: str, dimension: int, name: str, way: str) -> Callable:
    """(quantiles, times, eta, seed, x, x0) -> (rms, sliced); a leading axis of runs but in a loop."""
    schedule, denoise = problems.SCHEDULES[of], problems.mixture(dimension).denoiser(problems.SCHEDULES[of])

    def one(quantiles, times, eta, seed, x, x0):
        found = diffax.sample(jax.random.key(seed), samplers.SAMPLERS[name](schedule, eta), denoise, x, times)
        return accuracy.rms(found - x0), law.sliced(found, quantiles)

    return jax.jit(one) if way == "loop" else together.several(one, way)


class _Starts(NamedTuple):
    """Of each seed (S): noise x (S, B, D), exact answers x0 (S, B, D). quantiles, floor: of the exact law."""

    x: np.ndarray
    x0: np.ndarray
    quantiles: np.ndarray
    floor: float
    conditions: dict[str, Any]


@functools.lru_cache(maxsize=4)
def _starts(schedule: str, dimension: int, examples: int, seeds: tuple[int, ...]) -> _Starts:
    of, t, mixture = problems.SCHEDULES[schedule], problems.start_time(schedule), problems.mixture(dimension)
    draws = [np.random.default_rng(seed).normal(size=(examples, dimension)) for seed in seeds]
    x = np.asarray(of(t).sigma) * np.concatenate(draws)
    x0, _ = problems.exact(schedule, mixture, jnp.asarray(x))
    quantiles = law.quantiles(mixture, examples)
    floor, _ = law.floor(mixture, quantiles)
    shape = (len(seeds), examples, dimension)
    conditions = {"law": f"mixture of {len(mixture.weights)} in {dimension}-D", "num_samples": examples}
    return _Starts(x.reshape(shape), np.asarray(x0).reshape(shape), quantiles, floor, conditions)
