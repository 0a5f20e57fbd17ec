"""A function of images over as many as there are: in batches of one size, each spread over all devices."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from diffax.training import make_mesh
from diffax.training.parallel import over_batch, place


def in_batches(f: Callable, params: Any, batch: int) -> Callable[[np.ndarray], Any]:
    """`f(params, images)`, which treats each image by itself, as a function of any N >= 1 images on the host.

    Returns:
      images (N, ...) -> arrays (N, ...) in the structure that f gives. One compile: the last batch is filled up.
    """
    mesh = make_mesh()
    run, params = over_batch(jax.jit(f), mesh), place(params, mesh)

    def over(images):
        if not len(images):
            raise ValueError("images must be at least one, got none")
        size, parts = min(batch, len(images)), []
        for at in range(0, len(images), size):
            part = images[at : at + size]
            found = run(params, np.resize(part, (size, *part.shape[1:])))
            parts.append(found)
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(images)], *parts)

    return over
