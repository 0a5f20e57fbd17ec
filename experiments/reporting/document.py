"""report.md: warnings, tables, notes on their numbers and marks, plots, and the runs that are not in the tables."""

from collections.abc import Iterator, Sequence
from typing import Any

from experiments.reporting import summary
from experiments.reporting.statistics import FEWEST, PERCENT, rule
from experiments.reporting.summary import Sweep, text
from experiments.reporting.tables import FLOOR, Grid, listed, named

STATES = {
    "corrupt": "Corrupt results, left out",
    "failed": "Failed",
    "started": "Started, not finished (running, or killed)",
    "waiting": "Waiting",
}
MOST = 20  # runs without a result in a list; report.json has all
DIRECTIONS: dict[Any, str] = {
    "lower": "Lower is better",
    "higher": "Higher is better",
    None: "Not marked, because the better direction is not known",
}


def _some(ids: Sequence[str], most: int = 6) -> str:
    return ", ".join(ids[:most]) + (f" and {len(ids) - most} more" if len(ids) > most else "")


def difference(differing: summary.Conditions, effect: str = "no best is marked") -> str:
    """The warning that measuring conditions differ, with keys, values and runs."""
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


def _interval_notes(sweep: Sweep, metrics: Sequence[str]) -> Iterator[str]:
    """Notes on how to read the numbers, and on numbers without an interval."""
    numbers = [[one.n for m in metrics if (one := setting.estimate(m))] for setting in sweep.shown]
    if any(n >= FEWEST for row in numbers for n in row):
        yield f"mean ± half width of the {PERCENT} interval by Student's t over the n seeds."
    if few := sum(any(n < FEWEST for n in row) for row in numbers):
        which = "no setting has an" if few == len(numbers) else f"{few} of {len(numbers)} settings have no"
        yield f"n < {FEWEST}: {which} interval, which needs at least {FEWEST} seeds."
    if costs := [m for m in metrics if m in sweep.costs]:
        yield f"No interval of {', '.join(costs)}: runs of one program share this cost."
    if "seconds" in costs:
        old, done = sum("compile_seconds" not in run.cost for run in sweep.done), len(sweep.done)
        which = f"with compilation in the {old} of {done} runs that have no" if old else "without compilation, see"
        yield f"seconds: {which} compile_seconds."
    if any(setting.mixed for setting in sweep.shown):
        yield "No interval over seeds that were measured under different conditions."


def _mark_notes(sweep: Sweep, metrics: Sequence[str], grids: Sequence[Grid]) -> Iterator[str]:
    """Notes on the meaning of bold and italics, and on metrics without marks."""
    differ = {metric: keys for grid in grids for metric, keys in grid.incomparable.items()}
    for metric, keys in differ.items():
        yield f"{metric}: no best is marked. Its definition differs between the settings, in {quoted(keys)}."
    comparable = [m for m in metrics if m not in differ]
    ranked = [m for m in comparable if rule(m) is not None and m in sweep.metrics]
    settings, done = sweep.shown, sweep.done
    if ranked and not summary.conditions_of(done)[1] and sum(bool(s.done) for s in settings) > 1:
        column = " of a column" if grids and grids[0].title else ""
        steps = [f"{m} {step:g}" for m in ranked if (step := summary.resolution(m, done))]
        ties = f", and ties: means within the resolution of it ({', '.join(steps)})" if steps else ""
        yield (
            f"**Bold**: the best mean{column}{ties}. *Italics*: not distinguishable from it (0 lies in the {PERCENT} "
            "interval of the differences over equal seeds, or all differences are equal; with fewer than "
            f"{FEWEST} equal seeds, the intervals overlap). Not corrected for the number of comparisons."
        )
        if any((one := s.estimate(m)) and one.n < FEWEST for s in settings for m in metrics):
            yield f"n < {FEWEST}: bold compares means only, and no setting is in italics."
    if unseen := len(sweep.settings) - len(settings):
        number = (
            "1 setting without a finished run is" if unseen == 1 else f"{unseen} settings without a finished run are"
        )
        yield f"{number} not in the table."
    for kind in dict.fromkeys(map(rule, comparable)):
        names = ", ".join(m for m in comparable if rule(m) == kind)
        yield f"{DIRECTIONS.get(kind, f'Best closest to {kind}')}: {names}."


