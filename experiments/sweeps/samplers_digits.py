"""Samplers on a network trained on digits: sampler x grid x calls, and guidance at 20 calls, three seeds each.

    python -m experiments.train --config=experiments/configs/digits.py --workdir=runs/digits
    python -m experiments.sweep --sweep=experiments/sweeps/samplers_digits.py --workdir=runs/samplers_digits
    python -m experiments.report runs/samplers_digits

The grids are uniform in log-SNR and in time, both from sigma / alpha = 80 to 0.02.
"""

from experiments.sweeping import chain, product, seeds, settings

CALLS_AND_GRIDS = {"config.calls": [5, 10, 20], "config.sampling.grid": ["uniform_log_snr", "uniform"]}


def get_config():
    """Samples of runs/digits."""
    config = settings.sampling()
    config.checkpoint = "runs/digits"
    config.sampling.eta = 0.0
    return config


def get_overrides():
    """Four samplers without noise and one with it; then guidance weights."""
    guided = {"config.sampling.sampler": ["dpmpp_2m"]}
    return chain(
        product({"config.sampling.sampler": ["ddim", "heun", "dpmpp_2m", "unipc"]}, CALLS_AND_GRIDS, seeds(3)),
        product({"config.sampling.sampler": ["ddim"], "config.sampling.eta": [1.0]}, CALLS_AND_GRIDS, seeds(3)),
        product(guided, {"config.sampling.guidance": [0.0, 1.25, 1.5, 2.0, 3.0]}, seeds(3)),
    )
