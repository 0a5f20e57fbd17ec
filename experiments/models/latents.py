"""Diffusion in the latents of a trained autoencoder: images to scaled draws of their codes, and samples back to images.

    x0 = scale z,   z = mean(image) + exp(log_variance(image) / 2) eps,   scale = 1 / std of z over the training images

(Rombach et al. 2022, appendix D.1). What a batch holds in place of images is the moments, side by side in the channels,
(B, *small, 2 L): each use of an example draws its code anew, by the example's key.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import diffax
from diffax.nn.autoencoding import reparameterise
from diffax.training import make_mesh
from diffax.training.parallel import over_batch
from experiments.models import autoencoder
from experiments.models.objectives import Objective

OF_THE_CODE = 100  # what its key is folded with; the objectives use 0 to 3


class Latents(NamedTuple):
    """A latent space. shape: of a code; scale: what codes are multiplied by."""

    trained: autoencoder.Trained
    shape: tuple[int, ...]
    scale: float

    @property
    def moments_shape(self) -> tuple[int, ...]:
        """Of what a batch holds for an image."""
        return (*self.shape[:-1], 2 * self.shape[-1])

    def identity(self) -> dict[str, Any]:
        """What a run and its continuation must agree on."""
        return {"digest": self.trained.digest, "scale": self.scale}

    def record(self) -> dict[str, Any]:
        """What a checkpoint says of it."""
        place = {"autoencoder": str(self.trained.folder), "step": self.trained.step, "shape": list(self.shape)}
        return place | self.identity()


def check(config: Any) -> None:
    """Raises `ValueError` for settings that have no meaning for latents."""
    if not config.latent.autoencoder:
        return
    with_latents = f"with config.latent.autoencoder = {config.latent.autoencoder!r}"
    if config.sampling.clip:
        raise ValueError(f"config.sampling.clip must be False {with_latents}: latents have no range, got True")
    if config.loss.objective != "denoising":
        raise ValueError(f"config.loss.objective must be denoising {with_latents}, got {config.loss.objective!r}")
    if config.dataset.flip and config.latent.cache:
        raise ValueError(f"config.latent.cache must be False {with_latents} and config.dataset.flip, got True")


def open_latents(config: Any, dataset: Any) -> Latents | None:
    """The latent space that a config names, None for pixels.

    Raises:
      ValueError: if the folder holds no finished autoencoder, or one of other images.
    """
    if not config.latent.autoencoder:
        return None
    folder = Path(config.latent.autoencoder).expanduser().absolute()
    trained, std = autoencoder.load_finished(folder)
    if trained.shape != dataset.shape:
        raise ValueError(
            f"config.latent.autoencoder must be one of images {dataset.shape}, got {folder} of {trained.shape}"
        )
    return _space(trained, 1 / std)


def of_record(record: dict[str, Any] | None, folder: str | None = None) -> Latents | None:
    """The latent space that a checkpoint's record names, None for pixels. folder: where it is now, if it was moved.

    Raises:
      ValueError: if another autoencoder is there, or none; or a folder is given and none is needed.
    """
    if record is None:
        if folder is not None:
            raise ValueError(f"autoencoder must not be given for a model of pixels, got {folder}")
        return None
    trained = autoencoder.load(Path(folder or record["autoencoder"]).expanduser().absolute(), "autoencoder")
    if trained.digest != record["digest"]:
        raise ValueError(
            f"autoencoder must be that of step {record['step']} with digest {record['digest']}, which the model was "
            f"trained with, got {trained.folder} at step {trained.step} with {trained.digest}"
        )
    return _space(trained, record["scale"])


def _space(trained: autoencoder.Trained, scale: float) -> Latents:
    x = jnp.zeros((1, *trained.shape))
    mean, _ = jax.eval_shape(trained.apply("encode"), trained.params, x)
    return Latents(trained, mean.shape[1:], scale)


def encoder(space: Latents, mesh: Any = None) -> Callable:
    """images (N, *shape) -> moments (N, *small, 2 L), on the host, spread over the devices."""
    encode, params = over_batch(space.trained.apply("encode"), mesh), space.trained.params
    return lambda images: np.concatenate(encode(params, images), -1)


def decoder(space: Latents, mesh: Any = None) -> Callable:
    """Scaled codes (N, *small, L) -> images (N, *shape), on the host."""
    decode, params, scale = over_batch(space.trained.apply("decode"), mesh), space.trained.params, space.scale

    def images(x0):
        parts = [decode(params, x0[at : at + autoencoder.CHUNK] / scale) for at in range(0, len(x0), autoencoder.CHUNK)]
        return np.concatenate(parts)

    return images


def decoded(generate: Callable, space: Latents | None, mesh: Any = None) -> Callable:
    """A function whose samples are images: `generate` itself for pixels."""
    if space is None:
        return generate
    images = decoder(space, mesh)
    return lambda *args: images(generate(*args))


def code(space: Latents | None, picture: Any) -> Any:
    """The scaled mean code of one picture (*shape), as img2img starts from it; the picture itself for pixels."""
    if space is None or picture is None:
        return picture
    mean, _ = np.split(encoder(space, make_mesh(jax.local_devices()[:1]))(picture[None])[0], 2, -1)
    return space.scale * mean


def encode_split(space: Latents, records: Any, normalise: Callable, mesh: Any = None) -> np.ndarray:
    """The moments of all records of a split, (N, *small, 2 L), encoded once."""
    encode, parts, count = encoder(space, mesh), [], len(records)
    for at in range(0, count, autoencoder.CHUNK):
        places = np.resize(np.arange(at, min(at + autoencoder.CHUNK, count)), min(autoencoder.CHUNK, count))
        moments = encode(np.stack([normalise(records[int(place)]["image"]) for place in places]))
        parts.append(moments[: count - at])
    return np.concatenate(parts)


class Encoded:
    """Batches whose images are encoded on the fly: an iterator with the position of the one that it reads."""

    def __init__(self, data: Any, space: Latents):
        self._data, self._encode = data, encoder(space, make_mesh(jax.local_devices()))
        self.get_state, self.set_state = data.get_state, data.set_state

    def __iter__(self):
        return self

    def __next__(self):
        batch = next(self._data)
        return {**batch, "image": self._encode(batch["image"])}


def batches(space: Latents, read: Callable, dataset: Any, mesh: Any, config: Any) -> Any:
    """The batches of a run, with moments for images. read: (instead=, cache=) -> batches of images."""
    if not config.latent.cache:
        return Encoded(read(cache=config.dataset.cache), space)
    return read(instead=lambda records: encode_split(space, records, dataset.normalise, mesh))


def objective(inner: Objective, space: Latents | None) -> Objective:
    """The objective on scaled draws of the codes whose moments a batch holds; `inner` itself for pixels."""
    if space is None:
        return inner

    def loss(params, batch, keys, *past):
        mean, log_variance = jnp.split(batch["image"], 2, -1)
        z = reparameterise(diffax.random.fold_in(keys, OF_THE_CODE), mean, log_variance)
        return inner.loss(params, {**batch, "image": space.scale * z}, keys, *past)

    return inner._replace(loss=loss)
