"""Diffusion in the latents of a trained autoencoder.

    x0 = scale z,   z = mean(image) + exp(log_variance(image) / 2) eps,   scale = 1 / std of z over the training images

(Rombach et al. 2022, appendix D.1). In a batch, the moments (B, *small, 2 L), concatenated along the channels, replace
the images. Each use of an example draws a new code with the key of the example.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import diffax
from diffax.nn.autoencoding import reparameterise
from diffax.pretrained import Latents as ExportedLatents
from diffax.training import make_mesh
from diffax.training.parallel import over_batch
from experiments.models.autoencoder import CHUNK, AutoencoderModel
from experiments.models.objectives import Objective

SALT = 100  # folded into the key of an example; the objectives use 0 to 3


class Latents(NamedTuple):
    """A latent space. folder, step, digest: of the autoencoder's checkpoint. shape: of a code; scale: see module."""

    model: AutoencoderModel
    params: Any
    folder: Path
    step: int
    digest: str
    scale: float
    shape: tuple[int, ...]

    @property
    def moments_shape(self) -> tuple[int, ...]:
        """The shape of the moments of an image."""
        return (*self.shape[:-1], 2 * self.shape[-1])

    def identity(self) -> dict[str, Any]:
        """The values that must not change when a run is resumed."""
        return {"digest": self.digest, "scale": self.scale}

    def record(self) -> dict[str, Any]:
        """The latent space in the record of a checkpoint."""
        return {"autoencoder": str(self.folder), "step": self.step, "shape": list(self.shape), **self.identity()}

    def exported(self) -> ExportedLatents:
        """The latent space for an export."""
        return ExportedLatents(self.model.network, self.params, self.scale)

    def encoder(self, mesh: Any = None) -> Callable[[np.ndarray], np.ndarray]:
        """Images (N, *shape) -> moments (N, *small, 2 L), on the host, spread over the devices."""
        encode = over_batch(self.model.apply("encode"), mesh)
        return lambda images: np.concatenate(encode(self.params, images), -1)

    def decoded(self, generate: Callable[..., Any], mesh: Any = None) -> Callable[..., Any]:
        """`generate`, which returns scaled codes, as a function that returns images on the host."""
        decode = over_batch(self.model.apply("decode"), mesh)

        def images(*args: Any) -> np.ndarray:
            z = generate(*args) / self.scale
            return np.concatenate([decode(self.params, z[at : at + CHUNK]) for at in range(0, len(z), CHUNK)])

        return images

    def code(self, picture: np.ndarray) -> np.ndarray:
        """The scaled mean code of one picture (*shape)."""
        mean, _ = np.split(self.encoder(make_mesh(jax.local_devices()[:1]))(picture[None])[0], 2, -1)
        return self.scale * mean

    def encode_records(self, records: Any, normalise: Callable[[Any], Any], mesh: Any = None) -> np.ndarray:
        """The moments of all records of a split, (N, *small, 2 L), encoded once."""
        encode, parts, count = self.encoder(mesh), [], len(records)
        for at in range(0, count, CHUNK):
            rows = np.resize(np.arange(at, min(at + CHUNK, count)), min(CHUNK, count))
            parts.append(encode(np.stack([normalise(records[int(row)]["x"]) for row in rows]))[: count - at])
        return np.concatenate(parts)


class Encoded:
    """Batches whose images are encoded when they are read: an iterator with the position of `data`."""

    def __init__(self, data: Any, latents: Latents) -> None:
        self._data, self._encode = data, latents.encoder(make_mesh(jax.local_devices()))
        self.get_state, self.set_state = data.get_state, data.set_state

    def __iter__(self) -> "Encoded":
        return self

    def __next__(self) -> Any:
        batch = next(self._data)
        return {**batch, "x": self._encode(batch["x"])}


def wrap(latents: Latents | None, objective: Objective) -> Objective:
    """The objective on codes that are drawn from the moments in a batch. latents: None for a model of pixels."""
    if latents is None:
        return objective

    def loss(params: Any, batch: Any, keys: Any, *memory: Any, **used: Any) -> Any:
        mean, log_variance = jnp.split(batch["x"], 2, -1)
        z = reparameterise(diffax.random.fold_in(keys, SALT), mean, log_variance)
        return objective.loss(params, {**batch, "x": latents.scale * z}, keys, *memory, **used)

    return objective._replace(loss=loss)
