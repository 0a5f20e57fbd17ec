"""Sweeps in this process: the command with its flags, files of sweeps, tasks that cost nothing."""

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

# The flags that a sweep cannot do without must not be missed by the other commands that are tested in this process.
_OWN = flags.FlagValues()
for _flag in list(flags.FLAGS.flags_by_module_dict()[sweep.__name__]):
    _OWN[_flag.name] = _flag
    delattr(flags.FLAGS, _flag.name)


@dataclasses.dataclass
class Done:
    """What a command left: its status, what it printed."""

    status: int
    out: str
    err: str


@pytest.fixture
def command(capsys):
    """command(path, workdir, *flags) -> Done: `python -m experiments.sweep` in this process."""

    def run(path, workdir, *more):
        capsys.readouterr()
        flags.FLAGS.append_flag_values(_OWN)
        line = ["python", f"--sweep={path}", f"--workdir={workdir}", *more]
        status = 0
        try:
            with flagsaver.flagsaver(), pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "argv", line)
                sweep.main(parse(line))
        except SystemExit as ended:
            status = ended.code
        finally:
            flags.FLAGS.remove_flag_values(_OWN)
        return Done(status, *capsys.readouterr())

    return run


def write(path, base="settings.oracle()", changes="", overrides="seeds(3)"):
    """A sweep's file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        textwrap.dedent(
            '''
            """What is swept."""
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
    """In place of a task's `run`: gives each run's seed, and counts. At a run's seed: an error, or another value."""

    def __init__(self, **at):
        self.at = {int(key.removeprefix("seed")): value for key, value in at.items()}
        self.computed = []

    def __call__(self, unit, folder, way, say):
        for run in unit.runs:
            self.computed.append(run.id)
            found = self.at.get(run.config.seed, float(run.config.seed))
            if isinstance(found, BaseException):
                yield run, found
            else:
                yield run, Result({"error": found}, {"error": 0.0}, {"law": "none"}, {"calls": 1.0})


def states(done):
    """{overrides: state} of a listing."""
    lines = [line.split(maxsplit=2) for line in done.out.splitlines()[:-1]]
    return {said: state for _, state, said in lines}


def results(workdir):
    """{id: result.json without its wall time}."""
    found = {}
    for path in sorted(Path(workdir).glob("runs/*/result.json")):
        found[path.parent.name] = json.loads(path.read_text())
        del found[path.parent.name]["cost"]["seconds"]
    return found


def attempts(workdir):
    """{id: how often it was begun}."""
    paths = sorted(Path(workdir).glob("runs/*/provenance.json"))
    return {path.parent.name: json.loads(path.read_text())["attempts"] for path in paths}


def tree(folder):
    """Every path and its bytes."""
    return {path: path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}
