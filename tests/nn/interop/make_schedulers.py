"""Makes schedulers.json: timesteps and levels of diffusers' schedulers, by class, spacing, full and minimal config.

    python tests/nn/interop/make_schedulers.py

This needs torch, diffusers (the fixture is from torch 2.13.0 and diffusers 0.42.1) and torchsde. `defaults` are the
signatures of the classes. A case has config, grids: {n: timesteps}, alphas: alphas_cumprod at some timesteps, end:
alpha^2 of the level after the last step, and, where timesteps are integers, crc: of all grids of n = 1 .. 200.
"""

import inspect
import json
import tempfile
import warnings
import zlib
from pathlib import Path

import diffusers
import numpy as np

NAMES = (
    *("DDPM", "DDPMParallel", "DDIM", "DDIMParallel", "PNDM", "EulerDiscrete", "EulerAncestralDiscrete"),
    *("LMSDiscrete", "HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete", "DPMSolverSDE"),
    *("DPMSolverMultistep", "DPMSolverSinglestep", "DEISMultistep", "UniPCMultistep", "SASolver"),
)
TWICE = {"HeunDiscrete": 1, "KDPM2Discrete": 0, "KDPM2AncestralDiscrete": 0, "DPMSolverSDE": 0}
SPACINGS = ("leading", "trailing", "linspace")
STABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
CHANGES = (
    {"num_train_timesteps": 500},
    {"num_train_timesteps": 7, "trained_betas": [0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5]},
    {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
    {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    {"set_alpha_to_one": False, "final_sigmas_type": "sigma_min", "clip_sample": True, "clip_sample_range": 2.0},
    {"set_alpha_to_one": True, "prediction_type": "sample"},
    {"lambda_min_clipped": -3.0, "beta_schedule": "squaredcos_cap_v2"},
    {"lambda_min_clipped": -3.0, "timestep_spacing": "leading"},
)
COUNTS, WHOLE = (1, 5, 7), range(1, 201)


def full(kind, config):
    """The config with all defaults, as `save_config` writes it."""
    with tempfile.TemporaryDirectory() as folder:
        kind(**config).save_config(folder)
        return json.loads((Path(folder) / "scheduler_config.json").read_text())


def grid(name, scheduler, n):
    """The step grid without the timesteps that the class repeats."""
    if name == "PNDM":
        scheduler.register_to_config(skip_prk_steps=True)  # required for n < 4
    scheduler.set_timesteps(n)
    if name == "PNDM":
        return np.asarray(scheduler._timesteps)[::-1].astype(float)
    steps = scheduler.timesteps.numpy().astype(float)
    if name not in TWICE:
        return steps[:n]  # rounding can add a timestep -1
    return np.append(steps[:1], steps[1::2]) if TWICE[name] else steps[::2]


def end(name, scheduler):
    """alpha^2 of the level after the last timestep."""
    if name.startswith("DDPM"):
        return 1.0
    if hasattr(scheduler, "final_alpha_cumprod"):
        return float(scheduler.final_alpha_cumprod)
    return 1 / (1 + float(scheduler.sigmas[-1]) ** 2)


def case(name, config):
    """The case of a config."""
    kind = getattr(diffusers, f"{name}Scheduler")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = kind.from_config({k: v for k, v in config.items() if k != "_class_name"})
    count, parameters = scheduler.config.num_train_timesteps, inspect.signature(kind.__init__).parameters
    grids = {n: grid(name, scheduler, n) for n in COUNTS if n < count}
    result = {
        "config": config,
        "grids": {n: [round(float(v), 4) for v in steps] for n, steps in grids.items()},
        "alphas": {i: float(scheduler.alphas_cumprod[i]) for i in sorted({0, 1, count // 2, count - 2, count - 1})},
        "end": end(name, scheduler),
        "clip": scheduler.config.clip_sample_range
        if "clip_sample" in parameters and scheduler.config.clip_sample
        else None,
    }
    integers = all((steps == np.round(steps)).all() for steps in grids.values())
    if integers and count >= 500 and name not in TWICE and name != "PNDM":
        steps = np.concatenate([grid(name, scheduler, n) for n in WHOLE])
        if (steps == np.round(steps)).all():
            result["crc"] = zlib.crc32(steps.astype(np.int32).tobytes())
    return result


def main():
    """Writes the file."""
    result = {"defaults": {}, "cases": []}
    for name in NAMES:
        kind = getattr(diffusers, f"{name}Scheduler")
        minimal = {"_class_name": f"{name}Scheduler"}
        arguments = list(inspect.signature(kind.__init__).parameters.values())[1:]
        result["defaults"][f"{name}Scheduler"] = {argument.name: argument.default for argument in arguments}
        parameters = set(result["defaults"][f"{name}Scheduler"])
        configs = [minimal, minimal | STABLE]
        for spacing in SPACINGS if "timestep_spacing" in parameters else ():
            configs += [minimal | {"timestep_spacing": spacing}, full(kind, STABLE | {"timestep_spacing": spacing})]
        configs += [minimal | changes for changes in CHANGES]
        result["cases"] += [case(name, config) for config in configs]
    lines = ",\n".join(json.dumps(entry) for entry in result["cases"])
    text = f'{{"defaults": {json.dumps(result["defaults"])},\n"cases": [\n{lines}\n]}}\n'
    (Path(__file__).parent / "schedulers.json").write_text(text)
    print(
        len(result["cases"]),
        "cases,",
        len(text),
        "bytes,",
        sum("crc" in entry for entry in result["cases"]),
        "with crc",
    )


if __name__ == "__main__":
    main()
