"""Curves of training, and quality against cost."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.reporting import summary
from experiments.reporting.reading import Sweep, read_curve
from experiments.reporting.statistics import PERCENT, cost, rule
from experiments.reporting.summary import Setting, text

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#222222", "#ee8866", "#999933", "#bbbbbb")
MARKERS = "osD^vP*Xph"
GREY = "#999999"
BARS = 80  # more points than this have no bars, which would hide the points
SHOWN = 8  # settings with a colour of their own among the curves
LINES = ("not dominated", "real against real")
SPEED = ("per_second", "memory", "share_of_peak", "seconds")  # of the machine, not of the training


def draw(sweep: Sweep, metrics: Sequence[str]) -> list[str]:
    """Writes the plots that the sweep has something for into its folder; their names. None without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("Agg")
    from matplotlib import pyplot

    makers: dict[str, Callable[[], Any]] = {
        "curves": lambda: curves(pyplot, sweep, metrics),
        "pareto_calls": lambda: pareto(pyplot, sweep, metrics, "calls"),
        "pareto_seconds": lambda: pareto(pyplot, sweep, metrics, "seconds"),
    }
    drawn = []
    for name, make in makers.items():
        path = sweep.folder / f"{name}.png"
        if (figure := make()) is None:
            path.unlink(missing_ok=True)  # of an earlier report, it would be of other results
            continue
        figure.savefig(path, dpi=110, metadata={"Software": None})
        pyplot.close(figure)
        drawn.append(name)
    return drawn


def _wide(values: Sequence[float], ratio: float) -> bool:
    """Whether values call for a logarithmic axis."""
    return len(values) > 1 and min(values) > 0 and max(values) / min(values) > ratio


