"""The four networks whose training steps are measured, their loss, and the batch sizes to try.

ddpm        the U-Net of DDPM for CIFAR-10 (Ho et al. 2020, appendix B), 35.7M parameters, 32x32x3
dit_b2      DiT-B/2 (Peebles & Xie 2023, table 1), 130M, latents 32x32x4
dit_xl2     DiT-XL/2, 675M, with rematerialisation
edm2_xs     EDM2-XS (Karras et al. 2024, table 6), 125M, latents 32x32x4, attention in its two lowest levels
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import diffax
from diffax import training
from diffax.nn import EDM2, Attention, DiT, UNet
from diffax.nn.dit import DIT_SIZES
from diffax.training import TrainState, init_state, train_step

GIB = 2**30
MEMORY = 60 * GIB  # of the device that `Case.batch` is meant for
SMALLEST = 8


class Case(NamedTuple):
    """A network and its data. batch: the largest size to try, on a device of MEMORY bytes."""

    net: nn.Module
    shape: tuple[int, ...]
    batch: int
    num_classes: int | None = None


CASES = {
    "ddpm": Case(UNet(dropout_rate=0.1), (32, 32, 3), 512),
    "dit_b2": Case(DiT(**DIT_SIZES["B"], patch_size=2, num_classes=1000), (32, 32, 4), 512, 1000),
    "dit_xl2": Case(DiT(**DIT_SIZES["XL"], patch_size=2, num_classes=1000, remat=True), (32, 32, 4), 512, 1000),
    "edm2_xs": Case(EDM2(channels=128, num_classes=1000), (32, 32, 4), 512, 1000),
}
TOYS = {
    "ddpm": Case(
        UNet(channels=8, channel_multipliers=(1,), num_res_blocks=1, attention=Attention(()), dropout_rate=0.1),
        (8, 8, 3),
        8,
    ),
    "dit_b2": Case(DiT(channels=32, depth=1, num_heads=2, num_classes=10), (8, 8, 4), 8, 10),
    "dit_xl2": Case(DiT(channels=48, depth=1, num_heads=2, num_classes=10, remat=True), (8, 8, 4), 8, 10),
    "edm2_xs": Case(
        EDM2(
            channels=16,
            channel_multipliers=(1,),
            num_res_blocks=0,
            attention_levels=(),
            head_channels=16,
            num_classes=10,
        ),
        (8, 8, 4),
        8,
        10,
    ),
}


def case(name: str, quick: bool) -> Case:
    """A network by name, at toy size if quick."""
    return (TOYS if quick else CASES)[name]


def batches(largest: int, memory: int | None) -> list[int]:
    """The batch sizes to try in turn: from the largest power of two expected to fit `memory` down to SMALLEST.

    >>> batches(64, 40 * 2**30), batches(64, None), batches(8, 2**30)
    ([32, 16, 8], [64, 32, 16, 8], [8])
    """
    fits = largest if memory is None else min(2 * largest, largest * memory / MEMORY)
    sizes = [2 * largest >> i for i in range(largest.bit_length() + 1)]
    return [size for size in sizes if SMALLEST <= size <= fits] or [SMALLEST]


@functools.partial(jax.jit, static_argnums=1)
def _normal(key: Any, size: int) -> Any:
    """A flat normal vector. One program per shape would take longer to compile than a step of a small network."""
    return 0.02 * jax.random.normal(key, (size,))


def random_params(net: nn.Module, shape: tuple[int, ...], seed: int = 0) -> Any:
    """Normal parameters of small variance, zero-initialised ones included: speed does not depend on their values.

    Arrays of zeros could be faster than those of a trained network (fewer bits switch), and their gradients vanish.
    """
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *shape)), jnp.zeros(1))["params"]
    leaves, tree = jax.tree.flatten(shapes)
    ends = np.cumsum([leaf.size for leaf in leaves])
    flat = _normal(jax.random.key(seed), int(ends[-1]))
    drawn = [flat[end - leaf.size : end].reshape(leaf.shape) for leaf, end in zip(leaves, ends, strict=True)]
    return jax.tree.unflatten(tree, drawn)


def loss_of(net: nn.Module) -> Callable[..., Any]:
    """(params, batch, keys (B,)) -> (B,): v-prediction on the cosine schedule at uniform times."""
    schedule = diffax.Cosine()

    def loss(params, batch, keys):
        noise, time, dropout = (diffax.random.fold_in(keys, i) for i in range(3))
        label = batch.get("label")

        def predict(x, t):
            return net.apply({"params": params}, x, t, label, key=dropout)

        t = diffax.random.unit_interval(time, len(batch["image"]))
        return diffax.denoising_loss(noise, predict, schedule, "v", batch["image"], t)

    return loss


def step_of(net: nn.Module) -> tuple[Callable, Any]:
    """(the training step, its optimiser): AdamW, clipping, EMA."""
    optimizer = training.optimizer(learning_rate=1e-4, num_steps=1000, decay="constant")
    return train_step(loss_of(net), optimizer, ema_decay=0.9999), optimizer


def state_of(net: nn.Module, shape: tuple[int, ...], optimizer: Any) -> TrainState:
    """The state before the first step, initialised on the device."""
    return init_state(jax.random.key(1), random_params(net, shape), optimizer)


def batch_of(which: Case, size: int) -> dict[str, np.ndarray]:
    """Random data of unit variance, with labels where the network has classes."""
    rng = np.random.default_rng(0)
    index = np.arange(size, dtype=np.int32)
    labels = {} if which.num_classes is None else {"label": index % which.num_classes}
    return {"image": rng.standard_normal((size, *which.shape)).astype(np.float32), "index": index, **labels}
