"""The figures with a trained network: an MLP on the figure-8, and an MLP on digits of 8 by 8 pixels."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from exact_figures import PLANE, data_in_the_plane, key_of, noise
from packing import numbers, pack

import diffax
from diffax.nn import MLP
from diffax.training import init_state, train_step

PLANE_NETWORK = MLP(channels=32, depth=2, time_scale=20.0)
SNAPSHOTS = (100, 1_000, 6_000)  # training steps after which the weights of the plane's network are kept
DIGITS_NETWORK = MLP(channels=128, depth=2, dropout_rate=0.1, time_scale=50.0)
DIGITS_STEPS = 3_000
HELD_OUT = 297  # the last digits of the data set
DIGIT_TIMES = np.arange(1, 20) / 20


def train(network: MLP, examples: jax.Array, batch_size: int, snapshots: tuple[int, ...]) -> list[dict[str, Any]]:
    """The moving averages of the weights after each of `snapshots`, trained on v under the schedule `PLANE`.

    Args:
      network: the network, which predicts v.
      examples: (N, D).
      batch_size: examples of a step.
      snapshots: numbers of steps, increasing; the last is the length of the training.
    """
    key = key_of("train")
    params = network.init(key, examples[:2], jnp.zeros(2))

    def loss(params: Any, batch: Any, keys: jax.Array) -> jax.Array:
        t = diffax.random.unit_interval(keys, batch_size)
        dropout_keys = keys if network.dropout_rate else None
        return diffax.denoising_loss(
            keys, lambda x, t: network.apply(params, x, t, key=dropout_keys), PLANE, "v", batch["x"], t
        )

    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adam(optax.warmup_cosine_decay_schedule(0.0, 3e-3, 50, snapshots[-1], 1e-5)),
    )
    step = train_step(loss, optimizer, ema_decay=0.995)

    def body(state: Any, index: jax.Array) -> tuple[Any, jax.Array]:
        chosen = jax.random.randint(jax.random.fold_in(key, index), (batch_size,), 0, len(examples))
        state, metrics = step(state, {"x": examples[chosen], "index": jnp.arange(batch_size)})
        return state, metrics["loss"]

    state, done, kept = init_state(key, params, optimizer), 0, []
    run = jax.jit(jax.lax.scan, static_argnums=0)
    for end in snapshots:
        state, losses = run(body, state, jnp.arange(done, end))
        print(f"  {end} steps: loss {float(losses[-100:].mean()):.4f}", flush=True)
        done = end
        kept.append(state.ema)
    return kept


# ------------------------------------------------------------------------------------- a network beside the score


def network_in_the_plane() -> dict[str, Any]:
    """The weights of three snapshots; the page computes the network from them."""
    examples = data_in_the_plane().sample(key_of("network"), 20_000).astype(jnp.float32)
    snapshots = train(PLANE_NETWORK, examples, 256, SNAPSHOTS)
    layers = [
        {
            "/".join(str(part.key) for part in path): pack(value)
            for path, value in jax.tree_util.tree_leaves_with_path(params["params"])
        }
        for params in snapshots
    ]
    return {
        "steps": list(SNAPSHOTS),
        "channels": PLANE_NETWORK.channels,
        "depth": PLANE_NETWORK.depth,
        "time_scale": PLANE_NETWORK.time_scale,
        "weights": layers,
    }


# ------------------------------------------------------------------------------------------------------- digits


def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(training digits, held-out digits, labels of those) of scikit-learn, (N, 64) in [-1, 1]."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = (images / 8 - 1).astype(np.float32)
    return images[:-HELD_OUT], images[-HELD_OUT:], labels[-HELD_OUT:]


SHOWN = (0, 2, 3, 5, 8, 9)


def digits_denoised() -> dict[str, Any]:
    """Held-out digits with noise, denoised by a network and by the exact denoiser of the training digits."""
    train_set, held_out, labels = digits()
    (params,) = train(DIGITS_NETWORK, jnp.asarray(train_set), 128, (DIGITS_STEPS,))
    network = diffax.denoiser(lambda x, t: DIGITS_NETWORK.apply(params, x, t), PLANE, "v")
    count = len(train_set)
    exact = diffax.analytic.Mixture(np.full(count, 1 / count), train_set, 0.05).denoiser(PLANE)
    x0 = held_out[[int(np.flatnonzero(labels == label)[0]) for label in SHOWN]]
    eps = noise("digits", *x0.shape)

    @jax.jit
    def at(t: jax.Array) -> dict[str, jax.Array]:
        x = diffax.diffuse(PLANE, jnp.asarray(x0), eps, t)
        all_x = diffax.diffuse(PLANE, jnp.asarray(held_out), noise("held out", *held_out.shape), t)
        times = diffax.times.uniform_log_snr(PLANE, 30, t_max=t, t_min=0.01)
        return {
            "network": network(x, t),
            "exact": exact(x, t),
            "sample": diffax.sample(key_of("digits"), diffax.ddpm(PLANE), network, x, times),
            "network_error": jnp.sqrt(jnp.mean(jnp.square(network(all_x, t) - held_out))),
            "exact_error": jnp.sqrt(jnp.mean(jnp.square(exact(all_x, t) - held_out))),
        }

    rows = [at(jnp.asarray(t, jnp.float32)) for t in DIGIT_TIMES]
    pictures = {name: pack(jnp.stack([row[name] for row in rows]), "int8") for name in ("network", "exact", "sample")}
    errors = {name: numbers([row[name] for row in rows], 4) for name in ("network_error", "exact_error")}
    return {
        "labels": list(SHOWN),
        "times": numbers(DIGIT_TIMES),
        "x0": pack(x0, "int8"),
        "eps": pack(eps),
        "train_size": len(train_set),
        "held_out": HELD_OUT,
        **pictures,
        **errors,
    }


def compute() -> dict[str, Any]:
    """The numbers of the figures with a network."""
    return {"network": network_in_the_plane(), "digits": digits_denoised()}
