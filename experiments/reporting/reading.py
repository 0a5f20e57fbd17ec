"""The folder of a sweep: sweep.json, and for each run result.json or failed.json, metrics.jsonl, provenance.json.

A run with a malformed result.json is `corrupt`, and its error has the wrong key. The other runs are read.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.reporting.summary import Run, Sweep

PARTS = ("metrics", "floors", "conditions", "cost")


def _object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; a `ValueError` for any other content."""
    try:
        value = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} must be an object, got {type(value).__name__}")
    return value


def _one_line(value: Any) -> str:
    return " ".join(str(value).split())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_result(result: dict[str, Any], id: str) -> dict[str, Any]:
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
        for name, value in result[part].items():
            if part != "conditions" and not _is_number(value):
                raise ValueError(f"{part}.{name} must be a number, got {value!r}")
            if _is_number(value) and not math.isfinite(value):
                raise ValueError(f"{part}.{name} must be finite, got {value}")
    if not result["metrics"]:
        raise ValueError("metrics must have a value, got none")
    if "seconds" not in result["cost"]:
        raise ValueError("result.json lacks the key cost.seconds")
    floats = {part: {name: float(v) for name, v in result[part].items()} for part in PARTS if part != "conditions"}
    return {**floats, "conditions": result["conditions"]}


def read_run(folder: Path, id: str, own: dict[str, Any], overrides: dict[str, Any]) -> Run:
    """Read a run from its folder."""
    run = Run(id, folder, overrides, own, "started" if folder.exists() else "waiting")
    if (path := folder / "result.json").exists():
        try:
            return run._replace(state="done", **check_result(_object(path), id))
        except (ValueError, OSError, OverflowError) as error:
            return run._replace(state="corrupt", error=_one_line(error))
    if (path := folder / "failed.json").exists():
        try:
            reason = _object(path).get("error", "failed.json has no reason")
        except (ValueError, OSError) as error:
            reason = error
        return run._replace(state="failed", error=_one_line(reason))
    return run


def lookup(base: Mapping[str, Any], key: str) -> Any:
    """The value of a key "config.a.b" in the base of a sweep, None if there is none.

    >>> lookup({"loss": {"weighting": "eps"}}, "config.loss.weighting")
    'eps'
    """
    value: Any = {"config": base}
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def read_sweep(folder: Path) -> Sweep:
    """Read a sweep and all of its runs.

    Raises:
      ValueError: if sweep.json is missing or malformed.
    """
    if not (folder / "sweep.json").is_file():
        raise ValueError(f"DIR must be the workdir of a sweep, got {folder}, which has no sweep.json")
    try:
        content = _object(folder / "sweep.json")
        for key, kind in {"name": str, "runs": dict, "seed_keys": list}.items():
            if not isinstance(content.get(key), kind) or (key == "runs" and not content[key]):
                raise ValueError(f"sweep.json must have a {kind.__name__} under {key}, got {content.get(key)!r:.60}")
        for id, own in content["runs"].items():
            if not re.fullmatch("[0-9a-f]{12}", id):
                raise ValueError(f"sweep.json: ids of runs must be 12 hexadecimal digits, got {id!r}")
            if not isinstance(own, dict):
                raise ValueError(f"sweep.json: the overrides of run {id} must be an object, got {own!r:.60}")
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    base, ids = content.get("base") or {}, content["runs"]
    inherited = {key: lookup(base, key) for own in ids.values() for key in own}
    folders = sorted(path.name for path in folder.glob("runs/*") if path.is_dir())
    return Sweep(
        folder=folder,
        name=content["name"],
        title=_one_line(content.get("title") or ""),
        task=str(content.get("task") or ""),
        seed_keys=tuple(content["seed_keys"]),
        runs=[read_run(folder / "runs" / id, id, own, {**inherited, **own}) for id, own in ids.items()],
        strangers=[name for name in folders if name not in ids and not name.startswith(".")],
        base=base,
    )


def read_curve(run: Run) -> dict[int, dict[str, float]]:
    """Step -> finite metrics in a run's metrics.jsonl.

    Incomplete lines of a killed run are skipped. The last line of a step counts, since a resumed run logs steps again.
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
        record["jax"] = (record.get("packages") or {}).get("jax")
        for key, seen in values.items():
            if (value := record.get(key)) is not None and value not in seen:
                seen.append(value)
    return values
