"""What a training step of each objective costs beside one of `denoising`, on the network of digits.

    python -m experiments.benchmark objectives

Steps of both are timed in turn in one run; the ratio is the median over the pairs. compiles: of the step, while it was
measured.
"""

import time

import jax
import numpy as np
from absl import flags

from diffax import training
from experiments.configs import digits_meanflow, settings
from experiments.configs.objectives import FEW_STEPS, ROWS
from experiments.data.datasets import open_dataset
from experiments.model import Data, build
from experiments.models.few_steps import Teacher
from experiments.run.command import launch, usage_errors

REPEATS = flags.DEFINE_integer("repeats", 15, "Pairs of timings.", lower_bound=1)
BATCH = flags.DEFINE_integer("batch_size", 64, "Examples of a step.", lower_bound=8)
NAMES = flags.DEFINE_list("objectives", [*FEW_STEPS], "Objectives.")


def model_of(name, dataset):
    """The model of an objective."""
    config = digits_meanflow.get_config()
    row = ROWS[name]
    config.dataset.batch_size = BATCH.value
    config.loss.objective, config.loss.objective_parameters = name, {}
    config.loss.times, config.loss.times_parameters = "uniform", {}
    config.teacher = config.init_from = "this" if row.teacher == "needed" else ""
    config.network.guidance_input = row.guidance_input
    config.network.second_time = row.times == "two"
    config.sampling.sampler = "jump" if row.times == "two" else "consistency"
    settings.check_rules(config, 1)
    return build(config, Data(dataset.shape, dataset.num_classes, dataset.units))


def step_of(name, dataset):
    """(a function that makes one step and waits for it, the number of compilations so far)."""
    model = model_of(name, dataset)
    teacher = None
    if ROWS[name].teacher == "needed":
        plain = model if name == "progressive" else model_of("progressive", dataset)
        teacher = Teacher(plain.diffusion, plain.init(jax.random.key(1)), 0, "")
    objective, optimizer = model.objective(teacher=teacher), model.optimizer.make()
    step = jax.jit(model.optimizer.step(objective))
    x, label = dataset.arrays("train")
    rows = np.arange(BATCH.value)
    batch = {"x": x[rows], "label": label[rows].astype(np.int32), "index": rows.astype(np.int32)}
    state = training.init_state(jax.random.key(0), jax.jit(model.init)(jax.random.key(0)), optimizer, objective.memory)

    def one():
        nonlocal state
        start = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        return time.perf_counter() - start

    one()
    return one, step._cache_size


def main(argv):
    """Print a table row for each objective."""
    del argv
    with usage_errors():
        dataset = open_dataset("digits")
        for name in NAMES.value:
            model_of(name, dataset)
    device = jax.local_devices()[0].device_kind
    print(
        f"digits, {BATCH.value} examples, {device}, jax {jax.__version__}, float32, medians of {REPEATS.value} pairs\n"
    )
    print("| objective | beside denoising | [min, max] | compiles |\n| --- | --- | --- | --- |")
    plain, _ = step_of("denoising", dataset)
    for name in NAMES.value:
        other, compiles = step_of(name, dataset)
        ratios = np.array([other() / plain() for _ in range(REPEATS.value)])
        spread = f"[{ratios.min():.2f}, {ratios.max():.2f}]"
        print(f"| `{name}` | {np.median(ratios):.2f} | {spread} | {compiles()} |", flush=True)


def run():
    """The command."""
    launch(main)
