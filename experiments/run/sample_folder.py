"""The folder of `experiments.sample`: settings.json and shard_00000.npz .. with `samples`, `labels` and `masks`."""

import json
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.data.pairs import Pairs
from experiments.run.workdir import check_writable, lock, read_json, write_json


class Samples(NamedTuple):
    """Samples (N, *shape) in the units of the data, their labels (N,), -1 for none, and masks, None without."""

    samples: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None = None


def claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Lock a folder and write settings.json, which must not exist with other settings; `num` may grow.

    Raises:
      ValueError: if the folder is not writable, is in use, or has other settings; the error has the first difference.
    """
    check_writable(folder, "out")
    lock(folder, "out")
    settings = json.loads(json.dumps(settings))  # with lists for tuples, as in the file
    before = read_json(folder / "settings.json") or settings
    for key, value in settings.items():
        grows = key == "num" and isinstance(before.get(key), int) and before[key] < value
        if before.get(key) != value and not grows:
            raise ValueError(
                f"out {folder} has samples with {key} = {before.get(key)!r}, got {value!r}; choose another --out"
            )
    write_json(folder / "settings.json", settings)


def missing_shards(folder: Path, num: int, shard_size: int) -> Iterator[tuple[Path, np.ndarray]]:
    """(path, indices of its samples) of each shard that is missing, has too few samples, or cannot be read."""
    for number, first in enumerate(range(0, num, shard_size)):
        path, last = folder / f"shard_{number:05d}.npz", min(first + shard_size, num)
        try:
            with np.load(path) as shard:
                is_intact = {"samples", "labels"} <= set(shard.files) and len(shard["labels"]) >= last - first
        except (OSError, ValueError, zipfile.BadZipFile):
            is_intact = False
        if not is_intact:
            yield path, np.arange(first, last)


def save_shard(path: Path, samples: np.ndarray, labels: np.ndarray, **more: Any) -> None:
    """Write a shard atomically. more: arrays "masks" and "conditions", "x0" and "eps" of pairs."""
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        np.savez(file, samples=samples, labels=labels, **more)
    os.replace(part, path)


def load_samples(folder: Path, count: int, shard_size: int) -> Samples:
    """The first `count` samples of a folder.

    Raises:
      ValueError: if one of their shards is missing or cannot be read.
    """
    return Samples(**_columns(folder, count, shard_size, Samples._fields))


def load_pairs(folder: Path) -> Pairs:
    """The pairs of a folder of `experiments.sample --pairs`. Errors as of `load_samples`."""
    settings = json.loads((folder / "settings.json").read_text())
    columns = _columns(folder, settings["num"], settings["shard_size"], ("x0", "eps", "labels"))
    return Pairs(columns["x0"], columns["eps"], columns["labels"], settings["pairs"]["digest"])


def _columns(folder: Path, count: int, shard_size: int, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The first `count` rows of those columns that the shards have."""
    for path, _ in missing_shards(folder, count, shard_size):
        raise ValueError(f"samples {folder} lacks {path.name}: run experiments.sample again to finish it")
    shards = [np.load(folder / f"shard_{number:05d}.npz") for number in range(-(-count // shard_size))]
    return {
        name: np.concatenate([shard[name] for shard in shards])[:count] for name in names if name in shards[0].files
    }
