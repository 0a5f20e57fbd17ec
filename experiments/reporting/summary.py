"""Settings of a sweep, with their estimates, floors and conditions, and the rules of what may be compared."""

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from experiments.reporting.reading import Run, Sweep, provenance
from experiments.reporting.statistics import Estimate, estimate, marks, rule, words

ENDED = ("done", "failed", "corrupt")
LOSS_GROUPS = ("prediction", "sigma_data", "schedule", "loss")  # of the config: target, weighting, times, schedule
# A word of a metric's name -> the conditions with the number of examples N, if its values are multiples of 1 / N.
LATTICES = {
    **dict.fromkeys(("accuracy", "balance"), ("num_samples", "n")),
    **dict.fromkeys(("precision", "recall", "coverage"), ("n", "num_samples")),
}


class Setting(NamedTuple):
    """The runs that differ in their seeds only, and those of them that are done, by seed.

    mixed: whether the measuring conditions of these differ; then an interval over them is meaningless.
    """

    overrides: dict[str, Any]
    runs: list[Run]
    done: dict[str, Run]
    mixed: bool

    def values(self, metric: str) -> dict[str, float]:
        """Seed -> value, for runs with this metric."""
        return {seed: run.values[metric] for seed, run in self.done.items() if metric in run.values}

    def estimate(self, metric: str) -> Estimate | None:
        """Estimate over the seeds; None without a value. Costs have no interval, because runs may share them."""
        values = self.values(metric)
        is_cost = any(metric in run.cost for run in self.done.values())
        return estimate(list(values.values()), interval=not (self.mixed or is_cost)) if values else None


def text(value: Any) -> str:
    """The value of a key, for a cell."""
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
    """All keys that the sweep overrides, except seeds."""
    return [k for k in dict.fromkeys(key for run in sweep.runs for key in run.overrides) if k not in sweep.seed_keys]


def varying(rows: Sequence[Run | Setting], keys: Iterable[str]) -> list[str]:
    """The keys with more than one value."""
    return [key for key in keys if len({identity(row.overrides, [key]) for row in rows}) > 1]


def labels(keys: Sequence[str]) -> dict[str, str]:
    """Key -> its shortest unique ending; `name` alone is too short.

    >>> labels(["config.sampling.eta", "config.network.name"])
    {'config.sampling.eta': 'eta', 'config.network.name': 'network.name'}
    """
    shortest = {}
    for key in keys:
        parts = key.split(".")
        ends = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        fits = lambda end: end != "name" and sum(f".{other}".endswith(f".{end}") for other in keys) == 1  # noqa: E731
        shortest[key] = next(filter(fits, ends), key)
    return shortest


def settings_of(sweep: Sweep) -> list[Setting]:
    """The settings in the order of the sweep."""
    keys = keys_of(sweep)
    groups: dict[str, list[Run]] = {}
    for run in sweep.runs:
        groups.setdefault(identity(run.overrides, keys), []).append(run)
    settings = []
    for runs in groups.values():
        done = {identity(run.overrides, sweep.seed_keys): run for run in runs if run.state == "done"}
        mixed = len({json.dumps(run.conditions, sort_keys=True) for run in done.values()}) > 1
        settings.append(Setting({key: runs[0].overrides[key] for key in keys}, runs, done, mixed))
    return settings


def shown(sweep: Sweep) -> list[Setting]:
    """The settings with a run that has ended, done or failed: the rows of a table."""
    return [setting for setting in settings_of(sweep) if any(run.state in ENDED for run in setting.runs)]


def metrics_of(runs: Iterable[Run], *, cost: bool = False) -> list[str]:
    """The names of the runs' metrics, or of their costs."""
    return list(dict.fromkeys(name for run in runs for name in (run.cost if cost else run.metrics)))


def chosen_metrics(names: Sequence[str], sweep: Sweep) -> list[str]:
    """These metrics and costs; without names, all metrics.

    Raises:
      ValueError: for a name that no run has.
    """
    done = sweep.having("done")
    default = metrics_of(done)
    known = list(dict.fromkeys([*default, *metrics_of(done, cost=True)]))
    for name in names:
        if done and name not in known:
            raise ValueError(f"metrics must be of {', '.join(known)}, got {name!r}")
    return list(names) or default


