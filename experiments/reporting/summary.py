"""Runs, settings and sweeps, with estimates, floors and conditions, and the rules for comparisons."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from experiments.reporting.statistics import Estimate, cost, estimate, marks, rule, words

EMPTY: Mapping[str, Any] = MappingProxyType({})
LOSS_GROUPS = ("prediction", "sigma_data", "schedule", "loss")  # of the config: target, weighting, times, schedule
# A word of a metric's name -> the conditions that contain the number of examples N, if values are multiples of 1 / N.
LATTICES = {
    **dict.fromkeys(("accuracy", "balance"), ("num_samples", "n")),
    **dict.fromkeys(("precision", "recall", "coverage"), ("n", "num_samples")),
}
Conditions = dict[str, dict[str, list[str]]]


class Run(NamedTuple):
    """A run of a sweep: `done`, `failed`, `corrupt`, `started` (running, or killed) or `waiting`.

    overrides: the values of all keys that any run overrides; from the base if this run does not override them. own:
    only the overrides of this run. error: one line, for failed and corrupt runs.
    """

    id: str
    folder: Path
    overrides: dict[str, Any]
    own: dict[str, Any]
    state: str
    error: str = ""
    metrics: Mapping[str, float] = EMPTY
    floors: Mapping[str, float] = EMPTY
    conditions: Mapping[str, Any] = EMPTY
    cost: Mapping[str, float] = EMPTY

    @property
    def values(self) -> dict[str, float]:
        """Costs and metrics."""
        return {**self.cost, **self.metrics}


class Setting(NamedTuple):
    """The runs that differ only in their seeds, and the done ones by seed."""

    overrides: dict[str, Any]
    runs: list[Run]
    done: dict[str, Run]

    @property
    def mixed(self) -> bool:
        """Whether the done runs were measured under different conditions, so that an interval has no meaning."""
        return bool(conditions_of(self.done.values())[1])

    def values(self, metric: str) -> dict[str, float]:
        """Seed -> value, for runs with this metric."""
        return {seed: run.values[metric] for seed, run in self.done.items() if metric in run.values}

    def estimate(self, metric: str) -> Estimate | None:
        """Estimate over the seeds; None without a value. Costs have no interval, because runs may share them."""
        values = self.values(metric)
        is_cost = any(metric in run.cost for run in self.done.values())
        return estimate(list(values.values()), interval=not (self.mixed or is_cost)) if values else None

    def rank(self, metric: str | None) -> float:
        """A number that is least for the best setting; infinite without a value, or without a metric."""
        one = self.estimate(metric) if metric else None
        kind = rule(metric) if metric else None
        return float("inf") if one is None or kind is None else cost(one.mean, kind)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The content of sweep.json, the runs in order, and `strangers`, the folders in runs/ of no run of the sweep."""

    folder: Path
    name: str
    title: str
    task: str
    seed_keys: tuple[str, ...]
    runs: list[Run]
    strangers: list[str]
    base: Mapping[str, Any]

    def having(self, state: str) -> list[Run]:
        """The runs in this state."""
        return [run for run in self.runs if run.state == state]

    @cached_property
    def done(self) -> list[Run]:
        """The runs with a result."""
        return self.having("done")

    @cached_property
    def metrics(self) -> list[str]:
        """The names of all metrics."""
        return list(dict.fromkeys(name for run in self.done for name in run.metrics))

    @cached_property
    def costs(self) -> list[str]:
        """The names of all costs."""
        return list(dict.fromkeys(name for run in self.done for name in run.cost))

    @cached_property
    def keys(self) -> list[str]:
        """All keys that the sweep overrides, except seeds."""
        return [k for k in dict.fromkeys(key for run in self.runs for key in run.overrides) if k not in self.seed_keys]

    @cached_property
    def varying(self) -> list[str]:
        """The keys, except seeds, that tell settings apart which earlier keys do not: no key follows from those before.

        So a sweep over methods has a column for the method, and none for the five settings that it consists of.
        """
        kept: list[str] = []
        for key in varying(self.runs, self.keys):
            if len(grouped(self.runs, [*kept, key])) > len(grouped(self.runs, kept)):
                kept.append(key)
        return kept

    @cached_property
    def implied(self) -> list[str]:
        """The keys, except seeds, with several values that follow from those of `varying`."""
        return [key for key in varying(self.runs, self.keys) if key not in self.varying]

    @cached_property
    def settings(self) -> list[Setting]:
        """The settings in the order of the sweep."""
        settings = []
        for runs in grouped(self.runs, self.keys).values():
            done = {identity(run.overrides, self.seed_keys): run for run in runs if run.state == "done"}
            settings.append(Setting({key: runs[0].overrides[key] for key in self.keys}, runs, done))
        return settings

    @cached_property
    def shown(self) -> list[Setting]:
        """The settings with a run that has ended, done or failed: the rows of a table."""
        ended = ("done", "failed", "corrupt")
        return [setting for setting in self.settings if any(run.state in ended for run in setting.runs)]


