"""The folder of a sweep. Each run has a folder of its own, which one process at a time works in.

sweep.json                 name, base, runs and inputs of the sweep; how runs share programs
runs/ID/config.json        the config
runs/ID/.lock              held by the process that computes the run; the kernel releases it when that process ends
runs/ID/provenance.json    see `provenance`
runs/ID/metrics.jsonl      a line for each logged step of training; one line for other runs
runs/ID/checkpoints/       of a training run; removed when it is finished
runs/ID/group.json         the ids of the runs that are trained in one program with this one
runs/ID/export/            the trained model, unless --keep=none
runs/ID/result.json        written last, in one move: the run is finished
runs/ID/failed.json        why the run failed
"""

import contextlib
import json
import shutil
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import filelock

from experiments.configs.settings import flatten
from experiments.reporting import reading
from experiments.run.workdir import check_writable, read_json, write_json
from experiments.sweeping.definition import LEFT_OUT, SEED, Run, Sweep

STATES = ("finished", "failed", "corrupt", "running", "interrupted", "waiting")


class Result(NamedTuple):
    """The result of a run. floors: the metrics of real data; conditions: how they were measured; cost: of the run."""

    metrics: dict[str, float]
    floors: dict[str, float]
    conditions: dict[str, Any]
    cost: dict[str, float]


