"""Adapters that teach 8 and 9 to a model of the digits 0 to 7.

    python -m experiments.train --config=experiments/configs/digits_0to7.py --workdir=runs/digits_0to7
    python -m experiments.train --config=experiments/configs/digits_lora.py --workdir=runs/digits_lora
    python -m experiments.sample --checkpoint=runs/digits_lora --labels=8,9 --guidance=1 --num=1000 --out=OUT

Hardware: 2 CPU cores. Time: TODO. Metric: TODO
"""

from experiments.configs import digits


def get_config():
    """As `digits`, on 8 and 9 alone; adapters of rank 2 on every kernel and on the table of labels."""
    config = digits.get_config()
    config.dataset.labels = (8, 9)
    config.lora.base = "runs/digits_0to7"
    config.lora.rank = 2
    config.lora.alpha = 2.0
    config.lora.patterns = ("*kernel", "label/embedding")
    return config
