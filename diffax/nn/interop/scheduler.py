"""diffusers' scheduler_config.json as a schedule, a step grid and a prediction kind.

The class that the config names gives what the config does not say, the grid of its `set_timesteps`, and where it
stops. Which sampler goes over the grid is the caller's choice, so fields about how a class steps are not read:
solver_order, algorithm_type, variance_type and the like, `scheduler_classes.IGNORED`. Two things of stepping follow:
the second calls of Heun's and the DPM2 methods and the warm-up of PNDM are not in the grid, and DDIM and PNDM step
there by T // n whatever their spacing, here from one entry of the grid to the next. With `rescale_betas_zero_snr` the
last level has alpha = 0 for all classes; Euler and the solvers, which divide by it, have alpha^2 = 2^-24 there.
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
from diffax.nn.interop.scheduler_classes import CLASSES, FIELDS, IGNORED, KINDS, Law
from diffax.typing import Array

FILE = "scheduler_config.json"


class Scheduler(NamedTuple):
    """What a scheduler_config.json says.

    schedule: a table. kind: of the network's prediction. times: n -> (n,) times, those of `set_timesteps(n)`. clip:
    x0's range, or None. last: the time that a sampler is to stop at after them, or None to end with the denoiser's x0.
    """

    schedule: Any
    kind: str
    times: Callable[[int], Array]
    clip: float | None
    last: float | None

    @property
    def count(self) -> int:
        """T, the timesteps that the network was trained on: timestep i is t = (i + 1) / T."""
        return len(self.schedule.log_snr_table)


def build(config: dict[str, Any]) -> Scheduler:
    """The schedule, grid and prediction kind of a scheduler_config.json.

    Raises:
      ValueError: for a class that is not known, and for what is not supported of one; lists it all.
    """
    law, of = read(config)
    betas, count = _betas(of), of["num_train_timesteps"]
    if of.get("rescale_betas_zero_snr"):
        betas = schedules.zero_terminal_snr(betas)
    schedule = schedules.from_betas(betas)
    stops = law.last or not of.get("set_alpha_to_one", True) or of.get("final_sigmas_type") == "sigma_min"
    end = _usable(schedule, of)
    return Scheduler(
        schedule,
        KINDS[of["prediction_type"]],
        lambda n: jnp.asarray((_steps(law, of, end, n) + 1) / count, dtype=float),
        of["clip_sample_range"] if of.get("clip_sample") else None,
        1 / count if stops else None,
    )


def read(config: Any) -> tuple[Law, dict[str, Any]]:
    """(how the class of a config is read, {field: value} with its defaults). Raises as `build`."""
    fields.check_object(config, FILE)
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in CLASSES:
        raise ValueError(f"{FILE} must be that of one of {', '.join(CLASSES)}, got {name!r}")
    law = CLASSES[name]
    rules = (
        fields.Rule(
            ("trained_betas", "num_train_timesteps"),
            lambda betas, count: betas is None or len(betas) == count,
            lambda betas, count: f"trained_betas must have num_train_timesteps = {count} entries, got {len(betas)}",
        ),
        fields.Rule(
            ("trained_betas",),
            lambda betas: betas is None or all(0 < beta < 1 for beta in betas),
            lambda betas: f"trained_betas must lie in (0, 1), got {next(b for b in betas if not 0 < b < 1)}",
        ),
    )
    return law, fields.read(config, law.fields, rules, {*FIELDS, *IGNORED}, FILE)


def save(folder: str | os.PathLike, config: dict[str, Any]) -> None:
    """Writes a scheduler_config.json that diffusers reads: one that was read comes back bit for bit.

    Raises:
      ValueError: as `build`; nothing is written then.
    """
    build(config)
    written = json.dumps(config, indent=2).encode() + b"\n"
    fields.write(Path(folder) / FILE, lambda path: path.write_bytes(written))


def _betas(of: dict[str, Any]) -> np.ndarray:
    count, start, end = of["num_train_timesteps"], of["beta_start"], of["beta_end"]
    if of["trained_betas"] is not None:
        return np.asarray(of["trained_betas"], np.float64)
    known: dict[str, Callable] = {
        "linear": lambda: np.linspace(start, end, count),
        "scaled_linear": lambda: np.linspace(start**0.5, end**0.5, count) ** 2,
        "squaredcos_cap_v2": lambda: schedules.cosine_betas(count),
        "sigmoid": lambda: start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, count))),
    }
    return known[of["beta_schedule"]]()


def _usable(schedule: Any, of: dict[str, Any]) -> int:
    """How many timesteps have log(alpha / sigma) of lambda_min_clipped or more: the first ones."""
    lambdas = np.asarray(schedule.log_snr_table, np.float64)[::-1] / 2
    return len(lambdas) - int(np.searchsorted(lambdas, of.get("lambda_min_clipped", -np.inf)))


def _steps(law: Law, of: dict[str, Any], end: int, n: int) -> np.ndarray:
    """(n,) timesteps, the first `end` of which may be used, falling. Of "exact" they need not be whole.

    Euler's and its like keep evenly spaced ones as they are; the multistep solvers lay out one more and drop it.
    """
    count, spacing = of["num_train_timesteps"], of.get("timestep_spacing", "linspace")
    check_count("n", n)
    more = law.grid == "one_more" and spacing != "trailing"
    if n > count or (spacing == "leading" and n + more > end):
        raise ValueError(f"n must be at most {min(count, end - more)} for this scheduler, got {n}")
    steps: Any
    if spacing == "trailing":
        steps = np.round(np.arange(end, 0, -count / n)[:n]) - 1
    elif spacing == "leading":
        steps = np.arange(n + more)[::-1] * (end // (n + more)) + of["steps_offset"]
    else:
        steps = np.linspace(0, end - 1, n + more)[::-1]
        steps = steps if law.grid == "exact" else np.round(steps)
    steps = steps[:n]
    if steps[0] >= count:
        raise ValueError(f"steps_offset must keep timesteps below {count}, got {of['steps_offset']} for n = {n}")
    return steps
