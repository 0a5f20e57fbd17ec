"""As `digits`, by flow matching: the rectified-flow schedule and a velocity target.

    python -m experiments.train --config=experiments/configs/digits_flow.py --workdir=runs/digits_flow

Hardware: 2 CPU cores. Time: that of `digits`: the same network and number of steps. Metric: 99.4 % of 1,000 samples
are given their own label, FD(classifier) 1.47 beside a real-to-real floor of 1.64 at n = 400 (DDIM, 50 calls,
guidance 1.25).
"""

from experiments.configs import digits


def get_config():
    config = digits.get_config()
    config.schedule = {"name": "flow"}
    config.prediction = "velocity"
    return config
