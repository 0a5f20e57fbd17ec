"""A function of images applied to any number of images: in batches of one size, each spread over all devices."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from diffax.training import make_mesh
from diffax.training.parallel import over_batch, place


def in_batches(f: Callable, params: Any, batch: int) -> Callable[[np.ndarray], Any]:
    """The function images (N, ...) -> arrays (N, ...) on the host in the structure that f returns, for any N >= 1.

    f: (params, images), computes each image independently of the others. It compiles once: the last batch is padded.
    """
    mesh = make_mesh()
    run, params = over_batch(jax.jit(f), mesh), place(params, mesh)

    def over(images):
        if not len(images):
            raise ValueError("images must be at least one, got none")
        size, parts = min(batch, len(images)), []
        for at in range(0, len(images), size):
            part = images[at : at + size]
            parts.append(run(params, np.resize(part, (size, *part.shape[1:]))))
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(images)], *parts)

    return over
