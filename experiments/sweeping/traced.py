"""The floats of a config as arguments of a compiled program: one program serves all their values.

static, values = split(config)          values: {"config.seed": 3, "config.optimizer.learning_rate": 1e-3, ...}
config_inside = bind(config, values)    values may be traced
"""

import json
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from experiments.run.workdir import flatten

FLOATS = (
    "config.sigma_data",
    "config.loss.p_uncond",
    "config.loss.vlb_weight",
    "config.optimizer.learning_rate",
    "config.optimizer.weight_decay",
    "config.optimizer.b1",
    "config.optimizer.b2",
    "config.optimizer.clip_norm",
    "config.optimizer.ema_decay",
    "config.sampling.eta",
)
GROUPS = ("config.schedule.", "config.loss.weighting_parameters.", "config.loss.times_parameters.")
SEED = "config.seed"
# Of one program's data, not of the program.
INPUTS = ("config.dataset.data_dir", "config.dataset.num_threads", "config.dataset.cache")


def _is_traced(key: str, value: Any, config: Any) -> bool:
    if key == SEED or key in FLOATS:
        return value is not None
    name = config.schedule.get("name", "")
    if key.startswith("config.schedule.") and (name == "learned" or name.endswith("_betas")):
        return False  # part of the first parameters' shapes and ends; of a table that the host computes
    return key.startswith(GROUPS) and isinstance(value, float)


def split(config: Any) -> tuple[str, dict[str, Any]]:
    """(what a program is compiled for, as a string to compare; what it is given, by key)."""
    flat = flatten(config.to_dict())
    values = {key: value for key, value in flat.items() if _is_traced(key, value, config)}
    static = {key: value for key, value in flat.items() if key not in values and key not in INPUTS}
    return json.dumps([static, sorted(values)], sort_keys=True), values


def arrays(values: dict[str, Any]) -> dict[str, Any]:
    """The values as arrays: the seed an int32, the rest float32."""
    return {key: jnp.asarray(v, jnp.int32 if key == SEED else jnp.float32) for key, v in values.items()}


def bind(config: Any, values: dict[str, Any]) -> ConfigDict:
    """A copy of the config with these values, traced ones too."""
    bound = config.to_dict()
    for key, value in values.items():
        *groups, name = key.split(".")[1:]
        at = bound
        for group in groups:
            at = at[group]
        at[name] = value
    return ConfigDict(bound)
