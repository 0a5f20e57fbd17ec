"""Compute each run of a sweep exactly once.

    python -m experiments.sweep --sweep=experiments/sweeps/NAME.py --workdir=DIR
        [--set=config.KEY=VALUE ...] [--only=ID|config.KEY=VALUE ...] [--shard=I/N] [--workers=N]
        [--way=loop|vmap --group=K] [--keep=export|none] [--list] [--dry_run] [--retry]

The id of a run is a digest of its config. Finished runs are skipped, interrupted ones continue, failed ones are listed
and skipped until --retry. Several of these commands, on one machine or on many that share DIR, never compute the same
run. Runs that differ only in seeds and floats share one compiled program: one after another (loop), or --group of them
at a time (vmap). A training run writes an export for `experiments.sample` and `diffax.load`, unless --keep=none.
`python -m experiments.report DIR` writes the tables.

--set changes the config that all runs start from; --only selects runs by ids, and by settings that must all hold;
--shard selects the I-th of N equal parts. A process uses all devices of its host; with --workers=N there are N
processes, each with a separate accelerator.

Exit status: 0 if all selected runs are finished, 1 if some are not, 2 for bad input, 75 if it was stopped.
"""

import re
import signal
import sys

import jax
from absl import flags

from diffax._checks import check_count
from experiments.run import devices
from experiments.run.command import launch, path_of, usage_errors
from experiments.sweeping import definition, oracle_task, sample_task, train_task, worker
from experiments.sweeping.folder import STATES, Folder, content
from experiments.sweeping.tasks import Task

SWEEP = flags.DEFINE_string("sweep", None, "The sweep's file.", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the sweep.", required=True)
SET = flags.DEFINE_multi_string("set", [], "config.KEY=VALUE: a change of the config that all runs start from.")
ONLY = flags.DEFINE_multi_string("only", [], "A run's id, or config.KEY=VALUE: the runs with all of these.")
SHARD = flags.DEFINE_string("shard", "", "I/N: the I-th of N parts of the sweep.")
WORKERS = flags.DEFINE_integer("workers", 1, "Processes, each with a separate accelerator.", lower_bound=1)
WORKER = flags.DEFINE_string("worker", "", "I/N: the number of this worker; set by --workers.")
flags.register_validator("worker", lambda v: re.fullmatch("|[1-9][0-9]*/[1-9][0-9]*", v), "must be I/N")
WAY = flags.DEFINE_enum("way", None, ("loop", "vmap"), "How runs share a program. Default: the faster way.")
GROUP = flags.DEFINE_integer("group", None, "The largest number of runs at a time in one program of vmap.")
KEEP = flags.DEFINE_enum("keep", "export", ("export", "none"), "What to keep of a trained model.")
LIST = flags.DEFINE_bool("list", False, "Show the state of each run, and compute nothing.")
DRY = flags.DEFINE_bool("dry_run", False, "Check everything and show what would be computed; write nothing.")
RETRY = flags.DEFINE_bool("retry", False, "Compute failed runs and corrupt results again.")

# On a CPU, convolutions batched over parameters are slower, so training runs are computed one after another.
TASKS = {
    "train": Task(train_task.parse, train_task.run, ways=("loop", "vmap"), group=8),
    "sample": Task(sample_task.parse, sample_task.run, ways=("loop", "loop"), group=8),
    "oracle": Task(oracle_task.parse, oracle_task.run, ways=("vmap", "vmap"), group=1024),
}
PATIENCE = 1.0  # seconds to wait for a locked run, whose lock may be held only to read its state


def main(argv):
    """Open, plan, compute, end."""
    del argv
    # ---------------------------------------------------------------- open: the sweep, its folder, its runs
    if WORKERS.value > 1:
        jax.config.update("jax_platforms", "cpu")  # the devices are for the workers
    with usage_errors():
        folder = Folder(path_of("workdir", WORKDIR.value))
        sweep = definition.load(path_of("sweep", SWEEP.value), SET.value)
        task = TASKS[sweep.base.task]
        platform, count = worker.backend() if WORKERS.value > 1 else (jax.default_backend(), 1)
        if platform != "cpu" and WORKERS.value > max(count, 1):
            raise ValueError(f"workers must be at most the {count} devices, got {WORKERS.value}")
        programs, inputs = {}, {}
        for run in sweep.runs.values():
            try:
                programs[run.id], digests = task.parse(run.config)
                inputs |= digests
            except ValueError as error:
                raise ValueError(f"run {run.label}: {error}") from error

        # ------------------------------------------------------------ plan: how runs share programs, the selected runs
        if GROUP.value is not None:
            check_count("group", GROUP.value)
        saved = (folder.saved() or {"together": {}})["together"]
        way = WAY.value or saved.get("way") or task.ways[platform != "cpu"]
        group = GROUP.value or (saved["group"] if saved.get("way") == way else task.group)
        plan = {"way": way, "group": 1 if way == "loop" else group}
        groups = worker.groups_of(sweep.runs, programs, plan["group"])
        runs = worker.chosen(sweep.runs, groups, ONLY.value, SHARD.value)
        now = content(sweep, plan, inputs)
        if LIST.value or DRY.value:
            folder.compare(now)
            print(worker.table(folder, runs))
            return
        # After this, the folder accepts no other sweep.
        folder.claim(now)

    # ---------------------------------------------------------------- compute: in several processes, or here
    # Each run is locked while it is computed, has its checkpoints in its own folder, and is finished when result.json
    # exists. SIGTERM and Ctrl-C end a training run after its step, with a checkpoint; the exit status is 75.
    if RETRY.value:
        folder.retry(runs)
    statuses = []
    if WORKERS.value > 1:
        statuses = worker.spawn(WORKERS.value, platform != "cpu")
    else:
        if WORKER.value:
            worker.end_with_parent()
        devices.cache_compilations(folder.path / "compile_cache")
        signal.signal(signal.SIGTERM, worker.stop)
        one = worker.Worker(folder, task, programs, way, KEEP.value, runs)
        number, _, total = (WORKER.value or "1/1").partition("/")
        first = (int(number) - 1) * len(groups) // int(total)  # each worker starts at another group
        ids = {run.id for run in runs}
        waiting = [group for group in [*groups[first:], *groups[:first]] if any(run.id in ids for run in group)]
        for patience in (0, PATIENCE):
            waiting = [group for group in waiting if not one.work(group, patience)]
    if WORKER.value:
        return

    # ---------------------------------------------------------------- end: the unfinished runs
    if any(folder.state(run)[0] != "finished" for run in runs):
        print(f"{worker.table(folder, runs, STATES[1:])}; --retry computes failed and corrupt ones", file=sys.stderr)
        raise SystemExit(1)
    if any(statuses):
        print(f"error: workers ended with the statuses {statuses}", file=sys.stderr)
        raise SystemExit(1)
    if not runs:
        print(f"shard {SHARD.value} has no run: there are fewer groups than parts")
        return
    print(f"all {len(runs)} runs are finished: python -m experiments.report {WORKDIR.value}")


if __name__ == "__main__":
    launch(main)