def _value_notes(sweep: Sweep, metrics: Sequence[str]) -> Iterator[str]:
    """Notes on suspicious and missing values, floors, conditions, and the common settings of all runs."""
    settings = sweep.shown
    for metric in metrics:
        estimates = [one for s in settings if (one := s.estimate(metric))]
        if same := sum(one.n > 1 and one.std == 0 for one in estimates):
            where = f"in {same} of {len(settings)} settings"
            yield f"{metric}: equal for all seeds, bit by bit, {where}. Check that it depends on the seed."
        if without := sum(bool(s.done) for s in settings) - len(estimates):
            yield f"{metric}: missing in {without} of {len(settings)} settings."
        having = [s for s in settings if s.values(metric)]
        if lacking := [run.id for s in having for run in s.done.values() if metric not in run.values]:
            runs = f"{len(lacking)} {'run' if len(lacking) == 1 else 'runs'}"
            yield f"{metric}: missing in {runs} of settings where other seeds have it ({_some(lacking)})."
    floors = summary.floors_of(sweep.done)
    if having := [m for m in metrics if m in floors]:
        vary = any(floors[m]["least"] != floors[m]["largest"] for m in having)
        spread = " (mean over the runs, least to largest)" if vary else ""
        yield f"{FLOOR}: the same metric of two sets of real data, for {', '.join(having)}{spread}."
    if shared := summary.conditions_of(sweep.done)[0]:
        yield "Measured with " + ", ".join(f"{key} {text(value)}" for key, value in shared.items()) + "."
    if sweep.implied:
        yield f"These settings follow from those in the table: {quoted(sweep.implied)}; report.csv has them."
    if constant := [key for key in sweep.keys if key not in (*sweep.varying, *sweep.implied)]:
        yield "In all runs " + ", ".join(f"`{k}` = {text(sweep.runs[0].overrides[k])}" for k in constant) + "."


def report(
    sweep: Sweep, metrics: Sequence[str], grids: Sequence[Grid], plots: Sequence[str], top: int | None = None
) -> str:
    """The whole document. top: the number of rows, best first, of each longer table."""
    title = "" if sweep.title in ("", sweep.name) else f"\n{sweep.title}\n"  # the name is the default title
    rest = "".join(f", {count} {state}" for state in STATES if (count := len(sweep.having(state))))
    parts = [f"# {sweep.name}\n{title}", f"{len(sweep.done)} of {len(sweep.runs)} runs are done{rest}.\n"]
    if sweep.done:
        if differing := summary.conditions_of(sweep.done)[1]:
            parts.append(difference(differing))
        notes = [_interval_notes(sweep, metrics), _mark_notes(sweep, metrics, grids), _value_notes(sweep, metrics)]
        parts += [grid.markdown(top) for grid in grids]
        parts.append(listed([line for part in notes for line in part]))
    parts += [f"![{name}]({name}.png)\n" for name in plots]
    for state, title in STATES.items():
        if runs := sweep.having(state):
            lines = [named(run) + (f": {run.error[:300]}" if run.error else "") for run in runs]
            most = MOST if state in ("started", "waiting") else None
            parts.append(f"## {title}: {len(runs)}\n\n{listed(lines, most)}")
    if sweep.strangers:
        title = f"Folders that belong to no run of this sweep, left out: {len(sweep.strangers)}"
        parts.append(f"## {title}\n\n{listed(sweep.strangers, MOST)}")
    return "\n".join(parts)
