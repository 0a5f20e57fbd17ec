"""Adapters that teach 8 and 9 to a model of the digits 0 to 7.

    python -m experiments.train --config=experiments/configs/digits_0to7.py --workdir=runs/digits_0to7
    python -m experiments.train --config=experiments/configs/digits_lora.py --workdir=runs/digits_lora
    python -m experiments.sample --checkpoint=runs/digits_lora --labels=8,9 --guidance=1 --num=1000 --out=OUT

Hardware: 2 CPU cores. Time: 14 minutes 8 for 2,000 steps beside other work; a step takes as long as one of `digits`.
Metric: 44,970 parameters, 4.5 % of 1,003,137. 94.5 % of 1,000 samples of 8 and 9 are given their own label, 2.5 %
before; FD(classifier) 3.49 beside a real-to-real floor of 3.21 at n = 72, 57.5 before (DDIM, 50 calls, no guidance). 0
to 7, which it no longer sees, fall from 97.9 % to 23.0 %; with all ten digits in the fine-tuning it is 97.6 %, and
80.3 % of 8 and 9 (docs/experiments/results.md).
"""

from experiments.configs import digits


def get_config():
    config = digits.get_config()
    config.dataset.labels = (8, 9)
    config.lora.base = "runs/digits_0to7"
    config.lora.rank = 2
    config.lora.alpha = 2.0
    config.lora.patterns = ("*kernel", "label/embedding")
    return config
