"""A small classifier of real images, for the accuracy of samples and for features of the Fréchet distance."""

import json
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from experiments.evaluation.batches import in_batches

FEATURES = 64


class Classifier(nn.Module):
    """Convolutions down to 4x4 pixels, a dense layer of 64 features, a linear head.

    x: (B, H, W, C) in [-1, 1]; returns logits (B, num_classes) and features (B, 64).
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: Any, *, key: Any = None) -> tuple[Any, Any]:
        """`key` switches dropout on."""
        x = nn.relu(nn.Conv(32, (3, 3))(x))
        while min(x.shape[1:3]) > 4:
            x = nn.relu(nn.Conv(64, (3, 3), strides=2)(x))
            x = nn.relu(nn.Conv(64, (3, 3))(x))
        x = x.reshape(len(x), -1)
        x = nn.Dropout(0.3, deterministic=key is None)(x, rng=key)
        features = nn.relu(nn.Dense(FEATURES)(x))
        return nn.Dense(self.num_classes)(features), features


def augment(key: Any, images: Any) -> Any:
    """Shift each image by up to one pixel in each direction and add a little noise."""
    shift_key, noise_key = jax.random.split(key)
    height, width = images.shape[1:3]
    shifts = jax.random.randint(shift_key, (len(images), 2), 0, 3)
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")

    def cut(image, shift):
        return jax.lax.dynamic_slice(image, (shift[0], shift[1], 0), (height, width, image.shape[-1]))

    shifted = jax.vmap(cut)(padded, shifts)
    return shifted + 0.1 * jax.random.normal(noise_key, images.shape)


def train(images: np.ndarray, labels: np.ndarray, num_classes: int, *, num_steps: int, seed: int = 0) -> Any:
    """The parameters of a classifier trained on images (N, H, W, C) in [-1, 1] and labels (N,).

    The same data and seed give the same classifier on the same machine.
    """
    net = Classifier(num_classes)
    init_key, train_key = jax.random.split(jax.random.key(seed))
    params = net.init(init_key, jnp.asarray(images[:1]))
    optimizer = optax.adamw(optax.cosine_decay_schedule(2e-3, num_steps), weight_decay=1e-3)
    data, targets = jnp.asarray(images), jnp.asarray(labels)

    def loss(params, x, y, key):
        logits, _ = net.apply(params, x, key=key)
        soft = optax.smooth_labels(jax.nn.one_hot(y, num_classes), 0.05)
        return optax.softmax_cross_entropy(logits, soft).mean()

    @jax.jit
    def step(params, state, key):
        pick, shift, drop = jax.random.split(key, 3)
        index = jax.random.randint(pick, (64,), 0, len(data))
        grads = jax.grad(loss)(params, augment(shift, data[index]), targets[index], drop)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    # A loop, not a scan: XLA's CPU convolutions are several times slower inside a scan.
    for key in jax.random.split(train_key, num_steps):
        params, state = step(params, state, key)
    return jax.device_get(params)


def judge(params: Any) -> Callable:
    """`classify(images) -> (labels (N,), features (N, 64))` on host arrays, spread over all devices."""
    net = Classifier(len(params["params"]["Dense_1"]["bias"]))
    run = in_batches(net.apply, params, 500)

    def classify(images):
        logits, features = run(images)
        return np.argmax(logits, -1), features

    return classify


def save(path: Path, params: Any, settings: dict[str, Any]) -> None:
    """Write the parameters and the settings of their training (JSON) atomically."""
    flat = {f"/{name}": np.asarray(leaf) for name, leaf in flatten_dict(params, sep="/").items()}
    # Each process has its own temporary file, because several may train the same classifier at once.
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with part.open("wb") as file:
        np.savez(file, settings=np.array(json.dumps(settings, sort_keys=True)), **flat)  # type: ignore[arg-type]
    os.replace(part, path)


def load(path: Path, settings: dict[str, Any]) -> Any:
    """The parameters of a file.

    Raises:
      ValueError: for a file that is not one of `save`, is damaged, or has other settings; with the first difference.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            saved = json.loads(str(file["settings"]))
            params = unflatten_dict({name[1:]: file[name] for name in file.files if name[0] == "/"}, sep="/")
        len(params["params"]["Dense_1"]["bias"])
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"classifier must be a file saved by an earlier training, got {path} ({error})") from error
    for key in sorted(settings.keys() | saved.keys()):
        if settings.get(key) != saved.get(key):
            raise ValueError(f"classifier {path} has {key} = {saved.get(key)!r}, got {settings.get(key)!r}")
    return params
