"""Compute the runs of a sweep, each exactly once.

    python -m experiments.sweep --sweep=experiments/sweeps/NAME.py --workdir=DIR
        [--set=config.KEY=VALUE ...] [--only=ID|config.KEY=VALUE ...] [--shard=I/N] [--workers=N]
        [--way=loop|vmap --group=K] [--keep=export|none] [--list] [--dry_run] [--retry]

The id of a run is a digest of its config. Finished runs are skipped, interrupted ones continue, failed ones are listed
and left alone until --retry. Several of these commands, on one machine or on many that share DIR, never compute the
same run. Runs that differ in seeds and floats alone share one compiled program: one after another (loop), or --group of
them at a time (vmap). A training run leaves an export, which `experiments.sample` and `diffax.load` take, unless
--keep=none. `python -m experiments.report DIR` makes the tables.

--set changes the config that all runs start from; --only takes ids, and settings that must all hold; --shard the I-th
of N equal parts. A process uses all devices of its host; with --workers=N there are N, each with an accelerator of its
own.
Exit status: 0 if all of its runs are finished, 1 if some are not, 2 for bad input, 75 if it was stopped.
"""

import re
import sys

import jax
from absl import flags

from diffax._checks import check_count, choose
from experiments.run import devices
from experiments.run.command import launch, path_of, usage_errors
from experiments.sweeping import definition, oracle_task, sample_task, train_task, worker
from experiments.sweeping.folder import Folder
from experiments.sweeping.tasks import Task

SWEEP = flags.DEFINE_string("sweep", None, "The sweep's file.", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the sweep.", required=True)
SET = flags.DEFINE_multi_string("set", [], "config.KEY=VALUE, of the config that all runs start from.")
ONLY = flags.DEFINE_multi_string("only", [], "The run of an id; config.KEY=VALUE: those that have all of these.")
SHARD = flags.DEFINE_string("shard", "", "I/N: the I-th of N parts of the sweep.")
WORKERS = flags.DEFINE_integer("workers", 1, "Processes, each with an accelerator of its own.", lower_bound=1)
WORKER = flags.DEFINE_string("worker", "", "I/N: which of several workers this is; set by --workers.")
flags.register_validator("worker", lambda v: re.fullmatch("|[1-9][0-9]*/[1-9][0-9]*", v), "must be I/N")
WAY = flags.DEFINE_enum("way", None, ("loop", "vmap"), "How runs share a program; the faster one if not given.")
GROUP = flags.DEFINE_integer("group", None, "The largest number of runs at a time in one program of vmap.")
KEEP = flags.DEFINE_enum("keep", "export", ("export", "none"), "What is kept of a trained model.")
LIST = flags.DEFINE_bool("list", False, "Show the state of each run, and compute nothing.")
DRY = flags.DEFINE_bool("dry_run", False, "Check everything and show what would be computed; write nothing.")
RETRY = flags.DEFINE_bool("retry", False, "Compute failed runs and corrupt results again.")

# On a CPU a network's convolutions are slower batched over parameters, so training and drawing run one after another.
TASKS = {
    "train": Task(train_task.check, train_task.alike, train_task.run, ("loop", "vmap"), 8, train_task.inputs),
    "sample": Task(sample_task.check, sample_task.alike, sample_task.run, ("loop", "vmap"), 8, sample_task.inputs),
    "oracle": Task(oracle_task.check, oracle_task.alike, oracle_task.run, ("vmap", "vmap"), 1024),
}


def main(argv):
    """Check, compute, list the unfinished runs."""
    del argv
    # ---------------------------------------------------------------- open: the sweep, its folder
    if WORKERS.value > 1:
        jax.config.update("jax_platforms", "cpu")  # the devices are for the workers
    with usage_errors():
        folder = Folder(path_of("workdir", WORKDIR.value))
        sweep = definition.load(path_of("sweep", SWEEP.value), SET.value)
        task = choose("config.task", sweep.base.task, TASKS)
        on, count = worker.backend() if WORKERS.value > 1 else (jax.default_backend(), 1)
        if on != "cpu" and WORKERS.value > max(count, 1):
            raise ValueError(f"workers must be at most the {count} devices, got {WORKERS.value}")
        for run in sweep.runs.values():
            try:
                task.check(run.config)
            except ValueError as error:
                raise ValueError(f"run {run.label}: {error}") from error
        plan = planned(task, folder.plan(), on)
        everything = worker.chunks(sweep, task, plan)
        ids = worker.chosen(sweep, everything, ONLY.value, SHARD.value)
        runs = [run for group in everything for run in group if run.id in set(ids)]
        inputs = task.inputs([run.config for run in sweep.runs.values()])
        look = folder.compare if LIST.value or DRY.value else folder.claim
        look(sweep, plan._asdict(), inputs)
    if LIST.value or DRY.value:
        states = worker.states(folder, runs)
        print(f"{worker.listing(folder, states)}\n{worker.counted(states)}")
        return

    # ---------------------------------------------------------------- compute
    if RETRY.value:
        folder.retry(runs)
    statuses = [0]
    if WORKERS.value > 1:
        statuses = worker.spawn(WORKERS.value, on != "cpu")
    else:
        devices.cache_compilations(folder.path / "compile_cache")
        if WORKER.value:
            worker.end_with_parent()
        number, _, total = (WORKER.value or "1/1").partition("/")
        one = worker.Worker(folder, task, plan.way, KEEP.value, everything, ids)
        one.go((int(number) - 1) * len(everything) // int(total))  # each worker begins elsewhere
    if WORKER.value:
        return

    # ---------------------------------------------------------------- end: the unfinished runs
    states = worker.states(folder, runs)
    left = {id: pair for id, pair in states.items() if pair[1] != "finished"}
    if left:
        print(f"{worker.listing(folder, left)}\n{worker.counted(states)}", file=sys.stderr)
        raise SystemExit(1)
    if any(statuses):
        print(f"error: workers ended with the statuses {statuses}", file=sys.stderr)
        raise SystemExit(1)
    if not states:
        print(f"shard {SHARD.value} has no run: there are fewer groups than parts")
        return
    print(f"all {len(states)} runs are finished: python -m experiments.report {WORKDIR.value}")


def planned(task, plan, on):
    """How runs share programs: as the flags say, as the sweep in the folder does, or the faster way on a backend."""
    if GROUP.value is not None:
        check_count("group", GROUP.value)
    way = WAY.value or plan.get("way") or task.ways[on != "cpu"]
    group = GROUP.value or (plan["group"] if plan.get("way") == way else task.group)
    return worker.Plan(way, 1 if way == "loop" else group)


if __name__ == "__main__":
    launch(main)
