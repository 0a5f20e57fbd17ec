"""A classifier of noisy images p(y | x_t), for classifier guidance: the network, its loss, its checkpoints.

It is the downward half of the U-Net, as in Dhariwal & Nichol 2021, with a mean over places in front of the head.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

import diffax
from diffax._pytrees import expand
from diffax.nn.layers import Downsample, ResBlock, conv, group_norm, sinusoidal
from diffax.training import Checkpoints
from experiments.models import build
from experiments.run.workdir import load_record

KIND = "classifier"  # what the record of its checkpoints says under "model"


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
        count = 0
        for level, multiplier in enumerate(self.channel_multipliers):
            h = Downsample(self.dtype)(h) if level else h
            for _ in range(self.num_res_blocks):
                block_key = None if key is None else diffax.random.fold_in(key, count)
                h = ResBlock(self.channels * multiplier, self.dropout_rate, self.dtype)(h, emb, block_key)
                count += 1
        h = nn.silu(group_norm(h.shape[-1], self.dtype)(h))
        return nn.Dense(self.num_classes, dtype=jnp.float32)(h.reshape(len(h), -1, h.shape[-1]).mean(1))


def network(config: Any, num_classes: int | None) -> NoisyClassifier:
    """The classifier of a config; it takes what `config.network` says but for attention.

    Raises:
      ValueError: for a data set without labels.
    """
    if not num_classes:
        raise ValueError(f"config.dataset.name must be a data set with labels, got {config.dataset.name!r}")
    settings = config.network
    return NoisyClassifier(
        num_classes=num_classes,
        channels=settings.channels,
        channel_multipliers=tuple(settings.channel_multipliers),
        num_res_blocks=settings.num_res_blocks,
        dropout_rate=settings.dropout_rate,
        time_scale=build.TIMES[settings.time][0],
        dtype=build.DTYPES[settings.dtype],
    )


def logits(config: Any, net: NoisyClassifier, params: Any, x: Any, t: Any, *, key: Any = None) -> Any:
    """(B, num_classes) for x_t at t, () or (B,), of the config's schedule. x is scaled to unit size first."""
    curve = build.schedule(config)
    level = curve(jnp.broadcast_to(t, x.shape[:1]))
    x = x / expand(jnp.sqrt(level.alpha**2 + level.sigma**2), x)
    time = jnp.broadcast_to(build.TIMES[config.network.time][1](curve, t), x.shape[:1])
    return net.apply({"params": params}, x, time, key=key)


def loss(config: Any, net: NoisyClassifier) -> Callable:
    """(params, batch, keys (B,)) -> the cross-entropy of each example, at a time drawn uniformly."""
    curve = build.schedule(config)

    def per_example(params, batch, keys):
        noise, time, dropout = (diffax.random.fold_in(keys, i) for i in range(3))
        t = diffax.random.unit_interval(time, len(batch["image"]))
        x = diffax.diffuse(curve, batch["image"], diffax.random.noise(noise, batch["image"]), t)
        scores = jax.nn.log_softmax(logits(config, net, params, x, t, key=dropout))
        return -jnp.take_along_axis(scores, batch["label"][:, None], 1)[:, 0]

    return per_example


class Classifier(NamedTuple):
    """A trained classifier with its EMA parameters. shape: of one image."""

    config: Any
    network: NoisyClassifier
    params: Any
    step: int
    shape: tuple[int, ...]
    num_classes: int


def holds_classifier(folder: Path) -> bool:
    """Whether the newest checkpoint of a run is a classifier's."""
    return load_record(folder)[1].get("model") == KIND


def load(folder: Path) -> Classifier:
    """The newest checkpoint of a run of `experiments.train_classifier`.

    Raises:
      ValueError: if the folder holds none.
    """
    step, record = load_record(folder, "classifier")
    if step is None or record.get("model") != KIND:
        raise ValueError(f"classifier must be a workdir of experiments.train_classifier, got {folder}")
    config, shape = ml_collections.ConfigDict(record["config"]), tuple(record["data"]["shape"])
    net = network(config, record["num_classes"])
    like = jax.eval_shape(lambda: build.init_params(config, net, shape, jax.random.key(0)))
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        params = jax.device_put(jax.device_get(checkpoints.restore_ema(step, like)))  # bound to no device
    return Classifier(config, net, params, step, shape, record["num_classes"])


def log_prob(model: Classifier, label: Any, *, onto: Any) -> Callable:
    """(x, t) -> (B,) log p(label | x_t), for x_t and t of the schedule `onto`. label: (B,)."""

    def own(x, t):
        scores = jax.nn.log_softmax(logits(model.config, model.network, model.params, x, t))
        return jnp.take_along_axis(scores, jnp.asarray(label)[:, None], 1)[:, 0]

    return diffax.denoisers.reschedule(own, build.schedule(model.config), onto)
