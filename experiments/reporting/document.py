"""report.md: warnings, tables, notes on their numbers and marks, plots, and the runs that are not in the tables."""

from collections.abc import Sequence
from typing import Any

from experiments.reporting import summary
from experiments.reporting.reading import Sweep, provenance
from experiments.reporting.statistics import FEWEST, PERCENT, rule
from experiments.reporting.summary import text
from experiments.reporting.tables import FLOOR, Grid, listed, named

STATES = {
    "corrupt": "Corrupt results, left out",
    "failed": "Failed",
    "started": "Started, not finished (running, or killed)",
    "waiting": "Waiting",
}
MOST = 20  # runs without a result that are listed; report.json has all


def counts(sweep: Sweep) -> str:
    """A line with the number of runs in each state."""
    rest = "".join(f", {count} {state}" for state in STATES if (count := len(sweep.having(state))))
    return f"{len(sweep.having('done'))} of {len(sweep.runs)} runs are done{rest}."


def _some(ids: Sequence[str], most: int = 6) -> str:
    return ", ".join(ids[:most]) + (f" and {len(ids) - most} more" if len(ids) > most else "")


def difference(differing: dict[str, dict[str, list[str]]], effect: str = "no best is marked") -> str:
    """The warning that measuring conditions differ, with keys, values and runs; "" if they do not."""
    if not differing:
        return ""
    lines = [
        f"`{key}`: " + "; ".join(f"**{value}** in {len(ids)} ({_some(ids)})" for value, ids in values.items())
        for key, values in differing.items()
    ]
    return (
        "**WARNING: runs were measured under different conditions. Numbers under different conditions are not "
        f"comparable: {effect}.**\n\n{listed(lines)}"
    )


def quoted(keys: Sequence[str]) -> str:
    """Keys in a sentence."""
    return ", ".join(f"`{key}`" for key in keys)


def legend(sweep: Sweep, metrics: Sequence[str], grids: Sequence[Grid]) -> str:
    """Notes below the tables: the meaning of numbers and marks, and the reasons where they are missing."""
    settings, done = summary.shown(sweep), sweep.having("done")
    estimates = [one for s in settings for m in metrics if (one := s.estimate(m))]
    notes = []
    if any(one.n >= FEWEST for one in estimates):
        notes.append(f"mean ± half width of the {PERCENT} interval by Student's t over the n seeds.")
    if few := [s for s in settings if any((one := s.estimate(m)) and one.n < FEWEST for m in metrics)]:
        which = "no setting has an" if len(few) == len(settings) else f"{len(few)} of {len(settings)} settings have no"
        notes.append(f"n < {FEWEST}: {which} interval, which needs at least {FEWEST} seeds.")
    if costs := [m for m in metrics if any(m in run.cost for run in done)]:
        notes.append(f"No interval of {', '.join(costs)}: runs of one program share this cost.")
    if "seconds" in costs:
        old = sum("compile_seconds" not in run.cost for run in done)
        which = f"with compilation in the {old} of {len(done)} runs that have no" if old else "without compilation, see"
        notes.append(f"seconds: {which} compile_seconds.")
    if any(s.mixed for s in settings):
        notes.append("No interval over seeds that were measured under different conditions.")
    differ = {metric: keys for grid in grids for metric, keys in grid.incomparable.items()}
    for metric, keys in differ.items():
        notes.append(f"{metric}: no best is marked. Its definition differs between the settings, in {quoted(keys)}.")
    notes += _marks(sweep, [m for m in metrics if m not in differ], bool(grids and grids[0].title), bool(few))
    if unseen := len(summary.settings_of(sweep)) - len(settings):
        which = (
            "1 setting without a finished run is" if unseen == 1 else f"{unseen} settings without a finished run are"
        )
        notes.append(f"{which} not in the table.")
    notes += _directions([m for m in metrics if m not in differ])
    return listed([*notes, *_oddities(settings, metrics), *_made(sweep, metrics)])


def _marks(sweep: Sweep, metrics: Sequence[str], by: bool, few: bool) -> list[str]:
    """The notes on bold and italics."""
    done = sweep.having("done")
    ranked = [m for m in metrics if rule(m) is not None and any(m in run.metrics for run in done)]
    if summary.conditions_of(done)[1] or not ranked or sum(bool(s.done) for s in summary.shown(sweep)) < 2:
        return []
    steps = [f"{m} {step:g}" for m in ranked if (step := summary.resolution(m, done))]
    ties = f", and ties: means within the resolution of it ({', '.join(steps)})" if steps else ""
    notes = [
        f"**Bold**: the best mean{' of a column' if by else ''}{ties}. *Italics*: not distinguishable from it (0 lies "
        f"in the {PERCENT} interval of the differences over equal seeds, or all differences are equal; with fewer than "
        f"{FEWEST} equal seeds, the intervals overlap). Not corrected for the number of comparisons."
    ]
    return [*notes, f"n < {FEWEST}: bold compares means only, and no setting is in italics."] if few else notes


