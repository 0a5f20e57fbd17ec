"""Every ODE and SDE sampler at its defaults on a network trained on digits: 10, 20 and 50 calls, clipped and guided.

    python -m experiments.train --config=experiments/configs/digits.py --workdir=runs/digits
    python -m experiments.sweep --sweep=experiments/sweeps/defaults_digits.py --workdir=runs/defaults_digits
    python -m experiments.report runs/defaults_digits

The grid is the default one, `uniform_log_snr` from sigma / alpha = 80 to 0.02. Left out: `ddpm_learned`, which needs a
learned variance; `consistency`, `lcm` and `tcd`, which need a distilled network; `annealed_langevin`, which needs a
hundred steps at each level.
"""

from diffax import samplers
from experiments.sweeping import product, settings

OUTSIDE = ("ddpm_learned", "consistency", "lcm", "tcd", "annealed_langevin")


def get_config():
    """Samples of runs/digits with the guidance of its config."""
    config = settings.sampling()
    config.checkpoint = "runs/digits"
    config.sampling.guidance = 1.25
    return config


def get_overrides():
    """One seed of 400 samples each."""
    names = [name for name in samplers.names() if name not in OUTSIDE]
    return product({"config.sampling.sampler": names}, {"config.calls": [10, 20, 50]})
