"""Takes the units of a sweep that nobody else is at work on, one after another, until none is left."""

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments.progress import Progress, clock
from experiments.sweeping import provenance
from experiments.sweeping.definition import Run, Sweep, described
from experiments.sweeping.folder import STATES, Folder, Result, Unit, whole
from experiments.sweeping.settings import parsed
from experiments.sweeping.tasks import Task
from experiments.workdir import flatten, write_json

PATIENCE = 1.0  # seconds


class Plan(NamedTuple):
    """How the runs of a sweep are shared out. group: the most runs in one program, 1 for `loop`."""

    way: str
    group: int

    def units(self, sweep: Sweep, task: Task) -> list[Unit]:
        """All runs, those that share a program next to each other."""
        alike: dict[str, list[Run]] = {}
        for run in sweep.runs.values():
            alike.setdefault(task.alike(run.config), []).append(run)
        if self.way == "loop":
            return [Unit(run.id, [run]) for runs in alike.values() for run in runs]
        return [
            Unit(hashlib.sha256(f"{key} {at}".encode()).hexdigest()[:12], runs[at : at + self.group])
            for key, runs in alike.items()
            for at in range(0, len(runs), self.group)
        ]


def chosen(units: Sequence[Unit], only: Sequence[str], shard: str) -> list[Unit]:
    """The units that are left by --only and --shard.

    Raises:
      ValueError: if nothing is, or the shard is no I/N.
    """
    picked = [unit._replace(runs=[run for run in unit.runs if _matches(run, only)]) for unit in units]
    picked = [unit for unit in picked if unit.runs]
    if not picked:
        raise ValueError(f"only must leave at least one run, got {' '.join(only)}")
    number, _, count = (shard or "1/1").partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ValueError(f"shard must be I/N with 1 <= I <= N, got {shard!r}")
    first, last = ((int(number) - 1 + i) * len(picked) // int(count) for i in (0, 1))
    return picked[first:last]


def _matches(run: Run, only: Sequence[str]) -> bool:
    """Whether a run has one of the ids, if any is given, and all of the settings."""
    ids = [one for one in only if "=" not in one]
    if ids and not any(run.id.startswith(one) for one in ids):
        return False
    flat = flatten(run.config.to_dict())
    for one in only:
        key, sep, text = one.partition("=")
        if sep and key not in flat:
            raise ValueError(f"only must name a setting, got {key}")
        value = parsed(text)
        if sep and flat[key] != (list(value) if isinstance(value, tuple) else value):
            return False
    return True


def listing(folder: Folder, units: Sequence[Unit]) -> str:
    """A line for each run, then how many are in which state."""
    lines, counts = [], dict.fromkeys(STATES, 0)
    for unit in units:
        for run in unit.runs:
            state = folder.state(run, unit)
            counts[state] += 1
            lines.append(f"{run.id}  {state:<11}  {described(run.overrides)}{_why(folder, run, state)}")
    return "\n".join([*lines, ", ".join(f"{n} {state}" for state, n in counts.items() if n)])


def _why(folder: Folder, run: Run, state: str) -> str:
    if state == "failed":
        return f"  ({folder.failure(run)})"
    if state == "corrupt":
        try:
            folder.result(run)
        except ValueError as error:
            return f"  ({error})"
    return ""


class Worker:
    """One process at work on a sweep."""

    def __init__(self, folder: Folder, task: Task, way: str, total: int, *, retry: bool):
        self._folder, self._task, self._way, self._total, self._retry = folder, task, way, total, retry
        self._made_by: dict[str, Any] | None = None
        self._start, self._done_here = time.monotonic(), 0

    def go(self, units: Sequence[Unit], everything: Sequence[Unit]) -> None:
        """Takes what nobody else has. everything: the units of the whole sweep, to count them."""
        self._everything = {unit.name: unit for unit in everything}
        left = [unit for unit in units if not self._try(unit)]
        for unit in left:  # whoever had it may be gone, or only looked
            self._try(unit, PATIENCE)

    def _try(self, unit: Unit, patience: float = 0.0) -> bool:
        with self._folder.lock(unit, patience) as mine:
            if mine:
                self._take(unit)
        return mine

    def _is_open(self, run: Run) -> bool:
        try:
            if self._folder.result(run) is not None:
                return False
        except ValueError as error:
            if not self._retry:
                print(f"error: {error}; --retry computes it again", file=sys.stderr, flush=True)
                return False
            self._folder.forget(run)
        if self._folder.failure(run) is not None:
            if not self._retry:
                return False
            self._folder.forget(run)
        return True

    def _take(self, unit: Unit) -> None:
        todo = [run for run in unit.runs if self._is_open(run)]
        # A unit that was interrupted goes on with the runs that it began with, finished meanwhile or not.
        began = self._began(unit)
        if any(run.id in began for run in todo):
            self._compute(unit, [run for run in self._everything[unit.name].runs if run.id in began])
            todo = [run for run in todo if run.id not in began]
        if todo:
            self._folder.clear(unit)
            self._compute(unit, todo)
        elif all(self._is_settled(run) for run in self._everything[unit.name].runs):
            self._folder.clear(unit)

    def _began(self, unit: Unit) -> list[str]:
        return whole(self._folder.unit(unit) / "members.json").get("ids", [])

    def _compute(self, unit: Unit, members: list[Run]) -> None:
        """Computes runs together; the results of those that have one stay."""
        todo = {run.id: run for run in members if not self._is_settled(run)}
        path = self._folder.unit(unit) / "members.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"ids": [run.id for run in members]})
        self._made_by = self._made_by or provenance.collect(provenance.command())
        for run in todo.values():
            self._folder.begin(run, {**self._made_by, "way": self._way, "together": len(members)})
        start = time.monotonic()
        which = members[0].id if len(members) == 1 else f"{len(members)} runs"

        def say(name, total):
            return Progress(f"{which} {name}", total, f"{name}s", silent=not sys.stdout.isatty())

        try:
            for run, outcome in self._task.run(unit._replace(runs=members), self._folder, self._way, say):
                if todo.pop(run.id, None) is not None:
                    self._settle(run, outcome, (time.monotonic() - start) / len(members))
        except (Exception, SystemExit) as error:  # of the program: none of its runs can go on
            for run in todo.values():
                self._settle(run, error, 0.0)
        self._folder.clear(unit)

    def _settle(self, run: Run, outcome: Result | BaseException, seconds: float) -> None:
        self._done_here += 1
        if isinstance(outcome, Result):
            try:
                self._folder.finish(run, outcome, seconds)
            except ValueError as error:
                outcome = error
        if isinstance(outcome, Result):
            said = ", ".join(f"{name} {value:.4g}" for name, value in outcome.metrics.items())
        else:
            said = f"failed: {self._folder.fail(run, outcome)}"
        done = sum(self._is_settled(run) for unit in self._everything.values() for run in unit.runs)
        left = (time.monotonic() - self._start) / self._done_here * (self._total - done)
        eta = f"  ETA {clock(left)}" if done < self._total else ""
        print(f"[{done}/{self._total}] {run.label}: {said}  ({seconds:.1f} s){eta}", flush=True)

    def _is_settled(self, run: Run) -> bool:
        path = self._folder.run(run)
        return (path / "result.json").exists() or (path / "failed.json").exists()


def spawn(count: int, per: str) -> int:
    """Starts this command in `count` processes, each with a device of its own if per is "device"; how many failed."""
    arguments = [argument for argument in sys.argv[1:] if not argument.lstrip("-").startswith("workers")]
    workers = []
    for number in range(count):
        environment = {**os.environ}
        if per == "device":
            environment |= {"CUDA_VISIBLE_DEVICES": _visible(number), "TPU_VISIBLE_CHIPS": str(number)}
            environment |= {"TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_BOUNDS": "1,1,1"}
        command = [sys.executable, "-m", "experiments.sweep", *arguments, f"--worker={number + 1}/{count}"]
        workers.append(subprocess.Popen(command, env=environment))
    try:
        return sum(worker.wait() != 0 for worker in workers)
    except BaseException:
        for worker in workers:
            worker.terminate()
        raise


def _visible(number: int) -> str:
    """The GPU of a worker: of those that this process may see, if that is said."""
    own = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return own.split(",")[number % len(own.split(","))] if own else str(number)
