"""Means with Student's interval, and which of several means are best.

    mean ± t_{0.975, n - 1} s / sqrt(n),    s^2 = sum (x_i - mean)^2 / (n - 1)

holds the expectation with probability 0.95 if the x_i are independent draws of one normal law (Student 1908). Settings
that ran with the same seeds are compared by the interval of their differences, seed by seed.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

LEVEL, PERCENT = 0.95, "95 %"
FEWEST = 3  # seeds that make an interval: with two, t = 12.7, and one outlier of two cannot be told

LOWER = {
    *("loss", "fid", "kid", "rms", "rmse", "mse", "mae", "error", "errors", "seconds", "calls", "nll", "bits", "bpd"),
    *("wasserstein", "sliced", "sinkhorn", "variation", "balance", "kernel", "frechet"),
}
HIGHER = {"accuracy", "precision", "recall", "density", "coverage", "psnr", "ssim"}
CLOSEST = {"ratio": 1.0, "memorisation": 1.0}  # to what real data gives


class Estimate(NamedTuple):
    """A mean over n values; std and half (of the interval's width) are None where n is too small for them."""

    mean: float
    std: float | None
    half: float | None
    n: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """(low, high)."""
        return None if self.half is None else (self.mean - self.half, self.mean + self.half)


def half_width(values: np.ndarray) -> np.ndarray:
    """Half of the width of the interval along the last axis: (..., n) -> (...); n >= 2."""
    n = values.shape[-1]
    quantile = stats.t.ppf(0.5 + LEVEL / 2, n - 1)
    return quantile * values.std(-1, ddof=1) / np.sqrt(n)


def estimate(values: Sequence[float], *, interval: bool = True) -> Estimate:
    """Mean, standard deviation and interval of one or more values; no interval of fewer than 3, or where not wanted.

    >>> estimate([1.0, 2.0])
    Estimate(mean=1.5, std=0.7071067811865476, half=None, n=2)
    """
    x = np.asarray(values, float)
    if (x == x[0]).all():  # the mean of equal numbers may be off by a bit
        return Estimate(
            float(x[0]), 0.0 if len(x) > 1 else None, 0.0 if len(x) >= FEWEST and interval else None, len(x)
        )
    half = float(half_width(x)) if len(x) >= FEWEST and interval else None
    return Estimate(float(x.mean()), float(x.std(ddof=1)), half, len(x))


def rule(name: str) -> str | float | None:
    """Which is better, "lower" or "higher", or the number that is best; None of a metric that is not known.

    It goes by the words of the name; words that contradict each other are not known either.

    >>> rule("fd_infinity"), rule("test accuracy"), rule("nn_ratio"), rule("colour")
    ('lower', 'higher', 1.0, None)
    """
    found: set[str | float] = set()
    for word in re.split(r"[^a-z0-9]+", name.lower()):
        if word in LOWER or word.startswith("fd"):
            found.add("lower")
        elif word in HIGHER:
            found.add("higher")
        elif word in CLOSEST:
            found.add(CLOSEST[word])
    return found.pop() if len(found) == 1 else None


def cost(value: float, rule: str | float) -> float:
    """What is least at the best value."""
    return value if rule == "lower" else -value if rule == "higher" else abs(value - float(rule))


def _cost_interval(of: Estimate, rule: str | float) -> tuple[float, float]:
    low, high = sorted(cost(end, rule) for end in of.interval or ())
    inside = not isinstance(rule, str) and abs(of.mean - rule) <= (of.half or 0.0)
    return (0.0 if inside else low), high


def alike(a: dict[Any, float], b: dict[Any, float], rule: str | float) -> bool:
    """Whether two settings, seed -> value, cannot be told apart; False where there are too few seeds to say.

    By the interval of the differences over the seeds that both have; where these are fewer than 3, or nearness to a
    number is what counts, by whether their intervals overlap.
    """
    shared = [seed for seed in a if seed in b]
    if isinstance(rule, str) and len(shared) >= FEWEST:
        difference = estimate([a[seed] - b[seed] for seed in shared])
        return abs(difference.mean) <= (difference.half or 0.0)
    ones = [estimate(list(values.values())) for values in (a, b)]
    if any(one.half is None for one in ones):
        return False
    (low, high), (other_low, other_high) = (_cost_interval(one, rule) for one in ones)
    return low <= other_high and other_low <= high


def marks(cells: Sequence[dict[Any, float]], rule: str | float | None) -> list[str]:
    """Of settings (seed -> value), "best" for the best mean, "alike" for those not told apart from it, else "".

    Nothing is marked where the rule is not known or fewer than two settings have values.
    """
    if rule is None:
        return [""] * len(cells)
    costs = {i: cost(estimate(list(cell.values())).mean, rule) for i, cell in enumerate(cells) if cell}
    if len(costs) < 2:
        return [""] * len(cells)
    least = min(costs.values())
    best = cells[min(costs, key=lambda i: costs[i])]
    return [
        "" if i not in costs else "best" if costs[i] == least else "alike" if alike(cell, best, rule) else ""
        for i, cell in enumerate(cells)
    ]