def conditions_of(runs: Sequence[Run]) -> tuple[dict[str, Any], dict[str, dict[str, list[str]]]]:
    """(conditions that all runs share, for each other condition: value -> ids of runs)."""
    shared, differing = {}, {}
    for key in dict.fromkeys(key for run in runs for key in run.conditions):
        ids: dict[str, list[str]] = {}
        for run in runs:
            ids.setdefault(text(run.conditions.get(key, "unknown")), []).append(run.id)
        if len(ids) > 1:
            differing[key] = ids
        else:
            shared[key] = runs[0].conditions[key]
    return shared, differing


def floors_of(runs: Sequence[Run]) -> dict[str, tuple[float, float, float]]:
    """Metric -> (mean, least, largest) of the runs' floors."""
    floors: dict[str, list[float]] = {}
    for run in runs:
        for name, value in run.floors.items():
            floors.setdefault(name, []).append(value)
    return {name: (estimate(values).mean, min(values), max(values)) for name, values in floors.items()}


# What may be compared


def is_loss(metric: str) -> bool:
    """Whether a metric is a training loss, by the words of its name."""
    return "loss" in words(metric)


def defines_loss(key: str) -> bool:
    """Whether a key, with or without "config.", is part of the definition of the training loss.

    >>> defines_loss("config.schedule.name"), defines_loss("loss.weighting"), defines_loss("config.optimizer.b1")
    (True, True, False)
    """
    return key.removeprefix("config.").split(".")[0] in LOSS_GROUPS


def incomparable(metric: str, settings: Sequence[Setting]) -> list[str]:
    """The keys in which the losses of these settings differ in definition; [] if they, or other metrics, compare."""
    keys = dict.fromkeys(key for setting in settings for key in setting.overrides if defines_loss(key))
    return varying([s for s in settings if s.values(metric)], keys) if is_loss(metric) else []


def ranking(metrics: Sequence[str], settings: Sequence[Setting]) -> str | None:
    """The first metric that orders the settings from best to worst."""
    return next((m for m in metrics if rule(m) is not None and not incomparable(m, settings)), None)


def resolution(metric: str, runs: Iterable[Run]) -> float | None:
    """The step between possible values of a metric, 1 / num_samples for an accuracy; None if it is not known."""
    keys = next((LATTICES[word] for word in words(metric) if word in LATTICES), ())
    numbers = [next((run.conditions[key] for key in keys if key in run.conditions), None) for run in runs]
    counts = [number for number in numbers if isinstance(number, int) and number > 0]
    return 1 / min(counts) if counts else None


def marks_of(settings: Sequence[Setting], metric: str, differing: dict[str, Any]) -> list[str]:
    """The mark of each setting; none for costs, incomparable losses, and metrics under differing conditions."""
    runs = [run for setting in settings for run in setting.done.values()]
    if differing or any(metric in run.cost for run in runs) or incomparable(metric, settings):
        return [""] * len(settings)
    return marks([setting.values(metric) for setting in settings], rule(metric), resolution(metric, runs))


# report.json


def as_dict(one: Estimate) -> dict[str, Any]:
    """An estimate for JSON."""
    low, high = one.interval or (None, None)
    return {"mean": one.mean, "std": one.std, "low": low, "high": high, "n": one.n}


def summarise(sweep: Sweep) -> dict[str, Any]:
    """The content of report.json."""
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
        "incomparable": {name: keys for name in names if (keys := incomparable(name, settings))},
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
                    name: {**as_dict(one), "mark": marked[name][i], "values": setting.values(name)}
                    for name in names
                    if (one := setting.estimate(name))
                },
                "floors": {name: v[0] for name, v in floors_of(list(setting.done.values())).items()},
            }
            for i, setting in enumerate(settings)
        ],
        **{
            state: [{"id": run.id, "overrides": run.own, "error": run.error} for run in sweep.having(state)]
            for state in ("failed", "corrupt", "started", "waiting")
        },
        "provenance": provenance(done),
    }
