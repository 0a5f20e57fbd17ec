"""The folder of a sweep: sweep.json, and for each run result.json or failed.json, metrics.jsonl, provenance.json.

A malformed result.json makes its run `corrupt`, with an error that names the key. The other runs are read.
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

    overrides: the values of all keys that any run overrides, from the base where this run does not. own: the overrides
    of this run alone. error: one line, for failed and corrupt runs.
    """

    id: str
    folder: Path
    overrides: dict[str, Any]
    own: dict[str, Any]
    state: str
    error: str = ""
    metrics: Mapping[str, float] = EMPTY
    floors: Mapping[str, float] = EMPTY
    conditions: Mapping[str, Any] = EMPTY
    cost: Mapping[str, float] = EMPTY

    @property
    def values(self) -> dict[str, float]:
        """Costs and metrics."""
        return {**self.cost, **self.metrics}


class Sweep(NamedTuple):
    """The content of sweep.json, the runs in order, and the folders in runs/ that belong to none of them."""

    folder: Path
    name: str
    title: str
    task: str
    seed_keys: tuple[str, ...]
    runs: list[Run]
    strangers: list[str]
    base: Mapping[str, Any] = EMPTY

    def having(self, *states: str) -> list[Run]:
        """The runs in these states."""
        return [run for run in self.runs if run.state in states]


def _object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; a one-line `ValueError` for any other content."""
    try:
        value = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} must be an object, got {type(value).__name__}")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(key: str, value: Any) -> float:
    if not _is_number(value):
        raise ValueError(f"{key} must be a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{key} must be finite, got {value}")
    return float(value)


def check_result(result: dict[str, Any], id: str) -> dict[str, dict[str, Any]]:
    """The parts of a result.json.

    Raises:
      ValueError: for the id of another run, or for a key that is missing, has a wrong type or is not finite; the error
        names the first such key.
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


def read_run(folder: Path, id: str, own: dict[str, Any], overrides: dict[str, Any]) -> Run:
    """Read a run from its folder."""

    def run(state: str, error: str = "", parts: Mapping[str, Any] = EMPTY) -> Run:
        return Run(id, folder, overrides, own, state, " ".join(error.split()), **parts)

    if (path := folder / "result.json").exists():
        try:
            return run("done", parts=check_result(_object(path), id))
        except (ValueError, OSError, OverflowError) as error:
            return run("corrupt", str(error))
    if (path := folder / "failed.json").exists():
        try:
            return run("failed", str(_object(path).get("error", "failed.json has no reason")))
        except (ValueError, OSError) as error:
            return run("failed", str(error))
    return run("started" if folder.exists() else "waiting")


def lookup(base: Any, key: str) -> Any:
    """The value under a dotted key in a nested dict, with or without the name of the root; None if there is none.

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


def _check_sweep(content: dict[str, Any]) -> None:
    kinds = {"name": str, "runs": dict, "seed_keys": list}
    for key, kind in kinds.items():
        if not isinstance(content.get(key), kind) or (key == "runs" and not content[key]):
            raise ValueError(f"sweep.json must have a {kind.__name__} under {key}, got {content.get(key)!r:.60}")
    for id, own in content["runs"].items():
        if not re.fullmatch("[0-9a-f]{12}", id):
            raise ValueError(f"sweep.json: ids of runs must be 12 hexadecimal digits, got {id!r}")
        if not isinstance(own, dict):
            raise ValueError(f"sweep.json: the overrides of run {id} must be an object, got {own!r:.60}")


def read_sweep(folder: Path) -> Sweep:
    """Read a sweep and all of its runs.

    Raises:
      ValueError: if sweep.json is missing or malformed.
    """
    if not (folder / "sweep.json").is_file():
        raise ValueError(f"DIR must be the workdir of a sweep, got {folder}, which holds no sweep.json")
    try:
        content = _object(folder / "sweep.json")
        _check_sweep(content)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    base, ids, where = content.get("base") or {}, content["runs"], folder / "runs"
    inherited = {key: lookup(base, key) for own in ids.values() for key in own}
    folders = sorted(path.name for path in where.iterdir() if path.is_dir()) if where.is_dir() else []
    return Sweep(
        folder,
        content["name"],
        " ".join(str(content.get("title") or "").split()),
        str(content.get("task") or ""),
        tuple(content["seed_keys"]),
        [read_run(where / id, id, own, {**inherited, **own}) for id, own in ids.items()],
        [name for name in folders if name not in ids and not name.startswith(".")],
        base,
    )


def read_curve(run: Run) -> dict[int, dict[str, float]]:
    """Step -> finite metrics in a run's metrics.jsonl.

    Incomplete lines, which a kill leaves, are skipped. The last line of a step counts: a resumed run logs steps again.
    """
    path, curve = run.folder / "metrics.jsonl", {}
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else []:
        try:
            values = json.loads(line)
            step = int(values.pop("step"))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            continue
        curve[step] = {name: float(v) for name, v in values.items() if _is_number(v) and math.isfinite(v)}
    return dict(sorted(curve.items()))


def provenance(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Commits, dirty flags, devices and JAX versions of the runs; unreadable files are skipped."""
    values: dict[str, list[Any]] = {"commit": [], "dirty": [], "device": [], "jax": []}
    for run in runs:
        try:
            record = _object(run.folder / "provenance.json")
        except (ValueError, OSError):
            continue
        packages = record.get("packages")
        record["jax"] = packages.get("jax") if isinstance(packages, dict) else None
        for key, seen in values.items():
            if (value := record.get(key)) is not None and value not in seen:
                seen.append(value)
    return values