def _panels(pyplot: Any, count: int, legend: Sequence[str]) -> tuple[Any, list[Any], int, float]:
    """A figure with axes for panels and a strip for the legend at the bottom; how many entries are in a row."""
    columns = 2 if count == 4 else min(3, count)
    lines = -(-count // columns)
    width = max(4.6 * columns, 6.4)
    beside = max(1, int(width / (0.7 + 0.075 * max(map(len, legend)))))
    strip = 0.2 * -(-len(legend) // beside) + 0.25
    height = 3.5 * lines + strip
    figure, axes = pyplot.subplots(lines, columns, figsize=(width, height), squeeze=False)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, list(axes.flat[:count]), beside, strip / height


def _finish(figure: Any, axes: Sequence[Any], beside: int, strip: float, title: str) -> Any:
    """The legend under the panels, what the colours stand for before the rest."""
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    if list(handles) not in ([], ["all"]):
        names = sorted(handles, key=lambda name: name in LINES or name.endswith(" others"))
        style = {"frameon": False, "fontsize": 8.5, "title_fontsize": 8.5, "borderpad": 0.2}
        figure.legend([handles[name] for name in names], names, loc="lower center", ncols=beside, title=title, **style)
    figure.tight_layout(rect=(0, strip, 1, 1))
    return figure


# Curves


Log = dict[int, dict[str, float]]


def mean_curve(logs: Sequence[Log], metric: str) -> tuple[Any, Any, Any, Any]:
    """Steps at which all logs have the metric, its mean there, least and largest; a log without it does not count."""
    having = [{step: line[metric] for step, line in log.items() if metric in line} for log in logs]
    having = [curve for curve in having if curve]
    steps = [step for step in (having[0] if having else {}) if all(step in curve for curve in having)]
    if not steps:
        return (np.zeros(0),) * 4
    values = np.array([[curve[step] for step in steps] for curve in having])
    return np.array(steps), values.mean(0), values.min(0), values.max(0)


def curves(pyplot: Any, sweep: Sweep, metrics: Sequence[str]) -> Any:
    """Each metric of the logs of finished runs against steps; None if there is none.

    The line is the mean over seeds, the band goes from the least to the largest. Of many settings the best 8 by the
    first metric of the table are coloured.
    """
    settings = [setting for setting in summary.settings_of(sweep) if setting.done]
    logs = {run.id: read_curve(run) for setting in settings for run in setting.done.values()}
    for log in logs.values():
        log.pop(0, None)  # what a run found that trained nothing
    logged = dict.fromkeys(name for log in logs.values() for line in log.values() for name in line)
    names = [name for name in logged if not any(word in name for word in SPEED)]
    if not names:
        return None
    coloured = _leading(settings, metrics)
    keys = summary.varying(sweep.runs, summary.keys_of(sweep))
    figure, axes, beside, strip = _panels(
        pyplot, len(names), [_label(settings[i], keys) for i in coloured] + ["others"]
    )
    for axis, name in zip(axes, names, strict=True):
        lows, highs = [], []
        for i, setting in sorted(enumerate(settings), key=lambda of: of[0] in coloured):
            steps, mean, low, high = mean_curve([logs[run.id] for run in setting.done.values()], name)
            colour = COLOURS[coloured.index(i)] if i in coloured else GREY
            label = _label(setting, keys) if i in coloured else f"{len(settings) - len(coloured)} others"
            if len(steps):
                alone = {"marker": "o", "ms": 3} if len(steps) == 1 else {}
                axis.plot(steps, mean, color=colour, lw=1.4 if i in coloured else 0.7, label=label, **alone)
                axis.fill_between(steps, low, high, color=colour, alpha=0.18 if i in coloured else 0.05, lw=0)
                lows.append(low.min())
                highs.append(high.max())
        axis.set(xlabel="training steps", ylabel=name)
        if _wide([*lows, *highs], 20):
            axis.set_yscale("log")
    _caption(axes[0], settings)
    return _finish(figure, axes, beside, strip, ", ".join(summary.labels(keys)[key] for key in keys))


def _caption(axis: Any, settings: Sequence[Setting]) -> None:
    most = max(len(setting.done) for setting in settings)
    if most > 1:
        axis.set_title(f"mean, least to largest of {most} seeds", fontsize=9, loc="left", color="#555555")


def _leading(settings: Sequence[Setting], metrics: Sequence[str]) -> list[int]:
    """Which settings are coloured."""
    if len(settings) <= len(COLOURS):
        return list(range(len(settings)))
    by = next((metric for metric in metrics if rule(metric) is not None), None)
    kind = rule(by) if by else None
    found = [setting.estimate(by) if by else None for setting in settings]
    order = sorted(
        range(len(settings)),
        key=lambda i: math.inf if kind is None or (of := found[i]) is None else cost(of.mean, kind),
    )
    return order[:SHOWN]


def _label(setting: Setting, keys: Sequence[str]) -> str:
    return ", ".join(text(setting.overrides[key]) for key in keys) or "all"


# Quality against cost


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The points that no other dominates, of (cost, cost): none is as low in both and lower in one; by the first cost.

    >>> front([(1, 5), (2, 3), (3, 4), (2, 6), (4, 1)])
    [0, 1, 4]
    """
    found: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: points[i]):
        if not found or points[i][1] < points[found[-1]][1] or points[i] == points[found[-1]]:
            found.append(i)
    return found


def pareto(pyplot: Any, sweep: Sweep, metrics: Sequence[str], by: str) -> Any:
    """Each metric that has a better direction against what a run cost, a point for each setting; None if costs are one.

    Points that no other beats in both are joined. Bars are intervals. Times always differ: one setting has no plot.
    """
    settings = [setting for setting in summary.settings_of(sweep) if setting.estimate(by)]
    costs = [of.mean for setting in settings if (of := setting.estimate(by))]
    shown = [m for m in metrics if rule(m) is not None and m != by and any(s.estimate(m) for s in settings)]
    if len(settings) < 2 or (by == "calls" and len(set(costs)) < 2) or not shown:
        return None
    title, groups = _groups(sweep, settings, costs)
    figure, axes, beside, strip = _panels(pyplot, len(shown), [*set(groups), *LINES])
    for axis, metric in zip(axes, shown, strict=True):
        _pareto_panel(axis, sweep, settings, metric, costs, groups)
        axis.set_xlabel({"calls": "denoiser calls a sample", "seconds": "wall time of a run, s"}.get(by, by))
        if _wide(costs, 4):
            axis.set_xscale("log")
            _plain_ticks(axis, costs)
        else:
            axis.locator_params(axis="x", nbins=5)  # more do not fit, where they are long
    return _finish(figure, axes, beside, strip, title)


def _plain_ticks(axis: Any, costs: Sequence[float]) -> None:
    """Numbers in place of powers of ten; few values that lie apart are the ticks themselves."""
    few = sorted(set(costs))
    if len(few) > 8 or any(b / a < 1.3 for a, b in itertools.pairwise(few)):
        low, high = math.floor(math.log10(few[0])), math.ceil(math.log10(few[-1]))
        steps = (1, 2, 5) if high - low <= 3 else (1,)
        few = [d * 10.0**power for power in range(low, high + 1) for d in steps]
        few = [value for value in few if min(costs) / 1.3 <= value <= max(costs) * 1.3] or [min(costs), max(costs)]
    axis.set_xticks(few, [f"{value:g}" for value in few])
    axis.minorticks_off()


def _groups(sweep: Sweep, settings: Sequence[Setting], costs: Sequence[float]) -> tuple[str, list[str]]:
    """What colours say: name and values of the first key that is not the cost and has few, words before numbers."""
    keys = summary.varying(sweep.runs, summary.keys_of(sweep))
    for wanted in (str, object):
        for key in keys:
            values = [setting.overrides[key] for setting in settings]
            said = [text(value) for value in values]
            is_cost = len(set(zip(said, costs, strict=True))) == len(set(said)) == len(set(costs))
            if all(isinstance(v, wanted) for v in values) and 1 < len(set(said)) <= 2 * len(COLOURS) and not is_cost:
                return summary.labels(keys)[key], said
    return "", ["all"] * len(settings)


def _pareto_panel(
    axis: Any, sweep: Sweep, settings: Sequence[Setting], metric: str, costs: Sequence[float], groups: Sequence[str]
) -> None:
    kind = rule(metric)
    assert kind is not None
    near = not isinstance(kind, str)
    names = list(dict.fromkeys(groups))
    points, barred = [], False
    for at, name in enumerate(names):
        style = {"color": COLOURS[at % 10], "marker": MARKERS[(at + at // 10) % 10]}
        of = [
            (x, e) for x, s, g in zip(costs, settings, groups, strict=True) if g == name and (e := s.estimate(metric))
        ]
        if of:
            ys = [cost(e.mean, kind) if near else e.mean for _, e in of]
            bars = (
                None
                if near or len(costs) > BARS or all(e.half is None for _, e in of)
                else [e.half or 0.0 for _, e in of]
            )
            axis.errorbar(
                [x for x, _ in of], ys, bars, ls="", ms=4.5, elinewidth=0.8, alpha=0.8, mew=0, label=name, **style
            )
            barred = barred or bars is not None
            points += [(x, y) for (x, _), y in zip(of, ys, strict=True)]
    best = front([(x, -y if kind == "higher" else y) for x, y in points])
    axis.plot(*zip(*(points[i] for i in best), strict=True), color="#222222", lw=1, zorder=1, label="not dominated")
    floor = summary.floors_of(sweep.having("done")).get(metric)
    if floor and not near:
        axis.axhline(floor[0], color="#555555", ls=":", lw=1.1, label="real against real")
    heights = [y for _, y in points]
    if _wide(heights, 20):
        axis.set_yscale("log")
    better = "higher is better" if kind == "higher" else "lower is better"
    axis.set_ylabel(f"|{metric} - {kind:g}|" if not isinstance(kind, str) else metric)
    axis.set_title(f"{better}{f'; bars: {PERCENT} interval' * barred}", fontsize=9, loc="left", color="#555555")
