"""From a sweep file to its runs.

The file is a module with

    get_config()      the config that all runs start from, with the settings of its kind of run (`settings`)
    get_overrides()   yields {"config.a.b": value} for each run

The id of a run is the first 12 hex digits of the SHA-256 of its resolved config, without what alters no result.
"""

import functools
import hashlib
import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from experiments.run.workdir import flatten
from experiments.sweeping import settings

# What alters no result: where things are, and how fast.
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


class Run(NamedTuple):
    """A run: its id, what distinguishes it, its whole config."""

    id: str
    overrides: dict[str, Any]
    config: ml_collections.ConfigDict

    @property
    def label(self) -> str:
        """Its id and overrides in a line."""
        return f"{self.id} ({described(self.overrides)})"


class Sweep(NamedTuple):
    """name: of its file; title: the first line of the file's docstring; runs: by id, in order."""

    name: str
    title: str
    base: ml_collections.ConfigDict
    runs: dict[str, Run]


def described(overrides: dict[str, Any]) -> str:
    """Overrides in a few words: without "config.", strings without quotes."""
    said = (f"{str(key).removeprefix('config.')}={value}" for key, value in overrides.items())
    return " ".join(said) or "as the base"


def identity(config: Any) -> str:
    """The id of a run with this config."""
    kept = {key: value for key, value in flatten(config.to_dict()).items() if not key.startswith(LEFT_OUT)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


def load(path: Path, changes: Sequence[str] = ()) -> Sweep:
    """The sweep of a file. changes: KEY=VALUE, of the config that all runs start from.

    Raises:
      ValueError: for a file that is no sweep, an unknown key or a value of another type (names run and key), or two
        runs with one config.
    """
    module = _module(path)
    base, listed = _called(path, module.get_config), _called(path, lambda: list(module.get_overrides()))
    if not isinstance(base, ml_collections.ConfigDict):
        raise ValueError(f"get_config of {path} must give a ConfigDict, got {type(base).__name__}")
    known = settings.known(base)
    for change in changes:
        key, sep, text = change.partition("=")
        if not sep:
            raise ValueError(f"set must be KEY=VALUE, got {change!r}")
        settings.change(base, key, settings.parsed(text), known)
    settings.check_keys(base, known)
    settings.make_floats(base)
    runs: dict[str, Run] = {}
    for number, overrides in enumerate(listed):
        config = base.copy_and_resolve_references()
        try:
            if not isinstance(overrides, dict):
                raise ValueError(f"overrides must be a dict, got {overrides!r}")
            for key, value in overrides.items():
                settings.change(config, key, value, known)
            settings.check_keys(config, known)
            settings.make_floats(config)
            settings.check_seed(config)
            run = Run(identity(config), _plain(overrides), config)
        except (ValueError, TypeError) as error:
            said = described(overrides) if isinstance(overrides, dict) else repr(overrides)
            raise ValueError(f"run {number} of {path.stem} ({said}): {error}") from error
        if (before := runs.get(run.id)) is not None:
            first, second = described(before.overrides), described(overrides)
            raise ValueError(
                f"run {number} of {path.stem} ({second}) has the config of run {[*runs].index(run.id)} ({first})"
            )
        runs[run.id] = run
    if not runs:
        raise ValueError(f"get_overrides of {path} must yield at least one run, got none")
    title = (module.__doc__ or path.stem).strip().splitlines()[0]
    return Sweep(path.stem, title, base, runs)


def _module(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"sweep must be a file, got {path}")
    spec = importlib.util.spec_from_file_location(f"sweep_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"sweep must be a Python file, got {path}")
    module = importlib.util.module_from_spec(spec)
    _called(path, functools.partial(spec.loader.exec_module, module))
    for name in ("get_config", "get_overrides"):
        if not callable(getattr(module, name, None)):
            raise ValueError(f"sweep {path} must define {name}()")
    return module


def _called(path: Path, part: Callable[[], Any]) -> Any:
    """What a part of a sweep's file gives."""
    try:
        return part()
    except Exception as error:  # whatever is wrong in it
        raise ValueError(f"sweep {path} cannot be read: {type(error).__name__}: {error}") from error


def _plain(overrides: dict[str, Any]) -> dict[str, Any]:
    """As JSON gives it back."""
    return json.loads(json.dumps(overrides, default=lambda value: value.item()))
