"""A classifier of noisy images p(y | x_t), for classifier guidance: the network, its loss, its checkpoints.

It is the downward half of the U-Net (Dhariwal & Nichol 2021), with a mean over all positions before the head.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import diffax
from diffax._checks import choose
from diffax._pytrees import expand, pytree, static
from diffax.nn.description import DTYPES
from diffax.nn.layers import Downsample, ResBlock, conv, group_norm, sinusoidal
from diffax.pretrained import SCHEDULES, TIMES, Spec
from diffax.training import Every
from diffax.training.parallel import over_batch
from experiments.data.pictures import Pictures
from experiments.models.objectives import Objective
from experiments.models.optimizers import Optimizer

LEVELS = (0.0, 0.25, 0.5, 0.75)  # times at which the accuracy is measured
MEASURES = tuple(f"accuracy_t{t:g}" for t in LEVELS)


class NoisyClassifier(nn.Module):
    """Logits (B, num_classes) of x (B, *space, C) at time t (B,). `key`: (B,) dropout keys, or None."""

    num_classes: int
    channels: int
    channel_multipliers: tuple[int, ...]
    num_res_blocks: int
    dropout_rate: float
    time_scale: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Any, t: Any, *, key: Any = None) -> Any:
        """See the class."""
        emb = sinusoidal(t, self.channels, scale=self.time_scale)
        emb = nn.Dense(4 * self.channels, dtype=self.dtype)(nn.silu(nn.Dense(4 * self.channels, dtype=self.dtype)(emb)))
        h = conv(self.channels, x.ndim - 2, self.dtype)(x.astype(self.dtype))
        for level, multiplier in enumerate(self.channel_multipliers):
            h = Downsample(self.dtype)(h) if level else h
            for number in range(level * self.num_res_blocks, (level + 1) * self.num_res_blocks):
                block_key = None if key is None else diffax.random.fold_in(key, number)
                h = ResBlock(self.channels * multiplier, self.dropout_rate, self.dtype)(h, emb, block_key)
        h = nn.silu(group_norm(h.shape[-1], self.dtype)(h))
        return nn.Dense(self.num_classes, dtype=jnp.float32)(h.reshape(len(h), -1, h.shape[-1]).mean(1))


def of_settings(
    settings: Any, shape: tuple[int, ...], num_classes: int, curve: Spec, optimizer: Optimizer
) -> "ClassifierModel":
    """The model of config.network, for images of this shape with so many classes."""
    net = NoisyClassifier(
        num_classes=num_classes,
        channels=settings.channels,
        channel_multipliers=tuple(settings.channel_multipliers),
        num_res_blocks=settings.num_res_blocks,
        dropout_rate=settings.dropout_rate,
        time_scale=TIMES[settings.time][0] if settings.time_scale is None else settings.time_scale,
        dtype=choose("config.network.dtype", settings.dtype, DTYPES),
    )
    return ClassifierModel(curve, optimizer, net, settings.time, shape)


@pytree
class ClassifierModel:
    """A classifier of noisy images. time: "t" or "log_snr", the time input of the network; shape: of an image."""

    curve: Spec
    optimizer: Optimizer
    module: NoisyClassifier = static()
    time: str = static()
    shape: tuple[int, ...] = static()

    def schedule(self) -> Any:
        """The noise schedule."""
        return self.curve.make(SCHEDULES)

    def init(self, key: Any) -> Any:
        """The first parameters."""
        return self.module.init(key, jnp.zeros((1, *self.shape)), jnp.zeros(1))["params"]

    def logits(self, params: Any, x: Any, t: Any, *, key: Any = None) -> Any:
        """(B, num_classes) for x_t at t, () or (B,). x is scaled to unit size first."""
        schedule = self.schedule()
        level = schedule(jnp.broadcast_to(t, x.shape[:1]))
        x = x / expand(jnp.sqrt(level.alpha**2 + level.sigma**2), x)
        time = jnp.broadcast_to(TIMES[self.time][1](schedule, t), x.shape[:1])
        return self.module.apply({"params": params}, x, time, key=key)

    def objective(self) -> Objective:
        """The cross-entropy of each example at a uniformly drawn time."""

        def loss(params: Any, batch: Any, keys: Any) -> Any:
            noise, time, dropout = (diffax.random.fold_in(keys, i) for i in range(3))
            t = diffax.random.unit_interval(time, len(batch["x"]))
            x = diffax.diffuse(self.schedule(), batch["x"], diffax.random.noise(noise, batch["x"]), t)
            scores = jax.nn.log_softmax(self.logits(params, x, t, key=dropout))
            return -jnp.take_along_axis(scores, batch["label"][:, None], 1)[:, 0]

        return Objective(loss)

    def log_prob(self, params: Any, onto: Any) -> Callable[..., Any]:
        """label (B,) -> ((x, t) -> (B,) log p(label | x_t)), for x_t and t of the schedule `onto`."""

        def log_prob_of(label: Any) -> Any:
            def own(x: Any, t: Any) -> Any:
                scores = jax.nn.log_softmax(self.logits(params, x, t))
                return jnp.take_along_axis(scores, jnp.asarray(label)[:, None], 1)[:, 0]

            return diffax.denoisers.reschedule(own, self.schedule(), onto)

        return log_prob_of


def callbacks(
    model: ClassifierModel,
    images: np.ndarray,
    labels: np.ndarray,
    pictures: Pictures,
    mesh: Any,
    seed: int,
    checkpoint_every: int,
) -> list[Every]:
    """The accuracy on test images at several noise levels with each checkpoint, always with the same noise."""
    noise = diffax.random.noise(jax.random.key(seed), jnp.asarray(images))

    @jax.jit
    def is_right(params: Any, images: Any, noise: Any, labels: Any, t: Any) -> Any:
        x = diffax.diffuse(model.schedule(), images, noise, t)
        return model.logits(params, x, t).argmax(-1) == labels

    spread = over_batch(is_right, mesh)

    def measure(step: int, state: Any) -> dict[str, float]:
        times = [np.full(len(labels), t, np.float32) for t in LEVELS]
        values = [float(spread(state.ema, images, noise, labels, t).mean()) for t in times]
        text = ", ".join(f"{value:.1%} at t = {t:g}" for t, value in zip(LEVELS, values, strict=True))
        pictures.message(f"accuracy on test: {text}")
        return dict(zip(MEASURES, values, strict=True))

    return [Every(checkpoint_every, measure)]
