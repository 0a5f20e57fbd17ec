"""Curves of training, and quality against cost."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments.reporting import summary
from experiments.reporting.reading import read_curve
from experiments.reporting.statistics import PERCENT, cost, rule
from experiments.reporting.summary import Setting, Sweep, text

# Okabe & Ito 2008, for colour vision deficiency, with purple in place of yellow, which is faint on white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#222222", "#6a3d9a")
MARKERS = "osD^vP*X"
GREY, DOT = "#999999", "."  # colour and marker of further values
BARS = 80  # a plot with more points has no bars, because they would hide the points
LINES = ("not dominated", "real against real")
NOTE = {"fontsize": 9, "loc": "left", "color": "#555555"}  # above a panel
SPEED = ("per_second", "memory", "share_of_peak", "seconds")  # logged metrics of the machine


def draw(sweep: Sweep, metrics: Sequence[str]) -> list[str]:
    """Write the plots into the folder of the sweep; return the names of those with values."""
    figures = {
        "curves": curves(sweep, metrics),
        "pareto_calls": pareto(sweep, metrics, "calls"),
        "pareto_seconds": pareto(sweep, metrics, "seconds"),
        "calls": by_calls(sweep, metrics),
    }
    for name, figure in figures.items():
        path = sweep.folder / f"{name}.png"
        path.unlink(missing_ok=True)  # removes the plot of an earlier report
        if figure is not None:
            figure.savefig(path, dpi=110, metadata={"Software": None})
    return [name for name, figure in figures.items() if figure is not None]


def _is_wide(values: Sequence[float], ratio: float) -> bool:
    """Whether values need a logarithmic axis."""
    return len(values) > 1 and min(values) > 0 and max(values) / min(values) > ratio


def _panels(count: int, legend: Sequence[str]) -> tuple[Figure, list[Any], int, float]:
    """(figure, axes of the panels, legend entries in a row, share of the legend at the bottom of the height)."""
    columns = 2 if count == 4 else min(3, count)
    lines = -(-count // columns)
    width = max(4.6 * columns, 6.4)
    in_row = max(1, int(width / (0.7 + 0.075 * max(map(len, legend)))))
    strip = 0.2 * -(-len(legend) // in_row) + 0.25
    height = 3.5 * lines + strip
    figure = Figure(figsize=(width, height))
    axes = figure.subplots(lines, columns, squeeze=False)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, list(axes.flat[:count]), in_row, strip / height


def _finish(figure: Figure, axes: Sequence[Any], in_row: int, strip: float, title: str) -> Figure:
    """Add the legend under the panels: colours and markers first, then the lines."""
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    if list(handles) not in ([], ["all"]):
        names = sorted(handles, key=lambda name: name in LINES)
        style = {"frameon": False, "fontsize": 8.5, "title_fontsize": 8.5, "borderpad": 0.2}
        figure.legend([handles[name] for name in names], names, loc="lower center", ncols=in_row, title=title, **style)
    figure.tight_layout(rect=(0, strip, 1, 1))
    return figure


# Curves


def mean_curve(logs: Sequence[dict[int, dict[str, float]]], metric: str) -> tuple[Any, Any, Any, Any]:
    """(steps, mean, least, largest) at the steps that all logs with the metric have in common."""
    having = [{step: line[metric] for step, line in log.items() if metric in line} for log in logs]
    having = [curve for curve in having if curve]
    steps = [step for step in (having[0] if having else {}) if all(step in curve for curve in having)]
    if not steps:
        return (np.zeros(0),) * 4
    values = np.array([[curve[step] for step in steps] for curve in having])
    return np.array(steps), values.mean(0), values.min(0), values.max(0)


def curves(sweep: Sweep, metrics: Sequence[str]) -> Figure | None:
    """Each metric of the logs of finished runs against steps; None if there is none.

    The line is the mean over seeds, the band goes from the least to the largest value. At most 8 settings are coloured.
    """
    settings = [setting for setting in sweep.settings if setting.done]
    logs = {run.id: read_curve(run) for run in sweep.done}
    for log in logs.values():
        log.pop(0, None)  # step 0 has the results of runs without training
    logged = dict.fromkeys(name for log in logs.values() for line in log.values() for name in line)
    names = [name for name in logged if not any(word in name for word in SPEED)]
    if not names:
        return None
    keys, labels = sweep.varying, summary.labels(sweep.varying)
    most, note = len(COLOURS), ""
    if len(settings) > most:
        by = summary.ranking(metrics, settings)
        settings = sorted(settings, key=lambda setting: setting.rank(by))
        note = f" (in colour: the {f'best {most} by {by}' if by else f'first {most}'})"
    legend = [", ".join(text(setting.overrides[key]) for key in keys) or "all" for setting in settings[:most]]
    others = f"{len(settings) - most} others"
    figure, axes, in_row, strip = _panels(len(names), [*legend, others])
    redefined = [labels[key] for key in summary.varying(settings, keys) if summary.defines_loss(key)]
    seeds = max(len(setting.done) for setting in settings)
    for axis, name in zip(axes, names, strict=True):
        ends: list[float] = []
        for setting, colour, label in itertools.zip_longest(settings, COLOURS[: len(settings)], legend):
            steps, mean, low, high = mean_curve([logs[run.id] for run in setting.done.values()], name)
            if not len(steps):
                continue
            colour, width, alpha, order = (colour, 1.4, 0.18, 2) if colour else (GREY, 0.7, 0.05, 1)
            alone = {"marker": "o", "ms": 3} if len(steps) == 1 else {}
            axis.plot(steps, mean, color=colour, lw=width, zorder=order, label=label or others, **alone)
            axis.fill_between(steps, low, high, color=colour, alpha=alpha, lw=0, zorder=order)
            ends += [low.min(), high.max()]
        axis.set(xlabel="training steps", ylabel=name)
        if _is_wide(ends, 20):
            axis.set_yscale("log")
        notes = [f"mean, least to largest of {seeds} seeds"] if axis is axes[0] and seeds > 1 else []
        if redefined and summary.is_loss(name):
            notes.append(f"not comparable: differs in {', '.join(redefined)}")
        axis.set_title("\n".join(notes), **NOTE)
    return _finish(figure, axes, in_row, strip, ", ".join(labels.values()) + note)


# Quality against cost


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The points, (cost, cost), that no other point dominates by being at most equal in both and lower in one.

    >>> front([(1, 5), (2, 3), (3, 4), (2, 6), (4, 1)])
    [0, 1, 4]
    """
    chosen: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: points[i]):
        if not chosen or points[i][1] < points[chosen[-1]][1] or points[i] == points[chosen[-1]]:
            chosen.append(i)
    return chosen


