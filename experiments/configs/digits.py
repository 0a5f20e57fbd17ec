"""docstring later"""

from experiments.configs import default


def get_config():
    """Class-conditional, v-prediction, cosine schedule."""
    config = default.get_config()
    config.dataset.batch_size = 64
    config.dataset.cache = True
    config.train.num_steps = 2000
    config.sampling.guidance = 1.25
    return config
