"""As `digits`, on the digits 0 to 7 alone: what `digits_lora` starts from.

    python -m experiments.train --config=experiments/configs/digits_0to7.py --workdir=runs/digits_0to7

Hardware: 2 CPU cores. Time: TODO. Metric: TODO
"""

from experiments.configs import digits


def get_config():
    """As `digits`, without 8 and 9. The network has rows for them, which stay as they were made."""
    config = digits.get_config()
    config.dataset.labels = (0, 1, 2, 3, 4, 5, 6, 7)
    return config
