"""Runs a sweep: every run of a file, each exactly once.

    python -m experiments.sweep --sweep=experiments/sweeps/NAME.py --workdir=DIR
        [--set=config.KEY=VALUE ...] [--only=ID|config.KEY=VALUE ...] [--shard=I/N] [--workers=N --per=device|host]
        [--way=loop|vmap|map --group=K] [--list] [--dry_run] [--retry]

A run's id is a hash of its config. What is finished is skipped; what was interrupted goes on; what failed is listed and
left alone until --retry. Several of these commands, on one machine or on many that share DIR, never compute the same
run. Runs that differ in seeds and floats alone share one compiled program: one after another (loop), or --group of them
at a time (vmap, map). `python -m experiments.report DIR` makes the tables.

--set changes the config that all runs start from; --only takes ids and settings; --shard the I-th of N equal parts.
Exit status: 0 if all of its runs are finished, 1 if some are not, 2 for bad input.
"""

import sys
from pathlib import Path

import jax
from absl import flags

from diffax.pytrees import check_count, choose
from experiments import devices
from experiments.sweeping import definition, together, worker
from experiments.sweeping.folder import Folder
from experiments.sweeping.tasks import TASKS
from experiments.workdir import launch, usage_errors

SWEEP = flags.DEFINE_string("sweep", None, "The sweep's file.", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the sweep.", required=True)
SET = flags.DEFINE_multi_string("set", [], "config.KEY=VALUE, of the config that all runs start from.")
ONLY = flags.DEFINE_multi_string("only", [], "The run of an id, or those with config.KEY=VALUE.")
SHARD = flags.DEFINE_string("shard", "", "I/N: the I-th of N parts of the sweep.")
WORKERS = flags.DEFINE_integer("workers", 1, "Processes.", lower_bound=1)
PER = flags.DEFINE_enum("per", "device", ["device", "host"], "What each of several workers has: a device, or all.")
WORKER = flags.DEFINE_string("worker", "", "I/N: which of several workers this is; set by --workers.")
WAY = flags.DEFINE_enum("way", None, together.NAMES, "How runs share a program; the fastest here if not given.")
GROUP = flags.DEFINE_integer("group", None, "The most runs at a time in one program of vmap or map.")
LIST = flags.DEFINE_bool("list", False, "Show the state of each run, and compute nothing.")
DRY = flags.DEFINE_bool("dry_run", False, "Check everything and show what would be computed; write nothing.")
RETRY = flags.DEFINE_bool("retry", False, "Compute again what failed, or left a corrupt result.")


def plan(task):
    """How runs share programs."""
    way = WAY.value or task.ways[jax.default_backend() != "cpu"]
    group = task.group if GROUP.value is None else GROUP.value
    check_count("group", group)
    return worker.Plan(way, 1 if way == "loop" else group)


def main(argv):
    """Checks everything, then computes what is open."""
    del argv
    if WORKERS.value > 1:
        jax.config.update("jax_platforms", "cpu")  # the devices are for the workers
    path, folder = Path(SWEEP.value), Folder(Path(WORKDIR.value).absolute())
    with usage_errors():
        sweep = definition.load(path, SET.value)
        task = choose("config.task", sweep.base.task, TASKS)
        for run in sweep.runs.values():
            try:
                task.check(run.config)
            except ValueError as error:
                raise ValueError(f"run {run.label}: {error}") from error
        planned = plan(task)
        everything = planned.units(sweep, task)
        units = worker.chosen(everything, ONLY.value, SHARD.value)
    if LIST.value or DRY.value:
        print(worker.listing(folder, units))
        return
    if WORKERS.value > 1:
        worker.spawn(WORKERS.value, PER.value)
    else:
        with usage_errors():
            inputs = task.inputs([run.config for run in sweep.runs.values()])
            folder.claim(sweep, planned._asdict(), inputs)
        devices.cache_compilations(folder.path / "compile_cache")
        number, _, count = (WORKER.value or "1/1").partition("/")
        first = (int(number) - 1) * len(units) // int(count)  # each begins elsewhere
        one = worker.Worker(folder, task, planned.way, len(sweep.runs), retry=RETRY.value)
        one.go(units[first:] + units[:first], everything)
    open_ones = [run for unit in units for run in unit.runs if folder.state(run, unit) != "finished"]
    if WORKER.value:
        return
    if open_ones:
        print(worker.listing(folder, units).splitlines()[-1], file=sys.stderr)
        for unit in units:
            for line in worker.listing(folder, [unit]).splitlines()[:-1]:
                if "  finished  " not in line:
                    print(line, file=sys.stderr)
        raise SystemExit(1)
    print(
        f"all {sum(len(unit.runs) for unit in units)} runs are finished: python -m experiments.report {WORKDIR.value}"
    )


if __name__ == "__main__":
    launch(main)
