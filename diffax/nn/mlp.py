"""A residual multilayer perceptron (MLP), the cheapest network: for points in the plane and very small images.

x is flattened and h = W x. With shift s and scale a computed from the embedding of time and class, a block is

    h <- h + W_2 silu(norm(W_1 silu(norm(h) (1 + a) + s)))
"""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from diffax import random
from diffax._checks import check_count
from diffax.nn.checks import check_label, check_second, check_time
from diffax.nn.layers import ZEROS, FewStepEmbedding, dropout, labels_or_null, sinusoidal
from diffax.typing import Array, Examples, Float, Key, Times


class MLP(nn.Module):
    """A residual perceptron y = f(x, t, label) on the flattened x.

    Attributes:
      outputs: number of predictions of the shape of x, concatenated along the last axis; 2 for a mean and a variance.
      channels: width of the layers, even and at least 4.
      depth: number of blocks, >= 1.
      dropout_rate: dropout rate inside the blocks, in [0, 1). Dropout is active when a key is passed.
      num_classes: number of classes, or None. Label `num_classes` is the null label, which means "no class".
      time_scale: factor on t before its sinusoidal embedding; 1000 for t in [0, 1].
      second_time, guidance_input: as of `UNet`.
      dtype: dtype of the computation; parameters and y are float32.
      out_channels: channels of y; None for `outputs` times the channels of x.
    """

    outputs: int = 1
    channels: int = 128
    depth: int = 3
    dropout_rate: float = 0.0
    num_classes: int | None = None
    time_scale: float = 1000.0
    second_time: bool = False
    guidance_input: bool = False
    dtype: Any = jnp.float32
    out_channels: int | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch ..."],
        t: Times,
        label: Examples | None = None,
        *,
        s: Times | None = None,
        weight: Times | None = None,
        key: Key | None = None,
    ) -> Float[Array, "batch ..."]:
        """The prediction y; zero at initialisation.

        Args:
          x: (B, ..., C).
          t: () or (B,).
          label: () or (B,) ints in [0, num_classes], or None for the null label.
          s: () or (B,), the second time; None for s = t.
          weight: () or (B,), a guidance weight; None for 1.
          key: () or (B,) dropout keys, or None to switch dropout off.

        Returns:
          (B, ..., out_channels), float32.

        Raises:
          ValueError: if label is out of range or passed without `num_classes`, x has fewer than 2 axes, t has a wrong
            shape, or a setting is out of range.
        """
        check_count("depth", self.depth)
        check_count("channels", self.channels, 4)
        if self.out_channels is not None:
            check_count("out_channels", self.out_channels)
        check_label(label, self.num_classes)
        if x.ndim < 2:
            raise ValueError(f"x must have shape (B, ..., C), got {x.shape}")
        check_time(t, x)
        check_second(x, self.second_time, s, self.guidance_input, weight)
        size = math.prod(x.shape[1:])
        shape = (*x.shape[:-1], self.outputs * x.shape[-1] if self.out_channels is None else self.out_channels)
        embedding = sinusoidal(jnp.broadcast_to(t, (len(x),)), self.channels, scale=self.time_scale)
        if self.num_classes is not None:
            table = nn.Embed(self.num_classes + 1, self.channels, name="classes")
            embedding += table(labels_or_null(label, self.num_classes, len(x)))
        if self.second_time:
            few = FewStepEmbedding(self.channels, self.time_scale, self.guidance_input, self.dtype, name="few_step")
            embedding += few(jnp.broadcast_to(jnp.asarray(t, jnp.float32), (len(x),)), s, weight)
        embedding = nn.silu(nn.Dense(self.channels, dtype=self.dtype, name="embedding")(embedding))
        h = nn.Dense(self.channels, dtype=self.dtype, name="first")(x.reshape(len(x), size))
        for i in range(self.depth):
            block_key = None if key is None else random.fold_in(key, i)
            h += self._block(h, embedding, block_key, i)
        h = nn.silu(nn.LayerNorm(dtype=self.dtype, name="norm")(h))
        y = nn.Dense(math.prod(shape[1:]), kernel_init=ZEROS, dtype=self.dtype, name="last")(h)
        return y.reshape(shape).astype(jnp.float32)

    def _block(self, h: Array, embedding: Array, key: Key | None, i: int) -> Array:
        def dense(features: int, name: str, **options: Any) -> nn.Dense:
            return nn.Dense(features, dtype=self.dtype, name=f"block{i}_{name}", **options)

        shift, scale = jnp.split(dense(2 * self.channels, "modulation", kernel_init=ZEROS)(embedding), 2, -1)
        inner = nn.LayerNorm(dtype=self.dtype, name=f"block{i}_norm1")(h)
        inner = dense(2 * self.channels, "dense1")(nn.silu(inner * (1 + scale) + shift))
        inner = nn.silu(nn.LayerNorm(dtype=self.dtype, name=f"block{i}_norm2")(inner))
        return dense(self.channels, "dense2")(dropout(key, inner, self.dropout_rate))
