"""The diffusion transformer, DiT (Peebles & Xie 2023), for sequences, images, videos and sets of points.

x is divided into patches; each patch becomes a token h_i. With shifts s, scales a and gates g from the embedding of
time and class, a block is

    h <- h + g_1 attention(norm(h) (1 + a_1) + s_1)
    h <- h + g_2 mlp(norm(h) (1 + a_2) + s_2)

(s, a, g) are initialised to zero (adaLN-zero), so that each block starts as the identity and the network as zero.

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
from diffax.nn.checks import check_label, check_second, check_shapes, check_space, check_time, per_axis, with_mask
from diffax.nn.layers import ZEROS, FewStepEmbedding, dropout, labels_or_null, sinusoidal
from diffax.nn.positions import rotary_angles, sincos
from diffax.typing import Array, DType, Examples, Float, Key, Times

DIT_SIZES: dict[str, dict[str, Any]] = {
    "S": {"channels": 384, "depth": 12, "num_heads": 6},
    "B": {"channels": 768, "depth": 12, "num_heads": 12},
    "L": {"channels": 1024, "depth": 24, "num_heads": 16},
    "XL": {"channels": 1152, "depth": 28, "num_heads": 16},
}
"""Settings of the published sizes S, B, L and XL: `DiT(**DIT_SIZES["XL"])`."""
XAVIER = nn.initializers.xavier_uniform()
# The variance of Xavier's initialisation for one (C, 3C) map to q, k and v, as published; here for three (C, C) maps.
QKV_INIT = nn.initializers.variance_scaling(0.5, "fan_avg", "uniform")
SMALL = nn.initializers.normal(0.02)


class DiT(nn.Module):
    """A transformer y = f(x, t, label, ...) on the patches of x.

    Attributes:
      out_channels, outputs, vector_dim, num_classes, remat, dtype: as of `UNet`.
      implementation: implementation of attention, see `diffax.nn.attention.attend`.
      patch_size: size of a patch along each axis, an int or one for each axis; each size of x must be a multiple of it.
        None for a set of points x (B, n, C): no patches, no positions, and the network is permutation-equivariant.
      channels: width of the tokens.
      depth: number of blocks.
      num_heads: number of attention heads.
      mlp_ratio: width of the feed-forward network, as a multiple of `channels`.
      positions: "sincos" adds a fixed embedding, as published; "rope" uses axial rotary embeddings; "none". None means
        "none" for points and "sincos" otherwise. Positions have no parameters, so that the network fits x of any size.
      position_grid: tokens along each axis in training, an int or one for each axis. At other sizes, positions are
        rescaled to this range. None uses the positions 0, 1, .. at any size.
      cross_attention: whether each block also attends to a context (text), between self-attention and feed-forward
        network (Chen et al. 2023).
      context_dim: width of the context tokens. Required for calls without a context; None if each call has one.
      attention_bias: whether the maps to queries, keys and values have a bias.
      norm_eps: epsilon of the norm before the feed-forward network; the other norms use 1e-6.
      embed_each_block: whether each block has its own embedding of time and class; the last layer uses the first one.
      dropout_rate: dropout rate in the feed-forward network, in [0, 1). Dropout is active when a key is passed.
      time_scale: factor on t before its sinusoidal embedding; 1000 for t in [0, 1].
      time_shift: `shift` of `sinusoidal`.
      second_time, guidance_input: as of `UNet`.
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
    second_time: bool = False
    guidance_input: bool = False
    remat: bool = False
    implementation: Implementation = None
    dtype: Any = jnp.float32

    def _patch(self, x: Array) -> tuple[int, ...]:
        """The patch size, one entry for each spatial axis of x."""
        check_space(x)
        if self.patch_size is None and x.ndim != 3:
            raise ValueError(f"x must have shape (B, n, C) where patch_size is None, got {x.shape}")
        patch = per_axis("patch_size", 1 if self.patch_size is None else self.patch_size, x.ndim - 2)
        if any(n % p for n, p in zip(x.shape[1:-1], patch, strict=True)):
            raise ValueError(f"x must have sizes that are multiples of the patch {patch}, got {x.shape}")
        return patch

    def _positions(self) -> str:
        """The kind of positions; the default depends on `patch_size`."""
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
            raise ValueError(f"context_dim must be None without cross_attention, got {self.context_dim}")
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
            raise ValueError(
                f"context must be None for a network without cross_attention, got shape {jnp.shape(context)}"
            )
        if self.cross_attention and context is None and self.context_dim is None:
            raise ValueError("context must be an array for a network with cross_attention and no context_dim, got None")
        if vector is not None and self.vector_dim is None:
            raise ValueError(f"vector must be None for a network without vector_dim, got shape {jnp.shape(vector)}")
        if mask is not None and (x.ndim != 3 or self._patch(x) != (1,)):
            raise ValueError(
                f"mask must be None unless x is a set of points (patch_size None), got shape {jnp.shape(mask)} "
                f"with patch_size {self.patch_size}"
            )
        shapes = {"vector": (vector, (len(x), self.vector_dim)), "mask": (mask, x.shape[:2])}
        check_shapes(with_mask(len(x), context, context_mask, self.context_dim) | shapes)

    def _embeddings(self, x: Array, t: Times, label: Examples | None, vector: Examples | None) -> list[Array]:
        """The (B, channels) embeddings of time, class and vector: one for each block, or one for all blocks."""
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
        s: Times | None = None,
        weight: Times | None = None,
        key: Key | None = None,
    ) -> Float[Array, "batch *space out"]:
        """The prediction y.

        Args:
          x: (B, *space, C) with 1 to 3 spatial axes, whose sizes are multiples of the patch size; or points (B, n, C).
          t: () or (B,).
          label: () or (B,) ints in [0, num_classes], or None for the null label.
          context: (B, m, E) tokens to attend to, or None for no tokens; None requires `context_dim`.
          context_mask: (B, m), True for valid context tokens; None if all are valid.
          vector: (B, vector_dim); None for zeros.
          mask: (B, n), True for valid points of x (B, n, C). Other points do not affect these, and their y is zero.
          s: () or (B,), the second time; None for s = t.
          weight: () or (B,), a guidance weight; None for 1.
          key: (B,) or () dropout keys, or None to switch dropout off.

        Returns:
          (B, *space, out_channels), float32.

        Raises:
          ValueError: if a setting is out of range, a shape is wrong, a size of x is not a multiple of the patch size,
            or a condition is passed that the settings do not include.
        """
        patch, positions = self._patch(x), self._positions()
        self._check_settings(x.ndim - 2)
        check_time(t, x)
        check_second(x, self.second_time, s, self.guidance_input, weight)
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
        if self.second_time:
            few = FewStepEmbedding(self.channels, self.time_scale, self.guidance_input, self.dtype, name="few_step")
            start = jnp.broadcast_to(jnp.asarray(t, jnp.float32), x.shape[:1])
            embs = [emb + few(start, s, weight) for emb in embs]
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
    """The embedding of time, class and vector.

    t: (B,); label: (B,) or None; vector: (B, E) or None; returns (B, channels). Attributes as of `DiT`.
    """

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
    """Self-attention, cross-attention if there is a context, and a feed-forward network; equations in the module.

    x: (B, n, C); emb: (B, E); angles: of `rotary_angles` or None; mask: (B, n) or None; context: (B, m, E) or None;
    context_mask: (B, m) or None; key: (B,) or None; returns (B, n, C). Attributes as of `DiT`.
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
        options = (self.num_heads, self.dtype, self.attention_bias, self.implementation, QKV_INIT)
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
    """A layer norm without scale and bias, which the modulation provides. Its statistics are float32."""
    return nn.LayerNorm(epsilon=eps, use_bias=False, use_scale=False, dtype=dtype)


def _modulation(emb: Array, parts: int, dtype: DType) -> list[Array]:
    """`parts` arrays (B, 1, C) computed from the embedding; zero at initialisation."""
    dense = nn.Dense(parts * emb.shape[-1], dtype=dtype, kernel_init=ZEROS, name="modulation")
    return jnp.split(dense(nn.silu(emb))[:, None], parts, -1)


def _modulate(h: Array, shift: Array, scale: Array) -> Array:
    return h * (1 + scale) + shift


def _as_dense(key: Key, shape: tuple[int, ...], dtype: DType = jnp.float32) -> Array:
    """Xavier initialisation of a patch convolution, viewed as a dense map from a flattened patch to a token."""
    return XAVIER(key, (math.prod(shape[:-1]), shape[-1]), dtype).reshape(shape)


def _join(h: Array, grid: tuple[int, ...], patch: tuple[int, ...]) -> Array:
    """Reassemble tokens (B, n, prod(patch) C) into (B, *space, C)."""
    axes = range(len(grid))
    h = h.reshape(len(h), *grid, *patch, -1)
    h = jnp.transpose(h, (0, *(1 + a + i * len(grid) for a in axes for i in (0, 1)), 1 + 2 * len(grid)))
    return h.reshape(len(h), *(n * p for n, p in zip(grid, patch, strict=True)), h.shape[-1])
