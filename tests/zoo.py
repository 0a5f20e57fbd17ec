"""A small trained network for tests of every sampler: scikit-learn's digits, class-conditional.

    python tests/zoo.py        # trains the network again and writes tests/zoo.npz; two minutes on one CPU core

The network is a perceptron of 136,000 parameters, trained on 1,297 digits with `Cosine`, v-prediction and label dropout
for classifier-free guidance. Its time input is the log-SNR, so it works with any vp schedule. Samples are classified by
the nearest training digit, which gives the right class for 99.2 % of the 500 test digits.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

import diffax
from diffax.nn import MLP

FILE = Path(__file__).with_suffix(".npz")
NETWORK = MLP(channels=80, depth=3, num_classes=10, time_scale=25.0, dropout_rate=0.05)
GUIDANCE = 1.5


def digits():
    """((images, labels) for training, (images, labels) for testing): (N, 8, 8, 1) in [-1, 1], (N,)."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    images = (images[order].reshape(-1, 8, 8, 1) / 8 - 1).astype(np.float32)
    return (images[:1297], labels[order][:1297]), (images[1297:], labels[order][1297:])


def classify(images):
    """(B,) labels of the nearest training digits; -1 for images that are not finite."""
    (references, labels), _ = digits()
    flat, references = np.asarray(images).reshape(len(images), -1), references.reshape(len(references), -1)
    distances = np.sum(references**2, 1) - 2 * flat @ references.T
    return np.where(np.isfinite(flat).all(1), labels[np.argmin(distances, 1)], -1)


def denoiser(schedule, params, label, *, guidance=GUIDANCE):
    """(x, t) -> x0, guided and clipped, for any vp schedule."""

    def conditional(x, t, label):
        predict = lambda x, t: NETWORK.apply({"params": params}, x, schedule.log_snr(t), label)
        return diffax.denoiser(predict, schedule, "v")(x, t)

    return diffax.denoisers.clip_static(diffax.batched_classifier_free_guidance(conditional, label, 10, guidance))


def load():
    """Load the EMA parameters as float32."""
    with np.load(FILE) as file:
        flat = {tuple(name.split("/")): file[name].astype(np.float32) for name in file.files}
    params: dict = {}
    for (module, *path), leaf in flat.items():
        params.setdefault(module, {})["/".join(path)] = jnp.asarray(leaf)
    return params


def train(num_steps=12_000, batch_size=256):
    """Train with AdamW on the unweighted v loss and return the EMA parameters."""
    import optax

    (images, labels), _ = digits()
    schedule = diffax.Cosine()
    params = NETWORK.init(jax.random.key(0), images[:1], jnp.zeros(1), labels[:1])["params"]
    rate = optax.warmup_cosine_decay_schedule(0.0, 2e-3, 200, num_steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.99, weight_decay=1e-2))

    def loss(params, x0, label, key):
        key_t, key_eps, key_label, key_dropout = jax.random.split(key, 4)
        t, eps = jax.random.uniform(key_t, (len(x0),)), jax.random.normal(key_eps, x0.shape)
        label = jnp.where(jax.random.uniform(key_label, label.shape) < 0.1, 10, label)
        x, target = diffax.diffuse(schedule, x0, eps, t), diffax.predictions.target("v", schedule, x0, eps, t)
        prediction = NETWORK.apply({"params": params}, x, schedule.log_snr(t), label, key=key_dropout)
        return jnp.mean(jnp.square(prediction - target))

    @jax.jit
    def steps(carry, keys):
        def step(carry, key):
            params, ema, opt_state = carry
            key_index, key_loss = jax.random.split(key)
            index = jax.random.randint(key_index, (batch_size,), 0, len(images))
            value, grads = jax.value_and_grad(loss)(
                params, jnp.asarray(images)[index], jnp.asarray(labels)[index], key_loss
            )
            updates, opt_state = optimizer.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
            ema = jax.tree.map(lambda e, p: 0.998 * e + 0.002 * p, ema, params)
            return (params, ema, opt_state), value

        return jax.lax.scan(step, carry, keys)

    carry = params, params, optimizer.init(params)
    for keys in jax.random.split(jax.random.key(1), (num_steps // 500, 500)):
        carry, values = steps(carry, keys)
        print(f"loss {values.mean():.4f}", flush=True)
    return carry[1]


def main():
    """Train the network and write its parameters."""
    flat = jax.tree_util.tree_flatten_with_path(train())[0]
    arrays = {"/".join(key.key for key in path): np.asarray(leaf, np.float16) for path, leaf in flat}
    np.savez_compressed(FILE, **arrays)
    _, (images, labels) = digits()
    print(f"{sum(v.size for v in arrays.values())} parameters, {FILE.stat().st_size} bytes in {FILE}")
    print(f"nearest neighbour: {np.mean(classify(images) == labels):.4f} of the test digits")


if __name__ == "__main__":
    main()
