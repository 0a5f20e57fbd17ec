"""The folder of a sweep: sweep.json, and of each run result.json or failed.json, metrics.jsonl, provenance.json.

A result.json that is not what it must be makes its run `corrupt`, with a line that names the key; the others are read.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

EMPTY: Mapping[str, Any] = MappingProxyType({})
PARTS = ("metrics", "floors", "conditions", "cost")


class Run(NamedTuple):
    """A run of a sweep: `done`, `failed`, `corrupt`, `started` (running, or killed) or `waiting`.

    overrides: all settings that any run of the sweep overrides, the base's where this run does not.
    said: of those, what this run overrides itself. error: one line, of failed and corrupt runs.
    """

    id: str
    folder: Path
    overrides: dict[str, Any]
    said: dict[str, Any]
    state: str
    error: str = ""
    metrics: Mapping[str, float] = EMPTY
    floors: Mapping[str, float] = EMPTY
    conditions: Mapping[str, Any] = EMPTY
    cost: Mapping[str, float] = EMPTY

    @property
    def values(self) -> dict[str, float]:
        """What it cost, and its metrics."""
        return {**self.cost, **self.metrics}


class Sweep(NamedTuple):
    """What sweep.json says, its runs in order, and the folders in runs/ that are of none of them."""

    folder: Path
    name: str
    title: str
    task: str
    seed_keys: tuple[str, ...]
    runs: list[Run]
    strangers: list[str]
    base: Mapping[str, Any] = EMPTY

    def having(self, *states: str) -> list[Run]:
        """Its runs in these states."""
        return [run for run in self.runs if run.state in states]


def _object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; `ValueError` in one line if it is none."""
    try:
        value = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} must be an object, got {type(value).__name__}")
    return value


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{key} must be a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{key} must be finite, got {value}")
    return float(value)


def check_result(result: dict[str, Any], id: str) -> dict[str, dict[str, Any]]:
    """The parts of a result.json.

    Raises:
      ValueError: that names the first key that is missing, of a wrong type or not finite; or another run's id.
    """
    for key in ("id", *PARTS):
        if key not in result:
            raise ValueError(f"result.json lacks the key {key}")
    if result["id"] != id:
        raise ValueError(f"id must be {id}, got {result['id']!r}: the result of another run")
    for part in PARTS:
        if not isinstance(result[part], dict):
            raise ValueError(f"{part} must be an object, got {result[part]!r}")
    if not result["metrics"]:
        raise ValueError("metrics must have a value, got none")
    if "seconds" not in result["cost"]:
        raise ValueError("result.json lacks the key cost.seconds")
    numbers = {
        part: {name: _number(f"{part}.{name}", value) for name, value in result[part].items()}
        for part in PARTS
        if part != "conditions"
    }
    for name, value in result["conditions"].items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"conditions.{name} must be finite, got {value}")
    return {**numbers, "conditions": result["conditions"]}


def _read_run(folder: Path, id: str, said: dict[str, Any], overrides: dict[str, Any]) -> Run:
    def run(state: str, error: str = "", parts: Mapping[str, Any] = EMPTY) -> Run:
        return Run(id, folder, overrides, said, state, " ".join(error.split()), **parts)

    if (path := folder / "result.json").exists():
        try:
            return run("done", parts=check_result(_object(path), id))
        except (ValueError, OSError, OverflowError) as error:
            return run("corrupt", str(error))
    if (path := folder / "failed.json").exists():
        try:
            return run("failed", str(_object(path).get("error", "failed.json does not say why")))
        except (ValueError, OSError) as error:
            return run("failed", str(error))
    return run("started" if folder.exists() else "waiting")


def lookup(base: Any, key: str) -> Any:
    """What a nested dict has under a dotted key, with or without the name of the root; None if nothing.

    >>> lookup({"loss": {"weighting": "eps"}}, "config.loss.weighting")
    'eps'
    """
    for parts in (key.split("."), key.split(".")[1:]):
        value = base
        for part in parts:
            value = value.get(part) if isinstance(value, dict) else None
        if parts and value is not None:
            return value
    return None


def _check_sweep(found: dict[str, Any]) -> None:
    kinds = {"name": str, "runs": dict, "seed_keys": list}
    for key, kind in kinds.items():
        if not isinstance(found.get(key), kind) or (key == "runs" and not found[key]):
            raise ValueError(f"sweep.json must have a {kind.__name__} under {key}, got {found.get(key)!r:.60}")
    for id, said in found["runs"].items():
        if not re.fullmatch("[0-9a-f]{12}", id):
            raise ValueError(f"sweep.json: ids of runs must be 12 hexadecimal digits, got {id!r}")
        if not isinstance(said, dict):
            raise ValueError(f"sweep.json: the overrides of run {id} must be an object, got {said!r:.60}")


def read_sweep(folder: Path) -> Sweep:
    """Reads a sweep and all of its runs.

    Raises:
      ValueError: if there is no sweep.json, or it is not one of a sweep.
    """
    if not (folder / "sweep.json").is_file():
        raise ValueError(f"DIR must be the workdir of a sweep, got {folder}, which holds no sweep.json")
    try:
        found = _object(folder / "sweep.json")
        _check_sweep(found)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    keys = list(dict.fromkeys(key for said in found["runs"].values() for key in said))
    base = found.get("base") or {}
    inherited = {key: lookup(base, key) for key in keys}
    where = folder / "runs"
    runs = [_read_run(where / id, id, said, {**inherited, **said}) for id, said in found["runs"].items()]
    folders = sorted(path.name for path in where.iterdir() if path.is_dir()) if where.is_dir() else []
    strangers = [name for name in folders if name not in found["runs"] and not name.startswith(".")]
    return Sweep(
        folder,
        found["name"],
        " ".join(str(found.get("title") or "").split()),
        str(found.get("task") or ""),
        tuple(found["seed_keys"]),
        runs,
        strangers,
        base,
    )


def read_curve(run: Run) -> dict[int, dict[str, float]]:
    """Step -> metrics that are finite, of a run's metrics.jsonl.

    A line that a kill cut short is passed over; of a step that was logged before and after it, the later line counts.
    """
    path, curve = run.folder / "metrics.jsonl", {}
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    for line in lines:
        try:
            found = json.loads(line)
            step = int(found.pop("step"))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            continue
        is_number = lambda v: isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)  # noqa: E731
        curve[step] = {name: float(value) for name, value in found.items() if is_number(value)}
    return dict(sorted(curve.items()))


def provenance(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Commits, dirty flags, devices and versions of JAX of the runs; what cannot be read is left out."""
    found: dict[str, list[Any]] = {"commit": [], "dirty": [], "device": [], "jax": []}
    for run in runs:
        try:
            record = _object(run.folder / "provenance.json")
        except (ValueError, OSError):
            continue
        packages = record.get("packages")
        record["jax"] = packages.get("jax") if isinstance(packages, dict) else None
        for key, values in found.items():
            if (value := record.get(key)) is not None and value not in values:
                values.append(value)
    return found
