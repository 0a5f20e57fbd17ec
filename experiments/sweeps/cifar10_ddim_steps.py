"""DDIM's table 1 on CIFAR-10: eta against the number of steps, FID of 50,000 samples against the training images.

    python -m experiments.prepare --name=cifar10
    python -m experiments.train --config=experiments/configs/cifar10_ddpm.py --workdir=runs/cifar10
    python -m experiments.sweep --sweep=experiments/sweeps/cifar10_ddim_steps.py --workdir=runs/ddim_steps
        --set=config.evaluation.inception_weights=pt_inception-2015-12-05-6726825d.pth --workers=8
    python -m experiments.report runs/ddim_steps --by=config.calls

Hardware: accelerators, one worker on each. The rows are eta = 0, 0.2, 0.5, 1 and the larger variance of DDPM (sigma
hat), the columns 10, 20, 50, 100 and 1,000 steps, as in Song et al. 2021, table 1. Steps are uniform in t here and
quadratic in the paper. Not run here, because neither CIFAR-10 nor the weights were available.
"""

from experiments.sweeping import chain, product, settings

CALLS = {"config.calls": [10, 20, 50, 100, 1000]}


def get_config():
    """Samples of runs/cifar10, measured by FID."""
    config = settings.sampling()
    config.checkpoint = "runs/cifar10"
    config.sampling.grid = "trailing"
    return settings.as_fid(config)


def get_overrides():
    """One seed, as in the paper: 50,000 samples for each number."""
    return chain(
        product({"config.sampling.sampler": ["ddim"], "config.sampling.eta": [0.0, 0.2, 0.5, 1.0]}, CALLS),
        product({"config.sampling.sampler": ["ddpm_large"]}, CALLS),
    )
