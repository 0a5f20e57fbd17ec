"""Tables of a sweep as markdown, CSV, and lines of text, independent of the time and of the sweep's path."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from experiments.reporting import summary
from experiments.reporting.reading import EMPTY, Run, Sweep
from experiments.reporting.statistics import ROUND_OFF, Estimate, cost, rule
from experiments.reporting.summary import Setting, text

FLOOR = "*real against real*"
AROUND = {"best": "**", "tie": "**", "alike": "*", "": ""}


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
    """An estimate: bold if best or a tie with it, italic if not distinguishable from it; with its own n if not n."""
    if one is None:
        return "-"
    return f"{AROUND[mark]}{numbers(one)}{AROUND[mark]}" + (f" (n = {one.n})" if one.n != n else "")


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A markdown table, with columns padded to align in a terminal."""
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
    floor: list[str] | None = None
    incomparable: Mapping[str, list[str]] = EMPTY

    def markdown(self, top: int | None = None) -> str:
        """All lines in order, or the first `top` lines with the best first."""
        cut = top is not None and len(self.lines) > top
        chosen = sorted(range(len(self.lines)), key=lambda i: self.order[i])[:top] if cut else range(len(self.lines))
        which = "best" if any(map(math.isfinite, self.order)) else "first"
        lines = [self.lines[i] for i in chosen] + ([self.floor] if self.floor else [])
        note = f"The {which} {top} of {len(self.lines)} rows:\n\n" if cut else ""
        return note + (f"### {self.title}\n\n" if self.title else "") + table(self.head, lines)


def _having(sweep: Sweep, metrics: Sequence[str]) -> list[Setting]:
    """The settings with one of the metrics, and those without a finished run."""
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
    by = summary.ranking(metrics, settings)
    floors = summary.floors_of(done)
    floor = [FLOOR, *[""] * (max(1, len(keys)) - 1), *(_floor(floors.get(m)) for m in metrics), ""]
    head = [*(names[key] for key in keys), *metrics, "n"] if keys else ["setting", *metrics, "n"]
    order = [_order(setting, by) for setting in settings]
    differ = {metric: reason for metric in metrics if (reason := summary.incomparable(metric, settings))}
    return Grid("", head, lines, order, floor if any(m in floors for m in metrics) else None, differ)


def pivot(sweep: Sweep, metric: str, by: str) -> Grid:
    """One metric, with the values of the key `by` in the columns and all other keys that vary in the rows.

    The best of each column is marked; the best of the row if there is one row.
    """
    settings, done = _having(sweep, [metric]), sweep.having("done")
    keys = [key for key in summary.varying(sweep.runs, summary.keys_of(sweep)) if key != by]
    places = {summary.identity(s.overrides, [*keys, by]): s for s in settings}
    rows = list({summary.identity(s.overrides, keys): s for s in reversed(settings)}.values())[::-1]
    columns = {summary.identity(s.overrides, [by]): s.overrides[by] for s in settings}
    cells = [
        [places.get(summary.identity({**row.overrides, by: value}, [*keys, by])) for value in columns.values()]
        for row in rows
    ]
    _, differing = summary.conditions_of(done)
    empty = Setting({}, [], {}, False)
    groups = [[s or empty for s in line] for line in (cells if len(rows) == 1 else zip(*cells, strict=True))]
    differ = list(dict.fromkeys(key for group in groups for key in summary.incomparable(metric, group)))
    marked = [[""] * len(group) if differ else summary.marks_of(group, metric, differing) for group in groups]
    marked = marked if len(rows) == 1 else [list(line) for line in zip(*marked, strict=True)]
    most = max((len(setting.done) for setting in settings), default=0)
    lines = [
        [
            *_names(row, keys),
            *(cell(s.estimate(metric), marked[i][j], most) if s else "" for j, s in enumerate(cells[i])),
        ]
        for i, row in enumerate(rows)
    ]
    label = summary.labels([*keys, by])
    head = [*([label[key] for key in keys] or ["setting"]), *(f"{label[by]} {text(v)}" for v in columns.values())]
    ranked = summary.ranking([metric], settings)
    order = [min((_order(s, ranked) for s in line if s), default=math.inf) for line in cells]
    floor = _floor(summary.floors_of(done).get(metric))
    title = f"{metric}{f', {FLOOR[1:-1]} {floor}' if floor else ''}, n = {most}"
    return Grid(title, head, lines, order, incomparable={metric: differ} if differ else EMPTY)


def _names(setting: Setting, keys: Sequence[str]) -> list[str]:
    return [text(setting.overrides[key]) for key in keys] or ["all"]


def _n(setting: Setting) -> str:
    done, total = len(setting.done), len(setting.runs)
    return str(done) if done == total else f"{done} of {total}"


def _order(setting: Setting, metric: str | None) -> float:
    one = setting.estimate(metric) if metric else None
    kind = rule(metric) if metric else None
    return math.inf if one is None or kind is None else cost(one.mean, kind)


def _floor(floor: tuple[float, float, float] | None) -> str:
    if floor is None:
        return ""
    mean, least, largest = floor
    return number(mean) if least == largest else f"{number(mean)} ({number(least)} to {number(largest)})"


def csv_text(sweep: Sweep) -> str:
    """A line for each setting and metric or cost."""
    content, keys = summary.summarise(sweep), summary.keys_of(sweep)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*keys, "metric", "mean", "low", "high", "std", "n", "runs", "floor", "mark"])
    for setting in content["settings"]:
        for metric, entry in setting["metrics"].items():
            values = [entry[key] for key in ("mean", "low", "high", "std", "n")]
            rest = [setting["runs"], setting["floors"].get(metric), entry["mark"]]
            writer.writerow([*(text(setting["overrides"][key]) for key in keys), metric, *values, *rest])
    return out.getvalue()


def named(run: Run) -> str:
    """The id of a run and its own overrides."""
    own = ", ".join(f"{label}={text(run.own[key])}" for key, label in summary.labels(list(run.own)).items())
    return f"{run.id}{f' ({own})' if own else ''}"


def listed(items: Sequence[str], most: int | None = None) -> str:
    """A markdown list of all items, or of the first `most`."""
    more = [f"and {len(items) - most} more"] if most and len(items) > most else []
    return "".join(f"- {item}\n" for item in [*items[:most], *more])
