"""The autoencoder of latent diffusion: from a config to the network and its loss, and from a workdir to a trained one.

A finished run holds `latents.json`: the standard deviation of the latents of its training images, and the digest of the
checkpoint that it was measured with. A checkpoint with another digest is not used with it.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import diffax
from diffax._checks import choose
from diffax.nn.autoencoder import Autoencoder
from diffax.nn.autoencoding import RECONSTRUCTIONS, autoencoder_loss
from diffax.training import Checkpoints
from diffax.training.parallel import over_batch
from experiments.models import build
from experiments.run.workdir import load_record, read_json

KIND = "autoencoder"  # what the record of its checkpoints says under "model"
LATENTS = "latents.json"
CHUNK = 200  # images that are encoded or decoded at a time


class Network(NamedTuple):
    """The autoencoder of a config, as `training` takes networks; `of` an image's channels it is the Linen module."""

    settings: Any

    def of(self, channels: int) -> Autoencoder:
        """The network for images of so many channels."""
        settings = self.settings
        return Autoencoder(
            sample_channels=channels,
            latent_channels=settings["latent_channels"],
            channels=settings["channels"],
            channel_multipliers=tuple(settings["channel_multipliers"]),
            num_res_blocks=settings["num_res_blocks"],
            attention=settings["attention"],
            dtype=build.DTYPES[settings["dtype"]],
        )

    def init(self, key: Any, x: Any, *others: Any) -> Any:
        """The first parameters; it has no time to be told."""
        return self.of(x.shape[-1]).init(key, x)


class Trained(NamedTuple):
    """A trained autoencoder with its EMA parameters. shape: of an image; digest: of all that decides its latents."""

    net: Autoencoder
    params: Any
    folder: Path
    step: int
    shape: tuple[int, ...]
    digest: str

    def apply(self, method: str) -> Callable:
        """`encode` or `decode` as a jitted function of (params, x)."""
        return jax.jit(lambda params, x: self.net.apply({"params": params}, x, method=method))


def check(config: Any) -> None:
    """Raises `ValueError` for settings of config.autoencoder that cannot be."""
    settings = config.autoencoder
    for key in ("channels", "num_res_blocks", "latent_channels"):
        if settings[key] < 1:
            raise ValueError(f"config.autoencoder.{key} must be >= 1, got {settings[key]}")
    if not settings.kl_weight >= 0:
        raise ValueError(f"config.autoencoder.kl_weight must be >= 0, got {settings.kl_weight}")
    choose("config.autoencoder.reconstruction", settings.reconstruction, RECONSTRUCTIONS)
    choose("config.autoencoder.dtype", settings.dtype, build.DTYPES)


def network(config: Any, num_classes: int | None) -> Network:
    """The autoencoder of a config."""
    return Network(config.autoencoder.to_dict())


def loss(config: Any, net: Autoencoder) -> Callable:
    """(params, batch, keys (B,)) -> the loss of each example."""
    settings = config.autoencoder
    weights = {"kl_weight": settings.kl_weight, "reconstruction": settings.reconstruction}

    def per_example(params, batch, keys):
        encode, decode = (lambda x, m=m: net.apply({"params": params}, x, method=m) for m in ("encode", "decode"))
        return autoencoder_loss(diffax.random.fold_in(keys, 0), encode, decode, batch["image"], **weights)

    return per_example


def load(folder: Path, name: str = "config.latent.autoencoder") -> Trained:
    """The newest checkpoint of a run of `experiments.train_autoencoder`, finished or not. name: for the error.

    Raises:
      ValueError: if the folder holds none.
    """
    step, record = load_record(folder, name)
    if step is None or record.get("model") != KIND:
        raise ValueError(f"{name} must be a workdir of experiments.train_autoencoder, got {folder}")
    settings, shape = record["config"]["autoencoder"], tuple(record["data"]["shape"])
    net = Network(settings).of(shape[-1])
    like = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, *shape)))["params"])
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        params = jax.device_put(jax.device_get(checkpoints.restore_ema(step, like)))  # bound to no device
    return Trained(net, params, folder, step, shape, _digest(settings, shape, params))


def load_finished(folder: Path, name: str = "config.latent.autoencoder") -> tuple[Trained, float]:
    """(the autoencoder, the standard deviation of its latents) of a run that went to its end.

    Raises:
      ValueError: if the folder holds none, or latents.json is not of its newest checkpoint.
    """
    trained = load(folder, name)
    measured = read_json(folder / LATENTS)
    if measured is None or measured["digest"] != trained.digest:
        of = "is not there" if measured is None else f"is of step {measured['step']}"
        raise ValueError(
            f"{name} must be a finished run, got {folder}, where {LATENTS} {of} and the checkpoint of step "
            f"{trained.step}: run experiments.train_autoencoder on it to its end"
        )
    return trained, measured["std"]


def pictures(dataset: Any, split: str, limit: int) -> np.ndarray:
    """Up to `limit` images of a split in [-1, 1], evenly spaced: (N, *shape)."""
    source = dataset.source(split)
    places = np.linspace(0, len(source) - 1, min(limit, len(source))).astype(int)
    return np.stack([dataset.normalise(source[int(place)]["image"]) for place in places])


def latent_std(trained: Trained, images: np.ndarray, mesh: Any) -> float:
    """The standard deviation of all numbers of the latents of images (N, *shape), drawn: one for the whole latent.

    By their moments, so nothing is drawn: Var z = E[mean^2 + variance] - (E mean)^2.
    """
    encode = over_batch(trained.apply("encode"), mesh)
    first, second = [], []
    for at in range(0, len(images), CHUNK):
        mean, log_variance = (v.astype(np.float64) for v in encode(trained.params, images[at : at + CHUNK]))
        first.append(mean.mean() * len(mean))
        second.append((mean**2 + np.exp(log_variance)).mean() * len(mean))
    return float(np.sqrt(np.sum(second) / len(images) - (np.sum(first) / len(images)) ** 2))


def _digest(settings: dict[str, Any], shape: tuple[int, ...], params: Any) -> str:
    digest = hashlib.blake2b(json.dumps([settings, shape], sort_keys=True).encode(), digest_size=16)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()
