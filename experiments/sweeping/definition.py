"""The runs of a sweep file.

The file is a Python module with

    get_config()      the config that all runs start from, see `settings`
    get_overrides()   yields {"config.a.b": value} for each run
    get_samplers()    optional: {name: (schedule, eta) -> sampler}
    get_metrics()     optional: {name: (features of samples, features of real data) -> float}

The id of a run is the first 12 hex digits of the SHA-256 of its config, without settings that do not change results,
and of the file if it defines samplers or metrics.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

import diffax
from diffax._checks import choose
from diffax.samplers._catalogue import Row
from experiments.configs.default import check_seed
from experiments.configs.settings import change, check_keys, default_of, flatten, load_module, parsed
from experiments.evaluation import families
from experiments.models import samplers
from experiments.sweeping import settings

# Settings that do not change results.
LEFT_OUT = (
    "config.dataset.data_dir",
    "config.dataset.num_threads",
    "config.dataset.cache",
    "config.train.checkpoint_every",
    "config.train.compile_cache",
    "config.train.keep_",
    "config.train.profile",
    "config.train.sample_every",
)
SEED = "config.seed"
ADDED: set[str] = set()  # names of samplers and metrics of sweep files


class Run(NamedTuple):
    """A run: its id, its overrides, its whole config."""

    id: str
    overrides: dict[str, Any]
    config: ConfigDict

    @property
    def label(self) -> str:
        """The id and overrides in a line."""
        return f"{self.id} ({described(self.overrides)})"


class Sweep(NamedTuple):
    """name: of its file; title: the first line of the file's docstring; runs: by id, in order."""

    name: str
    title: str
    base: ConfigDict
    runs: dict[str, Run]


def described(overrides: dict[str, Any]) -> str:
    """Overrides as short text: without "config.", strings without quotes."""
    return " ".join(f"{str(key).removeprefix('config.')}={value}" for key, value in overrides.items()) or "as the base"


def identity(config: Any, source: str = "") -> str:
    """The id of a run with this config. source: digest of the sweep file if it defines samplers or metrics."""
    kept = {key: value for key, value in flatten(config.to_dict()).items() if not key.startswith(LEFT_OUT)}
    return hashlib.sha256((json.dumps(kept, sort_keys=True) + source).encode()).hexdigest()[:12]


def load(path: Path, changes: Sequence[str] = ()) -> Sweep:
    """The sweep of a file. changes: config.KEY=VALUE, of the config that all runs start from.

    Raises:
      ValueError: for a file that is not a sweep, an unknown key or a value of another type (the error has run and key),
        or two runs with one config.
    """
    module = load_module(path, "sweep", ("get_config", "get_overrides"))
    source = _register(path, module)
    base, listed = _call(path, module.get_config), _call(path, lambda: list(module.get_overrides()))
    if not isinstance(base, ConfigDict):
        raise ValueError(f"get_config of {path} must return a ConfigDict, got {type(base).__name__}")
    if not listed:
        raise ValueError(f"get_overrides of {path} must yield at least one run, got none")
    known = choose("config.task", base.get("task"), settings.KNOWN)()
    for text in changes:
        key, separator, value = text.partition("=")
        if not separator:
            raise ValueError(f"set must be config.KEY=VALUE, got {text!r}")
        change(base, key, parsed(value, default_of(known, key)), known)
    check_keys(base, known, "config")
    settings.make_floats(base)
    runs: dict[str, Run] = {}
    for number, overrides in enumerate(listed):
        text = described(overrides) if isinstance(overrides, dict) else repr(overrides)
        try:
            run = _run(base, overrides, known, source)
        except (ValueError, TypeError) as error:
            raise ValueError(f"run {number} of {path.stem} ({text}): {error}") from error
        if (other := runs.get(run.id)) is not None:
            index = [*runs].index(run.id)
            raise ValueError(
                f"run {number} of {path.stem} ({text}) has the config of run {index} ({described(other.overrides)})"
            )
        runs[run.id] = run
    title = (module.__doc__ or path.stem).strip().splitlines()[0]
    return Sweep(path.stem, title, base, runs)


def _run(base: ConfigDict, overrides: Any, known: ConfigDict, source: str) -> Run:
    config = base.copy_and_resolve_references()
    if not isinstance(overrides, dict):
        raise ValueError(f"overrides must be a dict, got {overrides!r}")
    for key, value in overrides.items():
        if key == "config.task":
            raise ValueError(f"config.task must be that of get_config, got {value!r}")
        change(config, key, value, known)
    check_keys(config, known, "config")
    settings.make_floats(config)
    check_seed(config.seed)
    plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in overrides.items()}
    return Run(identity(config, source), json.loads(json.dumps(plain)), config)


def _register(path: Path, module: Any) -> str:
    """Add the samplers and metrics of a sweep file to the tables; return the digest of the file, "" without any."""
    own = {kind: _call(path, getattr(module, f"get_{kind}", dict)) for kind in ("samplers", "metrics")}
    tables = {"samplers": diffax.samplers.CATALOGUE, "metrics": families.NAMES}
    for kind, functions in own.items():
        for name in functions:
            if name in tables[kind] and name not in ADDED:
                raise ValueError(f"get_{kind} of {path} must have names that are not in diffax, got {name!r}")
    ADDED.update(*own.values())
    for name, make in own["samplers"].items():
        sampler = _call(path, lambda make=make: make(diffax.Cosine(), None))
        diffax.samplers.CATALOGUE[name] = Row(
            lambda schedule, eta=None, make=make: make(schedule, eta),
            sampler.order,
            sampler.calls,
            source=path.stem,
            start_calls=sampler.start_calls,
            noise="eta",
        )
        samplers.NAMES[name] = None
        samplers.WITH_ETA.add(name)
    for name, function in own["metrics"].items():
        families.add(name, function)
    return hashlib.sha256(path.read_bytes()).hexdigest() if any(own.values()) else ""


def _call(path: Path, function: Callable[[], Any]) -> Any:
    try:
        return function()
    except Exception as error:  # a user's file may raise anything
        raise ValueError(f"sweep {path} cannot be read: {type(error).__name__}: {error}") from error
