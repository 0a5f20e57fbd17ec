"""Two sweeps: runs paired by equal overrides, seeds included, and the differences B - A of each setting.

Keys with one value in A and one in B pair whatever these are, for they are what the sweeps differ in; seeds do not.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.reporting import summary
from experiments.reporting.document import MOST, difference
from experiments.reporting.reading import Run, Sweep, lookup
from experiments.reporting.statistics import FEWEST, PERCENT, Estimate, cost, estimate, rule
from experiments.reporting.summary import identity, text
from experiments.reporting.tables import interval, listed, named, number, table


class Pairs(NamedTuple):
    """Done runs of A and B in pairs by setting; those without a partner; what the sweeps differ in, key -> (A, B)."""

    keys: list[str]
    settings: list[tuple[dict[str, Any], list[tuple[Run, Run]]]]
    alone: tuple[list[Run], list[Run]]
    between: dict[str, tuple[Any, Any]]


def pair(a: Sweep, b: Sweep) -> Pairs:
    """Pairs the runs of two sweeps that are done."""
    keys = list(dict.fromkeys(key for sweep in (a, b) for run in sweep.runs for key in run.overrides))
    seeds = [key for key in keys if key in a.seed_keys or key in b.seed_keys]
    full = [_resolved(sweep, keys) for sweep in (a, b)]
    joint = [key for key in keys if key in seeds or any(summary.varying(runs, [key]) for runs in full)]
    between = _between(a, b, [key for key in keys if key not in joint], full)
    first, second = ({identity(run.overrides, joint): run for run in runs if run.state == "done"} for runs in full)
    rows = [key for key in joint if key not in seeds]
    settings: dict[str, tuple[dict[str, Any], list[tuple[Run, Run]]]] = {}
    for who, run in first.items():
        if who in second:
            said = {key: run.overrides[key] for key in rows}
            settings.setdefault(identity(said, rows), (said, []))[1].append((run, second[who]))
    alone = (
        [run for who, run in first.items() if who not in second],
        [run for who, run in second.items() if who not in first],
    )
    return Pairs(rows, list(settings.values()), alone, between)


def _between(a: Sweep, b: Sweep, constant: Sequence[str], full: Sequence[list[Run]]) -> dict[str, tuple[Any, Any]]:
    """What the sweeps differ in: among keys with one value on each side, and in what neither overrides."""
    found = {key: (full[0][0].overrides[key], full[1][0].overrides[key]) for key in constant}
    overridden = {f".{key}" for sweep in (a, b) for run in sweep.runs for key in run.overrides}
    bases = _flat(a.base), _flat(b.base)
    for name in dict.fromkeys([*bases[0], *bases[1]]):
        if not any(key.endswith(f".{name}") for key in overridden):
            found[name] = bases[0].get(name), bases[1].get(name)
    return {key: (x, y) for key, (x, y) in found.items() if identity({"": x}, [""]) != identity({"": y}, [""])}


def _flat(base: Any, path: str = "") -> dict[str, Any]:
    if isinstance(base, Mapping):
        return {k: v for key, inner in base.items() for k, v in _flat(inner, f"{path}.{key}").items()}
    return {path[1:]: base}


def _resolved(sweep: Sweep, keys: Sequence[str]) -> list[Run]:
    inherited = {key: lookup(sweep.base, key) for key in keys}
    return [run._replace(overrides={**inherited, **run.overrides}) for run in sweep.runs]


class Change(NamedTuple):
    """A metric of a setting in A, in B, and B - A over the pairs."""

    overrides: dict[str, Any]
    metric: str
    a: Estimate
    b: Estimate
    change: Estimate

    @property
    def verdict(self) -> str:
        """better, worse, or changed (neither is known) if 0 lies outside the interval; equal, undecided, or none."""
        kind, one = rule(self.metric), self.change
        if one.half is None:
            return ""
        if abs(one.mean) <= one.half:
            return "undecided" if one.half else "equal"
        if not isinstance(kind, str):
            return "changed"
        return "better" if cost(one.mean, kind) < 0 else "worse"


def changes(pairs: Pairs, metrics: Sequence[str]) -> list[Change]:
    """Of each setting and metric of both sides; no interval where conditions differ within the setting's pairs."""
    found = []
    for overrides, runs in pairs.settings:
        sound = len({str(sorted(run.conditions.items())) for both in runs for run in both}) == 1
        for metric in metrics:
            both = [(x.values[metric], y.values[metric]) for x, y in runs if metric in x.values and metric in y.values]
            if both:
                columns = [x for x, _ in both], [y for _, y in both], [y - x for x, y in both]
                found.append(Change(overrides, metric, *(estimate(column, interval=sound) for column in columns)))
    return found


