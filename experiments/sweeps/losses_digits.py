"""Training losses on digits: prediction kind x weighting x schedule, three seeds each, 81 runs.

    python -m experiments.sweep --sweep=experiments/sweeps/losses_digits.py --workdir=runs/losses_digits
    python -m experiments.report runs/losses_digits

A weighting always applies to the error of eps, for every prediction kind; `sigmoid` is that of Hoogeboom et al.
"""

from experiments.configs import digits
from experiments.sweeping import product, seeds, settings


def get_config():
    """A small U-Net and a short run, sampled in 20 calls without guidance."""
    config = settings.training(digits.get_config())
    config.dataset.batch_size = 32
    config.network.channels = 16
    config.network.num_res_blocks = 1
    config.optimizer.learning_rate = 2e-3
    config.train.num_steps = 1000
    config.sampling.num_steps = 20
    config.sampling.guidance = 1.0
    return config


def get_overrides():
    """All combinations."""
    return product(
        {"config.prediction": ["x0", "eps", "v"]},
        {"config.loss.weighting": ["eps", "min_snr", "sigmoid"]},
        {"config.schedule.name": ["cosine", "linear", "flow"]},
        seeds(3),
    )