class Signs(NamedTuple):
    """Colour and marker of each setting; the entries of the legend, label -> (colour, marker), and its title."""

    colours: list[str]
    markers: list[str]
    entries: dict[str, tuple[str, str]]
    title: str


def _levels(values: Sequence[str], palette: Sequence[str], beyond: str) -> tuple[list[str], dict[str, str]]:
    """(the sign of each value, label -> sign). The values after the first 8 share the sign `beyond`."""
    names = list(dict.fromkeys(values))
    own = dict(zip(names, palette, strict=False))
    more = len(names) - len(own)
    others = {f"{more} other{'s' * (more > 1)}": beyond} if more else {}
    return [own.get(value, beyond) for value in values], own | others


def signs(settings: Sequence[Setting], keys: Sequence[str], by: str, costs: Sequence[float]) -> Signs:
    """Colours for one key and, if more keys vary, markers for a second one.

    Keys with at most 8 values come first, and texts before numbers. If several keys vary, a numeric key that is already
    on the axis of calls is left out.
    """
    names, varying = summary.labels(keys), summary.varying(settings, keys)
    values = {key: [text(setting.overrides[key]) for setting in settings] for key in varying}
    numeric = {key: not any(isinstance(setting.overrides[key], str) for setting in settings) for key in varying}

    def on_axis(key: str) -> bool:
        pairs = set(zip(values[key], costs, strict=True))
        return by == "calls" and numeric[key] and len(pairs) == len(set(values[key])) == len(set(costs))

    free = [key for key in varying if not on_axis(key)] or varying
    first, *rest = sorted(free, key=lambda key: (len(set(values[key])) > len(COLOURS), numeric[key]))
    second = rest[0] if rest else first
    colours, colour_of = _levels(values[first], COLOURS, GREY)
    markers, marker_of = _levels(values[second], MARKERS, DOT)
    if not rest:
        return Signs(colours, markers, {v: (colour_of[v], marker_of[v]) for v in colour_of}, names[first])
    entries = {f"{names[first]} {value}": (colour, "o") for value, colour in colour_of.items()}
    entries |= {f"{names[second]} {value}": ("#444444", marker) for value, marker in marker_of.items()}
    more = f" (not shown: {', '.join(names[key] for key in rest[1:])})" if rest[1:] else ""
    return Signs(colours, markers, entries, f"colour: {names[first]}, marker: {names[second]}{more}")


def pareto(sweep: Sweep, metrics: Sequence[str], by: str) -> Figure | None:
    """Each metric that ranks the settings against their cost, a point for each setting.

    Points that are not dominated are joined. Bars are intervals. None if all costs are equal or there is one setting.
    """
    settings = [setting for setting in sweep.settings if setting.values(by)]
    costs = [one.mean for setting in settings if (one := setting.estimate(by))]
    ranked = [m for m in metrics if m in sweep.metrics and summary.ranking([m], settings)]
    shown = [m for m in ranked if any(setting.values(m) for setting in settings)]
    if len(settings) < 2 or (by == "calls" and len(set(costs)) < 2) or not shown:
        return None
    styles = signs(settings, sweep.keys, by, costs)
    figure, axes, in_row, strip = _panels(len(shown), [*styles.entries, *LINES])
    for label, (colour, marker) in styles.entries.items():
        axes[0].plot([], [], color=colour, marker=marker, ls="", ms=5.5, mew=0, label=label)
    steady = all("compile_seconds" in run.cost for setting in settings for run in setting.done.values())
    seconds = f"wall time of a run{' without compilation' if steady else ''}, s"
    for axis, metric in zip(axes, shown, strict=True):
        _pareto_panel(axis, sweep, settings, metric, costs, styles)
        axis.set_xlabel("denoiser calls a sample" if by == "calls" else seconds)
        if _is_wide(costs, 4):
            axis.set_xscale("log")
            _plain_ticks(axis, costs)
        else:
            axis.locator_params(axis="x", nbins=5)  # more long labels overlap
    return _finish(figure, axes, in_row, strip, styles.title)


