"""Few-step models of digits at 1, 2, 4 and 8 calls, beside their teacher: nine methods, three seeds, equal cost.

    python -m experiments.train --config=digits --workdir=runs/digits
    python -m experiments.sweep --sweep=experiments/sweeps/few_steps_digits.py --workdir=runs/few_steps_digits
    python -m experiments.report runs/few_steps_digits

Each training costs as much as `STEPS` steps of `denoising`, by the ratios of `python -m experiments.benchmark
objectives` on 2 CPU cores. Methods with a teacher start from its parameters. `denoising` at 50 calls is a teacher that
trained as long.
"""

import math

from experiments.configs import (
    digits_consistency,
    digits_distilled,
    digits_flow,
    digits_meanflow,
    digits_progressive,
    digits_shortcut,
)
from experiments.sweeping import chain, product, seeds, settings

STEPS = 800
COST = {  # of a step, beside one of `denoising`
    "denoising": 1.0,
    "mean_flow": 2.0,
    "improved_mean_flow": 2.5,
    "easy_consistency": 1.4,
    "consistency_distillation": 2.5,
    "lagrangian": 1.5,
    "shortcut": 1.2,
    "progressive": 2.0,
}
CONFIGS = {
    "denoising": digits_flow,
    "mean_flow": digits_meanflow,
    "improved_mean_flow": digits_meanflow,
    "easy_consistency": digits_consistency,
    "consistency_distillation": digits_distilled,
    "lagrangian": digits_meanflow,
    "shortcut": digits_shortcut,
    "progressive": digits_progressive,
}


def get_config():
    """Digits, measured at 1, 2, 4 and 8 calls."""
    config = settings.training(digits_flow.get_config())
    config.evaluation.num = 800
    config.evaluation.batch_size = 400
    config.evaluation.calls = (1, 2, 4, 8, 50)
    return config


def get_overrides():
    """A run for each method and seed."""
    return chain(*(product(*own(name), seeds(3)) for name in CONFIGS))
