"""TensorFlow Datasets by name, read without TensorFlow.

The embedded sets are built from installed packages on first use. Any other set must be prepared in the data folder, in
the array_record format; this module downloads nothing.
"""

import contextlib
import dataclasses
import io
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from diffax.pretrained import Units
from experiments.data import kinds
from experiments.data.digits import Digits, Mnist5k
from experiments.data.emoji import Emoji

DTYPES = ("uint8", "int32", "float32")
EMBEDDED: dict[str, Any] = {"digits": Digits, "emoji": Emoji, "mnist5k": Mnist5k}


class RecordError(ValueError):
    """A record that cannot be read, or that does not fit its data set."""


class Dataset(NamedTuple):
    """A data set.

    builder: read-only TFDS builder. feature: name of the data in its records, "x" or "image". shape: of an example,
    (*space, C). units: of its values, with the kind. classes: names of the classes, None without labels. mask: shape of
    the mask of an example, None without masks. labels: only records with these labels are used, () for all. condition:
    shape of the array condition of an example, None without conditions, or if the metadata have no mean and std of
    them. condition_units: of its values.
    """

    name: str
    builder: Any
    feature: str
    shape: tuple[int, ...]
    units: Units
    classes: tuple[str, ...] | None
    mask: tuple[int, ...] | None = None
    labels: tuple[int, ...] = ()
    condition: tuple[int, ...] | None = None
    condition_units: Units | None = None

    @property
    def num_classes(self) -> int | None:
        """The number of classes, None without labels."""
        return None if self.classes is None else len(self.classes)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes; () without classes, and for classes that only have numbers."""
        names = self.classes or ()
        return () if all(name.isdecimal() for name in names) else names

    def source(self, split: str) -> "Records":
        """Random access to the records of a split ("train", "test[:50%]") that have one of `labels`.

        With `labels`, it first reads all records.

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

    def normalise(self, x: Any) -> np.ndarray:
        """Stored values normalised for a model, float32."""
        return np.asarray(kinds.of(self.units.kind).normalise(x, self.units))

    def captions(self, split: str) -> list[str]:
        """The captions of a split.

        Raises:
          ValueError: if the set has none.
        """
        if "caption" not in self.builder.info.features:
            raise ValueError(f"dataset.name = {self.name!r} has no captions (a feature 'caption')")
        return [record["caption"] for record in self.source(split)]

    def conditions(self, split: str) -> np.ndarray:
        """The array conditions (N, *condition) of a split, in their own units.

        Raises:
          ValueError: if the set has none.
        """
        if self.condition is None:
            raise ValueError(f"dataset.name = {self.name!r} has no array conditions (a feature 'condition')")
        return np.stack([record["condition"] for record in self.source(split)])

    def images(self, split: str, limit: int) -> np.ndarray:
        """Up to `limit` normalised examples of a split, evenly spaced: (N, *shape)."""
        source = self.source(split)
        rows = np.linspace(0, len(source) - 1, min(limit, len(source))).astype(int)
        return np.stack([self.normalise(source[int(row)]["x"]) for row in rows])

    def describe(self, split: str) -> dict[str, Any]:
        """The values that must not change when a run is resumed."""
        described = {"units": _json(self.units), "shape": list(self.shape), "length": len(self.source(split))}
        if self.condition_units is not None:
            described["condition"] = _json(self.condition_units)
        return described

    def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """All normalised examples (N, *shape) and labels (N,) of a split, in memory."""
        records = list(self.source(split))
        return np.stack([self.normalise(r["x"]) for r in records]), np.stack([r["label"] for r in records])

    def masks(self, split: str) -> np.ndarray | None:
        """The masks (N, *mask) of a split, in memory; None for data without masks."""
        return None if self.mask is None else np.stack([record["mask"] for record in self.source(split)])


class Records(Sequence):
    """Some records of a split: {x as stored, label (0 without labels)}, and caption, mask and condition if present.

    numbers: of these records in the whole split. A record that cannot be read, or whose x has another shape, raises a
    `RecordError` with its number.
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
            label = record["label"] if self._dataset.classes else 0
            result = {"x": record[self._dataset.feature], "label": np.int32(label)}
            if self._dataset.mask is not None:
                result["mask"] = np.asarray(record["mask"]).astype(bool)
            if self._dataset.condition is not None:
                result["condition"] = np.asarray(record["condition"], np.float32)
            if "caption" in record:
                result["caption"] = record["caption"].decode()  # TFDS reads text as bytes
        except Exception as error:  # the reader may raise anything
            raise RecordError(f"{where} cannot be read: {type(error).__name__}: {error}") from error
        if result["x"].shape != self._dataset.shape:
            raise RecordError(f"{where} must have shape {self._dataset.shape}, got {result['x'].shape}")
        return result


def data_folder(data_dir: str) -> Path:
    """The folder of prepared data sets: `data_dir`, or TFDS's default ($TFDS_DATA_DIR or ~/tensorflow_datasets)."""
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(data_dir or default).expanduser().absolute()


