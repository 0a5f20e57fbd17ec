"""A flow map of MNIST, from scratch, by MeanFlow: one call draws a sample.

    python -m experiments.train --config=mnist5k_meanflow --workdir=runs/mnist5k_meanflow

Source: Geng et al. 2025.
"""

from experiments.configs import digits_meanflow, mnist5k


def get_config():
    config = mnist5k.get_config()
    of_digits = digits_meanflow.get_config()
    config.schedule, config.prediction, config.loss = of_digits.schedule, of_digits.prediction, of_digits.loss
    config.network.second_time = True
    config.network.time_scale = of_digits.network.time_scale
    config.network.dropout_rate = 0.0
    config.sampling = of_digits.sampling
    return config
