"""The autoencoder of latent diffusion: its training, and the standard deviation of its latents.

A finished run has `latents.json`: the standard deviation of the latents of its training images, and the digest of the
measured checkpoint. A checkpoint with another digest is not accepted with this file.
"""

import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffax
from diffax._checks import choose
from diffax._pytrees import pytree, static
from diffax.nn.autoencoder import Autoencoder
from diffax.nn.autoencoding import RECONSTRUCTIONS, autoencoder_loss, kl_to_standard_normal
from diffax.nn.description import autoencoder_from_description
from diffax.training import Every
from diffax.training.parallel import over_batch
from experiments.configs.settings import at
from experiments.data.pictures import Pictures
from experiments.models.digests import digest
from experiments.models.objectives import Objective
from experiments.models.optimizers import Optimizer

LATENTS = "latents.json"
MEASURES = ("reconstruction_error", "kl")
CHUNK = 200  # images encoded or decoded at a time
TEST_IMAGES, TRAINING_IMAGES = 1000, 10_000  # numbers of images for the errors and for the scale of the latents
COLUMNS, ROWS = 10, 4


def of_settings(settings: dict[str, Any], shape: tuple[int, ...], optimizer: Optimizer) -> "AutoencoderModel":
    """The model of config.autoencoder, for images of this shape."""
    kl_weight, reconstruction = settings.pop("kl_weight"), settings.pop("reconstruction")
    choose("config.autoencoder.reconstruction", reconstruction, RECONSTRUCTIONS)
    description = settings | {"sample_channels": shape[-1]}
    with at("config.autoencoder"):
        autoencoder_from_description(description)
    return AutoencoderModel(kl_weight, optimizer, json.dumps(description), reconstruction, shape)


@pytree
class AutoencoderModel:
    """An autoencoder. network: its description, as JSON; shape: of an image."""

    kl_weight: Any
    optimizer: Optimizer
    network: str = static()
    reconstruction: str = static()
    shape: tuple[int, ...] = static()

    @property
    def module(self) -> Autoencoder:
        """The network."""
        return autoencoder_from_description(json.loads(self.network))

    def init(self, key: Any) -> Any:
        """The first parameters."""
        return self.module.init(key, jnp.zeros((1, *self.shape)))["params"]

    def objective(self) -> Objective:
        """The reconstruction error and the KL divergence of each image."""
        net, weights = self.module, {"kl_weight": self.kl_weight, "reconstruction": self.reconstruction}

        def loss(params: Any, batch: Any, keys: Any) -> Any:
            encode, decode = (lambda x, m=m: net.apply({"params": params}, x, method=m) for m in ("encode", "decode"))
            return autoencoder_loss(diffax.random.fold_in(keys, 0), encode, decode, batch["x"], **weights)

        return Objective(loss)

    def apply(self, method: str) -> Callable[..., Any]:
        """`encode` or `decode` as a jitted function of (params, x)."""
        net = self.module
        return jax.jit(lambda params, x: net.apply({"params": params}, x, method=method))

    def latent_shape(self, params: Any) -> tuple[int, ...]:
        """The shape of a code."""
        mean, _ = jax.eval_shape(self.apply("encode"), params, jnp.zeros((1, *self.shape)))
        return tuple(mean.shape[1:])


def callbacks(
    model: AutoencoderModel,
    images: np.ndarray,
    pictures: Pictures,
    mesh: Any,
    sample_every: int,
    checkpoint_every: int,
) -> list[Every]:
    """Test images beside their reconstructions, and their mean errors at each checkpoint."""
    net = model.module

    @jax.jit
    def reconstruct(params: Any, x: Any) -> Any:
        y, mean, log_variance = net.apply({"params": params}, x)
        return y, ((x - y) ** 2).mean(range(1, x.ndim)), kl_to_standard_normal(mean, log_variance)

    spread = over_batch(reconstruct, mesh)
    columns = min(COLUMNS, len(images))

    def draw(step: int, state: Any) -> None:
        shown = images[: min(ROWS, len(images) // columns) * columns]
        back, *_ = spread(state.ema, shown)
        rows = [part[at : at + columns] for at in range(0, len(shown), columns) for part in (shown, back)]
        pictures.save(step, np.concatenate(rows), columns)

    def measure(step: int, state: Any) -> dict[str, float]:
        chunks = [images[at : at + CHUNK] for at in range(0, len(images), CHUNK)]
        _, errors, nats = (np.concatenate(part) for part in zip(*(spread(state.ema, x) for x in chunks), strict=True))
        error, nat = float(errors.mean()), float(nats.mean())
        pictures.message(f"on test: mean square error {error:.5f}, KL {nat:.1f} nats")
        return dict(zip(MEASURES, (error, nat), strict=True))

    return [Every(sample_every, draw), Every(checkpoint_every, measure)]


def latent_std(model: AutoencoderModel, params: Any, images: np.ndarray, mesh: Any) -> float:
    """The standard deviation of all numbers of the latents of images (N, *shape): one number for the whole latent.

    Computed from moments, without random draws: Var z = E[mean^2 + variance] - (E mean)^2.
    """
    encode = over_batch(model.apply("encode"), mesh)
    first, second = [], []
    for start in range(0, len(images), CHUNK):
        mean, log_variance = (v.astype(np.float64) for v in encode(params, images[start : start + CHUNK]))
        first.append(mean.mean() * len(mean))
        second.append((mean**2 + np.exp(log_variance)).mean() * len(mean))
    return float(np.sqrt(np.sum(second) / len(images) - (np.sum(first) / len(images)) ** 2))


def measure_latents(model: AutoencoderModel, params: Any, images: np.ndarray, step: int, mesh: Any) -> dict[str, Any]:
    """The content of latents.json."""
    mark, std = digest(model.network, list(model.shape), params), latent_std(model, params, images, mesh)
    return {"step": step, "digest": mark, "std": std, "images": len(images)}
