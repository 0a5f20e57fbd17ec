"""A sweep as markdown, CSV, and lines of text. Nothing here depends on the time or on where the sweep lies."""

import csv
import io
import math
from collections.abc import Sequence
from typing import NamedTuple

from experiments.reporting import summary
from experiments.reporting.reading import Run, Sweep
from experiments.reporting.statistics import Estimate, cost, rule
from experiments.reporting.summary import Setting, text

FLOOR = "*real against real*"


def number(value: float) -> str:
    """Four digits.

    >>> number(0.12345), number(1234567.0), number(50.0)
    ('0.1235', '1.235e+06', '50')
    """
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    if not 1e-3 <= abs(value) < 1e6:
        return f"{value:.3e}"
    return f"{value:.{max(0, 3 - math.floor(math.log10(abs(value))))}f}"


def interval(mean: float, half: float) -> str:
    """Mean and half width, to two digits of the latter.

    >>> interval(0.12106, 0.00397), interval(2.0, 2.4841), interval(3.2e-5, 1.1e-6), interval(2.0, 0.0)
    ('0.1211 ± 0.0040', '2.0 ± 2.5', '(3.20 ± 0.11)e-05', '2 ± 0')
    """
    if half <= 1e-9 * abs(mean):  # round-off of values that are equal
        return f"{number(mean)} ± {half:.0g}"
    most = max(abs(mean), half)
    power = 0 if 1e-3 <= most < 1e6 else math.floor(math.log10(most))
    mean, half = mean / 10.0**power, half / 10.0**power
    digits = max(0, 1 - math.floor(math.log10(float(f"{half:.1e}"))))
    shown = f"{mean:.{digits}f} ± {half:.{digits}f}"
    return f"({shown})e{power:+03d}" if power else shown


