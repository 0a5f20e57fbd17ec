"""Your own data set, written by experiments.prepare: a small network that trains in minutes on a CPU."""

from experiments.configs import default


def get_config():
    """See the module; `experiments.prepare` prints the settings that fit a set."""
    config = default.get_config()
    config.dataset.name = "own"
    config.dataset.batch_size = 16
    config.dataset.cache = True
    config.network.channels = 32
    config.network.channel_multipliers = (1, 2, 2)
    config.network.num_res_blocks = 1
    config.network.attention_levels = (2,)
    config.network.dropout_rate = 0.0
    config.optimizer.ema_decay = 0.995
    config.train.num_steps = 2000
    config.train.log_every = 50
    config.train.sample_every = 500
    config.train.heldout_every = 250
    config.train.checkpoint_every = 500
    config.sampling.sampler = "dpmpp_2m"
    config.sampling.num_steps = 25
    return config
