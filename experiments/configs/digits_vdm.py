"""The digits by a variational diffusion model: the bound of continuous time, its noise schedule learned.

    python -m experiments.train --config=experiments/configs/digits_vdm.py --workdir=runs/digits_vdm
    python -m experiments.evaluate --checkpoint=runs/digits_vdm

Hardware: 2 CPU cores. Its scores are still to be measured.
"""

from experiments.configs import digits


def get_config():
    """As `digits`, with eps-prediction and a schedule that is learned, its ends too."""
    config = digits.get_config()
    config.schedule = {"name": "learned", "log_snr_max": 8.0, "log_snr_min": -6.0}
    config.prediction = "eps"
    config.network.time = "log_snr"
    config.loss.objective = "vdm"
    config.loss.learn_ends = True
    config.loss.bin_width = 2 / 16
    config.loss.spread = "stratified"
    return config
