"""Two sweeps: runs paired by equal overrides and seeds, and the differences B - A of each setting.

A key with one value in A and one in B does not separate pairs: such keys are what the sweeps differ in. Seeds do.
"""

import csv
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments.configs.settings import flatten
from experiments.reporting import summary
from experiments.reporting.document import MOST, difference, quoted
from experiments.reporting.reading import Run, Sweep, lookup
from experiments.reporting.statistics import FEWEST, PERCENT, Estimate, cost, estimate, rule
from experiments.reporting.summary import identity, text
from experiments.reporting.tables import listed, named, number, numbers, table


class Pairs(NamedTuple):
    """Done runs of A and B in pairs by setting, those without a partner, and the keys that differ, key -> (A, B)."""

    keys: list[str]
    settings: list[tuple[dict[str, Any], list[tuple[Run, Run]]]]
    alone: tuple[list[Run], list[Run]]
    between: dict[str, tuple[Any, Any]]


def pair(a: Sweep, b: Sweep) -> Pairs:
    """Pair the done runs of two sweeps."""
    keys = list(dict.fromkeys(key for sweep in (a, b) for run in sweep.runs for key in run.overrides))
    seeds = [key for key in keys if key in a.seed_keys or key in b.seed_keys]
    resolved = [_resolved(sweep, keys) for sweep in (a, b)]
    joint = [key for key in keys if key in seeds or any(summary.varying(runs, [key]) for runs in resolved)]
    between = _between(a, b, [key for key in keys if key not in joint], resolved)
    first, second = ({identity(run.overrides, joint): run for run in runs if run.state == "done"} for runs in resolved)
    rows = [key for key in joint if key not in seeds]
    settings: dict[str, tuple[dict[str, Any], list[tuple[Run, Run]]]] = {}
    for place, run in first.items():
        if place in second:
            overrides = {key: run.overrides[key] for key in rows}
            settings.setdefault(identity(overrides, rows), (overrides, []))[1].append((run, second[place]))
    alone = (
        [run for place, run in first.items() if place not in second],
        [run for place, run in second.items() if place not in first],
    )
    return Pairs(rows, list(settings.values()), alone, between)


def _between(a: Sweep, b: Sweep, constant: Sequence[str], resolved: Sequence[list[Run]]) -> dict[str, tuple[Any, Any]]:
    """The differing values of constant keys, and of keys of the bases that no run overrides."""
    values = {key: (resolved[0][0].overrides[key], resolved[1][0].overrides[key]) for key in constant}
    overridden = {f".{key}" for sweep in (a, b) for run in sweep.runs for key in run.overrides}
    base_a, base_b = (flatten(dict(sweep.base), "") for sweep in (a, b))
    for path in dict.fromkeys([*base_a, *base_b]):
        if not any(key.endswith(path) for key in overridden):
            values[path[1:]] = base_a.get(path), base_b.get(path)
    return {key: (x, y) for key, (x, y) in values.items() if identity({"": x}, [""]) != identity({"": y}, [""])}


def _resolved(sweep: Sweep, keys: Sequence[str]) -> list[Run]:
    inherited = {key: lookup(sweep.base, key) for key in keys}
    return [run._replace(overrides={**inherited, **run.overrides}) for run in sweep.runs]


class Change(NamedTuple):
    """A metric of a setting in A, in B, and B - A over the pairs.

    resolution: the step between possible values of the metric, None if not known. comparable: False for losses of
    different definitions.
    """

    overrides: dict[str, Any]
    metric: str
    a: Estimate
    b: Estimate
    change: Estimate
    resolution: float | None = None
    comparable: bool = True

    @property
    def verdict(self) -> str:
        """better, worse, changed (the better direction is not known), equal, undecided, not comparable, or ""."""
        kind, one = rule(self.metric), self.change
        if not self.comparable:
            return "not comparable"
        if one.half is None:
            return ""
        if one.is_point and self.resolution is not None:
            return f"undecided (resolution {self.resolution:g})"
        if one.is_point:
            return "undecided (zero width)" if one.mean else "equal"
        if abs(one.mean) <= one.half:
            return "undecided"
        if not isinstance(kind, str):
            return "changed"
        return "better" if cost(one.mean, kind) < 0 else "worse"


def _redefined(pairs: Pairs) -> list[str]:
    """The keys that give loss another definition in B than in A."""
    return [key for key in pairs.between if summary.defines_loss(key)]


