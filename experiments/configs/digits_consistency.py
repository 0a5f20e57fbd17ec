"""A consistency model of digits, from scratch.

python -m experiments.train --config=digits_consistency --workdir=runs/digits_consistency

"""

from experiments.configs import digits


def get_config():
    config = digits.get_config()
    config.network.dropout_rate = 0.0
    config.loss.objective = "easy_consistency"
    config.loss.times = "log_normal_sigma"
    config.loss.times_parameters = {"mean": -0.5, "std": 1.5}
    config.loss.p_uncond = 0.0
    config.sampling.sampler = "consistency"
    config.sampling.grid = "starts"
    config.sampling.num_steps = 1
    config.sampling.guidance = 1.0
    return config