def _signed(of: Estimate) -> str:
    shown = number(of.mean) if of.half is None else interval(of.mean, of.half)
    return (
        shown
        if of.mean == 0 or shown.startswith(("-", "(-"))
        else shown.replace("(", "(+", 1)
        if shown[0] == "("
        else f"+{shown}"
    )


def comparison(a: Sweep, b: Sweep, pairs: Pairs, found: Sequence[Change]) -> str:
    """comparison.md."""
    runs = [run for _, both in pairs.settings for two in both for run in two]
    _, differing = summary.conditions_of(runs)
    paired = sum(len(both) for _, both in pairs.settings)
    parts = [f"# B - A\n\nA: {a.name} ({a.folder.name}). B: {b.name} ({b.folder.name}). {paired} pairs of runs.\n"]
    if differing:
        parts.append(difference(differing).replace(": no best is marked", ": differences may be theirs"))
    if pairs.between:
        lines = [f"`{key}`: A {text(x)}, B {text(y)}" for key, (x, y) in pairs.between.items()]
        parts.append(f"What the sweeps differ in:\n\n{listed(lines, MOST)}")
    names = summary.labels(pairs.keys)
    head = [*(names[key] for key in pairs.keys), "metric", "A", "B", "B - A", "", "n"]
    lines_of = [
        [
            *(text(change.overrides[key]) for key in pairs.keys),
            change.metric,
            number(change.a.mean),
            number(change.b.mean),
            _signed(change.change),
            f"**{change.verdict}**" if change.verdict in ("better", "worse", "changed") else change.verdict,
            str(change.change.n),
        ]
        for change in found
    ]
    if found:
        parts += [table(head, lines_of), _legend(found)]
    else:
        parts.append("No metric of any pair to compare.\n")
    for letter, alone in zip("AB", pairs.alone, strict=True):
        if alone:
            parts.append(f"## Done in {letter} alone: {len(alone)}\n\n{listed([named(run) for run in alone], MOST)}")
    for letter, sweep in (("A", a), ("B", b)):
        if rest := [run for run in sweep.runs if run.state != "done"]:
            lines = [f"{named(run)}: {run.state}{f', {run.error}' if run.error else ''}" for run in rest]
            parts.append(f"## Not done in {letter}: {len(rest)}\n\n{listed(lines, MOST)}")
    return "\n".join(parts)


def _legend(found: Sequence[Change]) -> str:
    notes = ["A and B: means over the pairs."]
    if any(change.change.half is not None for change in found):
        notes.append(
            f"B - A: mean ± half width of the {PERCENT} interval by Student's t over the differences of n pairs."
        )
        notes.append("undecided: 0 lies in the interval. Otherwise better, worse, or changed, where neither is known.")
    if any(change.change.n < FEWEST for change in found):
        notes.append(
            f"n < {FEWEST}: no interval, for fewer than {FEWEST} pairs do not make one; differences may be chance."
        )
    return listed(notes)


def records(found: Sequence[Change]) -> list[dict[str, Any]]:
    """The changes for JSON."""
    return [
        {
            "overrides": change.overrides,
            "metric": change.metric,
            "a": summary.as_dict(change.a),
            "b": summary.as_dict(change.b),
            "difference": summary.as_dict(change.change),
            "verdict": change.verdict,
        }
        for change in found
    ]


def csv_text(pairs: Pairs, found: Sequence[Change]) -> str:
    """A line for each setting and metric."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*pairs.keys, "metric", "a", "b", "difference", "low", "high", "n", "verdict"])
    for change in found:
        low, high = change.change.interval or (None, None)
        numbers = [change.a.mean, change.b.mean, change.change.mean, low, high, change.change.n]
        writer.writerow([*(text(change.overrides[k]) for k in pairs.keys), change.metric, *numbers, change.verdict])
    return out.getvalue()