def by_calls(sweep: Sweep, metrics: Sequence[str]) -> Figure | None:
    """Metrics that were measured at several numbers N of calls, as `NAME_N`, against N: a line for each setting."""
    measured: dict[str, list[int]] = {}
    for name, _, count in (metric.rpartition("_") for metric in metrics):
        if name and count.isdecimal():
            measured.setdefault(name, []).append(int(count))
    names = [name for name, counts in measured.items() if len(counts) > 1]
    settings = [setting for setting in sweep.settings if setting.done]
    if not names or not settings:
        return None
    labels = [", ".join(text(setting.overrides[key]) for key in sweep.varying) or "all" for setting in settings]
    figure, axes, in_row, strip = _panels(len(names), [*labels, LINES[1]])
    for axis, name in zip(axes, names, strict=True):
        counts = sorted(measured[name])
        for index, (setting, label) in enumerate(zip(settings, labels, strict=True)):
            points = [(n, one) for n in counts if (one := setting.estimate(f"{name}_{n}"))]
            style = {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)], "ms": 4}
            style |= {"ls": ("-", "--")[index // len(COLOURS) % 2], "lw": 1.1, "elinewidth": 0.8, "label": label}
            means, bars = [one.mean for _, one in points], [one.half or 0.0 for _, one in points]
            axis.errorbar([n for n, _ in points], means, bars, **style)
        if floor := summary.floors_of(sweep.done).get(f"{name}_{counts[0]}"):
            axis.axhline(floor["mean"], color="#555555", ls=":", lw=1.1, label=LINES[1])
        axis.set(xlabel="denoiser calls a sample", ylabel=name, xscale="log")
        axis.set_yscale("log" if rule(name) == "lower" else "linear")
        _plain_ticks(axis, counts)
    return _finish(figure, axes, in_row, strip, ", ".join(summary.labels(sweep.varying).values()))


def _plain_ticks(axis: Any, costs: Sequence[float]) -> None:
    """Label the axis with numbers, not powers of ten: the costs if there are few, otherwise 1, 2, 5, 10 ..."""
    ticks = sorted(set(costs))
    if len(ticks) > 8 or any(b / a < 1.3 for a, b in itertools.pairwise(ticks)):
        low, high = math.floor(math.log10(ticks[0])), math.ceil(math.log10(ticks[-1]))
        digits = (1, 2, 5) if high - low <= 3 else (1,)
        ticks = [d * 10.0**power for power in range(low, high + 1) for d in digits]
        ticks = [v for v in ticks if min(costs) / 1.3 <= v <= max(costs) * 1.3] or [min(costs), max(costs)]
    axis.set_xticks(ticks, [f"{value:g}" for value in ticks])
    axis.minorticks_off()


def _pareto_panel(
    axis: Any, sweep: Sweep, settings: Sequence[Setting], metric: str, costs: Sequence[float], styles: Signs
) -> None:
    kind = rule(metric)
    assert kind is not None
    near = not isinstance(kind, str)
    estimates = [setting.estimate(metric) for setting in settings]
    barred = not near and len(costs) <= BARS and any(one and one.half is not None for one in estimates)
    points = []
    for x, one, colour, marker in zip(costs, estimates, styles.colours, styles.markers, strict=True):
        if one:
            points.append((x, cost(one.mean, kind) if near else one.mean))
            style = {"color": colour, "marker": marker, "ms": 5.5, "mew": 0, "alpha": 0.8, "elinewidth": 0.8}
            axis.errorbar(*points[-1], (one.half or 0.0) if barred else None, **style)
    best = front([(x, -y if kind == "higher" else y) for x, y in points])
    axis.plot(*zip(*(points[i] for i in best), strict=True), color="#222222", lw=1, zorder=1, label=LINES[0])
    floor = summary.floors_of(sweep.done).get(metric)
    if floor and not near:
        axis.axhline(floor["mean"], color="#555555", ls=":", lw=1.1, label=LINES[1])
    if _is_wide([y for _, y in points], 20):
        axis.set_yscale("log")
    axis.set_ylabel(f"|{metric} - {kind:g}|" if near else metric)
    better = "higher is better" if kind == "higher" else "lower is better"
    axis.set_title(f"{better}{f'; bars: {PERCENT} interval' * barred}", **NOTE)
