"""Write a data set: TFDS in the array_record format, with statistics of the training split in its metadata."""

import contextlib
import io
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from diffax.pretrained import Units
from experiments.data import kinds
from experiments.data.datasets import EMBEDDED
from experiments.data.sources import Source


class Statistics:
    """Mean and standard deviation of each channel in one pass, in float64.

    Blocks are merged by their deviations from their means (Chan et al. 1983), so that a large offset loses no digits.
    """

    def __init__(self) -> None:
        self.count, self.mean, self._squares = 0, np.zeros(()), np.zeros(())

    def add(self, x: np.ndarray, mask: np.ndarray | None = None) -> None:
        """Add an example (..., C), only the entries inside the mask."""
        rows = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
        if mask is not None:
            whole = np.broadcast_to(mask.reshape(mask.shape + (1,) * (x.ndim - 1 - mask.ndim)), x.shape[:-1])
            rows = rows[whole.reshape(-1)]
        if not len(rows):
            return
        mean, total = rows.mean(0), self.count + len(rows)
        gap = mean - self.mean
        self._squares = self._squares + ((rows - mean) ** 2).sum(0) + gap**2 * (self.count * len(rows) / total)
        self.mean = self.mean + gap * (len(rows) / total)
        self.count = total

    @property
    def std(self) -> np.ndarray:
        """The standard deviation of each channel; 1 where a channel is constant."""
        std = np.sqrt(self._squares / max(self.count, 1))
        return np.where(std > 0, std, 1.0)

    def std_of(self, source: Source) -> np.ndarray:
        """The standard deviations to normalise by: sets of points have one for all axes, which keeps angles."""
        if source.kind != "points" or len(source.shape) < 2:
            return self.std
        return np.full_like(self.std, np.sqrt(np.mean(self.std**2)))


def units(source: Source, examples: Iterable[np.ndarray]) -> Units:
    """The units of a source, with the statistics of these examples where it has no range."""
    statistics = Statistics()
    if source.range is None:
        for x in examples:
            statistics.add(x)
    own = (statistics.mean, statistics.std_of(source)) if source.range is None else ((), ())
    mean, std = (tuple(map(float, values)) for values in own)
    return Units(source.dtype, source.range, mean, std, source.kind, source.channels, source.units)


def check(name: str, source: Source, folder: Path) -> None:
    """Raise `ValueError` for a name that is not a lower-case identifier or is taken, or a kind that does not fit."""
    if not name.isidentifier() or name != name.lower():
        raise ValueError(f"name must be a word in lower case such as my_photos, got {name!r}")
    if name in EMBEDDED:
        raise ValueError(f"name must not be that of an embedded set ({', '.join(EMBEDDED)}), got {name!r}")
    if any(".incomplete" not in path.name for path in (folder / name).glob("*")):
        raise ValueError(f"name must be new, got {name!r}, which is in {folder} already: choose another, or delete it")
    kinds.check(source.kind, source.shape, source.dtype)


def write(name: str, source: Source, splits: dict[str, np.ndarray], folder: Path) -> Path:
    """Write a data set to folder/NAME, which is removed if writing fails.

    Raises:
      ValueError: as `check`.
    """
    check(name, source, folder)
    builder = _builder(name, source, splits)(data_dir=str(folder), file_format="array_record")
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints "Downloading ...", but nothing is downloaded
            builder.download_and_prepare()
    except BaseException:
        shutil.rmtree(folder / name, ignore_errors=True)
        raise
    return Path(builder.data_path)


def _builder(name: str, source: Source, splits: dict[str, np.ndarray]) -> Any:
    """The class of a TFDS builder that writes these examples."""
    # The splits are train and test; TFDS does not allow "-" or ":" in their names.
    features: dict[str, Any] = {"x": tfds.features.Tensor(shape=source.shape, dtype=np.dtype(source.dtype).type)}
    if "label" in source.features:
        features["label"] = tfds.features.ClassLabel(names=list(source.classes))
    if "caption" in source.features:
        features["caption"] = tfds.features.Text()
    if "condition" in source.features:
        features["condition"] = tfds.features.Tensor(shape=source.shapes["condition"], dtype=np.float32)
    if "mask" in source.features:
        features["mask"] = tfds.features.Tensor(shape=source.shapes["mask"], dtype=np.uint8)
    metadata: dict[str, Any] = {
        "kind": source.kind,
        "channels": list(source.channels),
        "units": list(source.units),
        **({"range": list(source.range)} if source.range else {}),
    }
    statistics, condition_statistics = Statistics(), Statistics()

    class Prepared(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        """Examples of a source."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                description="\n".join(source.report) or name,
                features=tfds.features.FeaturesDict(features),
                metadata=tfds.core.MetadataDict(metadata),
            )

        def _split_generators(self, dl_manager: Any) -> Any:
            return {key: self._generate_examples(key, index) for key, index in splits.items()}

        def _generate_examples(self, key: str, index: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:  # type: ignore[override]
            for number in index:
                example = source.example(int(number))
                mask = example.get("mask")
                if key == "train" and source.range is None:
                    statistics.add(example["x"], mask)
                if key == "train" and "condition" in example:
                    condition = example["condition"]
                    is_inside = mask is not None and condition.ndim > 1 and condition.shape[: mask.ndim] == mask.shape
                    condition_statistics.add(condition, mask if is_inside else None)
                if mask is not None:
                    example = {**example, "mask": mask.astype(np.uint8)}
                yield int(number), example
            if key == "train" and source.range is None:  # TFDS writes the metadata after the records
                self.info.metadata.update(mean=statistics.mean.tolist(), std=statistics.std_of(source).tolist())
            if key == "train" and "condition" in source.features:
                measured = {
                    "condition_mean": condition_statistics.mean.tolist(),
                    "condition_std": condition_statistics.std.tolist(),
                }
                self.info.metadata.update(measured)

    Prepared.name = name
    return Prepared
