"""Every setting of a sweep's runs.

`config.task` says what a run is:

train    a config of `experiments.train` with a group `evaluation`: train, draw samples, measure them
sample   draw samples from one checkpoint, measure them
oracle   sample a Gaussian mixture by its exact denoiser, compare with the exact flow map and the exact law
"""

import ast
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.configs import default
from experiments.run import checks


def _evaluation() -> ConfigDict:
    """How samples are measured."""
    evaluation = ConfigDict()
    evaluation.num = 400  # samples
    evaluation.batch_size = 200  # drawn at a time
    evaluation.metrics = ("fd", "accuracy")  # names of `experiments.evaluation.measures`
    evaluation.extractor = "classifier"
    evaluation.inception_weights = ""  # the file that inception_v3 needs
    evaluation.reference = "test"  # the real images that samples are compared with; the floor is of the others
    evaluation.allow_few = False  # whether fd may do with fewer images than features
    evaluation.classifier_steps = 1500
    evaluation.seed = 0  # of the classifier and of random choices; samples follow config.seed
    return evaluation


def as_fid(config: ConfigDict) -> ConfigDict:
    """Measured as published tables are: 50,000 samples against the training images in Inception's features."""
    config.evaluation.num = 50_000
    config.evaluation.batch_size = 500
    config.evaluation.extractor = "inception_v3"
    config.evaluation.reference = "train"
    config.evaluation.metrics = ("fd",)
    return config


def training(experiment: ConfigDict) -> ConfigDict:
    """A config of `experiments.train` as the base of a sweep."""
    config = ConfigDict(experiment.to_dict())
    config.task = "train"
    config.evaluation = _evaluation()
    return config


def sampling() -> ConfigDict:
    """Draws from a checkpoint."""
    config = ConfigDict({"task": "sample", "seed": 0})
    config.checkpoint = ""  # a run's workdir, or an export
    config.calls = 20  # denoiser calls for a sample: the grid has as many points as they pay for
    config.sampling = default.get_config().sampling
    del config.sampling.num_steps
    config.evaluation = _evaluation()
    return config


def oracle() -> ConfigDict:
    """Draws from a mixture by its exact denoiser, in float64."""
    config = ConfigDict({"task": "oracle", "seed": 0})
    config.schedule = "linear"  # those of `experiments.benchmarks.problems`, as the next four
    config.dimension = 2
    config.examples = 256
    config.grid = "log_snr"
    config.end = 0.01  # sigma / alpha of the last grid point
    config.calls = 20
    config.sampler = "ddim"  # those of `experiments.models.build`
    config.eta = None  # the sampler's own default
    return config


COUNTS = ("num_steps", "units", "num_bins", "history")  # the ints among the parameters of schedules and the like
KNOWN = {"train": lambda: training(default.get_config()), "sample": sampling, "oracle": oracle}


def known(base: ConfigDict) -> ConfigDict:
    """Every setting of the kind of run that a config is of.

    Raises:
      ValueError: for another kind.
    """
    task = base.get("task")
    if task not in KNOWN:
        raise ValueError(f"config.task must be one of {', '.join(KNOWN)}, got {task!r}: start from sweeping.settings")
    return KNOWN[task]()


def check_keys(config: ConfigDict, known: ConfigDict) -> None:
    """Raises `ValueError` for settings that do not exist, are missing, or have another type."""
    checks.check_keys(config, known, "config")


def check_seed(config: ConfigDict) -> None:
    """Raises `ValueError` for a seed that is none: programs take it as an int32, generators want it positive."""
    if not 0 <= config.seed < 2**31:
        raise ValueError(f"config.seed must be in [0, 2^31), got {config.seed}")


def make_floats(config: ConfigDict) -> None:
    """Makes floats of ints that stand for them: of the settings with a type of their own, and of all parameters."""
    for name, value in config.items():
        if not isinstance(value, ConfigDict):
            continue
        make_floats(value)
        if name in checks.OPEN_GROUPS:
            for key, number in value.items():
                if isinstance(number, int) and not isinstance(number, bool) and key not in COUNTS:
                    with value.ignore_type():
                        value[key] = float(number)


def parsed(text: str) -> Any:
    """The value that a text on the command line stands for: a Python literal, else the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def change(config: ConfigDict, key: str, value: Any, known: ConfigDict) -> None:
    """Sets "config.a.b" to a value.

    Raises:
      ValueError: if there is no such setting, or it has another type.
    """
    if not isinstance(key, str):
        raise ValueError(f"{key!r} is no setting: keys are strings")
    if key == "config.task":
        raise ValueError(f"config.task is what get_config says it is, got {value!r}")
    value = value.item() if isinstance(value, np.generic) else value
    root, *groups, name = key.split(".") if "." in key else ("", key)
    at, of, path = config, known, "config"
    if root != "config":
        raise ValueError(f"{key} is no setting: keys start with config.")
    for group in groups:
        if group not in at or not isinstance(at[group], ConfigDict):
            raise ValueError(f"{key} is no setting; those of {path} are {', '.join(at)}")
        at, of, path = at[group], of.get(group, ConfigDict()), f"{path}.{group}"
    is_open = path.removeprefix("config.").split(".")[-1] in checks.OPEN_GROUPS
    if name not in at and not is_open:
        raise ValueError(f"{key} is no setting; those of {path} are {', '.join(at)}")
    value = tuple(value) if isinstance(value, list) else value
    if name in of and not isinstance(of[name], ConfigDict):
        if not checks.same_type(value, of[name]):
            raise ValueError(f"{key} must be of type {checks.type_of(of[name])}, got {value!r}")
        is_float = isinstance(of[name], float) or (of[name] is None and value is not None)
        value = float(value) if is_float else value
    with at.unlocked(), at.ignore_type():
        at[name] = ConfigDict(value) if isinstance(value, dict) else value
