"""Accuracy of class predictions, and balance of the predicted classes."""

from typing import NamedTuple

import numpy as np

from diffax.metrics._sets import check_finite
from diffax.typing import Examples, Float, Values


class ClassBalance(NamedTuple):
    """Counts of the classes, and their deviation from the expected distribution.

    counts: (K,) examples of each class; total_variation: distance to the expected frequencies, in [0, 1];
    chi_square: Pearson's statistic, >= 0.
    """

    counts: np.ndarray
    total_variation: float
    chi_square: float


def accuracy(predictions: Examples, labels: Examples) -> float:
    """The fraction of correct predictions, mean_i 1[argmax_k logits_ik = label_i].

    Args:
      predictions: (N, K) logits, or (N,) integer classes; N >= 1.
      labels: (N,) integer classes.

    Raises:
      ValueError: if a shape or type is wrong, or a logit is not finite.

    >>> accuracy([[0.1, 0.9], [2.0, 1.0]], [1, 1])
    0.5
    """
    predictions, labels = np.asarray(predictions), _class_array("labels", labels)
    if predictions.ndim == 2 and predictions.shape[1]:
        logits = predictions.astype(np.float64)
        check_finite("predictions", logits)
        predictions = logits.argmax(1)
    predictions = _class_array("predictions", predictions)
    if len(predictions) != len(labels):
        raise ValueError(f"predictions must have {len(labels)} entries, as labels has, got {len(predictions)}")
    return float(np.mean(predictions == labels))


def class_balance(labels: Examples, expected: Values) -> ClassBalance:
    """The deviation of class counts n_k from an expected distribution p.

        TV = sum_k |n_k / N - p_k| / 2,   chi^2 = sum_k (n_k - N p_k)^2 / (N p_k)

    For independent labels from p, chi^2 has mean K - 1 and variance about 2 (K - 1). It is smaller for samples that are
    conditioned on labels 0, 1, .., K - 1 in turn, as samplers often do, because those labels are balanced.

    Args:
      labels: (N,) integer classes in [0, K - 1], for instance a classifier's predictions for N samples; N >= 1.
      expected: (K,) positive frequencies p, or counts; normalised to sum 1.

    Raises:
      ValueError: if a shape or type is wrong, a label is out of range, or an expected value is not positive.

    Source: Pearson 1900.

    >>> class_balance([0, 0, 0, 1], [0.5, 0.5])
    ClassBalance(counts=array([3, 1]), total_variation=0.25, chi_square=1.0)
    """
    labels, weights = _class_array("labels", labels), np.asarray(expected, np.float64)
    if weights.ndim != 1 or not len(weights):
        raise ValueError(f"expected must have shape (K,) with K >= 1, got {weights.shape}")
    check_finite("expected", weights)
    if not (weights > 0).all():
        raise ValueError(f"expected must be positive, got {weights.min()} at [{weights.argmin()}]")
    outside = (labels < 0) | (labels >= len(weights))
    if outside.any():
        index = int(outside.argmax())
        raise ValueError(f"labels must be in [0, {len(weights) - 1}], got {labels[index]} at [{index}]")
    p: Float[np.ndarray, " k"] = weights / weights.sum()
    counts = np.bincount(labels, minlength=len(p))
    expected_counts = len(labels) * p
    variation = np.abs(counts / len(labels) - p).sum() / 2
    return ClassBalance(counts, float(variation), float(((counts - expected_counts) ** 2 / expected_counts).sum()))


def _class_array(name: str, value: Values) -> np.ndarray:
    array = np.asarray(value)
    if array.ndim != 1 or not len(array) or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} must be integers of shape (N,) with N >= 1, got {array.dtype} of shape {array.shape}")
    return array
