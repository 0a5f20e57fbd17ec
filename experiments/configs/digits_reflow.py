"""Reflow of `digits_flow`: trained on pairs of noise and the sample that it draws from it, so that paths are straight.

    python -m experiments.train --config=digits_flow --workdir=runs/digits_flow
    python -m experiments.sample --checkpoint=runs/digits_flow --out=runs/digits_flow_pairs --num=8000 --pairs
    python -m experiments.train --config=digits_reflow --workdir=runs/digits_reflow

Source: Liu et al. 2023 (rectified flow).
"""

from experiments.configs import digits_flow


def get_config():
    config = digits_flow.get_config()
    config.init_from = "runs/digits_flow"
    config.dataset.pairs = "runs/digits_flow_pairs"
    config.network.dropout_rate = 0.0
    config.loss.p_uncond = 0.0
    config.train.num_steps = 1500
    config.sampling.grid = "starts"
    config.sampling.num_steps = 1
    config.sampling.guidance = 1.0
    return config
