from experiments.configs import digits


def get_config():
    config = digits.get_config()
    config.schedule = {"name": "flow"}
    config.prediction = "velocity"
    config.network.second_time = True
    config.network.time_scale = 8.0
    config.network.dropout_rate = 0.0
    config.loss.objective = "mean_flow"
    config.loss.times = "logit_normal"
    config.loss.times_parameters = {"mean": -0.4}
    config.sampling.sampler = "jump"
    config.sampling.grid = "trailing"
    config.sampling.num_steps = 1
    config.sampling.guidance = 1.0
    return config
