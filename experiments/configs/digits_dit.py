"""The digits by a diffusion transformer on 16 patches of 2x2 pixels.

    python -m experiments.train --config=experiments/configs/digits_dit.py --workdir=runs/digits_dit

Hardware: 2 CPU cores. Time: 6 minutes 37 for 2,000 steps, beside other work. Metric: 99.1 % of 1,000 samples are given
their own label, FD(classifier) 1.60 beside a real-to-real floor of 1.64 at n = 400 (DDIM, 50 calls, guidance 1.25).
"""

from experiments.configs import digits


def get_config():
    config = digits.get_config()
    config.network.name = "dit"
    config.network.channels = 128
    config.network.depth = 6
    config.network.num_heads = 4
    config.network.patch_size = 2
    return config
