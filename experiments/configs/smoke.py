"""The smallest network for a few steps, as a test of the installation.

    python -m experiments.train --config=experiments/configs/smoke.py --workdir=runs/smoke

Hardware: anything. Time: half a minute on 2 CPU cores, mostly compilation. Metric: none, 20 steps are too few.
"""

from experiments.configs import default


def get_config():
    config = default.get_config()
    config.dataset.batch_size = 16
    config.dataset.cache = True
    config.network.channels = 8
    config.network.num_res_blocks = 1
    config.train.num_steps = 20
    config.train.log_every = 5
    config.train.sample_every = 10
    config.train.checkpoint_every = 10
    config.sampling.num_steps = 5
    return config
