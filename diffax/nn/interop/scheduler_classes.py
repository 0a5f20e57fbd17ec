"""The fields of scheduler_config.json that each scheduler class of diffusers 0.42.1 reads, and their defaults.

Diffusers ignores fields of other classes, and so does this module: `set_alpha_to_one` has no effect in the file of an
Euler scheduler. A field that no class reads raises an error.
"""

import math
from typing import NamedTuple

from diffax.nn.interop.fields import COUNT, FLAG, NUMBER, POSITIVE, UNIT, WHOLE, Field, Kind, many, one_of, or_none

KINDS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
CURVES = ("linear", "scaled_linear", "squaredcos_cap_v2")
OFF = Field(one_of(False, None), False)


class SchedulerClass(NamedTuple):
    """Fields and step grid of a scheduler class.

    fields: the fields that it reads. grid: "rounded", "exact" or "one_more", see `scheduler._timesteps`. last: whether
    sampling always ends at the level of timestep 0, for any values of the fields.
    """

    fields: dict[str, Field]
    grid: str
    last: bool = False


def _base(start: float = 1e-4, end: float = 0.02, curves: tuple[str, ...] = CURVES) -> dict[str, Field]:
    return {
        "num_train_timesteps": Field(COUNT, 1000),
        "beta_start": Field(UNIT, start),
        "beta_end": Field(UNIT, end),
        "beta_schedule": Field(_choice(*curves), "linear"),
        "trained_betas": Field(or_none(many(NUMBER)), None),
        "prediction_type": Field(_choice(*KINDS), "epsilon"),
    }


def _choice(*names: str) -> Kind:
    return Kind(f"one of {', '.join(names)}", lambda v: isinstance(v, str) and v in names)


def _spaced(default: str) -> dict[str, Field]:
    return {
        "timestep_spacing": Field(_choice("leading", "trailing", "linspace"), default),
        "steps_offset": Field(WHOLE, 0),
    }


def _flags(*names: str) -> dict[str, Field]:
    return dict.fromkeys(names, OFF)


SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
FLOW = ("use_flow_sigmas", "use_dynamic_shifting")
ZERO_SNR = {"rescale_betas_zero_snr": Field(FLAG, False)}
FINAL = {"final_sigmas_type": Field(_choice("zero", "sigma_min"), "zero")}
# Python's json writes and reads -inf as -Infinity.
LEAST = {
    "lambda_min_clipped": Field(Kind("a number or -Infinity", lambda v: v == -math.inf or NUMBER.holds(v)), -math.inf)
}


def _clip(default: bool) -> dict[str, Field]:
    return {"clip_sample": Field(FLAG, default), "clip_sample_range": Field(POSITIVE, 1.0)}


def _to_one(default: bool) -> dict[str, Field]:
    return {"set_alpha_to_one": Field(FLAG, default)}


DDIM = _base() | _spaced("leading") | _clip(True) | _to_one(True) | ZERO_SNR | _flags("thresholding")
DDPM = (
    _base(curves=(*CURVES, "sigmoid")) | _spaced("leading") | _clip(True) | ZERO_SNR | _flags("thresholding")
    # A field in files from 2022. False means that the network predicts x0, which is not supported.
    | {"predict_epsilon": Field(one_of(True), True)}
)  # fmt: skip
EULER = (
    _base() | _spaced("linspace") | ZERO_SNR | FINAL | _flags(*SIGMAS)
    | {"interpolation_type": Field(one_of("linear"), "linear"), "timestep_type": Field(one_of("discrete"), "discrete")}
)  # fmt: skip
KDIFFUSION = _base(0.00085, 0.012) | _spaced("linspace") | _flags(*SIGMAS)
SINGLE = _base() | FINAL | LEAST | _flags("thresholding", *SIGMAS, *FLOW)
MULTI = SINGLE | _spaced("linspace") | ZERO_SNR | _flags("use_lu_lambdas")
DEIS = _base() | _spaced("linspace") | _flags("thresholding", *SIGMAS, *FLOW)
UNIPC = DEIS | ZERO_SNR | FINAL | {"shift_terminal": Field(one_of(None), None)}
SA = _base() | _spaced("linspace") | LEAST | _flags("thresholding", *SIGMAS, "use_flow_sigmas")

CLASSES: dict[str, SchedulerClass] = {
    "DDPMScheduler": SchedulerClass(DDPM, "rounded"),
    "DDPMParallelScheduler": SchedulerClass(DDPM, "rounded"),
    "DDIMScheduler": SchedulerClass(DDIM, "rounded"),
    "DDIMParallelScheduler": SchedulerClass(DDIM, "rounded"),
    "PNDMScheduler": SchedulerClass(_base() | _spaced("leading") | _to_one(False), "rounded"),
    "EulerDiscreteScheduler": SchedulerClass(EULER, "exact"),
    "EulerAncestralDiscreteScheduler": SchedulerClass(_base() | _spaced("linspace") | ZERO_SNR, "exact"),
    "LMSDiscreteScheduler": SchedulerClass(_base() | _spaced("linspace") | _flags(*SIGMAS), "exact"),
    "HeunDiscreteScheduler": SchedulerClass(KDIFFUSION | _clip(False), "exact"),
    "KDPM2DiscreteScheduler": SchedulerClass(KDIFFUSION, "exact"),
    "KDPM2AncestralDiscreteScheduler": SchedulerClass(KDIFFUSION, "exact"),
    "DPMSolverSDEScheduler": SchedulerClass(KDIFFUSION, "exact"),
    "DPMSolverMultistepScheduler": SchedulerClass(MULTI, "one_more"),
    "DPMSolverSinglestepScheduler": SchedulerClass(SINGLE, "one_more"),
    "DEISMultistepScheduler": SchedulerClass(DEIS, "one_more", last=True),
    "UniPCMultistepScheduler": SchedulerClass(UNIPC, "one_more"),
    "SASolverScheduler": SchedulerClass(SA, "one_more", last=True),
}

# Fields that are accepted without effect: details of the steps, because the caller chooses the sampler; options of
# features that are not supported; and, in the last line, fields of older files and of classes that are not supported.
IGNORED = (
    *("solver_order", "solver_type", "algorithm_type", "lower_order_final", "euler_at_final", "variance_type"),
    *("predictor_order", "corrector_order", "tau_func", "predict_x0", "disable_corrector", "solver_p"),
    *("skip_prk_steps", "noise_sampler_seed", "dynamic_thresholding_ratio", "sample_max_value"),
    *("sigma_min", "sigma_max", "flow_shift", "time_shift_type"),
    *("tensor_format", "timestep_values", "original_inference_steps", "timestep_scaling"),
)
FIELDS = {name for scheduler_class in CLASSES.values() for name in scheduler_class.fields}
