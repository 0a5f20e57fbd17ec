"""The folder of a sweep. Each run has a separate folder, which one process at a time may use.

sweep.json                 name, base, runs and inputs of the sweep; how runs share programs
runs/ID/config.json        the config
runs/ID/.lock              locked by the process that computes the run; released by the kernel when that process ends
runs/ID/provenance.json    commit, packages, devices and command of the last attempt
runs/ID/metrics.jsonl      a line for each logged step of training; one line for other runs
runs/ID/checkpoints/       of a training run; removed when it is finished
runs/ID/group.json         the ids of the runs that are computed in one program with this one; removed with checkpoints
runs/ID/export/            the trained model, unless --keep=none
runs/ID/result.json        written last and atomically: the run is finished
runs/ID/failed.json        the error of a failed run
"""

import contextlib
import functools
import importlib.metadata
import json
import platform
import shlex
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import jax

import diffax
from experiments.configs.settings import flatten
from experiments.reporting import reading
from experiments.run.workdir import check_writable, read_json, write_json
from experiments.sweeping.definition import LEFT_OUT, SEED, Run, Sweep

STATES = ("finished", "failed", "corrupt", "running", "interrupted", "waiting")
PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "scikit-learn", "ott-jax", "grain"),
    "ml_collections",
)


class Result(NamedTuple):
    """The result of a run. floors: the metrics of real data; conditions: how they were measured; cost: of the run."""

    metrics: dict[str, float]
    floors: dict[str, float]
    conditions: dict[str, Any]
    cost: dict[str, float]


def content(sweep: Sweep, plan: dict[str, Any], inputs: dict[str, str]) -> dict[str, Any]:
    """The content of sweep.json. plan: how runs share programs; inputs: {path: digest} of the models used by runs."""
    base = json.loads(json.dumps(sweep.base.to_dict()))
    described = {"name": sweep.name, "task": base["task"], "title": sweep.title, "seed_keys": [SEED]}
    runs = {run.id: run.overrides for run in sweep.runs.values()}
    return {**described, "together": plan, "inputs": inputs, "base": base, "runs": runs}


