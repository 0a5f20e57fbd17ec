"""diffusers' scheduler_config.json as a schedule, a step grid and a prediction kind.

Which sampler goes over the grid is the caller's choice; the class that the config names is not followed in that.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from diffax import schedules, times
from diffax.nn.interop.weights import check_fields
from diffax.typing import Array

KINDS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
GRIDS = {"leading": times.leading, "trailing": times.trailing, "linspace": times.linspace}
# DDPM, DDIM, PNDM, Euler, DPM-Solver, UniPC, DEIS, LMS, Heun: fields about how they step, which is not followed.
STEPPING = (
    "solver_order",
    "solver_type",
    "algorithm_type",
    "lower_order_final",
    "euler_at_final",
    "final_sigmas_type",
    "skip_prk_steps",
    "variance_type",
    "interpolation_type",
    "timestep_type",
    "predict_x0",
    "disable_corrector",
    "solver_p",
    "lambda_min_clipped",
    "sigma_min",
    "sigma_max",
    "dynamic_thresholding_ratio",
    "sample_max_value",
)
SUPPORTED = {
    "thresholding": False,
    "use_karras_sigmas": (False, None),
    "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None),
    "use_lu_lambdas": (False, None),
    "use_flow_sigmas": (False, None),
    "flow_shift": (1.0, 1),
    "shift_terminal": None,
    "use_dynamic_shifting": False,
    "time_shift_type": "exponential",
}
USED = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type"),
    *("timestep_spacing", "steps_offset", "rescale_betas_zero_snr", "clip_sample", "clip_sample_range"),
    "set_alpha_to_one",
)


class Scheduler(NamedTuple):
    """What a scheduler_config.json says.

    schedule: a table. kind: of the network's prediction. times: n -> (n,) times of n calls. clip: x0's range, or None.
    last: the time that a sampler is to stop at after them, or None to end with the denoiser's x0.
    """

    schedule: Any
    kind: str
    times: Callable[[int], Array]
    clip: float | None
    last: float | None


def build(config: dict[str, Any]) -> Scheduler:
    """The schedule, grid and prediction kind of a scheduler_config.json.

    Raises:
      ValueError: for what is not supported; lists it all.
    """
    check_fields(config, SUPPORTED, (*USED, *STEPPING))
    count = config.get("num_train_timesteps", 1000)
    kind, spacing = config.get("prediction_type", "epsilon"), config.get("timestep_spacing", "leading")
    for name, value, known in (("prediction_type", kind, KINDS), ("timestep_spacing", spacing, GRIDS)):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    betas = _betas(config, count)
    if config.get("rescale_betas_zero_snr"):
        betas = schedules.zero_terminal_snr(betas)
    offset = {"offset": config.get("steps_offset", 0)} if spacing == "leading" else {}
    return Scheduler(
        schedules.from_betas(betas),
        KINDS[kind],
        lambda n: GRIDS[spacing](count, n, **offset),
        config.get("clip_sample_range", 1.0) if config.get("clip_sample", _clips(config)) else None,
        None if config.get("set_alpha_to_one", True) else 1 / count,
    )


def _clips(config):
    """What `clip_sample` is where the file does not say."""
    return config.get("_class_name") in ("DDPMScheduler", "DDIMScheduler")


def _betas(config: dict[str, Any], count: int) -> Any:
    name, start, end = (
        config.get(k, v) for k, v in (("beta_schedule", "linear"), ("beta_start", 1e-4), ("beta_end", 0.02))
    )
    if config.get("trained_betas") is not None:
        return np.asarray(config["trained_betas"], np.float64)
    known: dict[str, Callable] = {
        "linear": lambda: np.linspace(start, end, count),
        "scaled_linear": lambda: np.linspace(start**0.5, end**0.5, count) ** 2,
        "squaredcos_cap_v2": lambda: schedules.cosine_betas(count),
        "sigmoid": lambda: start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, count))),
    }
    if name not in known:
        raise ValueError(f"beta_schedule must be one of {', '.join(known)}, got {name!r}")
    return known[name]()
