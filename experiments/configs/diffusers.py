"""Fine-tuning of a diffusion network saved by diffusers: --config.init_from=FOLDER --config.dataset.name=NAME.

The network is that of the folder, with the channels and classes of the data. Schedule and prediction are those of DDPM;
set them to those of the folder, which the run prints.
"""

from experiments.configs import own


def get_config():
    """See the module."""
    config = own.get_config()
    config.network.name = "diffusers"
    config.network.time = "timestep"
    config.network.conditional = False
    config.schedule = {"name": "linear_betas", "num_steps": 1000}
    config.prediction = "eps"
    config.optimizer.learning_rate = 1e-4
    return config
