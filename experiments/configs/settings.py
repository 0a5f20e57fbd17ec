"""Settings of a command: the config file, `--config.KEY=VALUE`, and checks of keys and types.

--config=PATH[:ARGUMENT] or --config=NAME      a file with get_config(), or the name of one in experiments/configs
--config.a.b=VALUE                             changes a setting; VALUE is read by the type of its default
"""

import ast
import contextlib
import difflib
import importlib.util
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from diffax.nn.interop import folder
from diffax.training import Profile
from experiments.configs import default, objectives

# The keys of these groups are the parameters of a schedule, objective, weighting or distribution that is set by name.
OPEN_GROUPS = ("schedule", "objective_parameters", "weighting_parameters", "times_parameters")
CONFIGS = Path(default.__file__).parent


@contextlib.contextmanager
def at(path: str) -> Iterator[None]:
    """Prefix errors with the path of a setting: "num_steps must be ..." -> "config.train.num_steps must be ..."."""
    try:
        yield
    except ValueError as error:
        message = str(error)
        raise ValueError(message if message.startswith((f"{path}.", f"{path} ")) else f"{path}.{message}") from error


def load_module(path: Path, what: str, names: Sequence[str]) -> Any:
    """The module of a Python file, which must define these functions. what: the name of the argument, for errors.

    Raises:
      ValueError: if there is no such file, it cannot be run, or lacks a function.
    """
    spec = importlib.util.spec_from_file_location(f"{what}_{path.stem}", path) if path.is_file() else None
    if spec is None or spec.loader is None:
        raise ValueError(f"{what} must be a Python file, got {path}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a user's file may raise anything
        raise ValueError(f"{what} {path} cannot be read: {type(error).__name__}: {error}") from error
    for name in names:
        if not callable(getattr(module, name, None)):
            raise ValueError(f"{what} {path} must define {name}()")
    return module


def load_config(text: str, changes: Sequence[str] = ()) -> ConfigDict:
    """The config of a file or name with changes "config.a.b=VALUE"; keys and types are checked.

    Raises:
      ValueError: for a file that is not a config, an unknown key or a value of another type.
    """
    name, _, argument = text.partition(":")
    path = Path(name).expanduser()
    if not path.exists():
        path = CONFIGS / f"{name.removesuffix('.py')}.py"
    if not path.exists():
        names = sorted({file.stem for file in CONFIGS.glob("*.py")} - {"__init__", "default", "settings"})
        raise ValueError(f"config must be a file or one of {', '.join(names)}, got {text}{suggestion(name, names)}")
    module = load_module(path, "config", ["get_config"])
    config = module.get_config(argument) if argument else module.get_config()
    if not isinstance(config, ConfigDict):
        raise ValueError(f"get_config of {path} must return a ConfigDict, got {type(config).__name__}")
    known = default.get_config()
    for text in changes:
        key, separator, value = text.partition("=")
        if not separator:
            raise ValueError(f"{key} needs a value: --{key}=VALUE")
        change(config, key, parsed(value, default_of(known, key)), known)
    check_keys(config, known, "config")
    if config.network.name == "diffusers" and not config.network.diffusers:
        config.network.diffusers = _network_config(Path(config.init_from).expanduser())
    return config


def _network_config(path: Path) -> str:
    """The config.json of the network in a folder saved by diffusers."""
    network_folder = folder.model_folder(path)
    if network_folder is None:
        raise ValueError(f"config.init_from must be a folder saved by diffusers, got {str(path)!r}")
    return (network_folder / "config.json").read_text()


def default_of(known: Any, key: str) -> Any:
    """The default of a setting "config.a.b", None for a parameter of an open group."""
    value: Any = known
    for name in key.split(".")[1:]:
        value = value.get(name) if isinstance(value, ConfigDict) else None
    return value


def parsed(text: str, expected: Any = None) -> Any:
    """The value of a text for a setting with this default: Python literals, true and false, lists without brackets.

    >>> parsed("1,2", (1,)), parsed("1e3", 5), parsed("true", False), parsed("cosine", "linear"), parsed("none", 0.5)
    ((1, 2), 1000, True, 'cosine', None)
    """
    if isinstance(expected, str):
        return text
    literals = {"true": True, "false": False, "none": None}
    if text.lower() in literals:
        return literals[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        if not isinstance(expected, tuple):
            return text
        return tuple(text.strip("()[]").split(",")) if text else ()
    if isinstance(expected, tuple) and not isinstance(value, (tuple, list)):
        return (value,)
    whole = isinstance(expected, int) and isinstance(value, float) and value.is_integer()
    return int(value) if whole else value


def change(config: ConfigDict, key: str, value: Any, known: ConfigDict) -> None:
    """Set "config.a.b" to a value.

    Raises:
      ValueError: if there is no such setting, or it has another type.
    """
    if not isinstance(key, str):
        raise ValueError(f"{key!r} is not a setting: keys must be strings")
    root, *groups, name = key.split(".") if "." in key else ("", key)
    if root != "config":
        raise ValueError(f"{key} is not a setting: keys must start with config.")
    target: Any = config
    expected: Any = known
    path = "config"
    for group in groups:
        _check_known(key, group, path, target)
        if not isinstance(target[group], ConfigDict):
            raise ValueError(f"{key} is not a setting: {path}.{group} is a value, not a group")
        target, expected, path = target[group], expected.get(group, ConfigDict()), f"{path}.{group}"
    if path.split(".")[-1] not in OPEN_GROUPS:
        _check_known(key, name, path, target)
    value = value.item() if isinstance(value, np.generic) else value
    value = tuple(value) if isinstance(value, list) else value
    if name in expected and not isinstance(expected[name], ConfigDict):
        _check_type(key, value, expected[name])
        is_float = isinstance(expected[name], float) or (expected[name] is None and value is not None)
        value = float(value) if is_float else value
    with target.unlocked(), target.ignore_type():
        target[name] = ConfigDict(value) if isinstance(value, dict) else value


def _check_known(key: str, name: str, path: str, group: Any) -> None:
    if name not in group:
        near = suggestion(name, list(group))
        raise ValueError(f"{key} is not a setting; those of {path} are {', '.join(group)}{near}")


def suggestion(name: str, known: Sequence[str]) -> str:
    """A hint with the closest known name, "" if none is close.

    >>> suggestion("num_step", ["num_steps", "seed"])
    ": did you mean 'num_steps'?"
    """
    near = difflib.get_close_matches(name, known, 1)
    return f": did you mean {near[0]!r}?" if near else ""


def check_keys(config: Mapping[str, Any], known: Mapping[str, Any], path: str) -> None:
    """Raise `ValueError` for settings that are unknown or missing, or have another type."""
    for key, value in config.items():
        _check_known(f"{path}.{key}", key, path, known)
        expected = known[key]
        if isinstance(expected, ConfigDict):
            if not isinstance(value, (ConfigDict, dict)):
                raise ValueError(f"{path}.{key} must be a group of settings, got {value!r}")
            if key not in OPEN_GROUPS:
                check_keys(value, expected, f"{path}.{key}")
        else:
            _check_type(f"{path}.{key}", value, expected)
    for key in known:
        if key not in config:
            raise ValueError(f"{path}.{key} is missing")


def _check_type(key: str, value: Any, expected: Any) -> None:
    if not _same_type(value, expected):
        kind = "float or None" if expected is None else type(expected).__name__
        raise ValueError(f"{key} must be of type {kind}, got {value!r}")


def _same_type(value: Any, expected: Any) -> bool:
    """Whether a setting with this default may have this value: an int for a float, a list for a tuple."""
    if expected is None:  # a float, or None for a default that is set elsewhere
        return value is None or _same_type(value, 0.0)
    if isinstance(expected, tuple):
        entry = type(expected[0]) if expected else int
        return isinstance(value, (tuple, list)) and all(type(v) is entry for v in value)
    kind = (int, float) if isinstance(expected, float) else type(expected)
    return isinstance(value, kind) and isinstance(value, bool) == isinstance(expected, bool)


def flatten(value: Any, path: str = "config") -> dict[str, Any]:
    """{"config.a.b": value} of a nested dict, with lists for tuples, as in JSON."""
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in flatten(inner, f"{path}.{key}").items()}
    return {path: list(value) if isinstance(value, tuple) else value}


def check_rules(config: Any, num_devices: int) -> None:
    """Raise `ValueError` for settings that are out of range or exclude each other, or for a batch that cannot be split.

    The constructors in `experiments.model.build` check everything else.
    """
    default.check(config)
    with at("config.train"):
        Profile(config.train.profile, "")
    _check_batch(config, num_devices)
    is_input = config.network.guidance_input
    check_guidance("config.sampling.guidance", config.sampling, can_guide(config), is_input=is_input)


def can_guide(config: Any) -> str:
    """The reason why a model cannot be guided, "" if it can."""
    return "" if config.network.guidance_input else without_null(config)


def without_null(config: Any) -> str:
    """The reason why a model has no null condition, "" if it has one."""
    if not (config.network.conditional or config.text.enabled):
        return "for a network without classes"
    return "" if config.loss.p_uncond else "without a null label (config.loss.p_uncond = 0)"


def check_guidance(name: str, sampling: Any, reason: str, *, is_input: bool = False) -> None:
    """Raise `ValueError` for guidance that is not possible.

    reason: as returned by `can_guide`. is_input: whether the guidance weight is an input of the network.
    """
    phi, bounds = sampling.guidance_rescale, tuple(sampling.guidance_interval)
    if not math.isfinite(sampling.guidance):
        raise ValueError(f"{name} must be finite, got {sampling.guidance}")
    if not 0 <= phi <= 1:
        raise ValueError(f"{name}_rescale must be in [0, 1], got {phi}")
    if len(bounds) != 2 or not 0 <= bounds[0] <= bounds[1] <= 1:
        raise ValueError(f"{name}_interval must be two times, 0 <= low <= high <= 1, got {bounds}")
    if sampling.guidance != 1 and reason:
        raise ValueError(f"{name} must be 1 {reason}, got {sampling.guidance}")
    for key, value, none in (("rescale", phi, 0), ("interval", bounds, (0, 1))):
        if is_input and value != none:
            raise ValueError(f"{name}_{key} must be {none} for a network with guidance_input, got {value}")


def group_size(config: Any) -> int:
    """The examples of a batch that must be on one device.

    Each accumulated part needs whole pairs of antithetic times, whole groups of an objective, and whole groups in which
    a coupling assigns the noise.
    """
    loss = config.loss
    pairs = 2 if loss.spread == "antithetic" else 1
    coupled = 1 if loss.coupling == "independent" else max(loss.coupling_size, 1)
    return max(config.optimizer.accumulate, 1) * math.lcm(pairs, objectives.ROWS[loss.objective].group, coupled)


def _check_batch(config: Any, num_devices: int) -> None:
    """Raise `ValueError` unless a batch can be split over the devices and their accumulated parts."""
    size, parts = config.dataset.batch_size, config.optimizer.accumulate
    if size % num_devices:
        raise ValueError(f"config.dataset.batch_size must be a multiple of the {num_devices} devices, got {size}")
    on_each = size // num_devices
    if on_each % parts:
        raise ValueError(f"config.optimizer.accumulate must divide the {on_each} examples of a device, got {parts}")
    if config.loss.spread == "antithetic" and on_each // parts % 2:
        raise ValueError(
            "config.dataset.batch_size must be even on each device, in each of config.optimizer.accumulate parts, for "
            f"config.loss.spread = 'antithetic', got {size} on {num_devices} in {parts}"
        )
    if on_each % (group := group_size(config)):
        raise ValueError(
            f"config.dataset.batch_size must have multiples of {group} examples on each device for "
            f"config.loss.objective = {config.loss.objective!r} and coupling = {config.loss.coupling!r}, got {size} on "
            f"{num_devices}"
        )
