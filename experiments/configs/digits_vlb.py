"""The digits trained on the variational bound itself, mean and learned variance.

    python -m experiments.train --config=experiments/configs/digits_vlb.py --workdir=runs/digits_vlb
    python -m experiments.evaluate --checkpoint=runs/digits_vlb

Hardware: 2 CPU cores. Its scores are still to be measured.
"""

from experiments.configs import digits_hybrid


def get_config():
    """As `digits_hybrid`, with the bound alone; stratified times that follow the losses lower its variance."""
    config = digits_hybrid.get_config()
    config.loss.objective = "vlb"
    config.loss.times = "loss_aware"
    config.loss.spread = "stratified"
    return config