def open_dataset(name: str, data_dir: str = "", labels: Sequence[int] = ()) -> Dataset:
    """Open a prepared data set, NAME or NAME:VERSION; build an embedded one if it is missing.

    labels: only records with these labels are used, () for all.

    Raises:
      ValueError: if the set is not prepared, not in a format with random access, or has no images or no such label.
    """
    folder = data_folder(data_dir)
    command = f"python -m experiments.prepare --name={name} --data_dir={folder}"
    base, _, version = name.partition(":")
    path = _newest_version(folder / base, version)
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
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints "Downloading ...", but nothing is downloaded
        try:
            builder.download_and_prepare()
        except OSError:
            # Another process of the same run may have written it first.
            if _newest_version(folder / name) is None:
                raise


def _newest_version(root: Path, version: str = "") -> Path | None:
    """The newest folder with a dataset_info.json in root, or that of a version: root/[config/]version.

    Raises:
      ValueError: for a set with several configs.
    """
    folders = [path.parent for path in root.glob("**/dataset_info.json")]
    versions = [folder for folder in folders if re.fullmatch(re.escape(version) or r"\d+\.\d+\.\d+", folder.name)]
    configs = sorted({str(folder.parent.relative_to(root.parent)) for folder in versions})
    if len(configs) > 1:
        raise ValueError(f"dataset.name = {root.name!r} has several configs, name one: {', '.join(configs)}")
    return max(versions, key=lambda folder: [int(number) for number in folder.name.split(".")], default=None)


def _describe(name: str, builder: Any) -> Dataset:
    features, metadata = builder.info.features, dict(builder.info.metadata or {})
    feature = next((key for key in ("x", "image") if key in features), None)
    if feature is None:
        raise ValueError(f"dataset.name = {name!r} must have a feature 'x' or 'image', got {', '.join(features)}")
    shape, dtype = features[feature].shape, str(np.dtype(features[feature].np_dtype))
    if None in shape or not 1 <= len(shape) <= 5:
        own = "python -m experiments.prepare --images or --arrays makes a set of one shape"
        raise ValueError(f"dataset.name = {name!r} must have examples of one shape, got {shape}: {own}")
    if dtype not in DTYPES:
        raise ValueError(f"dataset.name = {name!r} must have values of type {' or '.join(DTYPES)}, got {dtype}")
    keys = ("mean", "std", "kind", "channels", "units")
    units = Units.of(
        {"dtype": dtype, "range": _range(name, metadata, dtype)} | {k: metadata[k] for k in keys if k in metadata}
    )
    kinds.check(units.kind, tuple(shape), dtype)
    label = features["label"] if "label" in features else None  # noqa: SIM401 (features has no get)
    mask = tuple(features["mask"].shape) if "mask" in features else None
    condition_fields: dict[str, Any] = {}
    if "condition" in features and "condition_mean" in metadata:
        mean, std = (tuple(metadata[f"condition_{key}"]) for key in ("mean", "std"))
        condition_fields["condition"] = tuple(features["condition"].shape)
        condition_fields["condition_units"] = Units("float32", None, mean, std, "field")
    return Dataset(name, builder, feature, tuple(shape), units, _classes(name, label), mask, **condition_fields)


def _range(name: str, metadata: dict[str, Any], dtype: str) -> tuple[float, float] | None:
    """The range of the stored values, None if they are normalised by mean and standard deviation."""
    if "range" in metadata:
        low, high = metadata["range"]
        return float(low), float(high)
    if "mean" not in metadata and dtype != "uint8":
        own = "python -m experiments.prepare --arrays measures them"
        raise ValueError(f"dataset.name = {name!r} must have a range, or mean and std, in its metadata: {own}")
    return None if "mean" in metadata else (0.0, 255.0)


def _classes(name: str, label: Any) -> tuple[str, ...] | None:
    """The names of the classes; None for a set without labels."""
    if label is None:
        return None
    if not getattr(label, "num_classes", None):
        raise ValueError(
            f"dataset.name = {name!r} must have labels of type ClassLabel, got {type(label).__name__}: "
            "python -m experiments.prepare --arrays numbers ints and strings"
        )
    return tuple(label.names)


def _json(units: Units) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(units)))
