"""What a classifier says about samples: how often it is right, and whether all classes are there."""

from typing import NamedTuple

import numpy as np

from diffax.metrics._sets import check_finite
from diffax.typing import Examples, Float, Values


class ClassBalance(NamedTuple):
    """Counts (K,) of each class; their total variation from what was expected, in [0, 1]; the chi-square statistic."""

    counts: np.ndarray
    total_variation: float
    chi_square: float


def accuracy(predictions: Examples, labels: Examples) -> float:
    """mean_i 1[argmax_k logits_ik = label_i].

    Args:
      predictions: (N, K) logits, or (N,) integer classes.
      labels: (N,) integer classes.

    Raises:
      ValueError: for other shapes or types, logits that are not finite, or no example.

    >>> accuracy([[0.1, 0.9], [2.0, 1.0]], [1, 1])
    0.5
    """
    predictions, labels = np.asarray(predictions), _classes("labels", labels)
    if predictions.ndim == 2 and predictions.shape[1]:
        logits = predictions.astype(np.float64)
        check_finite("predictions", logits)
        predictions = logits.argmax(1)
    predictions = _classes("predictions", predictions)
    if len(predictions) != len(labels):
        raise ValueError(f"predictions must be as many as the {len(labels)} labels, got {len(predictions)}")
    return float(np.mean(predictions == labels))


def class_balance(labels: Examples, expected: Values) -> ClassBalance:
    """TV = sum_k |n_k / N - p_k| / 2 and chi^2 = sum_k (n_k - N p_k)^2 / (N p_k), n_k the counts.

    If the labels are independent draws from p, chi^2 is K - 1 on average, with a variance of 2 (K - 1). Labels drawn
    in turn, as samplers often do, are better balanced than that.

    Args:
      labels: (N,) integer classes below K, of samples by a classifier, say.
      expected: (K,) positive frequencies p or counts; divided by their sum.

    Raises:
      ValueError: for other shapes or types, classes out of range, or expected values that are not positive.

    Source: Pearson 1900.

    >>> class_balance([0, 0, 0, 1], [0.5, 0.5])
    ClassBalance(counts=array([3, 1]), total_variation=0.25, chi_square=1.0)
    """
    labels, weights = _classes("labels", labels), np.asarray(expected, np.float64)
    if weights.ndim != 1 or not len(weights):
        raise ValueError(f"expected must have shape (K,) with K >= 1, got {weights.shape}")
    check_finite("expected", weights)
    if not (weights > 0).all():
        raise ValueError(f"expected must be positive, got {weights.min()} at [{weights.argmin()}]")
    outside = (labels < 0) | (labels >= len(weights))
    if outside.any():
        at = int(outside.argmax())
        raise ValueError(f"labels must be in [0, {len(weights) - 1}], got {labels[at]} at [{at}]")
    p: Float[np.ndarray, " k"] = weights / weights.sum()
    counts = np.bincount(labels, minlength=len(p))
    wanted = len(labels) * p
    variation = np.abs(counts / len(labels) - p).sum() / 2
    return ClassBalance(counts, float(variation), float(((counts - wanted) ** 2 / wanted).sum()))


def _classes(name: str, value: Values) -> np.ndarray:
    array = np.asarray(value)
    if array.ndim != 1 or not len(array) or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} must be N >= 1 integers, got shape {array.shape} of {array.dtype}")
    return array
