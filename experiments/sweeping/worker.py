"""Compute the runs of a sweep that no other process has locked, in this process or in several."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from types import FrameType

from diffax.training import NotFiniteError, Stopped
from diffax.training.logs import clock
from experiments.configs.settings import flatten, parsed
from experiments.sweeping.definition import Run, described
from experiments.sweeping.folder import STATES, Folder, Result
from experiments.sweeping.tasks import Job, Task


def groups_of(runs: Mapping[str, Run], programs: Mapping[str, str], size: int) -> list[list[Run]]:
    """All runs in groups of at most `size` with the same program; groups of one program follow each other."""
    classes: dict[str, list[Run]] = {}
    for run in runs.values():
        classes.setdefault(programs[run.id], []).append(run)
    return [alike[at : at + size] for alike in classes.values() for at in range(0, len(alike), size)]


def chosen(runs: Mapping[str, Run], groups: Sequence[Sequence[Run]], only: Sequence[str], shard: str) -> list[Run]:
    """The runs that --only and --shard select; a shard has whole groups.

    Raises:
      ValueError: if no run is selected, an id or key is unknown, or the shard is not I/N.
    """
    flat = {id: flatten(run.config.to_dict()) for id, run in runs.items()}
    ids = [text for text in only if "=" not in text]
    pairs = [text.partition("=")[::2] for text in only if "=" in text]
    for id in ids:
        if id not in runs:
            raise ValueError(f"only must be the id of a run or config.KEY=VALUE, got {id}")
    for key, _ in pairs:
        if not any(key in own for own in flat.values()):
            raise ValueError(f"only must name a setting of a run, got {key}")

    def matches(id: str) -> bool:
        own = flat[id]
        same = all(key in own and own[key] == flatten(parsed(text, own[key]))["config"] for key, text in pairs)
        return same and (not ids or id in ids)

    selected = [part for group in groups if (part := [run for run in group if matches(run.id)])]
    if not selected:
        raise ValueError(f"only must select at least one run that has all settings, got {' '.join(only)}")
    number, _, count = (shard or "1/1").partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ValueError(f"shard must be I/N with 1 <= I <= N, got {shard!r}")
    first, last = ((int(number) - 1 + i) * len(selected) // int(count) for i in (0, 1))
    return [run for part in selected[first:last] for run in part]


def table(folder: Folder, runs: Sequence[Run], shown: Sequence[str] = STATES) -> str:
    """A line for each run in one of the states `shown`, and the number of runs in each state."""
    states = [(run, *folder.state(run)) for run in runs]
    lines = [
        f"{run.id}  {state:<11}  {described(run.overrides)}" + (f"  ({reason})" if reason else "")
        for run, state, reason in states
        if state in shown
    ]
    counts = {name: sum(state == name for _, state, _ in states) for name in STATES}
    return "\n".join([*lines, ", ".join(f"{count} {name}" for name, count in counts.items() if count)])


class Worker:
    """One process of a sweep. runs: the runs that it may compute."""

    def __init__(
        self, folder: Folder, task: Task, programs: Mapping[str, str], way: str, keep: str, runs: Sequence[Run]
    ) -> None:
        self._folder, self._task, self._programs, self._way, self._keep = folder, task, programs, way, keep
        self._open = {run.id: run for run in runs if not folder.is_settled(run)}
        self._done_before, self._total, self._start = len(runs) - len(self._open), len(runs), time.monotonic()

    def work(self, group: Sequence[Run], patience: float) -> bool:
        """Compute the open runs of a group; False if another process has locked one of them.

        Interrupted runs are computed with the same other runs as before, even if those are finished by now, because the
        number of runs in a program changes the last bits of the results.
        """
        with self._folder.lock(group, patience) as is_mine:
            if not is_mine:
                return False
            runs = [run for run in group if run.id in self._open and not self._folder.is_settled(run)]
            for run in list(runs):
                members = self._folder.members(run, group)
                if run in runs and members:
                    self._compute(members)
                    runs = [other for other in runs if other not in members]
            if runs:
                self._compute(runs)
            return True

    def _compute(self, members: Sequence[Run]) -> None:
        """Compute runs in one job; existing results are kept."""
        folder, start = self._folder, time.monotonic()
        errors: list[BaseException] = []
        rest = {run.id: run for run in members if not folder.is_settled(run)}
        self._open = {id: run for id, run in self._open.items() if not folder.is_settled(run)}
        job = Job(members, folder, self._programs[members[0].id], self._way, self._keep)
        try:
            for run in rest.values():
                folder.begin(run, members, self._way)
            for run, outcome in self._task.run(job):
                if rest.pop(run.id, None):
                    errors += [outcome] if isinstance(outcome, BaseException) else []
                    self._settle(run, outcome, (time.monotonic() - start) / len(members), len(rest))
        except Stopped:
            raise
        except (Exception, SystemExit) as error:  # an error of the program, so that none of its runs can continue
            errors.append(error)
            for run in rest.values():
                self._settle(run, error, 0.0, 0)
        # --retry continues from the checkpoints, unless all errors are values that are not finite.
        can_continue = any(not isinstance(error, NotFiniteError) for error in errors)
        if not (can_continue and [*folder.run(members[0]).glob("checkpoints/*")]):
            folder.forget(members)

    def _settle(self, run: Run, outcome: Result | BaseException, seconds: float, others: int) -> None:
        """Write the outcome of a run, and print a line. others: runs of the job whose outcome follows at once."""
        text = ""
        if isinstance(outcome, Result):
            try:
                self._folder.finish(run, outcome, seconds)
                text = ", ".join(f"{name} {value:.4g}" for name, value in outcome.metrics.items())
            except (ValueError, OverflowError, OSError) as error:
                outcome = error
        if isinstance(outcome, BaseException):
            text = f"failed: {self._folder.fail(run, outcome)}"
        self._open.pop(run.id, None)
        done, waiting = self._total - len(self._open), len(self._open) - others
        pace = (time.monotonic() - self._start) / max(done + others - self._done_before, 1)
        eta = f"  ETA {clock(pace * waiting)}" if waiting > 0 else ""
        print(f"[{done}/{self._total}] {run.label}: {text}  ({seconds:.1f} s){eta}", flush=True)


def backend() -> tuple[str, int]:
    """(name, number of devices) of the backend of workers, queried in a process that releases the devices again."""
    ask = "import jax; print(jax.default_backend(), jax.local_device_count())"
    answer = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True)
    if answer.returncode:
        raise ValueError(f"workers must have devices, got none from JAX: {answer.stderr.strip().splitlines()[-1]}")
    name, count = answer.stdout.split()[-2:]
    return name, int(count)


def spawn(count: int, accelerators: bool) -> list[int]:
    """Run this command in `count` processes, each with a separate accelerator if there are any; return their statuses.

    SIGTERM and Ctrl-C are forwarded as SIGTERM, and the workers save their checkpoints. If this process is killed, they
    are killed too (`end_with_parent`).

    Raises:
      Stopped: after such a signal, once all workers have ended.
    """
    workers, signals, visible = [], [], os.environ.get("CUDA_VISIBLE_DEVICES")
    for number in range(count):
        environment = {**os.environ}
        if accelerators:
            gpu = visible.split(",")[number] if visible else str(number)
            environment |= {"CUDA_VISIBLE_DEVICES": gpu, "TPU_VISIBLE_CHIPS": str(number)}
            environment |= {"TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_BOUNDS": "1,1,1"}
        own = ["--workers=1", "--retry=false", f"--worker={number + 1}/{count}"]  # the last value of a flag counts
        command = [sys.executable, "-m", "experiments.sweep", *sys.argv[1:], *own]
        # In a separate session, so that Ctrl-C reaches only this process.
        workers.append(subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, start_new_session=True))

    def pass_on(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        for worker in workers:
            worker.terminate()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    statuses = [worker.wait() for worker in workers]
    if signals and any(statuses):
        raise Stopped(0)
    return statuses


def stop(number: int, frame: FrameType | None) -> None:
    """Handle SIGTERM outside the training loop, which has its own handler. Saved checkpoints are kept."""
    raise Stopped(0)


def end_with_parent() -> None:
    """Kill this process when its parent process has ended for any reason.

    The parent has the other end of this process's standard input and writes nothing to it, so a read returns only when
    the parent has ended. Killed runs can be resumed.
    """

    def watch() -> None:
        os.read(0, 1)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
