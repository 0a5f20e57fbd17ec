"""Few-step models of digits at 1, 2, 4 and 8 calls, beside their teacher: nine methods, three seeds, equal cost.

    python -m experiments.train --config=digits --workdir=runs/digits
    python -m experiments.sweep --sweep=experiments/sweeps/few_steps_digits.py --workdir=runs/few_steps_digits
    python -m experiments.report runs/few_steps_digits

Each training costs as much as `STEPS` steps of `denoising`, by the ratios of `python -m experiments.benchmark
objectives` on 2 CPU cores. Methods with a teacher start from its parameters. `denoising` at 50 calls is a teacher that
trained as long.
"""

from experiments.configs import (
    digits,
    digits_consistency,
    digits_distilled,
    digits_meanflow,
    digits_progressive,
    digits_reflow,
    digits_shortcut,
)
from experiments.configs.settings import flatten
from experiments.sweeping import product, seeds, settings

STEPS = 800
COST = {  # of a step, beside one of `denoising`; the teacher of consistency_distillation and progressive is guided
    "mean_flow": 1.5,  # with guidance
    "improved_mean_flow": 2.0,
    "lagrangian": 1.1,
    "shortcut": 1.05,
    "easy_consistency": 1.2,
    "continuous_consistency": 1.3,
    "consistency_distillation": 2.0,
    "progressive": 1.8,
}
CONFIGS = {
    "mean_flow": digits_meanflow,
    "improved_mean_flow": digits_meanflow,
    "lagrangian": digits_meanflow,
    "shortcut": digits_shortcut,
    "easy_consistency": digits_consistency,
    "continuous_consistency": digits_consistency,
    "consistency_distillation": digits_distilled,
    "progressive": digits_progressive,
}
MORE = {"continuous_consistency": {"config.network.time_scale": 8.0}}  # it takes a derivative in t
CALLS = (1, 2, 4, 8)
LEFT = ("config.train.", "config.loss.objective", "config.seed")


def get_config():
    """The teacher, measured at 1 to 8 calls and at 50."""
    config = settings.training(digits.get_config())
    config.evaluation.num = 800
    config.evaluation.batch_size = 400
    config.evaluation.calls = (*CALLS, 50)
    return config


def overrides_of(name, own, steps):
    """The settings of a config that differ from those of the teacher, with an objective and a number of steps."""
    base, other = (flatten(config.to_dict()) for config in (get_config(), own))
    changed = {key: value for key, value in other.items() if base.get(key) != value and not key.startswith(LEFT)}
    parameters = flatten(own.loss.objective_parameters.to_dict(), "config.loss.objective_parameters")
    first = {"config.loss.objective": name, "config.dataset.pairs": own.dataset.pairs}
    first |= {"config.train.num_steps": steps, "config.evaluation.calls": CALLS}
    return first | changed | (parameters if own.loss.objective == name else {}) | MORE.get(name, {})


def get_overrides():
    """The teacher, its reflow, and each method."""
    reflow = overrides_of("denoising", digits_reflow.get_config(), STEPS)
    methods = [overrides_of(name, module.get_config(), round(STEPS / COST[name])) for name, module in CONFIGS.items()]
    return product([{"config.loss.objective": "denoising"}, reflow, *methods], seeds(3))