Row = TypeVar("Row", Run, Setting)


def text(value: Any) -> str:
    """The value of a key, for a cell."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def identity(overrides: Mapping[str, Any], keys: Iterable[str]) -> str:
    """A text that is equal where the values under these keys are; 1 and 1.0 are equal, 1 and True are not."""
    values = [overrides.get(key) for key in keys]
    return json.dumps([int(v) if isinstance(v, float) and v.is_integer() else v for v in values], sort_keys=True)


def grouped(rows: Iterable[Row], keys: Sequence[str]) -> dict[str, list[Row]]:
    """The rows with equal values under these keys, by the `identity` of these values."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(identity(row.overrides, keys), []).append(row)
    return groups


def varying(rows: Sequence[Row], keys: Iterable[str]) -> list[str]:
    """The keys with more than one value."""
    return [key for key in keys if len(grouped(rows, [key])) > 1]


def labels(keys: Sequence[str]) -> dict[str, str]:
    """Key -> its shortest unique ending; `name` alone is too short.

    >>> labels(["config.sampling.eta", "config.network.name"])
    {'config.sampling.eta': 'eta', 'config.network.name': 'network.name'}
    """
    shortest = {}
    for key in keys:
        parts = key.split(".")
        ends = [".".join(parts[i:]) for i in reversed(range(len(parts)))]
        unique = [end for end in ends if sum(f".{other}".endswith(f".{end}") for other in keys) == 1]
        shortest[key] = next((end for end in unique if end != "name"), key)
    return shortest


def conditions_of(runs: Iterable[Run]) -> tuple[dict[str, Any], Conditions]:
    """(conditions that all runs share, for each other condition: value -> ids of runs)."""
    runs, shared, differing = list(runs), {}, {}
    for key in dict.fromkeys(key for run in runs for key in run.conditions):
        ids: dict[str, list[str]] = {}
        for run in runs:
            ids.setdefault(text(run.conditions.get(key, "unknown")), []).append(run.id)
        if len(ids) > 1:
            differing[key] = ids
        else:
            shared[key] = runs[0].conditions[key]
    return shared, differing


def floors_of(runs: Iterable[Run]) -> dict[str, dict[str, float]]:
    """Metric -> mean, least and largest of the runs' floors."""
    floors: dict[str, list[float]] = {}
    for run in runs:
        for name, value in run.floors.items():
            floors.setdefault(name, []).append(value)
    return {name: {"mean": estimate(v).mean, "least": min(v), "largest": max(v)} for name, v in floors.items()}


# Rules for comparisons


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
    """The keys in which these settings define the loss differently; [] for comparable losses and other metrics."""
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


def marks_of(sweep: Sweep, settings: Sequence[Setting], metric: str) -> list[str]:
    """The mark of each setting; none for costs, incomparable losses, and metrics under differing conditions."""
    if conditions_of(sweep.done)[1] or metric in sweep.costs or incomparable(metric, settings):
        return [""] * len(settings)
    runs = [run for setting in settings for run in setting.done.values()]
    return marks([setting.values(metric) for setting in settings], rule(metric), resolution(metric, runs))
