"""A shortcut model of digits, from scratch: one step equals two half steps.

    python -m experiments.train --config=digits_shortcut --workdir=runs/digits_shortcut

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
