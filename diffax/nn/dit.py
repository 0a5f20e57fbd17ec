"""The diffusion transformer, DiT (Peebles & Xie 2023), on sequences, images, videos and sets of points.

x is cut into patches, each a token h_i. A block is, with (s, a, g) for each half from the embedding of time and class,

    h <- h + g_1 attention(norm(h) (1 + a_1) + s_1)
    h <- h + g_2 mlp(norm(h) (1 + a_2) + s_2)

where (s, a, g) are zero at first (adaLN-zero), so that each block begins as the identity and the network as zero.

xl/2  DiT(**DIT_SIZES["XL"], patch_size=2, num_classes=1000, outputs=2)     674.8M parameters, latents 32x32x4
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from diffax import random
from diffax._checks import Condition, check, check_count, choose, interval
from diffax.nn.attention import Implementation, MultiHeadAttention
from diffax.nn.checks import check_label, check_shapes, check_space, check_time, per_axis, with_mask
from diffax.nn.layers import ZEROS, dropout, labels_or_null, sinusoidal
from diffax.nn.positions import rotary_angles, sincos
from diffax.typing import Array, DType, Examples, Float, Key, Times

DIT_SIZES: dict[str, dict[str, Any]] = {
    "S": {"channels": 384, "depth": 12, "num_heads": 6},
    "B": {"channels": 768, "depth": 12, "num_heads": 12},
    "L": {"channels": 1024, "depth": 24, "num_heads": 16},
    "XL": {"channels": 1152, "depth": 28, "num_heads": 16},
}
XAVIER = nn.initializers.xavier_uniform()
THIRD = nn.initializers.variance_scaling(0.5, "fan_avg", "uniform")  # Xavier's for q, k and v as one map
SMALL = nn.initializers.normal(0.02)


class DiT(nn.Module):
    """A transformer y = f(x, t, label, ...) on the patches of x.

    Attributes:
      out_channels, outputs, vector_dim, num_classes, remat, dtype: as of `UNet`.
      implementation: of attention, see `diffax.nn.attention.attend`.
      patch_size: places of a token along each axis, an int or one for each axis; each size of x is a multiple of it.
        None for a set of points x (B, n, C): no patches, no positions, and the result moves with the points.
      channels: width of the tokens.
      depth: number of blocks.
      num_heads: attention heads.
      mlp_ratio: width of the feed-forward net, in `channels`.
      positions: "sincos", added, as published; "rope", axial rotary; "none". None is "sincos", and "none" of points.
        Both are computed for the size of x at hand, so the parameters fit any size.
      position_grid: tokens along each axis in training, an int or one for each axis, over which positions are spread at
        other sizes; None to go on counting.
      cross_attention: each block also attends to a context (text), between its two halves (Chen et al. 2023).
      context_dim: width of the context's tokens, for calls without one; None where there always is a context.
      attention_bias: whether the maps to queries, keys and values have one.
      norm_eps: of the norm before the feed-forward net; the others have 1e-6.
      embed_each_block: whether each block has an embedding of time and class of its own; the last layer uses the first.
      dropout_rate: dropout in the feed-forward net; active where a key is given.
      time_scale: what t is multiplied by before its sinusoidal embedding; 1000 for t in [0, 1].
      time_shift: see `sinusoidal`.
    """

    out_channels: int | None = None
    outputs: int = 1
    patch_size: int | tuple[int, ...] | None = 2
    channels: int = 384
    depth: int = 12
    num_heads: int = 6
    mlp_ratio: float = 4.0
    positions: str | None = None
    position_grid: int | tuple[int, ...] | None = None
    cross_attention: bool = False
    context_dim: int | None = None
    vector_dim: int | None = None
    attention_bias: bool = True
    norm_eps: float = 1e-6
    embed_each_block: bool = False
    dropout_rate: float = 0.0
    num_classes: int | None = None
    time_scale: float = 1000.0
    time_shift: int = 0
    remat: bool = False
    implementation: Implementation = None
    dtype: Any = jnp.float32

    def _patch(self, x: Array) -> tuple[int, ...]:
        """The patch, an entry for each axis of x."""
        check_space(x)
        if self.patch_size is None and x.ndim != 3:
            raise ValueError(f"x must have shape (B, n, C) where patch_size is None, got {x.shape}")
        patch = per_axis("patch_size", 1 if self.patch_size is None else self.patch_size, x.ndim - 2)
        if any(n % p for n, p in zip(x.shape[1:-1], patch, strict=True)):
            raise ValueError(f"x must have sizes that are multiples of the patch {patch}, got {x.shape}")
        return patch

    def _positions(self) -> str:
        points = self.patch_size is None
        if self.positions is None:
            return "none" if points else "sincos"
        if points and self.positions != "none":
            raise ValueError(f"positions must be none where patch_size is None, got {self.positions!r}")
        return choose("positions", self.positions, ("sincos", "rope", "none"))

    def _check_settings(self, axes: int) -> None:
        for name in ("outputs", "channels", "depth", "num_heads"):
            check_count(name, getattr(self, name))
        for name in ("out_channels", "context_dim", "vector_dim", "num_classes"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        check("mlp_ratio", self.mlp_ratio, Condition("at least 1 / channels", lambda v: v * self.channels >= 1))
        check("dropout_rate", self.dropout_rate, interval("[0, 1)"))
        if self.context_dim is not None and not self.cross_attention:
            raise ValueError(f"context_dim must be given with cross_attention alone, got {self.context_dim}")
        if self.position_grid is not None and self._positions() == "none":
            raise ValueError(f"position_grid must be None where there are no positions, got {self.position_grid}")
        if self.position_grid is not None:
            per_axis("position_grid", self.position_grid, axes)

    def _check_input(
        self,
        x: Array,
        label: Examples | None,
        context: Examples | None,
        context_mask: Examples | None,
        vector: Examples | None,
        mask: Examples | None,
    ) -> None:
        check_label(label, self.num_classes)
        if context is not None and not self.cross_attention:
            raise ValueError("context was given to a network without it: set cross_attention")
        if self.cross_attention and context is None and self.context_dim is None:
            raise ValueError("context must be given to a network with cross_attention, or context_dim set, got None")
        if vector is not None and self.vector_dim is None:
            raise ValueError("vector was given to a network without it: set vector_dim")
        if mask is not None and (x.ndim != 3 or self._patch(x) != (1,)):
            raise ValueError(f"mask was given to a network of patches of {self.patch_size}: it is for points")
        own = {"vector": (vector, (len(x), self.vector_dim)), "mask": (mask, x.shape[:2])}
        check_shapes(with_mask(len(x), context, context_mask, self.context_dim) | own)

    def _embeddings(self, x: Array, t: Times, label: Examples | None, vector: Examples | None) -> list[Array]:
        """The (B, channels) embedding of time, class and vector, for each block or one for all."""
        t = jnp.broadcast_to(jnp.asarray(t, jnp.float32), x.shape[:1])
        if self.num_classes is not None:
            label = labels_or_null(label, self.num_classes, len(x))
        names = [f"embed_{i}" for i in range(self.depth)] if self.embed_each_block else ["embed"]
        if self.vector_dim is not None and vector is None:
            vector = jnp.zeros((len(x), self.vector_dim))
        options = (self.num_classes, self.time_scale, self.time_shift, self.dtype)
        return [Embedding(self.channels, *options, name=name)(t, label, vector) for name in names]

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch *space c"],
        t: Times,
        label: Examples | None = None,
        *,
        context: Examples | None = None,
        context_mask: Examples | None = None,
        vector: Examples | None = None,
        mask: Examples | None = None,
        key: Key | None = None,
    ) -> Float[Array, "batch *space out"]:
        """The prediction y.

        Args:
          x: (B, *space, C), 1 to 3 spatial axes, of sizes that are multiples of the patch; or points (B, n, C).
          t: () or (B,).
          label: () or (B,) ints in [0, num_classes], or None for the null label.
          context: (B, m, E) tokens to attend to; None for no token, where `context_dim` is set.
          context_mask: (B, m), which of them there are; None for all.
          vector: (B, vector_dim); None for zeros.
          mask: (B, n), which points of x (B, n, C) there are; the others change nothing, their y is zero.
          key: (B,) or () dropout keys, or None to switch dropout off.

        Returns:
          (B, *space, out_channels), float32.

        Raises:
          ValueError: for settings that fit no network, shapes it cannot take, sizes that are no multiple of the patch
            among them, or a condition it was not made for.
        """
        patch, positions = self._patch(x), self._positions()
        self._check_settings(x.ndim - 2)
        check_time(t, x)
        self._check_input(x, label, context, context_mask, vector, mask)
        if self.cross_attention and context is None:
            context, context_mask = jnp.zeros((len(x), 1, self.context_dim)), jnp.zeros((len(x), 1), bool)
        if mask is not None:
            mask = jnp.asarray(mask, bool)
            x = jnp.where(mask[..., None], x, jnp.zeros_like(x))
        h = nn.Conv(self.channels, patch, patch, "VALID", dtype=self.dtype, kernel_init=_as_dense, name="patches")(x)
        grid = h.shape[1:-1]
        h, angles = h.reshape(len(x), -1, self.channels), None
        if positions == "sincos":
            h = h + sincos(grid, self.channels, base=self.position_grid).astype(self.dtype)[None]
        if positions == "rope":
            angles = rotary_angles(grid, self.channels // self.num_heads, base=self.position_grid)

        embs = self._embeddings(x, t, label, vector)
        options = (self.num_heads, self.mlp_ratio, self.attention_bias, self.norm_eps, self.dropout_rate)
        block = functools.partial(nn.remat(Block) if self.remat else Block, *options, self.implementation, self.dtype)
        for i in range(self.depth):
            block_key = None if key is None else random.fold_in(key, i)
            h = block(name=f"block_{i}")(h, embs[i % len(embs)], angles, mask, context, context_mask, block_key)

        out = self.outputs * x.shape[-1] if self.out_channels is None else self.out_channels
        shift, scale = _modulation(embs[0], 2, self.dtype)
        h = _modulate(_norm(1e-6, self.dtype)(h), shift, scale)
        h = nn.Dense(math.prod(patch) * out, dtype=self.dtype, kernel_init=ZEROS, name="out")(h)
        y = _join(h.astype(jnp.float32), grid, patch)
        return y if mask is None else jnp.where(mask[..., None], y, jnp.zeros_like(y))


class Embedding(nn.Module):
    """The embedding of time, class and vector, (B, channels); t: (B,), label: (B,) or None, vector: (B, E) or None."""

    channels: int
    num_classes: int | None = None
    time_scale: float = 1000.0
    time_shift: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, t: Times, label: Examples | None, vector: Examples | None = None) -> Float[Array, "batch c"]:
        """See the class."""
        dense = functools.partial(nn.Dense, self.channels, dtype=self.dtype, kernel_init=SMALL)
        emb = sinusoidal(t, 256, scale=self.time_scale, shift=self.time_shift, cos_first=True)
        emb = dense(name="time_2")(nn.silu(dense(name="time_1")(emb)))
        if vector is not None:
            emb = emb + dense(name="vector_2")(nn.silu(dense(name="vector_1")(vector)))
        if self.num_classes is None:
            return emb
        table = nn.Embed(self.num_classes + 1, self.channels, embedding_init=SMALL, dtype=self.dtype, name="label")
        return emb + table(label)


class Block(nn.Module):
    """Self-attention, attention to a context if there is one, a feed-forward net; see the module for the equations.

    x: (B, n, C), emb: (B, E), angles: of `rotary_angles` or None, mask: (B, n) or None, context: (B, m, E) or None,
    context_mask: (B, m) or None, key: (B,) or None; returns (B, n, C). Attributes as of `DiT`.
    """

    num_heads: int = 1
    mlp_ratio: float = 4.0
    attention_bias: bool = True
    norm_eps: float = 1e-6
    dropout_rate: float = 0.0
    implementation: Implementation = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch n c"],
        emb: Float[Array, "batch e"],
        angles: Array | None = None,
        mask: Examples | None = None,
        context: Examples | None = None,
        context_mask: Examples | None = None,
        key: Key | None = None,
    ) -> Float[Array, "batch n c"]:
        """See the class."""
        channels = x.shape[-1]
        options = (self.num_heads, self.dtype, self.attention_bias, self.implementation, THIRD)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = _modulation(emb, 6, self.dtype)
        h = _modulate(_norm(1e-6, self.dtype)(x), shift_1, scale_1)
        x = x + gate_1 * MultiHeadAttention(*options, XAVIER, name="self")(h, None, mask, angles)
        if context is not None:
            h = _norm(1e-6, self.dtype)(x)
            x = x + MultiHeadAttention(*options, ZEROS, name="cross")(h, jnp.asarray(context), context_mask)
        h = _modulate(_norm(self.norm_eps, self.dtype)(x), shift_2, scale_2)
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=XAVIER)
        h = nn.gelu(dense(int(self.mlp_ratio * channels), name="mlp_1")(h), approximate=True)
        h = dense(channels, name="mlp_2")(dropout(key, h, self.dropout_rate))
        return x + gate_2 * h


def _norm(eps: float, dtype: DType) -> nn.LayerNorm:
    """Without parameters, which the modulation has; statistics in float32."""
    return nn.LayerNorm(epsilon=eps, use_bias=False, use_scale=False, dtype=dtype)


def _modulation(emb: Array, parts: int, dtype: DType) -> list[Array]:
    """So many (B, 1, C), zero at first, from the embedding."""
    dense = nn.Dense(parts * emb.shape[-1], dtype=dtype, kernel_init=ZEROS, name="modulation")
    return jnp.split(dense(nn.silu(emb))[:, None], parts, -1)


def _modulate(h: Array, shift: Array, scale: Array) -> Array:
    return h * (1 + scale) + shift


def _as_dense(key: Key, shape: tuple[int, ...], dtype: DType = jnp.float32) -> Array:
    """Xavier's, of the convolution as a map of a whole patch to a token."""
    return XAVIER(key, (math.prod(shape[:-1]), shape[-1]), dtype).reshape(shape)


def _join(h: Array, grid: tuple[int, ...], patch: tuple[int, ...]) -> Array:
    """Tokens (B, n, patch * C) to (B, *space, C)."""
    axes = range(len(grid))
    h = h.reshape(len(h), *grid, *patch, -1)
    h = jnp.transpose(h, (0, *(1 + a + i * len(grid) for a in axes for i in (0, 1)), 1 + 2 * len(grid)))
    return h.reshape(len(h), *(n * p for n, p in zip(grid, patch, strict=True)), h.shape[-1])
