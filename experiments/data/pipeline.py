"""Batches for training by Grain: shuffled, repeated, with a position that can be saved and restored."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import grain
import numpy as np

from diffax.pretrained import Units
from experiments.data.datasets import Dataset
from experiments.data.pairs import Pairs


class Augment(NamedTuple):
    """Random changes of the examples of a training split, in this order.

    flip: mirror half of the examples along the last axis of space. crop: shift along all axes of space by at most this
    number of entries, with a mirrored border. roll: periodic axes of space, counted from 0: shift by any number of
    entries. rotate: rotate points about the origin, without reflections.
    """

    flip: bool = False
    crop: int = 0
    roll: tuple[int, ...] = ()
    rotate: bool = False

    def check(self, shape: tuple[int, ...], units: Units, condition: tuple[int, ...] | None = None) -> None:
        """Raise `ValueError` for a change that does not fit examples of this shape with these units.

        condition: shape of an array condition; a condition with the spatial axes of x changes with x.
        """
        space = len(shape) - 1
        if self.crop < 0 or self.crop >= min(shape[:-1], default=1):
            raise ValueError(f"config.dataset.crop must be in [0, {min(shape[:-1], default=1) - 1}], got {self.crop}")
        for axis in self.roll:
            if not 0 <= axis < space:
                raise ValueError(f"config.dataset.roll must name axes in [0, {space - 1}] of {shape}, got {axis}")
        if self.flip and not space:
            raise ValueError(f"config.dataset.flip must be False for data of shape {shape}, got True")
        if self.rotate and (units.kind != "points" or shape[-1] not in (2, 3)):
            raise ValueError(f"config.dataset.rotate must be False except for points in 2 or 3 dimensions, got {shape}")
        if self.rotate and len(set(units.std)) > 1:
            raise ValueError(f"config.dataset.rotate needs one standard deviation for all axes, got {units.std}")
        if self.rotate and condition is not None:
            raise ValueError(f"config.dataset.rotate must be False for data with a condition, got one of {condition}")
        for name in ("flip", "crop", "roll"):
            if getattr(self, name) and len(condition or ()) > 1 and condition[:-1] != shape[:-1]:  # type: ignore[index]
                raise ValueError(f"config.dataset.{name} must be off for x {shape} with a condition {condition}")

    def functions(self) -> list[Callable]:
        """(example, generator) -> example, for each enabled change."""
        every: dict[str, Callable] = {"flip": _flip, "crop": _crop, "roll": _roll, "rotate": _rotate}
        return [functools.partial(change, getattr(self, name)) for name, change in every.items() if getattr(self, name)]


def _flip(on: bool, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    flipped = np.ascontiguousarray(example["x"][..., ::-1, :])
    return {**example, "x": flipped} if rng.random() < 0.5 else example


def _crop(margin: int, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    x = example["x"]
    padded = np.pad(x, [(margin, margin)] * (x.ndim - 1) + [(0, 0)], "reflect")
    place = tuple(slice(start := int(rng.integers(0, 2 * margin + 1)), start + size) for size in x.shape[:-1])
    return {**example, "x": np.ascontiguousarray(padded[place])}


def _roll(axes: tuple[int, ...], example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    x = example["x"]
    return {**example, "x": np.roll(x, [int(rng.integers(0, x.shape[axis])) for axis in axes], axes)}


def _rotate(on: bool, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Rotate by a uniformly drawn rotation matrix: the orthogonal factor of a matrix of normals."""
    x = example["x"]
    orthogonal, upper = np.linalg.qr(rng.normal(size=(x.shape[-1], x.shape[-1])))
    orthogonal *= np.sign(np.diag(upper))
    if np.linalg.det(orthogonal) < 0:
        orthogonal[:, 0] *= -1
    return {**example, "x": (x @ orthogonal.T).astype(np.float32)}


def _joined(example: dict[str, Any]) -> dict[str, Any]:
    """The example with its condition as further channels of x, so that a random change is the same for both."""
    return {**example, "x": np.concatenate([example["x"], example["condition"]], -1)}


