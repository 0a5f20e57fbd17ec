"""Prediction kind x weighting x schedule on digits, three seeds each."""

from experiments.configs import digits
from experiments.sweeping import product, seeds, settings


def get_config():
    """A small U-Net and a short run."""
    config = settings.training(digits.get_config())
    config.network.channels = 16
    config.network.num_res_blocks = 1
    config.optimizer.learning_rate = 2e-3
    config.train.num_steps = 600
    config.sampling.num_steps = 20
    config.sampling.grid = "uniform"
    return config


def get_overrides():
    """All combinations."""
    return product(
        {"config.prediction": ["x0", "eps", "v"]},
        {"config.loss.weighting": ["target", "eps", "min_snr", "sigmoid"]},
        {"config.schedule": [{"name": "cosine"}, {"name": "linear"}, {"name": "flow"}]},
        seeds(3),
    )
