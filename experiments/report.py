"""The table of a sweep, with plots; or what a second sweep changed.

    python -m experiments.report DIR [--metrics=fd,accuracy] [--by=num_steps] [--top=30]
    python -m experiments.report A B

Rows are settings, runs that differ by their seeds alone; a cell is the mean over the seeds with its 95 % interval by
Student's t, which at least 3 seeds make. Prints the table and writes DIR/report.md, report.csv (a line for each setting
and metric), report.json (each run's values, too), and plots: curves.png, each metric of the logs against steps;
pareto_calls.png and pareto_seconds.png, each result against its cost. report.md depends on nothing but the results: it
has no dates, and seconds only where --metrics asks for them.

With two sweeps, differences B - A of runs that are paired by their overrides and seeds: A/comparison_B.md, .csv, .json.

Exit status 1 if a result.json is corrupt (its run is left out, and named), 2 if there is nothing to report on.
"""

import sys
from pathlib import Path

from absl import flags

from experiments.reporting import compare, document, plots, summary, tables
from experiments.reporting.reading import Sweep, read_sweep
from experiments.run.workdir import check_writable, launch, usage_errors, write_json

METRICS = flags.DEFINE_list("metrics", [], "Which metrics or costs (calls, seconds) to show; all metrics if not given.")
BY = flags.DEFINE_string("by", None, "A key of the sweep whose values make the columns: a table for each metric.")
TOP = flags.DEFINE_integer("top", 30, "Of a table of more than 60 rows: how many are printed.", lower_bound=1)
LONG = 60


def key_called(sweep: Sweep, name: str) -> str:
    """The key of a sweep that has this name or ends in it.

    Raises:
      ValueError: if none or several do, or it does not vary.
    """
    keys = summary.varying(sweep.runs, summary.keys_of(sweep))
    found = [key for key in keys if key == name] or [key for key in keys if key.endswith(f".{name}")]
    if len(found) != 1:
        raise ValueError(f"by must be one of the keys that vary ({', '.join(keys)}), got {name!r}")
    return found[0]


def write(path: Path, content: str) -> None:
    """Writes a text in one move."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(content)
    part.replace(path)


def report(folder: Path) -> list[Sweep]:
    """Reports on one sweep."""
    with usage_errors():
        sweep = read_sweep(folder)
        check_writable(folder, "DIR")
        metrics = summary.chosen_metrics(METRICS.value, sweep)
        by = None if BY.value is None else key_called(sweep, BY.value)
    grids = [tables.pivot(sweep, m, by) for m in metrics] if by else [tables.flat(sweep, metrics)]
    drawn = plots.draw(sweep, metrics)
    write(folder / "report.md", document.report(sweep, metrics, grids, drawn))
    write(folder / "report.csv", tables.csv_text(sweep))
    write_json(folder / "report.json", summary.summarise(sweep))
    print(document.report(sweep, metrics, grids, [], TOP.value if len(grids[0].lines) > LONG else None))
    print(document.origin(sweep))
    print(f"{folder}: report.md, report.csv, report.json{''.join(f', {name}.png' for name in drawn)}")
    return [sweep]


def compared(first: Path, second: Path) -> list[Sweep]:
    """Compares two sweeps."""
    with usage_errors():
        a, b = read_sweep(first), read_sweep(second)
        check_writable(first, "DIR")
        if first.resolve() == second.resolve():
            raise ValueError(f"OTHER must be another sweep than DIR, got {second}")
        pairs = compare.pair(a, b)
        if BY.value is not None:
            raise ValueError(f"by must not be given with two sweeps, got {BY.value!r}")
        of_a, of_b = (summary.chosen_metrics(METRICS.value, sweep) for sweep in (a, b))
        shared = [metric for metric in of_a if metric in of_b]
    found = compare.changes(pairs, shared)
    name = (
        f"comparison_{second.name}" if first.name != second.name else f"comparison_{second.parent.name}_{second.name}"
    )
    content = compare.comparison(a, b, pairs, found)
    write(first / f"{name}.md", content)
    write(first / f"{name}.csv", compare.csv_text(pairs, found))
    write_json(first / f"{name}.json", compare.records(found))
    print(content)
    print(f"{first}: {name}.md, {name}.csv, {name}.json")
    return [a, b]


def main(argv):
    """Reports."""
    with usage_errors():
        if len(argv) not in (2, 3):
            raise ValueError(f"DIR [OTHER] must be one or two workdirs of sweeps, got {len(argv) - 1}")
    folders = [Path(name).absolute() for name in argv[1:]]
    sweeps = report(*folders) if len(folders) == 1 else compared(*folders)
    corrupt = [run for sweep in sweeps for run in sweep.having("corrupt")]
    for run in corrupt:
        print(f"error: run {run.id}: {run.error}", file=sys.stderr)
    return 1 if corrupt else 0


if __name__ == "__main__":
    launch(main)
