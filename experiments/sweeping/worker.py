"""Takes the runs of a sweep that no other process works on, one job after another, until none is left."""

import functools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from diffax.training import NotFiniteError, Progress, Stopped
from diffax.training.logs import clock
from experiments.configs.settings import flatten, parsed
from experiments.sweeping import provenance
from experiments.sweeping.definition import Run, Sweep, described
from experiments.sweeping.folder import STATES, Folder, Result
from experiments.sweeping.tasks import Job, Task

PATIENCE = 1.0  # seconds


class Plan(NamedTuple):
    """How runs share programs. group: the largest number of runs in one program, 1 for "loop"."""

    way: str
    group: int


def chunks(sweep: Sweep, task: Task, plan: Plan) -> list[list[Run]]:
    """All runs in groups that are computed together; runs that share a program follow each other."""
    classes: dict[str, list[Run]] = {}
    for run in sweep.runs.values():
        classes.setdefault(task.alike(run.config), []).append(run)
    return [runs[at : at + plan.group] for runs in classes.values() for at in range(0, len(runs), plan.group)]


def chosen(sweep: Sweep, everything: Sequence[Sequence[Run]], only: Sequence[str], shard: str) -> list[str]:
    """The ids of the runs that --only and --shard leave; a shard has whole groups.

    Raises:
      ValueError: if no run is left, an id or key is unknown, or the shard is no I/N.
    """
    keys = {key for run in sweep.runs.values() for key in flatten(run.config.to_dict())}
    for text in only:
        if "=" not in text and text not in sweep.runs:
            raise ValueError(f"only must be the id of a run or config.KEY=VALUE, got {text}")
        if "=" in text and text.partition("=")[0] not in keys:
            raise ValueError(f"only must name a setting of a run, got {text.partition('=')[0]}")
    groups = [ids for group in everything if (ids := [run.id for run in group if _matches(run, only)])]
    if not groups:
        raise ValueError(f"only must leave at least one run, with all of its settings, got {' '.join(only)}")
    number, _, count = (shard or "1/1").partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ValueError(f"shard must be I/N with 1 <= I <= N, got {shard!r}")
    first, last = ((int(number) - 1 + i) * len(groups) // int(count) for i in (0, 1))
    return [id for ids in groups[first:last] for id in ids]


def _matches(run: Run, only: Sequence[str]) -> bool:
    """Whether a run has one of the ids, if there are any, and all of the settings."""
    ids = [text for text in only if "=" not in text]
    flat = flatten(run.config.to_dict())
    pairs = [text.partition("=") for text in only if "=" in text]
    same = all(key in flat and flat[key] == flatten(parsed(text, flat[key]))["config"] for key, _, text in pairs)
    return same and (not ids or run.id in ids)


def states(folder: Folder, runs: Sequence[Run]) -> dict[str, tuple[Run, str]]:
    """{id: (run, one of `STATES`)}."""
    return {run.id: (run, folder.state(run)) for run in runs}


def counted(runs: dict[str, tuple[Run, str]]) -> str:
    """How many runs are in each state."""
    numbers = {state: sum(own == state for _, own in runs.values()) for state in STATES}
    return ", ".join(f"{number} {state}" for state, number in numbers.items() if number)


def listing(folder: Folder, runs: dict[str, tuple[Run, str]]) -> str:
    """A line for each run."""
    lines = []
    for run, state in runs.values():
        reason = folder.failure(run) if state == "failed" else ""
        if state == "corrupt":
            try:
                folder.result(run)
            except ValueError as error:
                reason = str(error)
        lines.append(f"{run.id}  {state:<11}  {described(run.overrides)}" + (f"  ({reason})" if reason else ""))
    return "\n".join(lines)


class Worker:
    """One process that works on a sweep. ids: of the runs that it may compute."""

    def __init__(
        self, folder: Folder, task: Task, way: str, keep: str, everything: Sequence[list[Run]], ids: Sequence[str]
    ) -> None:
        self._folder, self._task, self._way, self._keep = folder, task, way, keep
        self._chunks = [group for group in everything if any(run.id in ids for run in group)]
        self._ids = set(ids)
        self._open = {run.id: run for group in self._chunks for run in group if run.id in self._ids}
        self._total, self._start = len(self._open), time.monotonic()
        self._count()
        self._done_before = self._total - len(self._open)

    def go(self, first: int = 0) -> None:
        """Compute what no other process works on, from the group `first` on."""
        groups = [*self._chunks[first:], *self._chunks[:first]]
        left = [group for group in groups if not self._try(group)]
        for group in left:  # the other process may have ended, or only looked at the state
            self._try(group, PATIENCE)

    def _try(self, group: list[Run], patience: float = 0.0) -> bool:
        with self._folder.lock(group, patience) as mine:
            if mine:
                self._take(group)
        return mine

    def _is_open(self, run: Run) -> bool:
        try:
            return self._folder.result(run) is None and self._folder.failure(run) is None
        except ValueError as error:
            print(f"error: {error}; --retry computes it again", file=sys.stderr, flush=True)
            return False

    def _take(self, group: list[Run]) -> None:
        """Compute the open runs of a group.

        Runs that were interrupted are computed with the same others as before, finished meanwhile or not: how many runs
        share a program changes the last bits of the results.
        """
        todo = [run for run in group if run.id in self._ids and self._is_open(run)]
        for run in list(todo):
            members = [other for other in group if other.id in self._folder.group(run)]
            if run in todo and len(members) > 1:
                self._compute(members)
                todo = [other for other in todo if other not in members]
        if todo:
            self._compute(todo)

    def _compute(self, members: list[Run]) -> None:
        """Compute runs together; results that are there already stay."""
        todo = {run.id: run for run in members if not self._folder.is_settled(run)}
        made_by = _collected(provenance.command()) | {"way": self._way, "started": provenance.now()}
        name = members[0].id if len(members) == 1 else f"{len(members)} runs"
        progress = functools.partial(_progress, name)
        start, checkpoints, can_continue = time.monotonic(), self._folder.run(members[0]) / "checkpoints", False
        self._count()
        try:
            for run in todo.values():
                self._folder.begin(run, members, made_by)
            for run, outcome in self._task.run(Job(members, self._folder, self._way, self._keep, progress)):
                if run.id in todo:
                    can_continue |= isinstance(outcome, BaseException) and not isinstance(outcome, NotFiniteError)
                    del todo[run.id]
                    self._settle(run, outcome, (time.monotonic() - start) / len(members), len(todo))
        except Stopped:
            raise
        except (Exception, SystemExit) as error:  # of the program: none of its runs can continue
            can_continue = not isinstance(error, NotFiniteError)
            for run in todo.values():
                self._settle(run, error, 0.0, 0)
        if not (can_continue and checkpoints.is_dir() and any(checkpoints.iterdir())):  # else --retry continues there
            shutil.rmtree(checkpoints, ignore_errors=True)
            for run in members:
                (self._folder.run(run) / "group.json").unlink(missing_ok=True)

    def _settle(self, run: Run, outcome: Result | BaseException, seconds: float, others: int) -> None:
        """Write the outcome of a run, and print a line. others: runs of the job whose outcome follows at once."""
        if isinstance(outcome, Result):
            try:
                self._folder.finish(run, outcome, seconds)
            except (ValueError, OSError) as error:
                outcome = error
        if isinstance(outcome, Result):
            text = ", ".join(f"{name} {value:.4g}" for name, value in outcome.metrics.items())
        else:
            text = f"failed: {self._folder.fail(run, outcome)}"
        self._open.pop(run.id, None)
        done = self._total - len(self._open)
        pace = (time.monotonic() - self._start) / max(done + others - self._done_before, 1)
        left = len(self._open) - others
        eta = f"  ETA {clock(pace * left)}" if left > 0 else ""
        print(f"[{done}/{self._total}] {run.label}: {text}  ({seconds:.1f} s){eta}", flush=True)

    def _count(self) -> None:
        """Drop the runs that other processes have settled."""
        self._open = {id: run for id, run in self._open.items() if not self._folder.is_settled(run)}


@functools.cache
def _collected(command: str) -> dict[str, Any]:
    return provenance.collect(command)


def _progress(job: str, name: str, total: int) -> Progress:
    return Progress(f"{job} {name}", total, f"{name}s", silent=not sys.stdout.isatty())


def backend() -> tuple[str, int]:
    """(name, number of devices) of what workers would run on, asked in a process that releases them again."""
    ask = "import jax; print(jax.default_backend(), jax.local_device_count())"
    answer = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True)
    if answer.returncode:
        raise ValueError(f"workers cannot be started, JAX finds no devices: {answer.stderr.strip().splitlines()[-1]}")
    name, count = answer.stdout.split()[-2:]
    return name, int(count)


def spawn(count: int, accelerators: bool) -> list[int]:
    """Run this command in `count` processes, each with an accelerator of its own if there are any; their statuses.

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
    """Kill this process when the one that started it ends, in any way.

    The parent has the other end of this process's standard input and writes nothing to it. Runs survive a kill.
    """

    def watch() -> None:
        os.read(0, 1)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _visible(number: int) -> str:
    """The GPU of a worker, among those that this process may see."""
    own = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return own.split(",")[number] if own else str(number)
