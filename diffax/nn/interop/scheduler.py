"""diffusers' scheduler_config.json as a schedule, a step grid and a prediction kind.

The class that the config names defines the defaults of missing fields, the grid (that of `set_timesteps`), and the
time at which sampling ends. The caller chooses the sampler, so fields that only affect the steps of a class are
ignored: solver_order, algorithm_type, variance_type and others, see `scheduler_classes.IGNORED`. Differences from
diffusers:

    second calls   the grid omits the second calls of Heun's and the DPM2 methods, and the warm-up of PNDM
    step length    DDIM and PNDM in diffusers step by T // n for any spacing; here a step goes to the next grid entry
    zero SNR       with `rescale_betas_zero_snr` alpha = 0 at the last level; Euler and the solvers of diffusers divide
                   by alpha and use alpha^2 = 2^-24
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from diffax import schedules
from diffax._checks import check_count
from diffax.nn.interop import fields
from diffax.nn.interop.scheduler_classes import CLASSES, FIELDS, IGNORED, KINDS, SchedulerClass
from diffax.typing import Array

FILE = "scheduler_config.json"


class Scheduler(NamedTuple):
    """The content of a scheduler_config.json.

    schedule: a table. kind: the prediction kind of the network. times: n -> (n,) times, those of `set_timesteps(n)`.
    clip: the range of x0, or None. last: the time that follows `times` and ends sampling, or None to end with the
    denoiser's x0.
    """

    schedule: Any
    kind: str
    times: Callable[[int], Array]
    clip: float | None
    last: float | None

    @property
    def count(self) -> int:
        """T, the number of timesteps in training: timestep i is t = (i + 1) / T."""
        return len(self.schedule.log_snr_table)


def build(config: dict[str, Any]) -> Scheduler:
    """The schedule, grid and prediction kind of a scheduler_config.json.

    Raises:
      ValueError: if the class is not supported, or fields are not supported for the class; the error lists all of them.
    """
    scheduler_class, values = read(config)
    betas, count = _betas(values), values["num_train_timesteps"]
    if values.get("rescale_betas_zero_snr"):
        betas = schedules.zero_terminal_snr(betas)
    schedule = schedules.from_betas(betas)
    ends_at_first_timestep = (
        scheduler_class.last
        or not values.get("set_alpha_to_one", True)
        or values.get("final_sigmas_type") == "sigma_min"
    )
    num_usable = _num_usable(schedule, values)
    return Scheduler(
        schedule,
        KINDS[values["prediction_type"]],
        lambda n: jnp.asarray((_timesteps(scheduler_class, values, num_usable, n) + 1) / count, dtype=float),
        values["clip_sample_range"] if values.get("clip_sample") else None,
        1 / count if ends_at_first_timestep else None,
    )


def read(config: Any) -> tuple[SchedulerClass, dict[str, Any]]:
    """(entry of `CLASSES`, {field: value} with the defaults of the class) of a config. Raises the errors of `build`."""
    fields.check_object(config, FILE)
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in CLASSES:
        raise ValueError(f"_class_name of {FILE} must be one of {', '.join(CLASSES)}, got {name!r}")
    scheduler_class = CLASSES[name]
    rules = (
        fields.Rule(
            ("trained_betas", "num_train_timesteps"),
            lambda betas, count: betas is None or len(betas) == count,
            lambda betas, count: f"trained_betas must have num_train_timesteps = {count} entries, got {len(betas)}",
        ),
        fields.Rule(
            ("trained_betas",),
            lambda betas: betas is None or all(0 < beta < 1 for beta in betas),
            lambda betas: f"trained_betas must be in (0, 1), got {next(b for b in betas if not 0 < b < 1)}",
        ),
    )
    return scheduler_class, fields.read(config, scheduler_class.fields, rules, {*FIELDS, *IGNORED}, FILE)


def save(folder: str | os.PathLike[str], config: dict[str, Any]) -> None:
    """Write a scheduler_config.json that diffusers reads. A config that diffusers wrote is restored bit for bit.

    Raises:
      ValueError: see `build`; nothing is written then.
    """
    build(config)
    content = json.dumps(config, indent=2).encode() + b"\n"
    fields.write(Path(folder) / FILE, lambda path: path.write_bytes(content))


def _betas(values: dict[str, Any]) -> np.ndarray:
    count, start, end = values["num_train_timesteps"], values["beta_start"], values["beta_end"]
    if values["trained_betas"] is not None:
        return np.asarray(values["trained_betas"], np.float64)
    curves: dict[str, Callable[[], np.ndarray]] = {
        "linear": lambda: np.linspace(start, end, count),
        "scaled_linear": lambda: np.linspace(start**0.5, end**0.5, count) ** 2,
        "squaredcos_cap_v2": lambda: schedules.cosine_betas(count),
        "sigmoid": lambda: start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, count))),
    }
    return curves[values["beta_schedule"]]()


def _num_usable(schedule: Any, values: dict[str, Any]) -> int:
    """The number of timesteps with log(alpha / sigma) >= lambda_min_clipped, which are 0 .. number - 1."""
    lambdas = np.asarray(schedule.log_snr_table, np.float64)[::-1] / 2
    return len(lambdas) - int(np.searchsorted(lambdas, values.get("lambda_min_clipped", -np.inf)))


def _timesteps(scheduler_class: SchedulerClass, values: dict[str, Any], num_usable: int, n: int) -> np.ndarray:
    """(n,) decreasing timesteps, less than `num_usable` before steps_offset is added.

    With linspace spacing, a grid "exact" (Euler and similar classes) is not rounded to integers. A grid "one_more"
    (multistep solvers) is computed for n + 1 timesteps and drops the last, except with trailing spacing.
    """
    count, spacing = values["num_train_timesteps"], values.get("timestep_spacing", "linspace")
    check_count("n", n)
    extra = scheduler_class.grid == "one_more" and spacing != "trailing"
    if n > count or (spacing == "leading" and n + extra > num_usable):
        raise ValueError(f"n must be at most {min(count, num_usable - extra)} for this scheduler, got {n}")
    steps: np.ndarray
    if spacing == "trailing":
        steps = np.round(np.arange(num_usable, 0, -count / n)[:n]) - 1
    elif spacing == "leading":
        steps = np.arange(n + extra)[::-1] * (num_usable // (n + extra)) + values["steps_offset"]
    else:
        steps = np.linspace(0, num_usable - 1, n + extra)[::-1]
        steps = steps if scheduler_class.grid == "exact" else np.round(steps)
    steps = steps[:n]
    if steps[0] >= count:
        raise ValueError(f"steps_offset must keep timesteps below {count}, got {values['steps_offset']} for n = {n}")
    return steps