def cell(of: Estimate | None, mark: str, n: int) -> str:
    """An estimate; bold if best, italic if not told apart from it; with its own n if that is not n."""
    if of is None:
        return "-"
    shown = number(of.mean) if of.half is None else interval(of.mean, of.half)
    around = {"best": "**", "alike": "*", "": ""}[mark]
    return f"{around}{shown}{around}" + (f" (n = {of.n})" if of.n != n else "")


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A markdown table whose columns are aligned in a terminal too."""
    rows = [[one.replace("|", "\\|").replace("\n", " ") for one in line] for line in [head, *lines]]
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(head))]
    rows.insert(1, ["-" * width for width in widths])
    padded = (" | ".join(one.ljust(width) for one, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(f"| {line} |\n" for line in padded)


class Grid(NamedTuple):
    """A table of settings: what its rows are called, its lines, and a number for each by which the best come first."""

    title: str
    head: list[str]
    lines: list[list[str]]
    order: list[float]
    floor: list[str] | None = None

    def markdown(self, top: int | None = None) -> str:
        """All lines in order, or the `top` best, best first."""
        chosen = sorted(range(len(self.lines)), key=lambda i: self.order[i])[:top] if top else range(len(self.lines))
        shown = [self.lines[i] for i in chosen] + ([self.floor] if self.floor else [])
        return (f"### {self.title}\n\n" if self.title else "") + table(self.head, shown)


def _having(sweep: Sweep, metrics: Sequence[str]) -> list[Setting]:
    """The settings without those whose finished runs have none of the metrics."""
    return [s for s in summary.shown(sweep) if not s.done or any(s.estimate(metric) for metric in metrics)]


def flat(sweep: Sweep, metrics: Sequence[str]) -> Grid:
    """Settings by metrics."""
    settings, done = _having(sweep, metrics), sweep.having("done")
    keys = summary.varying(sweep.runs, summary.keys_of(sweep))
    names = summary.labels(keys)
    _, differing = summary.conditions_of(done)
    marked = {metric: summary.marks_of(settings, metric, differing) for metric in metrics}
    lines = [
        [
            *_names(setting, keys),
            *(cell(setting.estimate(m), marked[m][i], len(setting.done)) for m in metrics),
            _n(setting),
        ]
        for i, setting in enumerate(settings)
    ]
    by = next((metric for metric in metrics if rule(metric) is not None), None)
    floors = summary.floors_of(done)
    floor = [FLOOR, *[""] * (max(1, len(keys)) - 1), *(_floor(floors.get(m)) for m in metrics), ""]
    head = [*(names[key] for key in keys), *metrics, "n"] if keys else ["setting", *metrics, "n"]
    order = [_order(setting, by) for setting in settings]
    return Grid("", head, lines, order, floor if any(m in floors for m in metrics) else None)


def pivot(sweep: Sweep, metric: str, by: str) -> Grid:
    """One metric: the values of the key `by` in the columns, what else varies in the rows.

    The best of each column is marked; where there is one row, the best of it.
    """
    settings, done = _having(sweep, [metric]), sweep.having("done")
    keys = [key for key in summary.varying(sweep.runs, summary.keys_of(sweep)) if key != by]
    of = {summary.identity(s.overrides, [*keys, by]): s for s in settings}
    rows = list({summary.identity(s.overrides, keys): s for s in reversed(settings)}.values())[::-1]
    columns = {summary.identity(s.overrides, [by]): s.overrides[by] for s in settings}
    found = [
        [of.get(summary.identity({**row.overrides, by: value}, [*keys, by])) for value in columns.values()]
        for row in rows
    ]
    _, differing = summary.conditions_of(done)
    empty = Setting({}, [], {}, False)
    among = found if len(rows) == 1 else list(zip(*found, strict=True))  # a single row is compared along it
    marked = [summary.marks_of([setting or empty for setting in line], metric, differing) for line in among]
    marked = marked if len(rows) == 1 else [list(line) for line in zip(*marked, strict=True)]
    most = max((len(setting.done) for setting in settings), default=0)
    lines = [
        [
            *_names(row, keys),
            *(cell(s.estimate(metric), marked[i][j], most) if s else "" for j, s in enumerate(found[i])),
        ]
        for i, row in enumerate(rows)
    ]
    label = summary.labels([*keys, by])
    head = [*([label[key] for key in keys] or ["setting"]), *(f"{label[by]} {text(v)}" for v in columns.values())]
    order = [min((_order(s, metric) for s in line if s), default=math.inf) for line in found]
    floor = _floor(summary.floors_of(done).get(metric))
    return Grid(f"{metric}{f', {FLOOR[1:-1]} {floor}' if floor else ''}, n = {most}", head, lines, order)


def _names(setting: Setting, keys: Sequence[str]) -> list[str]:
    return [text(setting.overrides[key]) for key in keys] or ["all"]


def _n(setting: Setting) -> str:
    done, meant = len(setting.done), len(setting.runs)
    return str(done) if done == meant else f"{done} of {meant}"


def _order(setting: Setting, metric: str | None) -> float:
    of = setting.estimate(metric) if metric else None
    kind = rule(metric) if metric else None
    return math.inf if of is None or kind is None else cost(of.mean, kind)


def _floor(of: tuple[float, float, float] | None) -> str:
    if of is None:
        return ""
    mean, least, largest = of
    return number(mean) if least == largest else f"{number(mean)} ({number(least)} to {number(largest)})"


def csv_text(sweep: Sweep) -> str:
    """A line for each setting and metric, costs included."""
    found = summary.summarise(sweep)
    keys = summary.keys_of(sweep)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*keys, "metric", "mean", "low", "high", "std", "n", "runs", "floor", "mark"])
    for setting in found["settings"]:
        for metric, of in setting["metrics"].items():
            numbers = [of[key] for key in ("mean", "low", "high", "std", "n")]
            rest = [setting["runs"], setting["floors"].get(metric), of["mark"]]
            writer.writerow([*(text(setting["overrides"][key]) for key in keys), metric, *numbers, *rest])
    return out.getvalue()


def named(run: Run) -> str:
    """A run, as lists of runs say it."""
    said = ", ".join(f"{label}={text(run.said[key])}" for key, label in summary.labels(list(run.said)).items())
    return f"{run.id}{f' ({said})' if said else ''}"


def listed(items: Sequence[str], most: int | None = None) -> str:
    """As lines of a markdown list, all or the first so many."""
    more = [f"and {len(items) - most} more"] if most and len(items) > most else []
    return "".join(f"- {item}\n" for item in [*items[:most], *more])
