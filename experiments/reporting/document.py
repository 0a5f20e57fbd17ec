"""report.md: warnings, tables, what they mean, plots, and what is not in them."""

from collections.abc import Sequence
from typing import Any

from experiments.reporting import summary
from experiments.reporting.reading import Run, Sweep, provenance
from experiments.reporting.statistics import FEWEST, PERCENT, rule
from experiments.reporting.summary import text
from experiments.reporting.tables import FLOOR, Grid, listed, named

STATES = {
    "corrupt": "Corrupt results, left out",
    "failed": "Failed",
    "started": "Begun, not finished (running, or killed)",
    "waiting": "Not begun",
}
MOST = 20  # of the runs that are still to come, how many are named: report.json has all


def counts(sweep: Sweep) -> str:
    """How many runs are in each state, in a line."""
    of = {"failed": "failed", "corrupt": "with a corrupt result", "started": "begun", "waiting": "not begun"}
    rest = [f"{count} {name}" for state, name in of.items() if (count := len(sweep.having(state)))]
    done = len(sweep.having("done"))
    return f"{done} of {len(sweep.runs)} runs are done{''.join(f', {one}' for one in rest)}."


def _some(ids: Sequence[str], most: int = 6) -> str:
    return ", ".join(ids[:most]) + (f" and {len(ids) - most} more" if len(ids) > most else "")


def difference(differing: dict[str, dict[str, list[str]]]) -> str:
    """The warning that runs were measured under different conditions, with keys, values and runs; or ""."""
    if not differing:
        return ""
    lines = [
        f"`{key}`: " + "; ".join(f"**{value}** in {len(ids)} ({_some(ids)})" for value, ids in found.items())
        for key, found in differing.items()
    ]
    return (
        "**WARNING: runs were measured under different conditions. Numbers under different conditions are not "
        f"comparable: no best is marked.**\n\n{listed(lines)}"
    )


def legend(sweep: Sweep, metrics: Sequence[str], *, by: bool = False) -> str:
    """What the numbers and marks of a table mean, and where there is no interval and why."""
    settings, done = summary.shown(sweep), sweep.having("done")
    _, differing = summary.conditions_of(done)
    unseen = len(summary.settings_of(sweep)) - len(settings)
    ns = [of.n for s in settings for m in metrics if (of := s.estimate(m))]
    notes = (
        [f"mean ± half width of the {PERCENT} interval by Student's t over the n seeds."]
        if max(ns, default=0) >= FEWEST
        else []
    )
    if few := [s for s in settings if s.done and any((of := s.estimate(m)) and of.n < FEWEST for m in metrics)]:
        which = "no setting has an" if len(few) == len(settings) else f"{len(few)} of {len(settings)} settings have no"
        notes.append(
            f"n < {FEWEST}: {which} interval, for fewer than {FEWEST} seeds do not make one; their means stand alone."
        )
    if costs := [m for m in metrics if any(m in run.cost for run in done)]:
        notes.append(f"No interval of {', '.join(costs)}, which runs of one program share.")
    if any(s.mixed for s in settings):
        notes.append("No interval over seeds that were measured under different conditions.")
    if not differing and any(rule(m) is not None for m in metrics) and sum(bool(s.done) for s in settings) > 1:
        notes.append(
            f"**Bold**: the best mean{' of a column' if by else ''}. *Italics*: not distinguishable from it (0 lies in "
            f"the {PERCENT} interval of the differences over equal seeds; where fewer than {FEWEST} are equal, the "
            "intervals overlap). Not corrected for the number of comparisons."
        )
        if few:
            notes.append(
                f"With n < {FEWEST} bold goes by the mean alone, and nothing is known of what is distinguishable."
            )
    if unseen:
        one = unseen == 1
        which = f"{unseen} {'setting' if one else 'settings'} of which no run has ended yet {'is' if one else 'are'}"
        notes.append(f"{which} not in the table.")
    return listed([*notes, *_directions(metrics), *_oddities(settings, metrics), *_made(sweep, metrics)])


