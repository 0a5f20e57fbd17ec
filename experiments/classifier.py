"""A small classifier of real images: a judge of samples, and the features that a Fréchet distance is taken in."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

FEATURES = 64


class Classifier(nn.Module):
    """Convolutions down to 4x4 places, a dense layer of 64 features, a linear head.

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
    """Shifts each image by up to one pixel each way and adds a little noise."""
    shift_key, noise_key = jax.random.split(key)
    height, width = images.shape[1:3]
    shifts = jax.random.randint(shift_key, (len(images), 2), 0, 3)
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")

    def cut(image, shift):
        return jax.lax.dynamic_slice(image, (shift[0], shift[1], 0), (height, width, image.shape[-1]))

    shifted = jax.vmap(cut)(padded, shifts)
    return shifted + 0.1 * jax.random.normal(noise_key, images.shape)


def fit(images: np.ndarray, labels: np.ndarray, num_classes: int, *, num_steps: int, seed: int = 0) -> Callable:
    """Trains a classifier and returns `classify(images) -> (labels (N,), features (N, 64))` on host arrays.

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
    # A loop, not a scan: inside one XLA's CPU convolutions are several times slower.
    for key in jax.random.split(train_key, num_steps):
        params, state = step(params, state, key)
    apply = jax.jit(lambda x: net.apply(params, x))

    def classify(images, batch=500):
        parts = []
        for at in range(0, len(images), batch):
            part = images[at : at + batch]
            filled = np.resize(part, (min(batch, len(images)), *part.shape[1:]))
            logits, features = apply(filled)
            parts.append((np.argmax(logits, -1)[: len(part)], np.asarray(features)[: len(part)]))
        found, features = zip(*parts, strict=True)
        return np.concatenate(found), np.concatenate(features)

    return classify
