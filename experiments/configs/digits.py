"""Class-conditional digits of 8x8 pixels: v-prediction, cosine schedule, 1.0M parameters.

    python -m experiments.train --config=experiments/configs/digits.py --workdir=runs/digits

Hardware: 2 CPU cores. Time: 9 minutes for 2,000 steps (4.2 steps/s). Metric: 99.6 % of 1,000 samples are
given their own label, FD(classifier) 1.59 beside a real-to-real floor of 1.64 at n = 400 (DDIM, 50 calls,
guidance 1.25).
"""

from experiments.configs import default


def get_config():
    config = default.get_config()
    config.dataset.batch_size = 64
    config.dataset.cache = True
    config.train.num_steps = 2000
    config.sampling.guidance = 1.25
    return config
