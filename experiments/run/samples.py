"""Pictures of samples while a diffusion model trains."""

from typing import Any

import jax
import numpy as np

from diffax.training import Every
from diffax.training.parallel import over_batch
from experiments.data.images import Pictures
from experiments.run.inputs import Inputs

ROWS, COLUMNS = 8, 10


def pictures_of(
    inputs: Inputs, train_split: str, pictures: Pictures, mesh: Any, *, seed: int, sample_every: int
) -> Every:
    """Pictures of samples by the averaged parameters, always from the same noise.

    Each has a column for each of at most 10 classes or captions.
    """
    diffusion, columns = inputs.model.diffusion, min(inputs.data.num_classes or COLUMNS, COLUMNS)
    condition = np.tile(np.arange(columns), ROWS) if diffusion.condition == "label" else None
    if inputs.tokenizer is not None:
        columns = COLUMNS
        captions = inputs.dataset.captions(train_split)
        evenly_spaced = [captions[i] for i in np.linspace(0, len(captions) - 1, columns).astype(int)]
        condition = np.tile(inputs.tokenizer.encode(evenly_spaced), (ROWS, 1))
    keys = jax.random.split(jax.random.key(seed), columns * ROWS)

    @jax.jit
    def generate(params: Any, keys: Any, condition: Any) -> Any:
        return diffusion.generate(inputs.whole(params), keys, condition)

    spread = over_batch(generate, mesh)
    images = spread if inputs.space is None else inputs.space.decoded(spread, mesh)
    return Every(sample_every, lambda step, state: pictures.save(step, images(state.ema, keys, condition), columns))
