"""Samplers on a network trained on digits: FD against calls, with and without guidance, three seeds each.

python -m experiments.train --config=experiments/configs/digits.py --workdir=runs/digits
python -m experiments.sweep --sweep=experiments/sweeps/samplers_digits.py --workdir=runs/samplers_digits
python -m experiments.report runs/samplers_digits
"""

from experiments.sweeping import chain, product, seeds, settings

CALLS = {"config.calls": [5, 10, 20, 40]}


def get_config():
    """Samples of runs/digits on a grid of uniform times."""
    config = settings.sampling()
    config.checkpoint = "runs/digits"
    return config


def get_overrides():
    """Four samplers without noise and two with; then guidance weights at 20 calls."""
    return chain(
        product({"config.sampling.sampler": ["ddim", "heun", "dpmpp_2m", "unipc", "ddpm"]}, CALLS, seeds(3)),
        product({"config.sampling.sampler": ["ddim"], "config.sampling.eta": [1.0]}, CALLS, seeds(3)),
        product(
            {"config.sampling.sampler": ["dpmpp_2m"], "config.sampling.guidance": [0.0, 1.25, 1.5, 2.0, 3.0]}, seeds(3)
        ),
    )
