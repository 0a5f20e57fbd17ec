"""Tables and plots of a sweep, or the differences between two sweeps.

    python -m experiments.report DIR [--metrics=fd,accuracy] [--by=num_steps] [--top=30]
    python -m experiments.report A B

A row is a setting: the runs that differ in their seeds only. A cell is the mean over the seeds, with its 95 % interval
by Student's t from 3 seeds on. Prints the table and writes DIR/report.md, report.csv (a line for each setting and
metric), report.json (with the values of each run) and plots: curves.png, each logged metric against steps;
pareto_calls.png and pareto_seconds.png, each metric against its cost. The same results give the same report.md: it has
no dates, and costs (calls, seconds, compile_seconds) only if --metrics names them.

With two sweeps, runs are paired by overrides and seeds. The differences B - A are written to A/comparison_B.md, .csv
and .json.

Exit status: 1 if a result.json is corrupt (its run is named and left out), 2 if there is nothing to report on.
"""

import sys
from pathlib import Path

from absl import flags

from experiments.reporting import compare, document, plots, summary, tables
from experiments.reporting.reading import Sweep, read_sweep
from experiments.run.command import launch, path_of, usage_errors
from experiments.run.workdir import check_writable, write_json, write_text

METRICS = flags.DEFINE_list("metrics", [], "Metrics and costs (calls, seconds) to show. Default: all metrics.")
BY = flags.DEFINE_string("by", None, "A key of the sweep with its values as columns: a table for each metric.")
TOP = flags.DEFINE_integer("top", 30, "Number of rows to print of a table of more than 60 rows.", lower_bound=1)
LONG = 60


def key_called(sweep: Sweep, name: str) -> str:
    """The varying key of a sweep that is `name` or ends in it.

    Raises:
      ValueError: if no key or several keys match.
    """
    keys = summary.varying(sweep.runs, summary.keys_of(sweep))
    matches = [key for key in keys if key == name] or [key for key in keys if key.endswith(f".{name}")]
    if len(matches) != 1:
        raise ValueError(f"by must be one of the keys that vary ({', '.join(keys)}), got {name!r}")
    return matches[0]


def report(folder: Path) -> list[Sweep]:
    """Report on one sweep."""
    with usage_errors():
        sweep = read_sweep(folder)
        check_writable(folder, "DIR")
        metrics = summary.chosen_metrics(METRICS.value, sweep)
        by = None if BY.value is None else key_called(sweep, BY.value)
    grids = [tables.pivot(sweep, m, by) for m in metrics] if by else [tables.flat(sweep, metrics)]
    names = plots.draw(sweep, metrics)
    write_text(folder / "report.md", document.report(sweep, metrics, grids, names))
    write_text(folder / "report.csv", tables.csv_text(sweep))
    write_json(folder / "report.json", summary.summarise(sweep))
    print(document.report(sweep, metrics, grids, [], TOP.value if len(grids[0].lines) > LONG else None))
    print(document.origin(sweep))
    print(f"{folder}: report.md, report.csv, report.json{''.join(f', {name}.png' for name in names)}")
    return [sweep]


def compare_sweeps(first: Path, second: Path) -> list[Sweep]:
    """Compare two sweeps."""
    with usage_errors():
        a, b = read_sweep(first), read_sweep(second)
        check_writable(first, "DIR")
        if first.resolve() == second.resolve():
            raise ValueError(f"OTHER must be another sweep than DIR, got {second}")
        if BY.value is not None:
            raise ValueError(f"by must not be given with two sweeps, got {BY.value!r}")
        pairs = compare.pair(a, b)
        metrics_a, metrics_b = (summary.chosen_metrics(METRICS.value, sweep) for sweep in (a, b))
    changes = compare.changes(pairs, [metric for metric in metrics_a if metric in metrics_b])
    other = second.name if first.name != second.name else f"{second.parent.name}_{second.name}"
    name, content = f"comparison_{other}", compare.comparison(a, b, pairs, changes)
    write_text(first / f"{name}.md", content)
    write_text(first / f"{name}.csv", compare.csv_text(pairs, changes))
    write_json(first / f"{name}.json", compare.records(changes))
    print(content)
    print(f"{first}: {name}.md, {name}.csv, {name}.json")
    return [a, b]


def main(argv):
    """Run the command."""
    with usage_errors():
        if len(argv) not in (2, 3):
            raise ValueError(f"DIR [OTHER] must be one or two workdirs of sweeps, got {len(argv) - 1}")
        folders = [path_of(name, text) for name, text in zip(("DIR", "OTHER"), argv[1:], strict=False)]
    sweeps = report(*folders) if len(folders) == 1 else compare_sweeps(*folders)
    corrupt = [run for sweep in sweeps for run in sweep.having("corrupt")]
    for run in corrupt:
        print(f"error: run {run.id}: {run.error}", file=sys.stderr)
    return 1 if corrupt else 0


if __name__ == "__main__":
    launch(main, positional=2)
