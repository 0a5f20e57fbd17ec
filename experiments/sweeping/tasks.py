"""The kinds of runs, by config.task, and what they share."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffax.pretrained import entries
from diffax.training import Progress
from experiments.sweeping.definition import Run
from experiments.sweeping.folder import Folder, Result


class Job(NamedTuple):
    """Runs that one process computes together, and where.

    way: "loop" for one after another, "vmap" for all in one program. keep: "export" or "none". progress: (name, total)
    -> a progress line.
    """

    runs: Sequence[Run]
    folder: Folder
    way: str
    keep: str
    progress: Callable[[str, int], Progress]

    @property
    def extractors(self) -> Path:
        """Where the classifiers of the evaluation are kept."""
        return self.folder.path / "extractors"


class Task(NamedTuple):
    """A kind of run.

    check: config -> None; raises `ValueError` for settings that are not possible. alike: config -> a value, equal for
    runs that one program can serve. run: yields (run, its result or error). inputs: configs -> what the runs depend on
    beside them. ways: the default on a CPU and on an accelerator. group: the default number of runs of "vmap".
    """

    check: Callable[[Any], None]
    alike: Callable[[Any], Any]
    run: Callable[[Job], Iterator[tuple[Run, Result | BaseException]]]
    ways: tuple[str, str]
    group: int
    inputs: Callable[[Sequence[Any]], dict[str, Any]] = lambda configs: {}


def grid_entries(name: str, sampler: str, schedule: Any, calls: int) -> int:
    """The grid entries that so many denoiser calls suffice for.

    name: of the setting, for errors.

    Raises:
      ValueError: if they do not suffice for a move and the last call.
    """
    count = entries(sampler, schedule, calls)
    if count < 2:
        raise ValueError(f"{name} must suffice for a step of {sampler} and one last call, got {calls}")
    return count
