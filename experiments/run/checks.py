"""What is wrong with a config, said in one line before anything is built."""

import math
from collections.abc import Sequence
from typing import Any

import ml_collections

import diffax
from diffax._checks import choose
from diffax.predictions import KINDS
from experiments.configs import default
from experiments.models import adapters as lora
from experiments.models import autoencoder, build, latents, networks, objectives, samplers
from experiments.models import captions as text

# Their keys are the parameters of what a name says: of the group's own, or of the setting they are called after.
OPEN_GROUPS = ("schedule", "weighting_parameters", "times_parameters")


def check_config(config: Any, num_devices: int) -> None:
    """Raises `ValueError`, naming the key and the value, for a config that cannot be run."""
    check_keys(config, default.get_config(), "config")
    build.schedule(config)
    choose("config.parallel", config.parallel, build.PARALLEL)
    choose("config.prediction", config.prediction, KINDS)
    _check_objective(config)
    networks.check(config)
    text.check(config)
    lora.check(config)
    autoencoder.check(config)
    latents.check(config)
    choose("config.loss.spread", config.loss.spread, objectives.SPREADS)
    samplers.check_sampler("config.sampling.sampler", config.sampling.sampler)
    samplers.check_grid("config.sampling.grid", config.sampling.grid)
    if not config.sigma_data > 0:
        raise ValueError(f"config.sigma_data must be > 0, got {config.sigma_data}")
    diffax.denoiser(lambda x, t: x, build.schedule(config), config.prediction)
    objectives.weighting(config)
    objectives.law(config)
    build.sampler(config)
    build.optimizer(config)
    _check_numbers(config)
    _check_batch(config, num_devices)
    check_guidance("config.sampling.guidance", config.sampling.guidance, config)
    build.grid(config)


def _check_numbers(config: Any) -> None:
    """Counts, rates and steps by themselves."""
    for group, keys in {
        "dataset": ("batch_size", "num_threads"),
        "network": ("channels", "num_res_blocks", "num_heads"),
        "optimizer": ("accumulate",),
        "train": ("num_steps", "log_every", "sample_every", "checkpoint_every", "keep_latest"),
        "sampling": ("num_steps",),
    }.items():
        for key in keys:
            if config[group][key] < 1:
                raise ValueError(f"config.{group}.{key} must be >= 1, got {config[group][key]}")
    for key in ("keep_every", "max_skipped"):
        if config.train[key] < 0:
            raise ValueError(f"config.train.{key} must be >= 0, got {config.train[key]}")
    if (steps := tuple(config.train.profile)) and not (len(steps) == 2 and 1 <= steps[0] <= steps[1]):
        raise ValueError(f"config.train.profile must be () or two steps (first, last), got {steps}")
    for name, rate in (
        ("loss.p_uncond", config.loss.p_uncond),
        ("network.dropout_rate", config.network.dropout_rate),
        ("optimizer.ema_decay", config.optimizer.ema_decay),
    ):
        if not 0 <= rate < 1:
            raise ValueError(f"config.{name} must be in [0, 1), got {rate}")


def _check_batch(config: Any, num_devices: int) -> None:
    """Whether a batch can be spread over the devices, and accumulated there."""
    if config.dataset.batch_size % num_devices:
        raise ValueError(
            f"config.dataset.batch_size must be a multiple of the {num_devices} devices, "
            f"got {config.dataset.batch_size}"
        )
    on_each = config.dataset.batch_size // num_devices
    if on_each % config.optimizer.accumulate:
        raise ValueError(
            f"config.optimizer.accumulate must divide the {on_each} examples of a device, "
            f"got {config.optimizer.accumulate}"
        )
    if config.loss.spread == "antithetic" and on_each // config.optimizer.accumulate % 2:
        raise ValueError(
            "config.dataset.batch_size must be even on each device, in each of config.optimizer.accumulate parts, for "
            f"config.loss.spread = 'antithetic', got {config.dataset.batch_size} on {num_devices} in "
            f"{config.optimizer.accumulate}"
        )


def check_model(config: Any, model: str) -> None:
    """Raises `ValueError` for settings that mean nothing for this kind of model."""
    if model == "diffusion":
        return
    for name, value, none in (
        ("latent.autoencoder", config.latent.autoencoder, ""),
        ("lora.base", config.lora.base, ""),
        ("text.enabled", config.text.enabled, False),
        ("network.name", config.network.name, "unet"),
    ):
        if value != none:
            raise ValueError(f"config.{name} must be {none!r} for training a {model}, got {value!r}")


def check_best(config: Any, measures: Sequence[str]) -> None:
    """Raises `ValueError` if the best checkpoint is to be chosen by what is not measured."""
    best = config.train.keep_best
    if best and best.removeprefix("-") not in measures:
        raise ValueError(f'config.train.keep_best must be "", or one of {", ".join(measures)} or -one, got {best!r}')


