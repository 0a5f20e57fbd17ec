"""Runs a sweep: every run of a file, each exactly once.

    python -m experiments.sweep --sweep=experiments/sweeps/NAME.py --workdir=DIR
        [--set=config.KEY=VALUE ...] [--only=ID|config.KEY=VALUE ...] [--shard=I/N] [--workers=N]
        [--way=loop|vmap|map --group=K] [--list] [--dry_run] [--retry]

A run's id is a hash of its config. What is finished is skipped; what was interrupted goes on; what failed is listed and
left alone until --retry. Several of these commands, on one machine or on many that share DIR, never compute the same
run. Runs that differ in seeds and floats alone share one compiled program: one after another (loop), or --group of them
at a time (vmap, map). `python -m experiments.report DIR` makes the tables.

--set changes the config that all runs start from; --only takes ids, and settings that must all hold; --shard the I-th
of N equal parts. A process uses all devices of its host; with --workers=N there are N, each with an accelerator of its
own.
Exit status: 0 if all of its runs are finished, 1 if some are not, 2 for bad input.
"""

import re
import sys
from pathlib import Path

import jax
from absl import flags

from diffax._checks import check_count, choose
from experiments.run import devices
from experiments.run.workdir import launch, usage_errors
from experiments.sweeping import definition, together, worker
from experiments.sweeping.folder import Folder
from experiments.sweeping.tasks import TASKS

SWEEP = flags.DEFINE_string("sweep", None, "The sweep's file.", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the sweep.", required=True)
SET = flags.DEFINE_multi_string("set", [], "config.KEY=VALUE, of the config that all runs start from.")
ONLY = flags.DEFINE_multi_string("only", [], "The run of an id; config.KEY=VALUE: those that have all of these.")
SHARD = flags.DEFINE_string("shard", "", "I/N: the I-th of N parts of the sweep.")
WORKERS = flags.DEFINE_integer("workers", 1, "Processes, each with an accelerator of its own.", lower_bound=1)
WORKER = flags.DEFINE_string("worker", "", "I/N: which of several workers this is; set by --workers.")
flags.register_validator("worker", lambda v: re.fullmatch("|[1-9][0-9]*/[1-9][0-9]*", v), "must be I/N")
WAY = flags.DEFINE_enum("way", None, together.NAMES, "How runs share a program; the fastest here if not given.")
GROUP = flags.DEFINE_integer("group", None, "The most runs at a time in one program of vmap or map.")
LIST = flags.DEFINE_bool("list", False, "Show the state of each run, and compute nothing.")
DRY = flags.DEFINE_bool("dry_run", False, "Check everything and show what would be computed; write nothing.")
RETRY = flags.DEFINE_bool("retry", False, "Compute again what failed, or left a corrupt result.")


def plan(task, folder, on):
    """How runs share programs: by the flags, as the sweep in the folder does, or what is fastest on a backend."""
    if GROUP.value is not None:
        check_count("group", GROUP.value)
    held = folder.together() or {}
    way = WAY.value or held.get("way") or task.ways[on != "cpu"]
    group = GROUP.value or (held["group"] if held.get("way") == way else task.group)
    return worker.Plan(way, 1 if way == "loop" else group)


def checked(folder):
    """(sweep, task, plan, all units, those chosen, whether workers have accelerators), everything of it sound."""
    sweep = definition.load(Path(SWEEP.value), SET.value)
    task = choose("config.task", sweep.base.task, TASKS)
    on, devices_here = worker.backend() if WORKERS.value > 1 else (jax.default_backend(), 1)
    if on != "cpu" and WORKERS.value > max(devices_here, 1):
        raise ValueError(f"workers must be at most the {devices_here} devices, got {WORKERS.value}")
    for run in sweep.runs.values():
        try:
            task.check(run.config)
        except ValueError as error:
            raise ValueError(f"run {run.label}: {error}") from error
    worker.check_only(sweep, ONLY.value)
    planned = plan(task, folder, on)
    everything = planned.units(sweep, task)
    inputs = task.inputs([run.config for run in sweep.runs.values()])
    units = worker.chosen(everything, ONLY.value, SHARD.value)
    if LIST.value or DRY.value:
        folder.compare(sweep, planned._asdict(), inputs)
    else:
        folder.claim(sweep, planned._asdict(), inputs)
    return task, planned.way, everything, units, on != "cpu"


def main(argv):
    """Checks everything, then computes what is open."""
    if WORKERS.value > 1:
        jax.config.update("jax_platforms", "cpu")  # the devices are for the workers
    folder = Folder(Path(WORKDIR.value).absolute())
    with usage_errors():
        if len(argv) > 1:
            raise ValueError(f"flags are --NAME=VALUE, got {argv[1]!r}")
        task, way, everything, units, accelerators = checked(folder)
    if LIST.value or DRY.value:
        found = worker.states(folder, units)
        print(f"{worker.listing(folder, found)}\n{worker.counted(found)}")
        return
    if RETRY.value:
        folder.retry(units)
    statuses = [0]
    if WORKERS.value > 1:
        statuses = worker.spawn(WORKERS.value, accelerators)
    else:
        devices.cache_compilations(folder.path / "compile_cache")
        if WORKER.value:
            worker.end_with_parent()
        number, _, count = (WORKER.value or "1/1").partition("/")
        one = worker.Worker(folder, task, way, everything, units)
        one.go((int(number) - 1) * len(units) // int(count))  # each begins elsewhere
    if not WORKER.value:
        finish(folder, units, statuses)


def finish(folder, units, statuses):
    """Says what is left to do; exits by it."""
    found = worker.states(folder, units)
    left = {id: pair for id, pair in found.items() if pair[1] != "finished"}
    if left:
        print(f"{worker.listing(folder, left)}\n{worker.counted(found)}", file=sys.stderr)
        raise SystemExit(1)
    if any(statuses):
        print(f"error: workers ended with the statuses {statuses}", file=sys.stderr)
        raise SystemExit(1)
    if not found:
        print(f"shard {SHARD.value} holds no run: there are fewer than parts")
        return
    print(f"all {len(found)} runs are finished: python -m experiments.report {WORKDIR.value}")


if __name__ == "__main__":
    launch(main)
