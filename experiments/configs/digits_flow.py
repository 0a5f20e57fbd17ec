"""docstring later"""

from experiments.configs import digits


def get_config():
    """As `digits`, by flow matching."""
    config = digits.get_config()
    config.schedule = {"name": "flow"}
    config.prediction = "velocity"
    return config