def _parted(channels: int, example: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `_joined`. channels: of x."""
    x, condition = np.split(example["x"], [channels], -1)
    return {**example, "x": x, "condition": condition}


def _number(batch: dict[str, Any], first: int, stride: int) -> dict[str, Any]:
    places = first + stride * np.arange(len(batch["x"]))
    return {**batch, "index": places.astype(np.int32)}


def _shuffled(source: Any, seed: int) -> Any:
    return grain.MapDataset.source(source).seed(seed).shuffle()


def records_of_batch(dataset: Dataset, split: str, batch_size: int, seed: int, number: int) -> list[int]:
    """The numbers, in the whole split, of the records in batch `number` (from 0) of `batches`."""
    numbers = _shuffled(dataset.source(split).numbers, seed).repeat()
    return [numbers[i] for i in range(number * batch_size, (number + 1) * batch_size)]


def batches(
    dataset: Dataset,
    split: str,
    batch_size: int,
    *,
    seed: int,
    augment: Augment = Augment(),  # noqa: B008 (never changed)
    cache: bool = False,
    num_threads: int = 2,
    share: tuple[int, int] = (0, 1),
    encode: Callable | None = None,
    instead: Callable | None = None,
    pairs: Pairs | None = None,
) -> Any:
    """An endless iterator of {x (B, *shape), label (B,), index (B,)}; with `encode` tokens (B, m), with masks `mask`.

    With array conditions, batches have `condition` (B, ...), standardised. `get_state()` returns the position and
    `set_state` restores it exactly. Batches are read by threads, not by worker processes. `augment` changes examples at
    random, and a condition with the spatial axes of x in the same way; `cache` decodes the split once and keeps it in
    memory. A batch may contain the end of one epoch and the beginning of the next: no batch is short, and each epoch
    has all examples.

    share: (p, P) for every P-th example of each batch, from p on. The P shares make up the batches of (0, 1), so a
    position is valid for any number of processes.
    encode: captions (N) -> tokens (N, m).
    instead: records of the whole split, with x as stored -> (N, ...), which replace x in the batches.
    pairs: examples in place of those of the split; batches then have `eps` (B, *shape).

    Raises:
      ValueError: if the split is smaller than a batch, or P does not divide it.
      RecordError: (from the iterator) for a record that cannot be read.
    """
    records: Any = dataset.source(split) if pairs is None else pairs
    first, stride = share
    if batch_size % stride:
        raise ValueError(f"config.dataset.batch_size must be a multiple of the {stride} processes, got {batch_size}")
    if (count := len(records)) < batch_size:
        name = f"split {split!r}" if pairs is None else "the pairs"
        raise ValueError(f"config.dataset.batch_size must be at most the {count} examples of {name}, got {batch_size}")
    normalise = dataset.normalise if instead is None and pairs is None else lambda image: image

    def example(record: dict[str, Any]) -> dict[str, Any]:
        rest = {} if encode is None else {"tokens": encode([record["caption"]])[0]}
        x = normalise(record["x"])
        if "mask" in record:  # entries of the padding must not reach the model
            mask = record["mask"]
            rest["mask"], x = mask, np.where(mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim)), x, np.float32(0))
        if dataset.condition_units is not None:
            rest["condition"] = dataset.condition_units.normalise(record["condition"])
        if "eps" in record:
            rest["eps"] = record["eps"]
        return {"x": x, "label": record["label"], **rest}

    source: Any = records
    if instead is not None:
        source = [{**record, "x": x} for record, x in zip(records, instead(records), strict=True)]
    elif cache and pairs is None:
        source = list(records)
    data = _shuffled(source, seed).map(example)
    changes = augment.functions()
    if is_joined := bool(changes) and len(dataset.condition or ()) > 1:
        data = data.map(_joined)
    for change in changes:
        data = data.random_map(change)
    if is_joined:
        data = data.map(functools.partial(_parted, dataset.shape[-1]))
    data = data.repeat()[first::stride].batch(batch_size // stride)
    data = data.map(functools.partial(_number, first=first, stride=stride))
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
    return iter(data.to_iter_dataset(options))
