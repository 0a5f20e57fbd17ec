"""Batches for training by Grain: shuffled, repeated, with a position that can be saved and restored."""

from typing import Any

import grain
import numpy as np

from experiments.data.datasets import Dataset


def _to_example(dataset: Dataset):
    def convert(record):
        label = np.int32(record["label"]) if dataset.num_classes else np.int32(0)
        return {"image": dataset.normalise(record["image"]), "label": label}

    return convert


def _flip(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    flipped = np.ascontiguousarray(example["image"][..., ::-1, :])
    return {**example, "image": flipped} if rng.random() < 0.5 else example


def _number(batch: dict[str, Any]) -> dict[str, Any]:
    return {**batch, "index": np.arange(len(batch["image"]), dtype=np.int32)}


def batches(
    dataset: Dataset,
    split: str,
    batch_size: int,
    *,
    seed: int,
    flip: bool = False,
    cache: bool = False,
    num_threads: int = 2,
) -> Any:
    """An endless iterator of {image (B, *shape) in [-1, 1], label (B,), index (B,)}.

    Its position is `get_state()`, and `set_state` goes back to it exactly. Threads, not worker processes.
    `flip` mirrors half of the images; `cache` decodes the split once and keeps it in memory.

    Raises:
      ValueError: if the split is smaller than a batch.
    """
    source = dataset.source(split)
    if len(source) < batch_size:
        raise ValueError(
            f"dataset.batch_size must be at most the {len(source)} examples of split {split!r}, got {batch_size}"
        )
    if cache:
        source = list(source)
    data = grain.MapDataset.source(source).seed(seed).shuffle().map(_to_example(dataset))
    if flip:
        data = data.random_map(_flip)
    data = data.repeat().batch(batch_size).map(_number)
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
    return iter(data.to_iter_dataset(options))
