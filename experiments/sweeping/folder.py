"""The folder of a sweep.

sweep.json                 its name, base and runs; which runs share a program
runs/ID/config.json        the resolved config
runs/ID/provenance.json    what it is computed by (`provenance`)
runs/ID/metrics.jsonl      a line for each logged step of training; of other runs, what they found
runs/ID/result.json        written in one move, last: the mark of completion
runs/ID/failed.json        why it failed
locks/UNIT.lock            held by the process at work on it; the kernel frees it when that ends, however it ends
units/UNIT/                checkpoints of what is being trained; gone when it is done
"""

import contextlib
import json
import shutil
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import filelock

from experiments.reporting import reading
from experiments.run.workdir import check_writable, flatten, read_json, write_json
from experiments.sweeping.definition import LEFT_OUT, SEED, Run, Sweep

STATES = ("finished", "failed", "corrupt", "running", "interrupted", "waiting")


class Result(NamedTuple):
    """What a run found. floors: the same quantities of real data; conditions: how they were measured; cost: of it."""

    metrics: dict[str, float]
    floors: dict[str, float]
    conditions: dict[str, Any]
    cost: dict[str, float]


class Unit(NamedTuple):
    """Runs that one process takes together, and the name of their lock."""

    name: str
    runs: list[Run]


