"""Checks of config.loss.objective_parameters."""

import math
from collections.abc import Mapping
from typing import Any

from diffax import times
from diffax._checks import check, check_count, choose, interval
from diffax.flow_maps._consistency import SOLVERS
from experiments.models.few_steps._consistency import DISTANCES

RANGES = {
    "equal": "[0, 1]",
    "mixing": "[0, 1)",
    "q": "(1, inf)",
    **dict.fromkeys(("power", "k", "guidance"), "[0, inf)"),
    **dict.fromkeys(("offset", "normalise", "warmup", "huber"), "(0, inf)"),
}
TEXTS: dict[str, Any] = {"grid": tuple(times.CATALOGUE), "solver": tuple(SOLVERS), "distance": DISTANCES}


def checked(parameters: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of an objective; those whose default is an int are ints, other numbers are floats.

    Raises:
      ValueError: for a value that is out of range, or parameters that do not fit each other.
    """
    result: dict[str, Any] = {}
    for name, value in parameters.items():
        if name in TEXTS:
            result[name] = choose(name, value, TEXTS[name])
        elif isinstance(defaults[name], int):
            check_count(name, value, 2 if name == "num_levels" else 1)
            result[name] = value
        else:
            if name in RANGES:
                check(name, value, interval(RANGES[name]))
            result[name] = float(value)
    whole = {**defaults, **result}
    if "last" in whole and whole["last"] < whole["first"]:
        raise ValueError(f"last must be at least first = {whole['first']}, got {whole['last']}")
    if (count := whole.get("num_steps", 1)) & (count - 1):
        raise ValueError(f"num_steps must be a power of 2, got {count}")
    if "low" in whole and not 0 <= whole["low"] <= whole["high"] < math.inf:
        raise ValueError(f"low must be in [0, high = {whole['high']}], got {whole['low']}")
    if "mixing" in result and "guidance" not in result:
        raise ValueError(f"mixing needs guidance as well, got {result['mixing']} without it")
    return result
