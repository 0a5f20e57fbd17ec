"""From drawn samples to what they are worth, by config.evaluation: what training and sampling runs share."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from diffax.pytrees import check_count
from experiments import images


def check(evaluation: Any) -> None:
    """Raises `ValueError` for settings that cannot be."""
    for key, least in (("num", 2), ("batch_size", 1), ("classifier_steps", 1), ("seed", 0)):
        check_count(f"config.evaluation.{key}", evaluation[key], least)


def labels(evaluation: Any, num_classes: int | None) -> np.ndarray | None:
    """(num,) all classes in turn, None without classes."""
    return None if num_classes is None else np.arange(evaluation.num, dtype=np.int32) % num_classes


def batches(evaluation: Any) -> list[np.ndarray]:
    """The places of the samples in batches of one size; the last begins again where they end."""
    size = min(evaluation.batch_size, evaluation.num)
    return [np.arange(at, at + size) % evaluation.num for at in range(0, evaluation.num, size)]


def picture(path: Path, drawn: np.ndarray, num_classes: int | None) -> None:
    """The first of the samples as a PNG, a column for each class."""
    columns = min(num_classes or 10, 10)
    images.save_png(path, drawn[: 10 * columns], columns)


def judge(evaluation: Any, dataset: Any, folder: Path) -> Callable:
    raise NotImplementedError