class Folder:
    """Reads and writes the folder of a sweep."""

    def __init__(self, path: Path):
        self.path = path

    def claim(self, sweep: Sweep, together: dict[str, Any], inputs: dict[str, Any]) -> None:
        """Makes the folder this sweep's; runs that are new are added.

        together: how runs share programs, the same for all that work on it. inputs: what the runs depend on.

        Raises:
          ValueError: as `compare`, or if runs are added while others are at work.
        """
        check_writable(self.path)
        for name in ("runs", "locks", "units"):
            (self.path / name).mkdir(exist_ok=True)
        with filelock.FileLock(self.path / ".claim.lock"):
            self.compare(sweep, together, inputs)
            base, held = json.loads(json.dumps(sweep.base.to_dict())), self._held()
            runs = {run.id: run.overrides for run in sweep.runs.values()}
            if held is not None and held["runs"].keys() != runs.keys() and self._is_at_work():
                # Which runs share a lock goes by which runs there are.
                raise ValueError(f"workdir {self.path} is at work on {len(held['runs'])} runs, got {len(runs)}; wait")
            described = {"name": sweep.name, "task": base["task"], "title": sweep.title, "seed_keys": [SEED]}
            now = {**described, "together": together, "inputs": inputs, "base": base, "runs": runs}
            if now != held:
                write_json(self.path / "sweep.json", now)

    def _is_at_work(self) -> bool:
        for path in (self.path / "locks").iterdir():
            lock = filelock.FileLock(path)
            try:
                lock.acquire(blocking=False)
            except filelock.Timeout:
                return True
            lock.release()
        return False

    def together(self) -> dict[str, Any] | None:
        """How the runs of the sweep in this folder share programs, None if there is none."""
        held = self._held()
        return None if held is None else held["together"]

    def _held(self) -> dict[str, Any] | None:
        path = self.path / "sweep.json"
        try:
            held = read_json(path)
        except ValueError as error:
            raise ValueError(f"{path} is no JSON ({error})") from error
        if held is not None and not (
            isinstance(held, dict) and {"name", "base", "together", "inputs", "runs"} <= held.keys()
        ):
            raise ValueError(f"{path} is not that of a sweep")
        return held

    def compare(self, sweep: Sweep, together: dict[str, Any], inputs: dict[str, Any]) -> None:
        """Raises `ValueError` if the folder holds another sweep, or one with another base, sharing or inputs.

        Names the first difference.
        """
        if (held := self._held()) is None:
            return
        holds = f"workdir {self.path} holds the sweep {held['name']}"
        if held["name"] != sweep.name:
            raise ValueError(f"{holds}, not {sweep.name}; choose another --workdir")
        now = {"base": json.loads(json.dumps(sweep.base.to_dict())), "together": together, "inputs": inputs}
        for group, path in (("base", "config"), ("together", "--"), ("inputs", "inputs")):
            before, after = flatten(held[group], path), flatten(now[group], path)
            for key in before | after:
                if before.get(key) != after.get(key) and not key.startswith(LEFT_OUT):
                    what = key.replace("--.", "--")
                    raise ValueError(
                        f"{holds} with {what} = {before.get(key)!r}, got {after.get(key)!r}; choose another --workdir"
                    )

    def run(self, run: Run) -> Path:
        """The folder of a run."""
        return self.path / "runs" / run.id

    def unit(self, unit: Unit) -> Path:
        """Where the checkpoints of a unit are while it is at work."""
        return self.path / "units" / unit.name

    def result(self, run: Run) -> Result | None:
        """What a run found, None if it did not finish.

        Raises:
          ValueError: for a result that is not whole; names the run and the key.
        """
        path = self.run(run) / "result.json"
        if not path.exists():
            return None
        try:
            value = json.loads(path.read_text())
        except (ValueError, OSError) as error:
            raise ValueError(f"run {run.label}: result.json is no JSON ({error})") from error
        check_result(value, run)
        return Result(*(value[name] for name in Result._fields))

    def failure(self, run: Run) -> str | None:
        """Why a run failed, None if it did not."""
        path = self.run(run) / "failed.json"
        return str(whole(path).get("error", "failed.json does not say why")) if path.exists() else None

    def state_of(self, run: Run) -> str | None:
        """finished, corrupt, failed or waiting; None for what was begun."""
        try:
            if self.result(run) is not None:
                return "finished"
        except ValueError:
            return "corrupt"
        if self.failure(run) is not None:
            return "failed"
        return None if self.run(run).exists() else "waiting"

    def state(self, run: Run, unit: Unit) -> str:
        """One of `STATES`."""
        if (known := self.state_of(run)) is not None:
            return known
        with self.lock(unit) as mine:
            return "interrupted" if mine else "running"

    @contextlib.contextmanager
    def lock(self, unit: Unit, patience: float = 0.0) -> Iterator[bool]:
        """Whether this process alone is at work on a unit now, for as long as the block lasts.

        patience: seconds to wait for it.
        """
        lock = filelock.FileLock(self.path / "locks" / f"{unit.name}.lock")
        try:
            lock.acquire(timeout=patience)
        except filelock.Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def begin(self, run: Run, provenance: dict[str, Any]) -> None:
        """Says of a run that it is being computed, and by what."""
        folder = self.run(run)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", run.config.to_dict())
        before = whole(folder / "provenance.json")
        write_json(folder / "provenance.json", provenance | {"attempts": before.get("attempts", 0) + 1})

    def finish(self, run: Run, result: Result, seconds: float) -> None:
        """Writes the result, in one move.

        seconds: wall time of the attempt that finished it, its share where runs share a program; the cost, unless the
          result has a better measure of it.

        Raises:
          ValueError: for values that are not finite.
        """
        folder = self.run(run)
        value = {"id": run.id, **result._asdict()}
        value["cost"] = {"seconds": round(seconds, 3), **result.cost}
        check_result(value, run)
        made_by = whole(folder / "provenance.json")
        write_json(folder / "provenance.json", made_by | {"seconds": round(seconds, 3)})
        if not (folder / "metrics.jsonl").exists():
            (folder / "metrics.jsonl").write_text(json.dumps({"step": 0, **result.metrics}) + "\n")
        write_json(folder / "result.json", value)

    def fail(self, run: Run, error: BaseException) -> str:
        """Writes why a run failed, unless the disk is full, and returns it in a line."""
        said = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        trace = "".join(traceback.format_exception(error))
        with contextlib.suppress(OSError):
            write_json(self.run(run) / "failed.json", {"error": said, "traceback": trace})
        return said

    def retry(self, units: Sequence[Unit]) -> None:
        """Takes back that runs failed, and results that are not whole, but of units that others are at work on."""
        for unit in units:
            with self.lock(unit) as mine:
                for run in unit.runs if mine else ():
                    if self.state_of(run) in ("failed", "corrupt"):
                        for name in ("failed.json", "result.json"):
                            _remove(self.run(run) / name)

    def clear(self, unit: Unit) -> None:
        """Removes the checkpoints of a unit that is done."""
        shutil.rmtree(self.unit(unit), ignore_errors=True)


def _remove(path: Path) -> None:
    """A file, or whatever lies in its place."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def whole(path: Path) -> dict[str, Any]:
    """The object in a JSON file, {} if there is none."""
    try:
        value = read_json(path)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def check_result(value: Any, run: Run) -> None:
    """Raises `ValueError`, naming the run and the key, for a result that is not whole."""
    if not isinstance(value, dict):
        raise ValueError(f"run {run.label}: result.json must be an object, got {type(value).__name__}")
    try:
        reading.check_result(value, run.id)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"run {run.label}: {error}") from error
