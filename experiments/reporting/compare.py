"""Two sweeps: runs paired by equal overrides and seeds, and the differences B - A of each setting.

A key with one value in A and one value in B does not separate pairs: it is a difference between the sweeps. Seeds
separate pairs.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from experiments.configs.settings import flatten
from experiments.reporting import summary
from experiments.reporting.document import MOST, difference, quoted
from experiments.reporting.reading import lookup
from experiments.reporting.statistics import FEWEST, PERCENT, Estimate, cost, estimate, rule
from experiments.reporting.summary import Run, Sweep, identity, text
from experiments.reporting.tables import csv_lines, listed, named, number, numbers, table


class Pairs(NamedTuple):
    """Done runs of A and B in pairs by setting, those without a partner, and the keys that differ, key -> (A, B)."""

    keys: list[str]
    settings: list[list[tuple[Run, Run]]]
    alone: tuple[list[Run], list[Run]]
    between: dict[str, tuple[Any, Any]]

    @property
    def redefining(self) -> list[str]:
        """The keys whose difference changes the definition of the loss."""
        return [key for key in self.between if summary.defines_loss(key)]


def pair(a: Sweep, b: Sweep) -> Pairs:
    """Pair the done runs of two sweeps."""
    keys = list(dict.fromkeys(key for run in [*a.runs, *b.runs] for key in run.overrides))
    seeds = [key for key in keys if key in a.seed_keys or key in b.seed_keys]
    sides = [
        [run._replace(overrides={key: lookup(sweep.base, key) for key in keys} | run.overrides) for run in sweep.runs]
        for sweep in (a, b)
    ]
    rows = [key for key in keys if key not in seeds and any(summary.varying(runs, [key]) for runs in sides)]
    first, second = (
        {identity(run.overrides, rows + seeds): run for run in runs if run.state == "done"} for runs in sides
    )
    settings: dict[str, list[tuple[Run, Run]]] = {}
    for place, run in first.items():
        if place in second:
            settings.setdefault(identity(run.overrides, rows), []).append((run, second[place]))
    alone_a = [run for place, run in first.items() if place not in second]
    alone_b = [run for place, run in second.items() if place not in first]

    constant = [key for key in keys if key not in rows and key not in seeds]
    between = {key: (sides[0][0].overrides[key], sides[1][0].overrides[key]) for key in constant}
    base_a, base_b = flatten(dict(a.base)), flatten(dict(b.base))
    for key in {**base_a, **base_b}:
        if key not in keys:
            between[key.removeprefix("config.")] = base_a.get(key), base_b.get(key)
    between = {key: values for key, values in between.items() if len({identity({"": v}, [""]) for v in values}) > 1}
    return Pairs(rows, list(settings.values()), (alone_a, alone_b), between)


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


def changes(pairs: Pairs, metrics: Sequence[str]) -> list[Change]:
    """The change of each setting and metric, without an interval if conditions differ within the setting's pairs."""
    rows = []
    for runs in pairs.settings:
        overrides = {key: runs[0][0].overrides[key] for key in pairs.keys}
        _, differing = summary.conditions_of(run for both in runs for run in both)
        for metric in metrics:
            having = [both for both in runs if all(metric in run.values for run in both)]
            if not having:
                continue
            a, b = ([run.values[metric] for run in side] for side in zip(*having, strict=True))
            columns = a, b, [y - x for x, y in zip(a, b, strict=True)]
            before, after, change = (estimate(column, interval=not differing) for column in columns)
            step = summary.resolution(metric, [run for both in having for run in both])
            comparable = not (summary.is_loss(metric) and pairs.redefining)
            rows.append(Change(overrides, metric, before, after, change, step, comparable))
    return rows


def _signed(one: Estimate) -> str:
    text = numbers(one)
    if one.mean == 0 or text.startswith(("-", "(-")):
        return text
    return f"(+{text[1:]}" if text[0] == "(" else f"+{text}"


def comparison(a: Sweep, b: Sweep, pairs: Pairs, rows: Sequence[Change]) -> str:
    """The content of comparison.md."""
    runs = [run for setting in pairs.settings for both in setting for run in both]
    names = f"A: {a.name} ({a.folder.name}). B: {b.name} ({b.folder.name})."
    parts = [f"# B - A\n\n{names} {len(runs) // 2} pairs of runs.\n"]
    if differing := summary.conditions_of(runs)[1]:
        parts.append(difference(differing, "differences may come from them"))
    if pairs.between:
        lines = [f"`{key}`: A {text(x)}, B {text(y)}" for key, (x, y) in pairs.between.items()]
        parts.append(f"Settings in which the sweeps differ:\n\n{listed(lines, MOST)}")
    cells = []
    for row in rows:
        verdict = f"**{row.verdict}**" if row.verdict in ("better", "worse", "changed") else row.verdict
        setting = [text(row.overrides[key]) for key in pairs.keys]
        means = [number(row.a.mean), number(row.b.mean), _signed(row.change)]
        cells.append([*setting, row.metric, *means, verdict, str(row.change.n)])
    head = [*summary.labels(pairs.keys).values(), "metric", "A", "B", "B - A", "", "n"]
    notes = listed(list(_notes(pairs, rows)))
    parts += [table(head, cells), notes] if rows else ["The pairs have no metric in common.\n"]
    for letter, alone, sweep in zip("AB", pairs.alone, (a, b), strict=True):
        if alone:
            parts.append(f"## Done in {letter} only: {len(alone)}\n\n{listed([named(run) for run in alone], MOST)}")
        if rest := [run for run in sweep.runs if run.state != "done"]:
            lines = [f"{named(run)}: {run.state}{f', {run.error}' if run.error else ''}" for run in rest]
            parts.append(f"## Not done in {letter}: {len(rest)}\n\n{listed(lines, MOST)}")
    return "\n".join(parts)


def _notes(pairs: Pairs, rows: Sequence[Change]) -> Iterator[str]:
    verdicts = {row.verdict for row in rows}
    yield "A and B: means over the pairs."
    if any(row.change.half is not None for row in rows):
        yield f"B - A: mean ± half width of the {PERCENT} interval by Student's t over the differences of n pairs."
        yield "undecided: 0 lies in the interval. changed: it does not, and the better direction is not known."
    if any(verdict.startswith("undecided (") for verdict in verdicts):
        yield (
            "undecided (...): all pairs have the same difference, so that the interval has no width. The resolution is "
            "the step between possible values of the metric."
        )
    if "not comparable" in verdicts:
        yield f"not comparable: the definition of a loss differs between A and B, in {quoted(pairs.redefining)}."
    if any(row.change.n < FEWEST for row in rows):
        yield f"n < {FEWEST}: no interval, which needs at least {FEWEST} pairs. The difference may be chance."


def csv_text(pairs: Pairs, rows: Sequence[Change]) -> str:
    """comparison.csv: a line for each setting and metric."""
    lines = []
    for row in rows:
        values = [row.a.mean, row.b.mean, row.change.mean, *(row.change.interval or (None, None)), row.change.n]
        lines.append([*(text(row.overrides[key]) for key in pairs.keys), row.metric, *values, row.verdict])
    return csv_lines([*pairs.keys, "metric", "a", "b", "difference", "low", "high", "n", "verdict"], lines)


def records(rows: Sequence[Change]) -> list[dict[str, Any]]:
    """The changes for JSON."""
    return [
        {"overrides": row.overrides, "metric": row.metric, "verdict": row.verdict}
        | {"a": row.a.record, "b": row.b.record, "difference": row.change.record}
        for row in rows
    ]
