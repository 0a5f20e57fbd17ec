"""From drawn samples to what they are worth, by config.evaluation: what training and sampling runs share."""

import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from diffax.pytrees import check_count, choose
from experiments import extractors, images, measures
from experiments.data.datasets import open_dataset


def check(evaluation: Any, conditional: bool) -> None:
    """Raises `ValueError` for settings that cannot be. conditional: whether samples are drawn with labels."""
    for key, least in (("num", 2), ("batch_size", 1), ("classifier_steps", 1), ("seed", 0)):
        check_count(f"config.evaluation.{key}", evaluation[key], least)
    choose("config.evaluation.extractor", evaluation.extractor, extractors.MAKERS)
    names = measures.check_names(evaluation.metrics, True)
    if "accuracy" in names and not conditional:
        raise ValueError("config.evaluation.metrics must be without accuracy for a network without classes")


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


def judge(evaluation: Any, data: Any, folder: Path) -> Callable:
    """(samples in [-1, 1], labels or None) -> `measures.Measures`; the classifier is trained once, kept in the folder.

    Raises:
      ValueError: for a data set or an extractor that cannot be had.
    """
    return _judge(json.dumps(evaluation.to_dict()), json.dumps(data.to_dict()), folder)


@functools.lru_cache(maxsize=1)
def _judge(evaluation_json: str, data_json: str, folder: Path) -> Callable:
    evaluation, data = (ConfigDict(json.loads(text)) for text in (evaluation_json, data_json))
    dataset = open_dataset(data.name, data.data_dir, tuple(data.labels))
    known = open_dataset(data.name, data.data_dir)
    trained_on = f"{data.name} {data.classifier_split}"
    which = f"{trained_on} {evaluation.classifier_steps} {evaluation.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    options = extractors.Options(
        known=lambda: known.arrays(data.classifier_split),
        num_classes=dataset.num_classes,
        trained_on=trained_on,
        classifier_steps=evaluation.classifier_steps,
        classifier_seed=evaluation.seed,
        classifier_file=folder / f"classifier_{hashlib.sha256(which.encode()).hexdigest()[:12]}.npz",
        inception_weights=evaluation.weights or None,
        efficientnet_weights=evaluation.weights or None,
    )
    extractor = extractors.make_extractor(evaluation.extractor, options)
    names = measures.check_names(evaluation.metrics, True)
    by_label = extractor
    if extractor.classify is None and set(names) & set(measures.BY_LABEL):
        by_label = extractors.make_extractor("classifier", options)
    real = measures.Real(*dataset.arrays(data.train_split), *dataset.arrays(data.test_split))
    few = extractor.name == "classifier"

    def measure(samples, label):
        stored = dataset.normalise(images.to_pixels(samples, dataset.low, dataset.high))
        settings = {"names": names, "judge": by_label, "allow_few": few, "seed": evaluation.seed}
        return measures.measure(extractor, stored, real, labels=label, **settings)

    return measure
