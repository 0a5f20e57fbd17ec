"""Consistency distillation of `digits`: one call draws a sample of the guided teacher.

    python -m experiments.train --config=digits --workdir=runs/digits
    python -m experiments.train --config=digits_distilled --workdir=runs/digits_distilled

Hardware: 2 CPU cores. Time: 6 minutes for 1,000 steps, beside other work. Metric: at one call 99.6 % of 1,000
samples are given their own label, FD(classifier) 1.78 beside a real-to-real floor of 1.64 at n = 400.

Source: Song et al. 2023.
"""

from experiments.configs import digits


def get_config():
    config = digits.get_config()
    config.init_from = "runs/digits"
    config.teacher = "runs/digits"
    config.network.dropout_rate = 0.0
    config.loss.objective = "consistency_distillation"
    config.loss.p_uncond = 0.0
    config.train.num_steps = 1000
    config.sampling.sampler = "consistency"
    config.sampling.grid = "starts"
    config.sampling.num_steps = 1
    config.sampling.guidance = 1.0
    return config
