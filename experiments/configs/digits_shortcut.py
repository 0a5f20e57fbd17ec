"""A shortcut model of digits, from scratch: one step equals two half steps.

    python -m experiments.train --config=digits_shortcut --workdir=runs/digits_shortcut

Hardware: 2 CPU cores. Time: 21 minutes for 2,000 steps, at low priority beside other work. Metric: at one call 95.6 %
of 1,000 samples are given their own label, FD(classifier) 3.61 beside a real-to-real floor of 1.64 at n = 400: the
targets of long steps come from shorter ones, which takes more training than this.

Source: Frans et al. 2025.
"""

from experiments.configs import digits_meanflow


def get_config():
    config = digits_meanflow.get_config()
    config.loss.objective = "shortcut"
    config.loss.objective_parameters = {}
    config.loss.times = "uniform"
    config.loss.times_parameters = {}
    return config