def _directions(metrics: Sequence[str]) -> list[str]:
    kinds: dict[Any, list[str]] = {}
    for metric in metrics:
        kinds.setdefault(rule(metric), []).append(metric)
    words = {
        "lower": "Lower is better",
        "higher": "Higher is better",
        None: "Not marked, because the better direction is not known",
    }
    return [f"{words.get(kind, f'Best closest to {kind}')}: {', '.join(names)}." for kind, names in kinds.items()]


def _oddities(settings: Sequence[summary.Setting], metrics: Sequence[str]) -> list[str]:
    notes = []
    for metric in metrics:
        same = sum(bool((one := s.estimate(metric)) and one.n > 1 and one.std == 0) for s in settings)
        if same:
            where = f"in {same} of {len(settings)} settings"
            notes.append(f"{metric}: equal for all seeds, bit by bit, {where}. Check that it depends on the seed.")
        if without := sum(bool(s.done) and not s.values(metric) for s in settings):
            notes.append(f"{metric}: missing in {without} of {len(settings)} settings.")
        having = [s for s in settings if s.values(metric)]
        if lacking := [run.id for s in having for run in s.done.values() if metric not in run.values]:
            runs = f"{len(lacking)} {'run' if len(lacking) == 1 else 'runs'}"
            notes.append(f"{metric}: missing in {runs} of settings where other seeds have it ({_some(lacking)}).")
    return notes


def _made(sweep: Sweep, metrics: Sequence[str]) -> list[str]:
    done = sweep.having("done")
    shared, _ = summary.conditions_of(done)
    floors = summary.floors_of(done)
    notes = []
    if having := [m for m in metrics if m in floors]:
        spread = " (mean over the runs, least to largest)" * any(floors[m][1] != floors[m][2] for m in having)
        notes.append(f"{FLOOR}: the same metric of two sets of real data, for {', '.join(having)}{spread}.")
    if shared:
        notes.append("Measured with " + ", ".join(f"{key} {text(value)}" for key, value in shared.items()) + ".")
    varying = summary.varying(sweep.runs, summary.keys_of(sweep))
    if constant := [key for key in summary.keys_of(sweep) if key not in varying]:
        notes.append("In all runs " + ", ".join(f"`{k}` = {text(sweep.runs[0].overrides[k])}" for k in constant) + ".")
    return notes


def problems(sweep: Sweep) -> str:
    """The runs that are not in the table, and the reasons."""
    parts = []
    for state, title in STATES.items():
        if runs := sweep.having(state):
            lines = [named(run) + (f": {run.error[:300]}" if run.error else "") for run in runs]
            most = MOST if state in ("started", "waiting") else None
            parts.append(f"## {title}: {len(runs)}\n\n{listed(lines, most)}")
    if sweep.strangers:
        title = f"Folders that belong to no run of this sweep, left out: {len(sweep.strangers)}"
        parts.append(f"## {title}\n\n{listed(sweep.strangers, MOST)}")
    return "\n".join(parts)


def report(
    sweep: Sweep, metrics: Sequence[str], grids: Sequence[Grid], plots: Sequence[str], top: int | None = None
) -> str:
    """The whole document. top: the number of rows, best first, of each longer table."""
    title = "" if sweep.title in ("", sweep.name) else f"\n{sweep.title}\n"  # the name is the default title
    parts = [f"# {sweep.name}\n{title}", counts(sweep) + "\n"]
    parts.append(difference(summary.conditions_of(sweep.having("done"))[1]))
    if sweep.having("done"):
        parts += [*(grid.markdown(top) for grid in grids), legend(sweep, metrics, grids)]
    parts += [f"![{name}]({name}.png)\n" for name in plots]
    parts.append(problems(sweep))
    return "\n".join(part for part in parts if part)


def origin(sweep: Sweep) -> str:
    """A line on the code and machines behind the results; not in report.md, which depends on the results only."""
    values = provenance(sweep.having("done"))
    commits = ", ".join(str(commit)[:12] for commit in values["commit"]) or "not known"
    dirty = " (with changes that are not committed)" if True in values["dirty"] else ""
    rest = "".join(f"; {key} {', '.join(map(str, values[key]))}" for key in ("device", "jax") if values[key])
    return f"{'commits' if len(values['commit']) > 1 else 'commit'} {commits}{dirty}{rest}"