def _directions(metrics: Sequence[str]) -> list[str]:
    kinds: dict[Any, list[str]] = {}
    for metric in metrics:
        kinds.setdefault(rule(metric), []).append(metric)
    words = {
        "lower": "Lower is better",
        "higher": "Higher is better",
        None: "Not marked, for which way is better is not known",
    }
    return [f"{words.get(kind, f'Best closest to {kind}')}: {', '.join(names)}." for kind, names in kinds.items()]


def _oddities(settings: Sequence[summary.Setting], metrics: Sequence[str]) -> list[str]:
    notes = []
    for metric in metrics:
        same = sum(bool((of := s.estimate(metric)) and of.n > 1 and of.std == 0) for s in settings)
        if same:
            notes.append(
                f"{metric}: all seeds agree in every bit in {same} of {len(settings)} settings: does the seed reach it?"
            )
        if without := sum(bool(s.done) and not s.values(metric) for s in settings):
            notes.append(f"{metric}: {without} of {len(settings)} settings do not have it.")
        have = [s for s in settings if s.values(metric)]
        if lacking := [run.id for s in have for run in s.done.values() if metric not in run.values]:
            notes.append(
                f"{metric}: {len(lacking)} runs lack what other seeds of their setting have ({_some(lacking)})."
            )
    return notes


def _made(sweep: Sweep, metrics: Sequence[str]) -> list[str]:
    done = sweep.having("done")
    shared, _ = summary.conditions_of(done)
    floors = summary.floors_of(done)
    notes = []
    if have := [m for m in metrics if m in floors]:
        note = f"{FLOOR}: the same metric of two sets of real data, for {', '.join(have)}"
        spread = any(floors[m][1] != floors[m][2] for m in have)
        notes.append(f"{note}{' (mean over the runs, least to largest)' if spread else ''}.")
    if shared:
        notes.append("Measured with " + ", ".join(f"{key} {text(value)}" for key, value in shared.items()) + ".")
    keys = summary.keys_of(sweep)
    varying = summary.varying(sweep.runs, keys)
    if constant := [key for key in keys if key not in varying]:
        notes.append("In all runs " + ", ".join(f"`{k}` = {text(sweep.runs[0].overrides[k])}" for k in constant) + ".")
    return notes


def problems(sweep: Sweep) -> str:
    """The runs that are not in the table, and why."""
    parts = []
    for state, title in STATES.items():
        if runs := sweep.having(state):
            most = MOST if state in ("started", "waiting") else None
            parts.append(f"## {title}: {len(runs)}\n\n{listed([_problem(run) for run in runs], most)}")
    if sweep.strangers:
        parts.append(
            f"## Folders of no run of this sweep, left out: {len(sweep.strangers)}\n\n{listed(sweep.strangers, MOST)}"
        )
    return "\n".join(parts)


def _problem(run: Run) -> str:
    return named(run) + (f": {run.error[:300]}" if run.error else "")


def report(
    sweep: Sweep, metrics: Sequence[str], grids: Sequence[Grid], plots: Sequence[str], top: int | None = None
) -> str:
    """The whole of it. top: how many lines, the best, of each table that is long."""
    head = f"# {sweep.name}\n" + (f"\n{sweep.title}\n" if sweep.title else "")
    parts = [head, counts(sweep) + "\n"]
    parts.append(difference(summary.conditions_of(sweep.having("done"))[1]))
    if sweep.having("done"):
        for grid in grids:
            cut = top if top and len(grid.lines) > top else None
            parts.append((f"The best {cut} of {len(grid.lines)} rows:\n\n" if cut else "") + grid.markdown(cut))
        parts.append(legend(sweep, metrics, by=bool(grids and grids[0].title)))
    parts += [f"![{name}]({name}.png)\n" for name in plots]
    parts.append(problems(sweep))
    return "\n".join(part for part in parts if part)


def origin(sweep: Sweep) -> str:
    """With what the runs that are done were made, in a line: no part of report.md, which depends on results alone."""
    found = provenance(sweep.having("done"))
    commits = ", ".join(str(commit)[:12] for commit in found["commit"]) or "not known"
    dirty = " (with changes that are not committed)" if True in found["dirty"] else ""
    rest = "".join(f"; {key} {', '.join(map(str, found[key]))}" for key in ("device", "jax") if found[key])
    return f"{'commits' if len(found['commit']) > 1 else 'commit'} {commits}{dirty}{rest}"
