"""Helpers of the sweep tests: the sweep command inside this process, sweep files, a task that computes nothing."""

import dataclasses
import json
import sys
import textwrap
from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver
from commands import parse

from experiments import sweep
from experiments.sweeping.folder import Result

# The sweep command has required flags. They are removed from the global flags here, so that the other commands tested
# in this process can be parsed without them.
_OWN = flags.FlagValues()
for _flag in list(flags.FLAGS.flags_by_module_dict()[sweep.__name__]):
    _OWN[_flag.name] = _flag
    delattr(flags.FLAGS, _flag.name)


@dataclasses.dataclass
class Completed:
    """Result of a command: exit status, standard output and standard error."""

    status: int
    out: str
    err: str


@pytest.fixture
def command(capsys):
    """command(path, workdir, *flags) -> Completed: run `python -m experiments.sweep` in this process."""

    def run(path, workdir, *more_flags):
        capsys.readouterr()
        flags.FLAGS.append_flag_values(_OWN)
        line = ["python", f"--sweep={path}", f"--workdir={workdir}", *more_flags]
        status = 0
        try:
            with flagsaver.flagsaver(), pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "argv", line)
                sweep.main(parse(line))
        except SystemExit as exit_error:
            status = exit_error.code
        finally:
            flags.FLAGS.remove_flag_values(_OWN)
        return Completed(status, *capsys.readouterr())

    return run


def write(path, base="settings.oracle()", changes="", overrides="seeds(3)"):
    """Write a sweep file and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        textwrap.dedent(
            '''
            """A sweep."""
            from experiments.configs import smoke
            from experiments.sweeping import chain, product, seeds, settings, zipped

            def get_config():
                config = BASE
            CHANGES
                return config

            def get_overrides():
                return OVERRIDES
            '''
        )
        .lstrip()
        .replace("BASE", base)
        .replace("CHANGES", textwrap.indent(textwrap.dedent(changes).strip(), "    "))
        .replace("OVERRIDES", overrides)
    )
    return path


class Fake:
    """Replacement for a task's `run`: yields the seed of each run as its error, and records the ids of the runs.

    Fake(seed3=value) yields the value for seed 3 instead. An exception is yielded as the failure of the run.
    """

    def __init__(self, **at):
        self.at = {int(key.removeprefix("seed")): value for key, value in at.items()}
        self.computed = []

    def __call__(self, job):
        for run in job.runs:
            self.computed.append(run.id)
            value_or_error = self.at.get(run.config.seed, float(run.config.seed))
            if isinstance(value_or_error, BaseException):
                yield run, value_or_error
            else:
                yield run, Result({"error": value_or_error}, {"error": 0.0}, {"law": "none"}, {"calls": 1.0})


def states(completed):
    """{overrides: state} of a printed list of runs."""
    lines = [line.split(maxsplit=2) for line in completed.out.splitlines()[:-1]]
    return {overrides: state for _, state, overrides in lines}


def results(workdir):
    """{id: contents of result.json without the wall time}."""
    contents = {}
    for path in sorted(Path(workdir).glob("runs/*/result.json")):
        contents[path.parent.name] = json.loads(path.read_text())
        for name in ("seconds", "compile_seconds"):
            contents[path.parent.name]["cost"].pop(name, None)
    return contents


def attempts(workdir):
    """{id: number of attempts}."""
    paths = sorted(Path(workdir).glob("runs/*/provenance.json"))
    return {path.parent.name: json.loads(path.read_text())["attempts"] for path in paths}


def tree(folder):
    """{path: bytes} of all files in a folder."""
    return {path: path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}
