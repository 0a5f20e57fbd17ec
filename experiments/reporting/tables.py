"""Tables of a sweep as Markdown, CSV and JSON."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.reporting import summary
from experiments.reporting.reading import provenance
from experiments.reporting.statistics import ROUND_OFF, Estimate, rule
from experiments.reporting.summary import Run, Setting, Sweep, text

FLOOR = "*real against real*"
AROUND = {"best": "**", "tie": "**", "alike": "*", "": ""}


def number(value: float) -> str:
    """A value to four digits.

    >>> number(0.12345), number(1234567.0), number(50.0)
    ('0.1235', '1.235e+06', '50')
    """
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    if not 1e-3 <= abs(value) < 1e6:
        return f"{value:.3e}"
    return f"{value:.{max(0, 3 - math.floor(math.log10(abs(value))))}f}"


def interval(mean: float, half: float) -> str:
    """Mean and half width, to two digits of the half width.

    >>> interval(0.12106, 0.00397), interval(2.0, 2.4841), interval(3.2e-5, 1.1e-6), interval(2.0, 1e-16)
    ('0.1211 ± 0.0040', '2.0 ± 2.5', '(3.20 ± 0.11)e-05', '2 ± 0')
    """
    if half <= ROUND_OFF * abs(mean):
        return f"{number(mean)} ± 0"
    most = max(abs(mean), half)
    power = 0 if 1e-3 <= most < 1e6 else math.floor(math.log10(most))
    mean, half = mean / 10.0**power, half / 10.0**power
    digits = max(0, 1 - math.floor(math.log10(float(f"{half:.1e}"))))
    both = f"{mean:.{digits}f} ± {half:.{digits}f}"
    return f"({both})e{power:+03d}" if power else both


def numbers(one: Estimate) -> str:
    """Mean, with its half width if there is one."""
    return number(one.mean) if one.half is None else interval(one.mean, one.half)


def cell(one: Estimate | None, mark: str, n: int) -> str:
    """An estimate: bold if best or tied with it, italic if not distinguishable from it; with its n if that is not n."""
    if one is None:
        return "-"
    return f"{AROUND[mark]}{numbers(one)}{AROUND[mark]}" + (f" (n = {one.n})" if one.n != n else "")


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, with columns padded to align in a terminal."""
    rows = [[one.replace("|", "\\|").replace("\n", " ") for one in line] for line in [head, *lines]]
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(head))]
    rows.insert(1, ["-" * width for width in widths])
    padded = (" | ".join(one.ljust(width) for one, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(f"| {line} |\n" for line in padded)


class Grid(NamedTuple):
    """A table of settings.

    order: a number for each line, the least for the best; infinite without a ranking. floor: the last line.
    incomparable: metric -> keys in which its definition differs among the settings compared, so that it has no marks.
    """

    title: str
    head: list[str]
    lines: list[list[str]]
    order: list[float]
    incomparable: Mapping[str, list[str]]
    floor: list[str] | None = None

    def markdown(self, top: int | None = None) -> str:
        """All lines in order, or the first `top` lines with the best first."""
        lines, note = self.lines, ""
        if top is not None and len(lines) > top:
            lines = [lines[i] for i in sorted(range(len(lines)), key=lambda i: self.order[i])[:top]]
            which = "best" if any(map(math.isfinite, self.order)) else "first"
            note = f"The {which} {top} of {len(self.lines)} rows:\n\n"
        title = f"### {self.title}\n\n" if self.title else ""
        return note + title + table(self.head, [*lines, *([self.floor] if self.floor else [])])


def _having(sweep: Sweep, metrics: Sequence[str]) -> list[Setting]:
    """The settings with one of the metrics, and those without a finished run."""
    return [s for s in sweep.shown if not s.done or any(s.values(metric) for metric in metrics)]


def _names(setting: Setting, keys: Sequence[str]) -> list[str]:
    return [text(setting.overrides[key]) for key in keys] or ["all"]


def _floor(sweep: Sweep, metric: str) -> str:
    if (floor := summary.floors_of(sweep.done).get(metric)) is None:
        return ""
    mean, least, largest = map(number, floor.values())
    return mean if floor["least"] == floor["largest"] else f"{mean} ({least} to {largest})"


def flat(sweep: Sweep, metrics: Sequence[str]) -> Grid:
    """A row for each setting, a column for each metric."""
    settings = _having(sweep, metrics)
    names = list(summary.labels(sweep.varying).values()) or ["setting"]
    marks = {metric: summary.marks_of(sweep, settings, metric) for metric in metrics}
    lines = []
    for i, setting in enumerate(settings):
        done, total = len(setting.done), len(setting.runs)
        values = [cell(setting.estimate(metric), marks[metric][i], done) for metric in metrics]
        lines.append([*_names(setting, sweep.varying), *values, str(done) if done == total else f"{done} of {total}"])
    by = summary.ranking(metrics, settings)
    differ = {metric: keys for metric in metrics if (keys := summary.incomparable(metric, settings))}
    floors = [_floor(sweep, metric) for metric in metrics]
    floor = [FLOOR, *[""] * (len(names) - 1), *floors, ""] if any(floors) else None
    return Grid("", [*names, *metrics, "n"], lines, [setting.rank(by) for setting in settings], differ, floor)


def pivot(sweep: Sweep, metric: str, by: str) -> Grid:
    """One metric, with the values of the key `by` in the columns and all other keys that vary in the rows.

    The best of each column is marked; the best of the row if there is one row.
    """
    settings = _having(sweep, [metric])
    keys = [key for key in sweep.varying if key != by]
    rows, columns = summary.grouped(settings, keys), summary.grouped(settings, [by])
    groups = list((columns if len(rows) > 1 else rows).values())
    differ = list(dict.fromkeys(key for group in groups for key in summary.incomparable(metric, group)))
    marks = {}
    for group in groups:
        for setting, mark in zip(group, summary.marks_of(sweep, group, metric), strict=True):
            marks[id(setting)] = "" if differ else mark
    most = max((len(setting.done) for setting in settings), default=0)
    lines = []
    for row in rows.values():
        cells = {summary.identity(s.overrides, [by]): cell(s.estimate(metric), marks[id(s)], most) for s in row}
        lines.append([*_names(row[0], keys), *(cells.get(value, "") for value in columns)])
    label = summary.labels([*keys, by])
    values = [f"{label[by]} {text(column[0].overrides[by])}" for column in columns.values()]
    ranked = summary.ranking([metric], settings)
    order = [min(setting.rank(ranked) for setting in row) for row in rows.values()]
    floor = _floor(sweep, metric)
    title = f"{metric}{f', {FLOOR[1:-1]} {floor}' if floor else ''}, n = {most}"
    head = [*([label[key] for key in keys] or ["setting"]), *values]
    return Grid(title, head, lines, order, {metric: differ} if differ else {})


def summarise(sweep: Sweep) -> dict[str, Any]:
    """The content of report.json."""
    shared, differing = summary.conditions_of(sweep.done)
    names = list(dict.fromkeys([*sweep.metrics, *sweep.costs]))
    marked = {name: summary.marks_of(sweep, sweep.settings, name) for name in names}
    return {
        "name": sweep.name,
        "title": sweep.title,
        "task": sweep.task,
        "seed_keys": list(sweep.seed_keys),
        "runs": len(sweep.runs),
        "done": len(sweep.done),
        "metrics": {name: rule(name) for name in names},
        "incomparable": {name: keys for name in names if (keys := summary.incomparable(name, sweep.settings))},
        "conditions": shared,
        "conditions_that_differ": differing,
        "floors": summary.floors_of(sweep.done),
        "settings": [
            {
                "overrides": setting.overrides,
                "runs": len(setting.runs),
                "done": len(setting.done),
                "metrics": {
                    name: {**one.record, "mark": marked[name][i], "values": setting.values(name)}
                    for name in names
                    if (one := setting.estimate(name))
                },
                "floors": {name: floor["mean"] for name, floor in summary.floors_of(setting.done.values()).items()},
            }
            for i, setting in enumerate(sweep.settings)
        ],
        **{
            state: [{"id": run.id, "overrides": run.own, "error": run.error} for run in sweep.having(state)]
            for state in ("failed", "corrupt", "started", "waiting")
        },
        "provenance": provenance(sweep.done),
    }


def csv_lines(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """A table as CSV."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([head, *lines])
    return out.getvalue()


def csv_text(sweep: Sweep) -> str:
    """report.csv: a line for each setting and metric or cost."""
    lines = []
    for setting in summarise(sweep)["settings"]:
        names = [text(setting["overrides"][key]) for key in sweep.keys]
        for metric, entry in setting["metrics"].items():
            numbers = [entry[name] for name in ("mean", "low", "high", "std", "n")]
            lines.append([*names, metric, *numbers, setting["runs"], setting["floors"].get(metric), entry["mark"]])
    return csv_lines([*sweep.keys, "metric", "mean", "low", "high", "std", "n", "runs", "floor", "mark"], lines)


def named(run: Run) -> str:
    """The id of a run and its own overrides."""
    own = ", ".join(f"{label}={text(run.own[key])}" for key, label in summary.labels(list(run.own)).items())
    return f"{run.id}{f' ({own})' if own else ''}"


def listed(items: Sequence[str], most: int | None = None) -> str:
    """A Markdown list of all items, or of the first `most`."""
    more = [f"and {len(items) - most} more"] if most and len(items) > most else []
    return "".join(f"- {item}\n" for item in [*items[:most], *more])
