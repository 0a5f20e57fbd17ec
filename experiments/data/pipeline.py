"""Batches for training by Grain: shuffled, repeated, with a position that can be saved and restored."""

import functools
from collections.abc import Callable
from typing import Any

import grain
import numpy as np

from experiments.data.datasets import Dataset


def _flip(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    flipped = np.ascontiguousarray(example["image"][..., ::-1, :])
    return {**example, "image": flipped} if rng.random() < 0.5 else example


def _number(batch: dict[str, Any], first: int, stride: int) -> dict[str, Any]:
    places = first + stride * np.arange(len(batch["image"]))
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
    flip: bool = False,
    cache: bool = False,
    num_threads: int = 2,
    share: tuple[int, int] = (0, 1),
    encode: Callable | None = None,
    instead: Callable | None = None,
) -> Any:
    """An endless iterator of {image (B, *shape) in [-1, 1], label (B,), index (B,)}; with `encode` tokens (B, m) too.

    Its position is `get_state()`, and `set_state` goes back to it exactly. Threads, not worker processes.
    `flip` mirrors half of the images; `cache` decodes the split once and keeps it in memory. A batch may contain the
    end of one epoch and the beginning of the next: no batch is short, and each epoch has all examples.

    share: (p, P) for every P-th example of each batch, from p on. The P shares make up the batches of (0, 1), so a
    position is valid for any number of processes.
    encode: captions (N) -> tokens (N, m).
    instead: records of the whole split, with images as stored -> (N, ...), which replace the images in the batches.

    Raises:
      ValueError: if the split is smaller than a batch, or P does not divide it.
      RecordError: (from the iterator) for a record that cannot be read.
    """
    records, (first, stride) = dataset.source(split), share
    if batch_size % stride:
        raise ValueError(f"config.dataset.batch_size must be a multiple of the {stride} processes, got {batch_size}")
    if (count := len(records)) < batch_size:
        raise ValueError(
            f"config.dataset.batch_size must be at most the {count} examples of split {split!r}, got {batch_size}"
        )
    normalise = dataset.normalise if instead is None else lambda image: image

    def example(record: dict[str, Any]) -> dict[str, Any]:
        tokens = {} if encode is None else {"tokens": encode([record["caption"]])[0]}
        return {"image": normalise(record["image"]), "label": record["label"], **tokens}

    source: Any = records
    if instead is not None:
        source = [{**record, "image": image} for record, image in zip(records, instead(records), strict=True)]
    elif cache:
        source = list(records)
    data = _shuffled(source, seed).map(example)
    if flip:
        data = data.random_map(_flip)
    data = data.repeat()[first::stride].batch(batch_size // stride)
    data = data.map(functools.partial(_number, first=first, stride=stride))
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
    return iter(data.to_iter_dataset(options))