class Folder:
    """Reads and writes the folder of a sweep."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def claim(self, sweep: Sweep, plan: dict[str, Any], inputs: dict[str, Any]) -> None:
        """Make the folder this sweep's, and add new runs.

        plan: how runs share programs. inputs: what the runs depend on, such as the digest of a checkpoint.

        Raises:
          ValueError: as `compare`.
        """
        check_writable(self.path)
        (self.path / "runs").mkdir(exist_ok=True)
        with filelock.FileLock(self.path / ".claim.lock"):
            self.compare(sweep, plan, inputs)
            base, runs = (
                json.loads(json.dumps(sweep.base.to_dict())),
                {run.id: run.overrides for run in sweep.runs.values()},
            )
            described = {"name": sweep.name, "task": base["task"], "title": sweep.title, "seed_keys": [SEED]}
            content = {**described, "together": plan, "inputs": inputs, "base": base, "runs": runs}
            if content != self._content():
                write_json(self.path / "sweep.json", content)

    def plan(self) -> dict[str, Any]:
        """How the runs in this folder share programs, {} for a new folder."""
        content = self._content()
        return {} if content is None else content["together"]

    def _content(self) -> dict[str, Any] | None:
        path = self.path / "sweep.json"
        try:
            content = read_json(path)
        except ValueError as error:
            raise ValueError(f"{path} is no JSON ({error})") from error
        keys = {"name", "base", "together", "inputs", "runs"}
        if content is not None and not (isinstance(content, dict) and keys <= content.keys()):
            raise ValueError(f"{path} is not that of a sweep")
        return content

    def compare(self, sweep: Sweep, plan: dict[str, Any], inputs: dict[str, Any]) -> None:
        """Raise `ValueError` if the folder has another sweep, or one with another base, plan or inputs.

        The error names the first difference.
        """
        if (content := self._content()) is None:
            return
        has = f"workdir {self.path} has the sweep {content['name']}"
        if content["name"] != sweep.name:
            raise ValueError(f"{has}, not {sweep.name}; choose another --workdir")
        now = {"base": json.loads(json.dumps(sweep.base.to_dict())), "together": plan, "inputs": inputs}
        for group, path in (("base", "config"), ("together", "--"), ("inputs", "inputs")):
            old, new = flatten(content[group], path), flatten(now[group], path)
            for key in old | new:
                if old.get(key) != new.get(key) and not key.startswith(LEFT_OUT):
                    name = key.replace("--.", "--")
                    raise ValueError(
                        f"{has} with {name} = {old.get(key)!r}, got {new.get(key)!r}; choose another --workdir"
                    )

    def run(self, run: Run) -> Path:
        """The folder of a run."""
        return self.path / "runs" / run.id

    def result(self, run: Run) -> Result | None:
        """The result of a run, None if it is not finished.

        Raises:
          ValueError: for a result that is not complete; names the run and the key.
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
        return str(read_object(path).get("error", "failed.json has no error")) if path.exists() else None

    def is_settled(self, run: Run) -> bool:
        """Whether a run has a result, complete or not, or failed."""
        return any((self.run(run) / name).exists() for name in ("result.json", "failed.json"))

    def state(self, run: Run) -> str:
        """One of `STATES`."""
        try:
            if self.result(run) is not None:
                return "finished"
        except ValueError:
            return "corrupt"
        if self.failure(run) is not None:
            return "failed"
        if not (self.run(run) / "config.json").exists():
            return "waiting"
        with self.lock([run]) as is_free:
            return "interrupted" if is_free else "running"

    @contextlib.contextmanager
    def lock(self, runs: Sequence[Run], patience: float = 0.0) -> Iterator[bool]:
        """Whether this process alone works on these runs, for as long as the block lasts.

        patience: seconds to wait for each.
        """
        with contextlib.ExitStack() as stack:
            for run in runs:
                self.run(run).mkdir(parents=True, exist_ok=True)
                lock = filelock.FileLock(self.run(run) / ".lock")
                try:
                    lock.acquire(timeout=patience)
                except filelock.Timeout:
                    yield False
                    return
                stack.callback(lock.release)
            yield True

    def begin(self, run: Run, members: Sequence[Run], provenance: dict[str, Any]) -> None:
        """Record that a run is being computed, by what, and with which others."""
        folder = self.run(run)
        write_json(folder / "config.json", run.config.to_dict())
        attempts = read_object(folder / "provenance.json").get("attempts", 0) + 1
        write_json(folder / "provenance.json", provenance | {"together": len(members), "attempts": attempts})
        if len(members) > 1:
            write_json(folder / "group.json", [member.id for member in members])

    def group(self, run: Run) -> list[str]:
        """The ids of the runs that an interrupted run was trained with, [] for none."""
        with contextlib.suppress(ValueError):
            return read_json(self.run(run) / "group.json") or []
        return []

    def finish(self, run: Run, result: Result, seconds: float) -> None:
        """Write the result.

        seconds: wall time of the attempt, divided by the number of runs that share it; `result.cost` may have a better
          measure.

        Raises:
          ValueError: for values that are not finite.
        """
        folder = self.run(run)
        value = {"id": run.id, **result._asdict(), "cost": {"seconds": round(seconds, 3), **result.cost}}
        check_result(value, run)
        made_by = read_object(folder / "provenance.json")
        write_json(folder / "provenance.json", made_by | {"seconds": round(seconds, 3)})
        if not (folder / "metrics.jsonl").exists():
            (folder / "metrics.jsonl").write_text(json.dumps({"step": 0, **result.metrics}) + "\n")
        write_json(folder / "result.json", value)

    def fail(self, run: Run, error: BaseException) -> str:
        """Write why a run failed, unless the disk is full; return it as one line."""
        text = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        trace = "".join(traceback.format_exception(error))
        with contextlib.suppress(OSError):
            write_json(self.run(run) / "failed.json", {"error": text, "traceback": trace})
        return text

    def retry(self, runs: Sequence[Run]) -> None:
        """Make failed runs and corrupt results waiting again, except those that other processes work on."""
        for run in runs:
            with self.lock([run]) as mine:
                if mine and self.state_is_lost(run):
                    for name in ("failed.json", "result.json"):
                        _remove(self.run(run) / name)

    def state_is_lost(self, run: Run) -> bool:
        """Whether a run failed or has a corrupt result."""
        try:
            return self.result(run) is None and self.failure(run) is not None
        except ValueError:
            return True


def _remove(path: Path) -> None:
    """Remove a file, or a folder in its place."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file, {} if there is none."""
    try:
        value = read_json(path)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def check_result(value: Any, run: Run) -> None:
    """Raise `ValueError`, naming the run and the key, for a result that is not complete."""
    if not isinstance(value, dict):
        raise ValueError(f"run {run.label}: result.json must be an object, got {type(value).__name__}")
    try:
        reading.check_result(value, run.id)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"run {run.label}: {error}") from error
