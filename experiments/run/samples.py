"""Pictures of samples during the training of a diffusion model."""

from typing import Any

import jax
import numpy as np

from diffax.training import Every
from diffax.training.parallel import over_batch
from experiments.data.pictures import Pictures
from experiments.run.inputs import Inputs

ROWS, COLUMNS = 8, 10


def pictures_of(
    inputs: Inputs, train_split: str, test_split: str, pictures: Pictures, mesh: Any, *, seed: int, sample_every: int
) -> Every:
    """Pictures of samples by the averaged parameters, always from the same noise.

    Each has a column for each of at most 10 classes, captions, or array conditions of the test split.
    """
    diffusion, columns = inputs.model.diffusion, min(inputs.data.num_classes or COLUMNS, COLUMNS)
    condition, titles, masks = None, inputs.data.classes[:columns], {}
    if diffusion.condition == "label":
        condition = np.tile(np.arange(columns), ROWS)
    else:
        titles = ()
    if inputs.tokenizer is not None:
        columns = COLUMNS
        captions = inputs.dataset.captions(train_split)
        evenly_spaced = [captions[i] for i in np.linspace(0, len(captions) - 1, columns).astype(int)]
        condition, titles = np.tile(inputs.tokenizer.encode(evenly_spaced), (ROWS, 1)), tuple(evenly_spaced)
    if inputs.data.condition_units is not None:
        columns = COLUMNS
        rows = _conditioning(inputs, test_split, train_split)
        condition = inputs.data.condition_units.normalise(np.stack([row["condition"] for row in rows]))
    elif inputs.data.mask is not None:
        records = inputs.dataset.source(train_split)
        rows = [records[i % len(records)] for i in range(columns * ROWS)]
    if inputs.data.mask is not None:
        masks["mask"] = np.stack([row["mask"] for row in rows])
    keys = jax.random.split(jax.random.key(seed), columns * ROWS)

    @jax.jit
    def generate(params: Any, keys: Any, condition: Any, masks: Any) -> Any:
        return diffusion.generate(inputs.whole(params), keys, condition, **masks)

    spread = over_batch(generate, mesh)
    images = spread if inputs.space is None else inputs.space.decoded(spread, mesh)

    def save(step: int, state: Any) -> None:
        pictures.save(step, images(state.ema, keys, condition, masks), columns, titles, **masks)

    return Every(sample_every, save)


def _conditioning(inputs: Inputs, *splits: str) -> list[dict[str, Any]]:
    """Evenly spaced records of the first of these splits that exists, one for each column, repeated in each row."""
    for split in splits:
        try:
            records = inputs.dataset.source(split)
        except ValueError:
            continue
        evenly_spaced = [records[int(i)] for i in np.linspace(0, len(records) - 1, COLUMNS)]
        return evenly_spaced * ROWS
    raise ValueError(f"one of the splits {' and '.join(splits)} must have records")
