"""Tables and plots of a sweep, or the differences between two sweeps.

    python -m experiments.report DIR [--metrics=fd,accuracy] [--by=num_steps] [--top=30]
    python -m experiments.report A B

A row is a setting: the runs that differ only in their seeds. A cell is the mean over the seeds, with its 95 % interval
by Student's t from 3 seeds on. Prints the table and writes DIR/report.md, report.csv (a line for each setting and
metric), report.json (with the values of each run) and plots: curves.png, each logged metric against steps;
pareto_calls.png and pareto_seconds.png, each metric against its cost. The same results give the same report.md: it has
no dates, and costs (calls, seconds, compile_seconds) only if they are in --metrics.

With two sweeps, runs are paired by overrides and seeds. The differences B - A are written to A/comparison_B.md, .csv
and .json.

Exit status: 1 if a result.json is corrupt (its run is reported and left out), 2 if there is nothing to report.
"""

import sys

from absl import flags

from experiments.reporting import compare, document, plots, tables
from experiments.reporting.reading import provenance, read_sweep
from experiments.reporting.summary import Sweep
from experiments.run.command import launch, path_of, usage_errors
from experiments.run.workdir import check_writable, write_json, write_text

METRICS = flags.DEFINE_list("metrics", [], "Metrics and costs (calls, seconds) to show. Default: all metrics.")
BY = flags.DEFINE_string("by", None, "A key of the sweep with its values as columns: a table for each metric.")
TOP = flags.DEFINE_integer("top", 30, "Number of rows to print of a table of more than 60 rows.", lower_bound=1)
LONG = 60


def main(argv):
    """Open, then report on one sweep or compare two, end."""
    # ------------------------------------------------------------------------------------------- open: the folders
    with usage_errors():
        if len(argv) not in (2, 3):
            raise ValueError(f"DIR [OTHER] must be one or two workdirs of sweeps, got {len(argv) - 1}")
        folders = [path_of(name, text) for name, text in zip(("DIR", "OTHER"), argv[1:], strict=False)]
        sweeps = [read_sweep(folder) for folder in folders]
        check_writable(folders[0], "DIR")

    # ------------------------------------------------------------------------------------- report on one, or compare
    if len(sweeps) == 1:
        report(*sweeps)
    else:
        compare_sweeps(*sweeps)

    # ---------------------------------------------------------------------------------------------------------- end
    corrupt = [run for sweep in sweeps for run in sweep.having("corrupt")]
    for run in corrupt:
        print(f"error: run {run.id}: {run.error}", file=sys.stderr)
    return 1 if corrupt else 0


def report(sweep: Sweep) -> None:
    """Report on one sweep."""
    folder = sweep.folder
    with usage_errors():
        metrics = chosen_metrics(sweep)
        by = None if BY.value is None else key_called(sweep, BY.value)

    # ------------------------------------------------------------------------------------- build: tables and plots
    grids = [tables.pivot(sweep, m, by) for m in metrics] if by else [tables.flat(sweep, metrics)]
    names = plots.draw(sweep, metrics)

    # ------------------------------------------------------------------------------------------------------- write
    write_text(folder / "report.md", document.report(sweep, metrics, grids, names))
    write_text(folder / "report.csv", tables.csv_text(sweep))
    write_json(folder / "report.json", tables.summarise(sweep))

    # ------------------------------------------------------------------------------------------------------- print
    print(document.report(sweep, metrics, grids, [], TOP.value if grids and len(grids[0].lines) > LONG else None))
    # Commits and machines are printed only: report.md depends on the results alone.
    origin = provenance(sweep.done)
    commits = ", ".join(str(commit)[:12] for commit in origin["commit"]) or "not known"
    dirty = " (with changes that are not committed)" if True in origin["dirty"] else ""
    rest = "".join(f"; {key} {', '.join(map(str, origin[key]))}" for key in ("device", "jax") if origin[key])
    print(f"{'commits' if len(origin['commit']) > 1 else 'commit'} {commits}{dirty}{rest}")
    print(f"{folder}: report.md, report.csv, report.json{''.join(f', {name}.png' for name in names)}")


def chosen_metrics(sweep: Sweep) -> list[str]:
    """The metrics and costs of --metrics; without it, all metrics.

    Raises:
      ValueError: for an unknown name.
    """
    known = list(dict.fromkeys([*sweep.metrics, *sweep.costs]))
    for name in METRICS.value if sweep.done else []:
        if name not in known:
            raise ValueError(f"metrics must be of {', '.join(known)}, got {name!r}")
    return METRICS.value or sweep.metrics


def key_called(sweep: Sweep, name: str) -> str:
    """The varying key of a sweep that is `name` or ends in it.

    Raises:
      ValueError: if no key or several keys match.
    """
    keys = sweep.varying
    matches = [key for key in keys if key == name] or [key for key in keys if key.endswith(f".{name}")]
    if len(matches) != 1:
        raise ValueError(f"by must be one of the keys that vary ({', '.join(keys)}), got {name!r}")
    return matches[0]


def compare_sweeps(a: Sweep, b: Sweep) -> None:
    """Compare two sweeps."""
    first, second = a.folder, b.folder
    with usage_errors():
        if first.resolve() == second.resolve():
            raise ValueError(f"OTHER must be another sweep than DIR, got {second}")
        if BY.value is not None:
            raise ValueError(f"by must not be given with two sweeps, got {BY.value!r}")
        metrics_a, metrics_b = (chosen_metrics(sweep) for sweep in (a, b))

    # --------------------------------------------------------------------------------- build: pairs and differences
    pairs = compare.pair(a, b)
    changes = compare.changes(pairs, [metric for metric in metrics_a if metric in metrics_b])
    content = compare.comparison(a, b, pairs, changes)

    # --------------------------------------------------------------------------------------------- write and print
    other = second.name if first.name != second.name else f"{second.parent.name}_{second.name}"
    name = f"comparison_{other}"
    write_text(first / f"{name}.md", content)
    write_text(first / f"{name}.csv", compare.csv_text(pairs, changes))
    write_json(first / f"{name}.json", compare.records(changes))
    print(content)
    print(f"{first}: {name}.md, {name}.csv, {name}.json")


if __name__ == "__main__":
    launch(main, positional=2)
