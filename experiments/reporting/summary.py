"""A sweep in numbers: settings (runs that differ by their seeds alone), estimates, floors, conditions, problems."""

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from experiments.reporting.reading import Run, Sweep, provenance
from experiments.reporting.statistics import Estimate, estimate, marks, rule

ENDED = ("done", "failed", "corrupt")


class Setting(NamedTuple):
    """Runs that differ by their seeds alone: those that were meant to be, and those that are done, by seed.

    mixed: whether they were measured under more than one condition, so that no interval over them means anything.
    """

    overrides: dict[str, Any]
    runs: list[Run]
    done: dict[str, Run]
    mixed: bool

    def values(self, metric: str) -> dict[str, float]:
        """Seed -> value, of the runs that have this metric."""
        return {seed: run.values[metric] for seed, run in self.done.items() if metric in run.values}

    def estimate(self, metric: str) -> Estimate | None:
        """Over the seeds; None if no run has the metric. Of a cost there is no interval: runs may have shared it."""
        values = self.values(metric)
        is_cost = any(metric in run.cost for run in self.done.values())
        return estimate(list(values.values()), interval=not (self.mixed or is_cost)) if values else None


def text(value: Any) -> str:
    """A setting's value in a cell."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def identity(overrides: dict[str, Any], keys: Iterable[str]) -> str:
    """A text that is equal where the values under these keys are; 1 and 1.0 are equal, 1 and True are not."""
    plain = lambda v: int(v) if isinstance(v, float) and v.is_integer() else v  # noqa: E731
    return json.dumps([plain(overrides.get(key)) for key in keys], sort_keys=True)


def keys_of(sweep: Sweep) -> list[str]:
    """All keys that the sweep overrides but the seeds'."""
    found = dict.fromkeys(key for run in sweep.runs for key in run.overrides)
    return [key for key in found if key not in sweep.seed_keys]


def varying(runs: Sequence[Run], keys: Iterable[str]) -> list[str]:
    """Those of the keys that have more than one value."""
    return [key for key in keys if len({identity(run.overrides, [key]) for run in runs}) > 1]


def labels(keys: Sequence[str]) -> dict[str, str]:
    """Key -> its shortest end that tells it from the others; `name` alone says nothing.

    >>> labels(["config.sampling.eta", "config.network.name"])
    {'config.sampling.eta': 'eta', 'config.network.name': 'network.name'}
    """
    found = {}
    for key in keys:
        parts = key.split(".")
        ends = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        fits = lambda end: end != "name" and sum(f".{other}".endswith(f".{end}") for other in keys) == 1  # noqa: E731
        found[key] = next(filter(fits, ends), key)
    return found


def settings_of(sweep: Sweep) -> list[Setting]:
    """In the order of the sweep."""
    keys = keys_of(sweep)
    groups: dict[str, list[Run]] = {}
    for run in sweep.runs:
        groups.setdefault(identity(run.overrides, keys), []).append(run)
    return [_setting(runs, keys, sweep.seed_keys) for runs in groups.values()]


def shown(sweep: Sweep) -> list[Setting]:
    """Those of which a run came to an end, be it done or failed: the rows of a table."""
    return [setting for setting in settings_of(sweep) if any(run.state in ENDED for run in setting.runs)]


def _setting(runs: list[Run], keys: list[str], seed_keys: Sequence[str]) -> Setting:
    done = {identity(run.overrides, seed_keys): run for run in runs if run.state == "done"}
    mixed = len({json.dumps(run.conditions, sort_keys=True) for run in done.values()}) > 1
    return Setting({key: runs[0].overrides[key] for key in keys}, runs, done, mixed)


def metrics_of(runs: Iterable[Run], *, cost: bool = False) -> list[str]:
    """The names of their metrics, or of what they cost."""
    return list(dict.fromkeys(name for run in runs for name in (run.cost if cost else run.metrics)))


