"""The results of the sampler benchmark as Markdown and as a plot."""

from pathlib import Path
from typing import Any

from experiments.benchmarks.accuracy import best
from experiments.benchmarks.problems import LETTERS


def table(head: list[str], lines: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines]) + "\n"


def number(value: float | None) -> str:
    """A value to two digits, "" for None."""
    return "" if value is None else f"{value:.1e}" if value < 0.01 or value >= 100 else f"{value:.2g}"


def short(setting: str) -> str:
    """The setting of a best error, abbreviated as in the legend."""
    grid, end, ending = setting.split()
    return f"{LETTERS.get(grid, grid)}{'' if end == '0' else ' ' + end.lstrip('0')}{'' if ending == 'sample' else ' i'}"


def _best_lines(rows: dict[str, Any], count: int) -> list[list[str]]:
    lines = []
    for name, row in rows.items():
        cells = [best(row["errors"], index) for index in range(count)]
        lines.append([name, *("" if f is None else f"{number(f[0])} {short(f[1])}" for f in cells)])
    return lines


def _groups(results: dict[str, Any]) -> dict[str, Any]:
    published = set(results["published"])
    groups = {
        "diffax": lambda name: " " not in name,
        "of it, samplers of released codes": lambda name: name in published,
        "k-diffusion": lambda name: name.startswith("k-diffusion "),
        "diffusers": lambda name: name.startswith("diffusers "),
    }
    return groups


def leaders(results: dict[str, Any], rows: dict[str, Any]) -> list[list[str]]:
    """The best of each group at each budget, over samplers and settings."""
    lines = []
    for group, belongs in _groups(results).items():
        cells = []
        for at in range(len(results["budgets"])):
            candidates = [(*f, name) for name, row in rows.items() if belongs(name) and (f := best(row["errors"], at))]
            error, setting, name = min(candidates) if candidates else (None, "", "")
            cells.append(f"{number(error)} {name.split(' ', 1)[-1]}, {short(setting)}" if candidates else "")
        if any(cells):
            lines.append([group, *cells])
    return lines


HEAD = """# Samplers, measured

`python -m experiments.benchmark samplers` wrote this; `samplers.json` has every number. {device}, jax {jax},
diffax {diffax}, {peers}, {seconds} s in all.

Columns are budgets in denoiser calls. A cell is the least error over grids and endings, with its setting: u uniform in
t, q quadratic in t, l uniform in log-SNR, k Karras, b beta quantiles, p polyexponential, a `arctan` (others: a
library's own), then sigma / alpha at the last grid point (.05, .01 or .001; a library's own end is not named), then i
for `integrate`, which ends without the last denoiser call of `sample`. Names ending in `-final` take the last steps at
lower order.
"""
ORDERS = """## Measured order

Slope between the two largest budgets, log-SNR grid to sigma / alpha = .05, against the flow to that level, from a cold
start, which limits a multistep sampler's order to 2, or 3 with a corrector. Empty: round-off.
"""
DISTRIBUTION = """## Error in distribution, Gaussian

Wasserstein distance to the data's distribution, exact: no sampling. The order is measured at the last grid level;
`ddim-langevin` keeps the bias of its corrector.
"""
DRAWN = """## Error in distribution, mixture, {problem}

Sliced Wasserstein distance of {draws} draws, `sample` on the log-SNR grid to .01 (diffusers: its exponential grid, or
trailing). Equally many exact draws: {low:.3f} (median), {high:.3f} (largest).

"""
SWEEPS = """## A hyperparameter swept in one compile

`vmap` over the values, all budgets in the same program. Error in distribution on the Gaussian, `sample`, log-SNR grid
to .01.
"""
SPEED = """## Compile time and time of a step

float32, x of 4 x 3 x 32 x 32, trivial denoiser; 50 steps, the least of the repeats. `table`: on a schedule of 1,000
tabulated levels.
"""
OVERHEAD = """## Overhead beside other libraries

Our loops and theirs in turn in one process: milliseconds for 50 steps, the least of the repeats. Target: 1/10 of
diffusers' time without noise, no slower with noise.
"""


def markdown(results: dict[str, Any]) -> str:
    """The whole report."""
    budgets = [str(b) for b in results["budgets"]]
    environment = results["environment"]
    versions = ", ".join(f"{k} {v}" for k, v in environment["peers"].items()) or "without other libraries"
    parts = [HEAD.format(**{**environment, "peers": versions})]
    parts.append("![Error against calls](samplers.png)\n")
    if any(results["errors"].values()):
        parts.append("## Best at each budget\n")
        for problem, rows in results["errors"].items():
            parts += [f"### {problem}\n", table(["", *budgets], leaders(results, rows))]
        parts.append(_errors(results, budgets))
        parts.append(_orders(results))
    parts += [_laws(results, budgets), _sweeps(results), _speed(results)]
    return "\n".join(parts)


def _errors(results: dict[str, Any], budgets: list[str]) -> str:
    parts = ["## Error against the exact flow, mixtures\n\nRoot of the mean square over examples and coordinates.\n"]
    for problem, rows in results["errors"].items():
        lines = _best_lines(rows, len(budgets))
        parts += [f"### {problem}\n", table([f"{problem}", *budgets], lines)]
    return "\n".join(parts)


def _orders(results: dict[str, Any]) -> str:
    problems = list(results["errors"])
    names = list(results["errors"][problems[0]])
    lines = []
    for name in names:
        if "order" in results["errors"][problems[0]][name]:
            orders = [results["errors"][p].get(name, {}).get("order") for p in problems]
            shown = ["" if order is None else f"{order:.2f}" for order in orders]
            lines.append([name, str(results["calls_a_step"][name]), str(results["claimed_order"][name]), *shown])
    return ORDERS + "\n" + table(["sampler", "calls a step", "claimed", *problems], lines)


