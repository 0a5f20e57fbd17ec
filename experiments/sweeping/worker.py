"""Takes the units of a sweep that nobody else is at work on, one after another, until none is left."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments.run.metrics_log import NotFiniteError
from experiments.run.progress import Progress, clock
from experiments.run.workdir import flatten, write_json
from experiments.sweeping import provenance
from experiments.sweeping.definition import Run, Sweep, described
from experiments.sweeping.folder import STATES, Folder, Result, Unit, whole
from experiments.sweeping.settings import parsed
from experiments.sweeping.tasks import Task

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
        raise ValueError(f"only must leave at least one run, with all of its settings, got {' '.join(only)}")
    number, _, count = (shard or "1/1").partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ValueError(f"shard must be I/N with 1 <= I <= N, got {shard!r}")
    first, last = ((int(number) - 1 + i) * len(picked) // int(count) for i in (0, 1))
    return picked[first:last]


def _matches(run: Run, only: Sequence[str]) -> bool:
    """Whether a run has one of the ids, if any is given, and all of the settings."""
    ids = [one for one in only if "=" not in one]
    if ids and run.id not in ids:
        return False
    flat = flatten(run.config.to_dict())
    pairs = (one.partition("=") for one in only if "=" in one)
    return all(key in flat and flat[key] == _as_json(parsed(text)) for key, _, text in pairs)


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def check_only(sweep: Sweep, only: Sequence[str]) -> None:
    """Raises `ValueError` for an id or a key that no run has."""
    keys = {key for run in sweep.runs.values() for key in flatten(run.config.to_dict())}
    for one in only:
        if "=" not in one and one not in sweep.runs:
            raise ValueError(f"only must be the id of a run or config.KEY=VALUE, got {one}")
        if "=" in one and one.partition("=")[0] not in keys:
            raise ValueError(f"only must name a setting of a run, got {one.partition('=')[0]}")


def states(folder: Folder, units: Sequence[Unit]) -> dict[str, tuple[Run, str]]:
    """{id: (run, one of `STATES`)}."""
    return {run.id: (run, folder.state(run, unit)) for unit in units for run in unit.runs}


def counted(of: dict[str, tuple[Run, str]]) -> str:
    """How many runs are in which state."""
    numbers = {state: sum(found == state for _, found in of.values()) for state in STATES}
    return ", ".join(f"{number} {state}" for state, number in numbers.items() if number)


def listing(folder: Folder, of: dict[str, tuple[Run, str]]) -> str:
    """A line for each run."""
    return "\n".join(
        f"{run.id}  {state:<11}  {described(run.overrides)}{_why(folder, run, state)}" for run, state in of.values()
    )


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
    """One process at work on a sweep. everything: the units of the whole sweep; chosen: those that it may take."""

    def __init__(self, folder: Folder, task: Task, way: str, everything: Sequence[Unit], chosen: Sequence[Unit]):
        self._folder, self._task, self._way, self._chosen = folder, task, way, chosen
        self._everything = {unit.name: unit for unit in everything}
        self._open = {run.id: run for unit in chosen for run in unit.runs}
        self._made_by: dict[str, Any] | None = None
        self._total = len(self._open)
        self._count()
        self._start, self._done_before = time.monotonic(), self._total - len(self._open)

    def go(self, first: int = 0) -> None:
        """Takes what nobody else has, from the unit `first` on."""
        units = [*self._chosen[first:], *self._chosen[:first]]
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
            return self._folder.result(run) is None and self._folder.failure(run) is None
        except ValueError as error:
            print(f"error: {error}; --retry computes it again", file=sys.stderr, flush=True)
            return False

    def _take(self, unit: Unit) -> None:
        todo = [run for run in unit.runs if self._is_open(run)]
        # A unit that was interrupted goes on with the runs that it began with, finished meanwhile or not: how many
        # share a program is in the last bits of what it finds.
        began = self._began(unit)
        if any(run.id in began for run in todo):
            self._compute(unit, [run for run in self._everything[unit.name].runs if run.id in began])
            todo = [run for run in todo if run.id not in began]
        if todo:
            self._folder.clear(unit)
            self._compute(unit, todo)
        elif all((self._folder.run(run) / "result.json").exists() for run in self._everything[unit.name].runs):
            self._folder.clear(unit)

    def _began(self, unit: Unit) -> list[str]:
        """The ids of the runs that a unit was begun with, none if it was not, or is done."""
        return whole(self._folder.unit(unit) / "members.json").get("ids", [])

    def _compute(self, unit: Unit, members: list[Run]) -> None:
        """Computes runs together; the results of those that have one stay."""
        todo = {run.id: run for run in members if not self._is_settled(run)}
        path = self._folder.unit(unit) / "members.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"ids": [run.id for run in members]})
        self._made_by = self._made_by or provenance.collect(provenance.command())
        made_by, started = {**self._made_by, "way": self._way}, provenance.now()
        for run in todo.values():
            self._folder.begin(run, {**made_by, "together": len(members), "started": started})
        start, can_be_mended = time.monotonic(), False
        which = members[0].id if len(members) == 1 else f"{len(members)} runs"

        def say(name, total):
            return Progress(f"{which} {name}", total, f"{name}s", silent=not sys.stdout.isatty())

        self._count()
        try:
            for run, outcome in self._task.run(unit._replace(runs=members), self._folder, self._way, say):
                if run.id in todo:
                    can_be_mended |= isinstance(outcome, BaseException) and not isinstance(outcome, NotFiniteError)
                    del todo[run.id]
                    self._settle(run, outcome, (time.monotonic() - start) / len(members), len(todo))
        except (Exception, SystemExit) as error:  # of the program: none of its runs can go on
            can_be_mended = True
            for run in todo.values():
                self._settle(run, error, 0.0, 0)
        has_checkpoints = any(inner.is_dir() for inner in path.parent.iterdir())
        if not (can_be_mended and has_checkpoints):  # else --retry goes on from them
            self._folder.clear(unit)

    def _settle(self, run: Run, outcome: Result | BaseException, seconds: float, about: int) -> None:
        """Writes what became of a run, and a line about it. about: how many of its unit are about to be settled."""
        if isinstance(outcome, Result):
            try:
                self._folder.finish(run, outcome, seconds)
            except (ValueError, OSError) as error:
                outcome = error
        if isinstance(outcome, Result):
            said = ", ".join(f"{name} {value:.4g}" for name, value in outcome.metrics.items())
        else:
            said = f"failed: {self._folder.fail(run, outcome)}"
        self._open.pop(run.id, None)
        done = self._total - len(self._open)
        pace = (time.monotonic() - self._start) / max(done + about - self._done_before, 1)
        left = pace * (len(self._open) - about)
        eta = f"  ETA {clock(left)}" if len(self._open) > about else ""
        print(f"[{done}/{self._total}] {run.label}: {said}  ({seconds:.1f} s){eta}", flush=True)

    def _count(self) -> None:
        """Looks which runs others have settled."""
        self._open = {id: run for id, run in self._open.items() if not self._is_settled(run)}

    def _is_settled(self, run: Run) -> bool:
        path = self._folder.run(run)
        return (path / "result.json").exists() or (path / "failed.json").exists()


def backend() -> tuple[str, int]:
    """(name, number of devices) of what workers would run on, asked in a process that lets them go again."""
    ask = "import jax; print(jax.default_backend(), jax.local_device_count())"
    found = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True)
    if found.returncode:
        raise ValueError(f"workers cannot be started, JAX finds no devices: {found.stderr.strip().splitlines()[-1]}")
    name, count = found.stdout.split()[-2:]
    return name, int(count)


def spawn(count: int, accelerators: bool) -> list[int]:
    """Starts this command in `count` processes, each with an accelerator of its own if there are; their statuses.

    They end with this process (`end_with_parent`).
    """
    workers = []
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    for number in range(count):
        environment = {**os.environ}
        if accelerators:
            environment |= {"CUDA_VISIBLE_DEVICES": _visible(number), "TPU_VISIBLE_CHIPS": str(number)}
            environment |= {"TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_BOUNDS": "1,1,1"}
        own = ["--workers=1", "--retry=false", f"--worker={number + 1}/{count}"]  # the last of a flag counts
        command = [sys.executable, "-m", "experiments.sweep", *sys.argv[1:], *own]
        workers.append(subprocess.Popen(command, stdin=subprocess.PIPE, env=environment))
    try:
        return [worker.wait() for worker in workers]
    except BaseException:
        for worker in workers:
            worker.terminate()
        raise


def end_with_parent() -> None:
    """Watches in the background for the end of the process that started this one, and ends then, whatever ended it.

    To be killed is what a run is made for, and nobody waits for a worker without its parent. The parent holds the other
    end of this process's standard input (`spawn`), and says nothing.
    """

    def watch():
        os.read(0, 1)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _visible(number: int) -> str:
    """The GPU of a worker: of those that this process may see, if that is said."""
    own = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return own.split(",")[number] if own else str(number)
