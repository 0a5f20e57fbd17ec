"""Unconditional CIFAR-10 with the network and settings of Ho et al. 2020, appendix B: 35.7M parameters.

    python -m experiments.prepare --name=cifar10
    python -m experiments.train --config=experiments/configs/cifar10_ddpm.py --workdir=runs/cifar10

Hardware: accelerators; the paper used a TPU v3-8. Time: not measured. Metric: not measured, because CIFAR-10 was not
available; a test takes one step on random pixels. The paper reports FID 3.17 after 800,000 steps.
"""

from experiments.configs import default


def get_config():
    config = default.get_config()
    config.dataset.name = "cifar10"
    config.dataset.flip = True
    config.schedule = {"name": "linear_betas", "num_steps": 1000, "beta_start": 1e-4, "beta_end": 0.02}
    config.prediction = "eps"
    config.network.channels = 128
    config.network.channel_multipliers = (1, 2, 2, 2)
    config.network.num_res_blocks = 2
    config.network.attention_levels = (1,)  # 16x16
    config.network.dropout_rate = 0.1
    config.network.conditional = False
    config.loss.p_uncond = 0.0
    config.optimizer.learning_rate = 2e-4
    config.optimizer.warmup_steps = 5000
    config.optimizer.decay = "constant"
    config.optimizer.b2 = 0.999
    config.optimizer.ema_decay = 0.9999
    config.train.num_steps = 800_000
    config.train.sample_every = 10_000
    config.train.checkpoint_every = 10_000
    config.train.keep_every = 100_000
    config.sampling.sampler = "ddpm_large"
    config.sampling.num_steps = 1000
    config.sampling.grid = "trailing"
    return config