def changes(pairs: Pairs, metrics: Sequence[str]) -> list[Change]:
    """The change of each setting and metric, without an interval if conditions differ within the setting's pairs."""
    rows = []
    for overrides, runs in pairs.settings:
        sound = len({str(sorted(run.conditions.items())) for both in runs for run in both}) == 1
        for metric in metrics:
            having = [both for both in runs if all(metric in run.values for run in both)]
            if not having:
                continue
            a, b = ([run.values[metric] for run in side] for side in zip(*having, strict=True))
            columns = a, b, [y - x for x, y in zip(a, b, strict=True)]
            before, after, change = (estimate(column, interval=sound) for column in columns)
            step = summary.resolution(metric, [run for both in having for run in both])
            comparable = not (summary.is_loss(metric) and _redefined(pairs))
            rows.append(Change(overrides, metric, before, after, change, step, comparable))
    return rows


def _signed(one: Estimate) -> str:
    cell = numbers(one)
    if one.mean == 0 or cell.startswith(("-", "(-")):
        return cell
    return f"(+{cell[1:]}" if cell[0] == "(" else f"+{cell}"


def comparison(a: Sweep, b: Sweep, pairs: Pairs, rows: Sequence[Change]) -> str:
    """comparison.md."""
    runs = [run for _, both in pairs.settings for two in both for run in two]
    _, differing = summary.conditions_of(runs)
    paired = sum(len(both) for _, both in pairs.settings)
    parts = [f"# B - A\n\nA: {a.name} ({a.folder.name}). B: {b.name} ({b.folder.name}). {paired} pairs of runs.\n"]
    if differing:
        parts.append(difference(differing, "differences may come from them"))
    if pairs.between:
        lines = [f"`{key}`: A {text(x)}, B {text(y)}" for key, (x, y) in pairs.between.items()]
        parts.append(f"Settings in which the sweeps differ:\n\n{listed(lines, MOST)}")
    names = summary.labels(pairs.keys)
    head = [*(names[key] for key in pairs.keys), "metric", "A", "B", "B - A", "", "n"]
    cells = [
        [
            *(text(change.overrides[key]) for key in pairs.keys),
            change.metric,
            number(change.a.mean),
            number(change.b.mean),
            _signed(change.change),
            f"**{change.verdict}**" if change.verdict in ("better", "worse", "changed") else change.verdict,
            str(change.change.n),
        ]
        for change in rows
    ]
    parts += [table(head, cells), _legend(pairs, rows)] if rows else ["The pairs have no metric in common.\n"]
    for letter, alone, sweep in zip("AB", pairs.alone, (a, b), strict=True):
        rest = [run for run in sweep.runs if run.state != "done"]
        lines = [f"{named(run)}: {run.state}{f', {run.error}' if run.error else ''}" for run in rest]
        if alone:
            parts.append(f"## Done in {letter} only: {len(alone)}\n\n{listed([named(run) for run in alone], MOST)}")
        if rest:
            parts.append(f"## Not done in {letter}: {len(rest)}\n\n{listed(lines, MOST)}")
    return "\n".join(parts)


def _legend(pairs: Pairs, rows: Sequence[Change]) -> str:
    verdicts = {row.verdict for row in rows}
    notes = ["A and B: means over the pairs."]
    if any(row.change.half is not None for row in rows):
        notes += [
            f"B - A: mean ± half width of the {PERCENT} interval by Student's t over the differences of n pairs.",
            "undecided: 0 lies in the interval. changed: it does not, and the better direction is not known.",
        ]
    if any(verdict.startswith("undecided (") for verdict in verdicts):
        notes.append(
            "undecided (...): all pairs have the same difference, so that the interval has no width. The resolution is "
            "the step between possible values of the metric."
        )
    if "not comparable" in verdicts:
        notes.append(
            f"not comparable: the definition of a loss differs between A and B, in {quoted(_redefined(pairs))}."
        )
    if any(row.change.n < FEWEST for row in rows):
        notes.append(f"n < {FEWEST}: no interval, which needs at least {FEWEST} pairs. The difference may be chance.")
    return listed(notes)


def records(rows: Sequence[Change]) -> list[dict[str, Any]]:
    """The changes for JSON."""
    return [
        {"overrides": row.overrides, "metric": row.metric, "verdict": row.verdict}
        | {name: summary.as_dict(one) for name, one in (("a", row.a), ("b", row.b), ("difference", row.change))}
        for row in rows
    ]


def csv_text(pairs: Pairs, rows: Sequence[Change]) -> str:
    """A line for each setting and metric."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*pairs.keys, "metric", "a", "b", "difference", "low", "high", "n", "verdict"])
    for row in rows:
        low, high = row.change.interval or (None, None)
        values = [row.a.mean, row.b.mean, row.change.mean, low, high, row.change.n]
        writer.writerow([*(text(row.overrides[key]) for key in pairs.keys), row.metric, *values, row.verdict])
    return out.getvalue()
