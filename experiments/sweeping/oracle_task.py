"""A run that samples a Gaussian mixture by its exact denoiser: no network, exact results.

One program serves all runs with one sampler, one number of calls and one schedule; grids, eta and seeds are batched.

    rms       the samples against the exact flow map from the same noise (samplers without noise)
    sliced    sliced Wasserstein distance of the samples from the exact distribution; its floor is that of exact draws
"""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffax
from diffax._checks import check_count, choose
from diffax.pretrained import spent
from diffax.training.parallel import over_batch
from experiments.benchmarks import accuracy, distributions, problems
from experiments.models import samplers
from experiments.sweeping.definition import Run
from experiments.sweeping.folder import Result
from experiments.sweeping.tasks import Job, grid_entries

NOT_OURS = ("ddpm_learned", "restart")
STATIC = ("schedule", "dimension", "examples", "calls", "sampler")


def parse(config: Any) -> tuple[str, dict[str, str]]:
    """See `Task`.

    Raises:
      ValueError: for invalid settings.
    """
    choose("config.schedule", config.schedule, problems.SCHEDULES)
    choose("config.grid", config.grid, problems.GRIDS)
    choose("config.sampler", config.sampler, tuple(n for n in diffax.samplers.names() if n not in NOT_OURS))
    if config.end not in problems.ENDS:
        raise ValueError(f"config.end must be one of {', '.join(map(str, problems.ENDS))}, got {config.end}")
    if config.dimension not in (2, 64):
        raise ValueError(f"config.dimension must be 2 or 64, got {config.dimension}")
    check_count("config.examples", config.examples, 2)
    grid_entries("config.calls", config.sampler, problems.SCHEDULES[config.schedule], config.calls)
    samplers.check_eta("config.eta", config.sampler, config.eta)
    return " ".join(f"{key}={config[key]}" for key in STATIC) + f" default={config.eta is None}", {}


def run(job: Job) -> Iterator[tuple[Run, Result | BaseException]]:
    """Sample all runs of a job in one program."""
    config = job.runs[0].config
    schedule, name = problems.SCHEDULES[config.schedule], config.sampler
    count = grid_entries("config.calls", name, schedule, config.calls)
    seeds = tuple(sorted({run.config.seed for run in job.runs}))
    with jax.enable_x64(True):
        program = job.compiled(lambda: _compile(config.schedule, config.dimension, name))
        x, x0, quantiles, floor = _starts(config.schedule, config.dimension, config.examples, seeds)

        def arguments(run: Run) -> tuple[Any, ...]:
            times = problems.step_grid(run.config.schedule, run.config.grid, count, run.config.end)
            eta = None if config.eta is None else np.float64(run.config.eta)
            index = seeds.index(run.config.seed)
            return times, eta, np.int64(run.config.seed), x[index], x0[index]

        columns = jax.tree.map(lambda *rows: np.stack(rows), *map(arguments, job.runs))
        begin = time.perf_counter()
        program(quantiles, *columns)  # compiles
        compiled = time.perf_counter()
        results = program(quantiles, *columns)
        end = time.perf_counter()
    seconds = {"seconds": (end - compiled) / len(job.runs), "compile_seconds": max(2 * compiled - begin - end, 0.0)}
    cost = {"calls": float(spent(name, schedule, count)), **{key: round(value, 6) for key, value in seconds.items()}}
    components = len(problems.mixture(config.dimension).weights)
    conditions = {"law": f"mixture of {components} in {config.dimension}-D", "num_samples": config.examples}
    for run, rms, sliced in zip(job.runs, *results, strict=True):
        is_noisy = samplers.draws_noise(name, run.config.eta)
        metrics = {"sliced": float(sliced)} | ({} if is_noisy else {"rms": float(rms)})
        yield run, Result(metrics, {"sliced": floor}, conditions, cost)


def _compile(schedule_name: str, dimension: int, name: str) -> Callable[..., Any]:
    """(quantiles, times, eta, seeds, x, x0) of several runs, spread over the devices -> (rms, sliced) of each."""
    schedule = problems.SCHEDULES[schedule_name]
    denoise = problems.mixture(dimension).denoiser(schedule)

    def one(quantiles: Any, times: Any, eta: Any, seed: Any, x: Any, x0: Any) -> Any:
        sampler = diffax.samplers.by_name(name, schedule, eta)
        samples = diffax.sample(jax.random.key(seed), sampler, denoise, x, times)
        return accuracy.rms(samples - x0), distributions.sliced(samples, quantiles)

    return over_batch(jax.jit(jax.vmap(one, (None, 0, 0, 0, 0, 0))))


@functools.lru_cache(maxsize=4)
def _starts(
    schedule: str, dimension: int, examples: int, seeds: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, Any, float]:
    """For seeds (S): (noise x and exact results x0 (S, B, D), quantiles and floor of the exact distribution)."""
    levels, t, mixture = problems.SCHEDULES[schedule], problems.start_time(schedule), problems.mixture(dimension)
    draws = [np.random.default_rng(seed).normal(size=(examples, dimension)) for seed in seeds]
    x = np.asarray(levels(t).sigma) * np.concatenate(draws)
    x0, _ = problems.exact(schedule, mixture, jnp.asarray(x))
    quantiles = distributions.quantiles(mixture, examples)
    floor, _ = distributions.floor(mixture, quantiles)
    shape = (len(seeds), examples, dimension)
    return x.reshape(shape), np.asarray(x0).reshape(shape), quantiles, floor