def check_data(config: Any, dataset: Any) -> None:
    """Raises `ValueError` for a loss that is meant for other data."""
    width, expected = config.loss.bin_width, 2 / (dataset.high - dataset.low)
    if width > 0 and not math.isclose(width, expected, rel_tol=1e-6):
        raise ValueError(f"config.loss.bin_width must be {expected:g} for {dataset.name}, got {width:g}")


def _check_objective(config: Any) -> None:
    objective = config.loss.objective
    choose("config.loss.objective", objective, objectives.OBJECTIVES)
    if (objective != "denoising") != (config.loss.bin_width > 0):
        wanted = "0" if objective == "denoising" else "> 0"
        raise ValueError(f"config.loss.bin_width must be {wanted} for {objective}, got {config.loss.bin_width}")
    if config.network.learned_variance != (objective in ("hybrid", "vlb")):
        raise ValueError(
            f"config.network.learned_variance must be {objective in ('hybrid', 'vlb')} for {objective}, "
            f"got {config.network.learned_variance}"
        )
    if build.is_learned(config) != (objective == "vdm"):
        raise ValueError(
            f"config.schedule.name must {'' if objective == 'vdm' else 'not '}be learned for "
            f"config.loss.objective = {objective!r}, got {config.schedule.name!r}"
        )
    if objective == "vdm" and config.network.time != "log_snr":
        raise ValueError(f"config.network.time must be log_snr for vdm, got {config.network.time!r}")
    if objective != "denoising" and config.loss.weighting != "target":
        raise ValueError(f"config.loss.weighting must be target for {objective}, got {config.loss.weighting!r}")
    if config.loss.vlb_weight < 0:
        raise ValueError(f"config.loss.vlb_weight must be >= 0, got {config.loss.vlb_weight}")
    if config.sampling.sampler == "ddpm_learned" and not config.network.learned_variance:
        raise ValueError("config.sampling.sampler must not be ddpm_learned without config.network.learned_variance")


def check_guidance(name: str, weight: float, config: Any) -> None:
    """Raises `ValueError` for guidance that makes no sense, or needs a null label which the network never learnt."""
    if not math.isfinite(weight):
        raise ValueError(f"{name} must be finite, got {weight}")
    phi, bounds = config.sampling.guidance_rescale, tuple(config.sampling.guidance_interval)
    if not 0 <= phi <= 1:
        raise ValueError(f"{name}_rescale must be in [0, 1], got {phi}")
    if len(bounds) != 2 or not 0 <= bounds[0] <= bounds[1] <= 1:
        raise ValueError(f"{name}_interval must be two times, 0 <= low <= high <= 1, got {bounds}")
    if weight == 1:
        return
    if not (config.network.conditional or config.text.enabled):
        raise ValueError(f"{name} must be 1 for a network without classes, got {weight}")
    if config.loss.p_uncond == 0:
        raise ValueError(f"{name} must be 1 without a null label (config.loss.p_uncond = 0), got {weight}")


def check_keys(config: Any, known: Any, path: str) -> None:
    """Raises `ValueError` for settings that are not known, are missing, or have another type."""
    for key, value in config.items():
        if key not in known:
            raise ValueError(f"{path}.{key} is no setting; those of {path} are {', '.join(known)}")
        expected = known[key]
        if isinstance(expected, ml_collections.ConfigDict):
            if not isinstance(value, (ml_collections.ConfigDict, dict)):
                raise ValueError(f"{path}.{key} must be a group of settings, got {value!r}")
            if key not in OPEN_GROUPS:
                check_keys(value, expected, f"{path}.{key}")
        elif not same_type(value, expected):
            raise ValueError(f"{path}.{key} must be of type {type_of(expected)}, got {value!r}")
    for key in known:
        if key not in config:
            raise ValueError(f"{path}.{key} is missing")


def type_of(expected: Any) -> str:
    """The type that a setting with this default has, for a message."""
    return "float or None" if expected is None else type(expected).__name__


def same_type(value: Any, expected: Any) -> bool:
    """Whether a setting whose default is `expected` may have this value: an int for a float, a list for a tuple."""
    if expected is None:  # a float, or None for another's default
        return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
    if isinstance(expected, bool) or isinstance(value, bool):
        return isinstance(expected, bool) and isinstance(value, bool)
    if isinstance(expected, float):
        return isinstance(value, (int, float))
    if isinstance(expected, tuple):
        of = type(expected[0]) if expected else int
        return isinstance(value, (tuple, list)) and all(type(v) is of for v in value)
    return isinstance(value, type(expected))
