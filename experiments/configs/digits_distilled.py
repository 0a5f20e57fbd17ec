from experiments.configs import digits


def get_config():
    config = digits.get_config()
    config.init_from = "runs/digits"
    config.teacher = "runs/digits"
    config.network.dropout_rate = 0.0
    config.loss.objective = "consistency_distillation"
    config.loss.p_uncond = 0.0
    config.sampling.sampler = "consistency"
    config.sampling.grid = "trailing"
    config.sampling.num_steps = 1
    config.sampling.guidance = 1.0
    return config
