"""The common types of the kinds of runs: the task of a run, the job of a process, the compiled program."""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffax.pretrained import entries
from diffax.training import Progress
from experiments.sweeping.definition import Run
from experiments.sweeping.folder import Folder, Result

PROGRAMS: dict[str, Any] = {}  # key -> program; only the newest is kept


class Job(NamedTuple):
    """Runs that one process computes together, and their folder.

    program: the key of the program that serves all of them. way: "loop" for one run, "vmap" for several in one program.
    keep: "export" or "none".
    """

    runs: Sequence[Run]
    folder: Folder
    program: str
    way: str
    keep: str

    def progress(self, unit: str, total: int) -> Progress:
        """A progress line."""
        name = self.runs[0].id if len(self.runs) == 1 else f"{len(self.runs)} runs"
        return Progress(f"{name} {unit}", total, f"{unit}s", silent=not sys.stdout.isatty())

    def compiled(self, make: Callable[[], Any]) -> Any:
        """The program of the previous job if it has the same key, otherwise the result of `make`.

        The previous program is dropped then, since it takes hundreds of megabytes.
        """
        key = f"{self.way} {self.program}"
        if key not in PROGRAMS:
            PROGRAMS.clear()
            PROGRAMS[key] = make()
        return PROGRAMS[key]


class Task(NamedTuple):
    """A kind of run.

    parse: config -> (key, equal for runs that one program serves; {path: digest} of the models used by the run);
    raises `ValueError` for invalid settings. run: yields (run, its result or error) for each run of a job. ways: the
    default on a CPU and on an accelerator. group: the default number of runs of "vmap".
    """

    parse: Callable[[Any], tuple[str, dict[str, str]]]
    run: Callable[[Job], Iterator[tuple[Run, Result | BaseException]]]
    ways: tuple[str, str]
    group: int


def grid_entries(name: str, sampler: str, schedule: Any, calls: int) -> int:
    """The largest number of grid entries for this number of denoiser calls.

    name: of the setting, for errors.

    Raises:
      ValueError: if the calls do not suffice for a step and the last call.
    """
    count = entries(sampler, schedule, calls)
    if count < 2:
        raise ValueError(f"{name} must suffice for a step of {sampler} and one last call, got {calls}")
    return count


def traced(model: Any) -> Any:
    """The model with its numbers as float32 arrays, as an argument of a program."""
    return jax.tree.map(lambda value: jnp.asarray(value, jnp.float32), model)