def _laws(results: dict[str, Any], budgets: list[str]) -> str:
    parts = []
    if any(results["law"].values()):
        parts.append(DISTRIBUTION)
    for schedule, rows in results["law"].items():
        if rows:
            lines = _best_lines(rows, len(budgets))
            for line, row in zip(lines, rows.values(), strict=True):
                line.append("" if row.get("order") is None else f"{row['order']:.2f}")
            parts.append(f"### {schedule}\n\n" + table([schedule, *budgets, "order"], lines))
    for problem, mixture in results["drawn"].items():
        if mixture["rows"]:
            low, high = mixture["floor"]
            parts.append(
                DRAWN.format(problem=problem, draws=mixture["draws"], low=low, high=high)
                + table([problem, *budgets], _drawn_lines(mixture["rows"], len(budgets)))
            )
    return "\n".join(parts)


def _drawn_lines(rows: dict[str, Any], count: int) -> list[list[str]]:
    lines = []
    for name, row in rows.items():
        at = ("log_snr 0.01 sample", "exponential 0 sample", "trailing 0 sample")
        chosen = next((row["errors"][s] for s in at if s in row["errors"]), [None] * count)
        lines.append([name, *(number(v) for v in chosen)])
    return lines


def _sweeps(results: dict[str, Any]) -> str:
    parts = [SWEEPS]
    for name, sweep in results["sweeps"].items():
        lines = [
            [f"{value:g}", *map(number, errors)] for value, errors in zip(sweep["values"], sweep["errors"], strict=True)
        ]
        head = [f"{name} ({sweep['schedule']}, traced {sweep['compiles']} time)", *map(str, sweep["budgets"])]
        parts.append(table(head, lines))
    return "\n".join(parts)


def _speed(results: dict[str, Any]) -> str:
    parts = [SPEED]
    lines = [
        [
            row["sampler"],
            f"{row['compile_s']:.2f}",
            "" if row["compile_s_500"] is None else f"{row['compile_s_500']:.2f}",
            f"{row['us_a_step']:.1f}",
            f"{row['linear_ms']:.2f}",
            "" if row["table_ms"] is None else f"{row['table_ms']:.2f}",
        ]
        for row in results["speed"]
    ]
    head = ["sampler", "compile s, 50 steps", "compile s, 500 steps", "us a step", "ms, 50 steps", "ms, table"]
    parts.append(table(head, lines))
    if results["overhead"]:
        parts.append(OVERHEAD)
        lines = [
            [
                row["peer"],
                row["ours"],
                f"{row['peer_ms']:.2f}",
                f"{row['linear_ms']:.2f}",
                f"{row['table_ms']:.2f}",
                f"{row['ratio_linear']:.3f}",
                f"{row['ratio_table']:.3f}",
                "" if row["met"] is None else "met" if row["met"] else f"missed ({row['target']:g})",
            ]
            for row in results["overhead"]
        ]
        head = ["peer", "ours", "peer ms", "ours ms", "ours ms, table", "ratio", "ratio, table", "target"]
        parts.append(table(head, lines))
    return "\n".join(parts)


# The plot

SHOWN = (
    "ddim",
    "heun",
    "dpm_solver-3",
    "dpmpp_2m",
    "dpmpp_3m",
    "deis-3",
    "unipc-3",
    "exponential_adams-flow-3c",
    "gaussian_adams-4",
)
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#222222", "#ee8866", "#999933")


def plot(results: dict[str, Any], path: Path) -> bool:
    """Least error over grids and endings against calls, a panel for each problem; False without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = {name: rows for name, rows in results["errors"].items() if rows}
    if not panels:
        return False
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = pyplot.subplots(
        lines, columns, figsize=(4.4 * columns, 3.6 * lines + 0.9), squeeze=False, sharex=True
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (problem, rows) in zip(axes.flat, panels.items(), strict=False):
        _panel(axis, results, problem, rows)
    handles: dict[str, Any] = {}
    for axis in axes.flat:
        handles.update({str(h.get_label()): h for h in axis.get_lines()})
    for i in range(lines):
        axes[i, 0].set_ylabel("error of x0")
    for axis in axes[-1]:
        axis.set_xlabel("denoiser calls")
    figure.legend(
        handles.values(), handles.keys(), loc="lower center", ncols=min(6, len(handles)), frameon=False, fontsize=9
    )
    figure.tight_layout(rect=(0, 0.65 / (3.6 * lines + 0.9), 1, 1))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True


def _panel(axis: Any, results: dict[str, Any], problem: str, rows: dict[str, Any]) -> None:
    budgets = results["budgets"]
    names = [name for name in rows if name in SHOWN] or [name for name in rows if " " not in name][: len(COLOURS)]

    def least(belongs):
        points = []
        for at, budget in enumerate(budgets):
            candidates = [f[0] for name, row in rows.items() if belongs(name) and (f := best(row["errors"], at))]
            if candidates:
                points.append((budget, min(candidates)))
        return points

    for name in names:
        colour = COLOURS[SHOWN.index(name) if name in SHOWN else names.index(name)]
        points = least(lambda other, name=name: other == name)
        axis.plot(*zip(*points, strict=True), color=colour, lw=1.4, marker="o", ms=3, label=name)
    for library, style in (("k-diffusion", ":"), ("diffusers", "--")):
        if points := least(lambda name, library=library: name.startswith(library)):
            axis.plot(*zip(*points, strict=True), color="#777777", ls=style, lw=2.2, label=f"{library}, its best")
    axis.set(xscale="log", yscale="log", title=problem)
    axis.set_ylim(None, 2.0)
    axis.set_xticks(budgets, [str(b) for b in budgets])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