class Folder:
    """The folder of a sweep on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def saved(self) -> dict[str, Any] | None:
        """The content of sweep.json, None for a new folder."""
        path = self.path / "sweep.json"
        try:
            saved = read_json(path)
        except ValueError as error:
            raise ValueError(f"{path} must be JSON ({error})") from error
        keys = {"name", "base", "together", "inputs", "runs"}
        if saved is not None and not (isinstance(saved, dict) and keys <= saved.keys()):
            raise ValueError(f"{path} must be an object with the keys {', '.join(sorted(keys))}")
        return saved

    def compare(self, now: dict[str, Any]) -> None:
        """Raise `ValueError` if the folder has another sweep, or a sweep with another base, plan or inputs.

        The error has the first difference. now: the `content` of this sweep.
        """
        if (saved := self.saved()) is None:
            return
        has = f"workdir {self.path} has the sweep {saved['name']}"
        if saved["name"] != now["name"]:
            raise ValueError(f"{has}, not {now['name']}; choose another --workdir")
        for group, path in (("base", "config."), ("together", "--"), ("inputs", "inputs.")):
            old, new = (flatten(value[group], "") for value in (saved, now))
            for key in old | new:
                name = path + key.removeprefix(".")
                if old.get(key) != new.get(key) and not name.startswith(LEFT_OUT):
                    change = f"{name} = {old.get(key)!r}, got {new.get(key)!r}"
                    raise ValueError(f"{has} with {change}; choose another --workdir")

    def claim(self, now: dict[str, Any]) -> None:
        """Write sweep.json, with new runs.

        Raises:
          ValueError: as `compare`, or if the folder is not writable.
        """
        check_writable(self.path)
        (self.path / "runs").mkdir(exist_ok=True)
        with filelock.FileLock(self.path / ".claim.lock"):
            self.compare(now)
            if now != self.saved():
                write_json(self.path / "sweep.json", now)

    def run(self, run: Run) -> Path:
        """The folder of a run."""
        return self.path / "runs" / run.id

    def state(self, run: Run) -> tuple[str, str]:
        """(one of `STATES`, the reason if the run failed or its result is corrupt)."""
        seen = reading.read_run(self.run(run), run.id, run.overrides, run.overrides)
        if seen.state in ("done", "failed", "corrupt"):
            return seen.state.replace("done", "finished"), seen.error
        if not (self.run(run) / "config.json").exists():
            return "waiting", ""
        with self.lock([run]) as is_free:
            return "interrupted" if is_free else "running", ""

    def is_settled(self, run: Run) -> bool:
        """Whether a run has a result, complete or not, or failed."""
        return any((self.run(run) / name).exists() for name in ("result.json", "failed.json"))

    @contextlib.contextmanager
    def lock(self, runs: Sequence[Run], patience: float = 0.0) -> Iterator[bool]:
        """Lock these runs for the duration of the block; yield whether this succeeded.

        patience: seconds to wait for each.
        """
        with contextlib.ExitStack() as stack:
            is_mine = False
            with contextlib.suppress(filelock.Timeout):
                for run in runs:
                    self.run(run).mkdir(parents=True, exist_ok=True)
                    stack.enter_context(filelock.FileLock(self.run(run) / ".lock", timeout=patience))
                is_mine = True
            yield is_mine

    def begin(self, run: Run, members: Sequence[Run], way: str) -> None:
        """Record the start of a run: its provenance, and the other runs of the same program."""
        attempts = self._read(run, "provenance.json", {}).get("attempts", 0) + 1
        provenance = {**_environment(), "command": shlex.join(["python", "-m", "experiments.sweep", *sys.argv[1:]])}
        provenance |= {"way": way, "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        write_json(self.run(run) / "config.json", run.config.to_dict())
        write_json(self.run(run) / "provenance.json", provenance | {"together": len(members), "attempts": attempts})
        write_json(self.run(run) / "group.json", [member.id for member in members])

    def members(self, run: Run, group: Sequence[Run]) -> list[Run]:
        """The runs of a group that an interrupted run was computed with, itself included; [] for another run."""
        ids = self._read(run, "group.json", [])
        return [other for other in group if other.id in ids]

    def _read(self, run: Run, name: str, default: Any) -> Any:
        """The content of a file of a run, the default if it is missing or damaged."""
        try:
            value = read_json(self.run(run) / name)
        except ValueError:
            return default
        return value if isinstance(value, type(default)) else default

    def finish(self, run: Run, result: Result, seconds: float) -> None:
        """Write the result.

        seconds: wall time of the attempt, divided by the number of runs that share it; `result.cost` may override it.

        Raises:
          ValueError: for values that are not finite.
        """
        folder, cost = self.run(run), {"seconds": round(seconds, 3)}
        value = {"id": run.id, **result._asdict(), "cost": cost | result.cost}
        reading.check_result(value, run.id)
        write_json(folder / "provenance.json", self._read(run, "provenance.json", {}) | cost)
        if not (folder / "metrics.jsonl").exists():
            (folder / "metrics.jsonl").write_text(json.dumps({"step": 0, **result.metrics}) + "\n")
        write_json(folder / "result.json", value)

    def fail(self, run: Run, error: BaseException) -> str:
        """Write the error of a failed run, unless the disk is full; return it as one line."""
        text = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        trace = "".join(traceback.format_exception(error))
        with contextlib.suppress(OSError):
            write_json(self.run(run) / "failed.json", {"error": text, "traceback": trace})
        return text

    def forget(self, runs: Sequence[Run]) -> None:
        """Remove the checkpoints of runs that were computed in one program; they are not resumed."""
        shutil.rmtree(self.run(runs[0]) / "checkpoints", ignore_errors=True)
        for run in runs:
            (self.run(run) / "group.json").unlink(missing_ok=True)

    def retry(self, runs: Sequence[Run]) -> None:
        """Reset failed runs and corrupt results to waiting, except runs that other processes have locked."""
        for run in runs:
            with self.lock([run]) as is_mine:
                if is_mine and self.state(run)[0] in ("failed", "corrupt"):
                    for path in (self.run(run) / "failed.json", self.run(run) / "result.json"):
                        if path.is_dir():
                            shutil.rmtree(path)
                        path.unlink(missing_ok=True)


@functools.cache
def _environment() -> dict[str, Any]:
    """The commit, whether files have changed since, versions, devices."""
    changed = _git("status", "--porcelain", "--untracked-files=no")
    versions = {package.name: package.version for package in importlib.metadata.distributions()}
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if changed is None else bool(changed),
        "packages": {"diffax": diffax.__version__, **{name: versions.get(name) for name in PACKAGES}},
        "python": platform.python_version(),
        "device": jax.local_devices()[0].device_kind,
        "num_devices": jax.local_device_count(),
    }


def _git(*arguments: str) -> str | None:
    """The output of git in this source tree, None outside a checkout."""
    try:
        return subprocess.check_output(
            ["git", *arguments], cwd=Path(__file__).parent, stderr=subprocess.DEVNULL, text=True, timeout=30
        ).strip()
    except (OSError, subprocess.SubprocessError):
        return None
