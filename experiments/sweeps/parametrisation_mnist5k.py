"""Prediction kinds of a perceptron on MNIST of 28x28 pixels: five kinds, three seeds each.

    python -m experiments.sweep --sweep=experiments/sweeps/parametrisation_mnist5k.py --workdir=runs/mnist5k_kinds
    python -m experiments.report runs/mnist5k_kinds

Each kind is trained with the plain mean square error of its target. The network is narrower than the 784 pixels, so
that kinds whose target contains noise are harder to learn.
"""

from experiments.configs import mnist5k
from experiments.sweeping import product, seeds, settings


def get_config():
    """A perceptron and a short run, sampled in 20 calls without guidance."""
    config = settings.training(mnist5k.get_config())
    config.network.name = "mlp"
    config.network.channels = 384
    config.network.depth = 3
    config.train.num_steps = 1500
    config.sampling.num_steps = 20
    config.sampling.guidance = 1.0
    return config


def get_overrides():
    """Five kinds."""
    return product({"config.prediction": ["x0", "eps", "v", "velocity", "edm"]}, seeds(3))
