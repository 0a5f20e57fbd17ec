"""EDM's table 2 on CIFAR-10: from DDPM's training to EDM's, one change at a time, three seeds each, FID in 35 calls.

    python -m experiments.prepare --name=cifar10
    python -m experiments.sweep --sweep=experiments/sweeps/cifar10_edm.py --workdir=runs/edm
        --set=config.evaluation.inception_weights=pt_inception-2015-12-05-6726825d.pth --workers=8 --way=loop
    python -m experiments.report runs/edm

Hardware: accelerators, one worker on each. The rows are the variance-preserving baseline, EDM's preconditioning, and
EDM's weighting and its noise levels (configurations A, D, E of Karras et al. 2022, table 2; B and C, which change the
optimiser's settings and the network's capacity, and F, the augmentation, are not included). All are sampled by Heun's
method on 18 levels, 35 calls. Not run here, because neither CIFAR-10 nor the weights were available.
"""

from experiments.configs import cifar10_ddpm
from experiments.sweeping import chain, product, seeds, settings

BASELINE = {"config.schedule": {"name": "linear"}, "config.prediction": "eps", "config.loss.weighting": "eps"}
EDM = {"config.schedule": {"name": "edm"}, "config.prediction": "edm", "config.network.time": "log_snr"}
LOSS = {
    "config.loss.weighting": "edm",
    "config.loss.times": "log_normal_sigma",
    "config.loss.times_parameters": {"mean": -1.2, "std": 1.2},
}


def get_config():
    """The network of DDPM, 200,000 steps of 512 images: a hundred million images, half of the paper's."""
    config = settings.training(cifar10_ddpm.get_config())
    config.dataset.batch_size = 512
    config.optimizer.learning_rate = 1e-3
    config.train.num_steps = 200_000
    config.sampling.sampler = "heun"
    config.sampling.num_steps = 35  # 18 levels
    config.sampling.grid = "karras_80"
    return settings.as_fid(config)


def get_overrides():
    """Three configurations."""
    return product(chain([BASELINE], [EDM | {"config.loss.weighting": "eps"}], [EDM | LOSS]), seeds(3))