def chosen_metrics(names: Sequence[str], sweep: Sweep) -> list[str]:
    """The metrics that are asked for; all but the costs if none is.

    Raises:
      ValueError: of a name that no run has.
    """
    done = sweep.having("done")
    default = metrics_of(done)
    known = list(dict.fromkeys([*default, *metrics_of(done, cost=True)]))
    for name in names:
        if done and name not in known:
            raise ValueError(f"metrics must be of {', '.join(known)}, got {name!r}")
    return list(names) or default


def conditions_of(runs: Sequence[Run]) -> tuple[dict[str, Any], dict[str, dict[str, list[str]]]]:
    """(those that all runs share, of the others value -> ids of the runs)."""
    shared, differing = {}, {}
    for key in dict.fromkeys(key for run in runs for key in run.conditions):
        found: dict[str, list[str]] = {}
        for run in runs:
            found.setdefault(text(run.conditions.get(key, "not said")), []).append(run.id)
        if len(found) > 1:
            differing[key] = found
        else:
            shared[key] = runs[0].conditions[key]
    return shared, differing


def floors_of(runs: Sequence[Run]) -> dict[str, tuple[float, float, float]]:
    """Metric -> (mean, least, largest) of the runs' floors."""
    found: dict[str, list[float]] = {}
    for run in runs:
        for name, value in run.floors.items():
            found.setdefault(name, []).append(value)
    return {name: (estimate(values).mean, min(values), max(values)) for name, values in found.items()}


def as_dict(of: Estimate | None) -> dict[str, Any] | None:
    """An estimate for JSON."""
    if of is None:
        return None
    low, high = of.interval or (None, None)
    return {"mean": of.mean, "std": of.std, "low": low, "high": high, "n": of.n}


def summarise(sweep: Sweep) -> dict[str, Any]:
    """What report.json holds."""
    done, settings = sweep.having("done"), settings_of(sweep)
    shared, differing = conditions_of(done)
    names = list(dict.fromkeys([*metrics_of(done), *metrics_of(done, cost=True)]))
    marked = {name: marks_of(settings, name, differing) for name in names}
    return {
        "name": sweep.name,
        "title": sweep.title,
        "task": sweep.task,
        "seed_keys": list(sweep.seed_keys),
        "runs": len(sweep.runs),
        "done": len(done),
        "metrics": {name: rule(name) for name in names},
        "conditions": shared,
        "conditions_that_differ": differing,
        "floors": {
            name: dict(zip(("mean", "least", "largest"), v, strict=True)) for name, v in floors_of(done).items()
        },
        "settings": [
            {
                "overrides": setting.overrides,
                "runs": len(setting.runs),
                "done": len(setting.done),
                "metrics": {
                    name: {**found, "mark": marked[name][i], "values": setting.values(name)}
                    for name in names
                    if (found := as_dict(setting.estimate(name)))
                },
                "floors": {name: v[0] for name, v in floors_of(list(setting.done.values())).items()},
            }
            for i, setting in enumerate(settings)
        ],
        "failed": [{"id": r.id, "overrides": r.said, "error": r.error} for r in sweep.having("failed")],
        "corrupt": [{"id": r.id, "overrides": r.said, "error": r.error} for r in sweep.having("corrupt")],
        "started": [{"id": r.id, "overrides": r.said} for r in sweep.having("started")],
        "waiting": [{"id": r.id, "overrides": r.said} for r in sweep.having("waiting")],
        "provenance": provenance(done),
    }


def marks_of(settings: Sequence[Setting], metric: str, differing: dict[str, Any]) -> list[str]:
    """The mark of each setting; none of costs, nor where conditions differ: a best among them would mean nothing."""
    is_cost = any(metric in run.cost for setting in settings for run in setting.done.values())
    if differing or is_cost:
        return [""] * len(settings)
    return marks([setting.values(metric) for setting in settings], rule(metric))
