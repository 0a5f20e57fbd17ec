"""Means with Student's interval, and marks of the best of several means.

    mean ± t_{0.975, n - 1} s / sqrt(n),    s^2 = sum (x_i - mean)^2 / (n - 1)

contains the expectation with probability 0.95 if the x_i are independent draws of one normal distribution (Student
1908). Settings with the same seeds are compared by the interval of their differences, seed by seed. An interval of
width 0 is never significant: equal values show the resolution of a metric, not its variance.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

LEVEL, PERCENT = 0.95, "95 %"
FEWEST = 3  # values for an interval: with two, t = 12.7, and an outlier cannot be detected
ROUND_OFF = 1e-9

# A word of a metric's name -> the better direction, or the best value, that of real data.
RULES: dict[str, str | float] = {
    **dict.fromkeys(("loss", "fid", "kid", "rms", "rmse", "mse", "mae", "error", "errors"), "lower"),
    **dict.fromkeys(("seconds", "calls", "nll", "bits", "bpd", "wasserstein", "sliced", "sinkhorn"), "lower"),
    **dict.fromkeys(("variation", "balance", "kernel", "frechet"), "lower"),
    **dict.fromkeys(("accuracy", "precision", "recall", "density", "coverage", "psnr", "ssim"), "higher"),
    **dict.fromkeys(("ratio", "memorisation"), 1.0),
}


class Estimate(NamedTuple):
    """A mean over n values. half: half the width of the interval. std and half are None if n is too small."""

    mean: float
    std: float | None
    half: float | None
    n: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """(low, high)."""
        return None if self.half is None else (self.mean - self.half, self.mean + self.half)

    @property
    def record(self) -> dict[str, Any]:
        """The estimate for JSON."""
        low, high = self.interval or (None, None)
        return {"mean": self.mean, "std": self.std, "low": low, "high": high, "n": self.n}

    @property
    def is_point(self) -> bool:
        """Whether there is an interval and its width is 0, up to round-off."""
        return self.half is not None and self.half <= ROUND_OFF * abs(self.mean)


def half_width(values: np.ndarray) -> np.ndarray:
    """Half of the width of the interval along the last axis: (..., n) -> (...); n >= 2."""
    n = values.shape[-1]
    return stdtrit(n - 1, 0.5 + LEVEL / 2) * values.std(-1, ddof=1) / np.sqrt(n)


def estimate(values: Sequence[float], *, interval: bool = True) -> Estimate:
    """Mean, standard deviation and interval of one or more values. interval: False for none.

    >>> estimate([1.0, 2.0])
    Estimate(mean=1.5, std=0.7071067811865476, half=None, n=2)
    """
    x = np.asarray(values, float)
    n, with_interval = len(x), len(x) >= FEWEST and interval
    if (x == x[0]).all():  # the computed mean of equal numbers may be off by one bit
        return Estimate(float(x[0]), 0.0 if n > 1 else None, 0.0 if with_interval else None, n)
    return Estimate(float(x.mean()), float(x.std(ddof=1)), float(half_width(x)) if with_interval else None, n)


def words(name: str) -> list[str]:
    """The words of a metric's name, in lower case."""
    return re.split(r"[^a-z0-9]+", name.lower())


def rule(name: str) -> str | float | None:
    """The direction of a metric: "lower" or "higher" is better, or the best number; None if it is not known.

    The words of the name decide. Words that contradict each other give None.

    >>> rule("fd_infinity"), rule("test accuracy"), rule("nn_ratio"), rule("colour")
    ('lower', 'higher', 1.0, None)
    """
    rules = {"lower" if word.startswith("fd") else RULES.get(word) for word in words(name)} - {None}
    return rules.pop() if len(rules) == 1 else None


def cost(value: float, rule: str | float) -> float:
    """A function of a value with its minimum at the best value."""
    return value if rule == "lower" else -value if rule == "higher" else abs(value - float(rule))


def alike(a: dict[Any, float], b: dict[Any, float], rule: str | float) -> bool:
    """Whether two settings, seed -> value, are not distinguishable; False if there are too few seeds to decide.

    The interval of the differences over equal seeds decides. The overlap of the two intervals decides if fewer than 3
    seeds are equal or if the best value is a number. Intervals of width 0 do not distinguish.
    """
    shared = [seed for seed in a if seed in b]
    if isinstance(rule, str) and len(shared) >= FEWEST:
        difference = estimate([a[seed] - b[seed] for seed in shared])
        return difference.is_point or abs(difference.mean) <= (difference.half or 0.0)
    estimates = [estimate(list(values.values())) for values in (a, b)]
    ranges = []
    for one in estimates:
        if one.interval is None:
            return False
        low, high = sorted(cost(end, rule) for end in one.interval)
        contains_best = not isinstance(rule, str) and one.interval[0] <= rule <= one.interval[1]
        ranges.append((0.0 if contains_best else low, high))
    (low_a, high_a), (low_b, high_b) = ranges
    return all(one.is_point for one in estimates) or (low_a <= high_b and low_b <= high_a)


def marks(cells: Sequence[dict[Any, float]], rule: str | float | None, resolution: float | None = None) -> list[str]:
    """The mark of each setting (seed -> value).

    "best" for the best mean, "tie" for means within the resolution of it, "alike" for settings that are not
    distinguishable from it, "" for others. All marks are "" if the rule is None or fewer than two settings have values.
    """
    if rule is None or sum(map(bool, cells)) < 2:
        return [""] * len(cells)
    costs = {i: cost(estimate(list(cell.values())).mean, rule) for i, cell in enumerate(cells) if cell}
    best = min(costs, key=lambda i: costs[i])
    all_marks = []
    for i, cell in enumerate(cells):
        if i in costs and costs[i] == costs[best]:
            all_marks.append("best")
        elif i in costs and resolution is not None and costs[i] - costs[best] <= resolution * (1 + ROUND_OFF):
            all_marks.append("tie")
        else:
            all_marks.append("alike" if i in costs and alike(cell, cells[best], rule) else "")
    return all_marks
