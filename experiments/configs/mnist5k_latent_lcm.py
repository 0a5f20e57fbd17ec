"""A latent consistency model of MNIST: one call of the network draws a code, at a guidance weight that is its input.

    python -m experiments.train --config=mnist5k_autoencoder --workdir=runs/mnist5k_autoencoder
    python -m experiments.train --config=mnist5k_latent --workdir=runs/mnist5k_latent
    python -m experiments.train --config=mnist5k_latent_lcm --workdir=runs/mnist5k_latent_lcm

Source: Luo et al. 2023.
"""

from experiments.configs import mnist5k_latent


def get_config():
    config = mnist5k_latent.get_config()
    config.init_from = "runs/mnist5k_latent"
    config.teacher = "runs/mnist5k_latent"
    config.network.second_time = True
    config.network.guidance_input = True
    config.network.dropout_rate = 0.0
    config.loss.objective = "latent_consistency"
    config.loss.p_uncond = 0.0
    config.train.num_steps = 1000
    config.sampling.sampler = "jump"
    config.sampling.eta = 1.0
    config.sampling.grid = "starts"
    config.sampling.num_steps = 1
    return config
