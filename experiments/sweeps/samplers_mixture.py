"""Samplers on a Gaussian mixture with its exact denoiser: sampler x grid x calls x eta x seed, 1,080 points.

python -m experiments.sweep --sweep=experiments/sweeps/samplers_mixture.py --workdir=runs/samplers_mixture
python -m experiments.report runs/samplers_mixture
"""

from experiments.sweeping import chain, product, seeds, settings

GRIDS = {"config.grid": ["uniform", "log_snr", "karras", "beta"]}
CALLS = {"config.calls": [5, 8, 10, 20, 40]}
DETERMINISTIC = ["ddim", "heun", "dpm2", "dpmpp_2s", "dpmpp_2m", "dpmpp_3m", "deis", "unipc", "ipndm", "lms"]
STOCHASTIC = ["ddim", "dpmpp_2m_sde", "sa_solver", "euler_maruyama"]


def get_config():
    """The mixture of three in two dimensions, linear schedule."""
    config = settings.oracle()
    config.examples = 1024
    return config


def get_overrides():
    """Each sampler without noise, and the samplers with an eta at two values of it."""
    return chain(
        product({"config.sampler": DETERMINISTIC}, CALLS, GRIDS, seeds(3)),
        product({"config.sampler": STOCHASTIC}, {"config.eta": [0.3, 1.0]}, CALLS, GRIDS, seeds(3)),
    )
