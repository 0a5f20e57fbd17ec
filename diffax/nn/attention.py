"""Attention, by itself and in blocks: o_i = sum_j softmax_j(q_i k_j / sqrt(d)) v_j (Vaswani et al. 2017).

All of it goes through `jax.nn.dot_product_attention`, so that a GPU may use its fused kernel.
"""

import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffax.nn.layers import ZEROS, group_norm
from diffax.typing import Array, Float

Implementation = Literal["xla", "cudnn"] | None


def attend(
    q: Float[Array, "batch n heads d"],
    k: Float[Array, "batch m heads d"],
    v: Float[Array, "batch m heads d"],
    mask: Any = None,
    *,
    implementation: Implementation = None,
) -> Float[Array, "batch n heads d"]:
    """softmax(q k / sqrt(d)) v; mask (B, m): which tokens there are, None for all.

    A query that has no token at all gets zeros. implementation: as of `jax.nn.dot_product_attention`, "xla", "cudnn"
    (GPU, half precision), or None for its own choice.
    """
    if mask is None:
        return jax.nn.dot_product_attention(q, k, v, implementation=implementation)
    mask = jnp.asarray(mask, bool)
    some = mask.any(-1)
    allowed = mask | ~some[:, None]  # a softmax over nothing has no value and no gradient
    found = jax.nn.dot_product_attention(q, k, v, mask=allowed[:, None, None, :], implementation=implementation)
    return jnp.where(some[:, None, None, None], found, jnp.zeros_like(found))


def split_heads(x: Float[Array, "batch n c"], num_heads: int) -> Float[Array, "batch n heads d"]:
    """The channels as `num_heads` parts.

    Raises:
      ValueError: if there are not so many.
    """
    if x.shape[-1] % num_heads:
        raise ValueError(f"num_heads must divide the {x.shape[-1]} channels, got {num_heads}")
    return x.reshape(*x.shape[:-1], num_heads, -1)


class AttentionBlock(nn.Module):
    """norm, multi-head self-attention over all places, zero-initialised projection; plus the input.

    x: (B, *space, C), C divisible by `num_heads`; returns the same shape. Other attributes as of `ResBlock`.
    """

    num_heads: int = 1
    dtype: Any = jnp.float32
    rescale: float = 1.0
    norm_groups: int | None = None
    eps: float = 1e-5
    implementation: Implementation = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch *space c"]) -> Float[Array, "batch *space c"]:
        """See the class."""
        channels = x.shape[-1]
        h = group_norm(channels, self.dtype, groups=self.norm_groups, eps=self.eps)(x)
        h = h.reshape(x.shape[0], -1, channels)
        q, k, v = (
            split_heads(nn.Dense(channels, dtype=self.dtype, name=name)(h), self.num_heads) for name in ("q", "k", "v")
        )
        h = attend(q, k, v, implementation=self.implementation).reshape(x.shape)
        h = nn.Dense(channels, dtype=self.dtype, kernel_init=ZEROS, name="out")(h)
        return (x + h) / self.rescale if self.rescale != 1 else x + h


class Attention(nn.Module):
    """Multi-head attention of x (B, n, C) to a context (B, m, E), or to itself; returns (B, n, C).

    mask: (B, m) of the context. bias: of the maps to queries, keys and values.
    """

    num_heads: int = 1
    dtype: Any = jnp.float32
    bias: bool = False
    implementation: Implementation = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch n c"], context: Any = None, mask: Any = None) -> Any:
        """See the class."""
        context = x if context is None else context.astype(self.dtype)
        channels = x.shape[-1]

        def heads(name, of):
            projected = nn.Dense(channels, use_bias=self.bias, dtype=self.dtype, name=name)(of)
            return split_heads(projected, self.num_heads)

        h = attend(heads("q", x), heads("k", context), heads("v", context), mask, implementation=self.implementation)
        return nn.Dense(channels, dtype=self.dtype, name="out")(h.reshape(x.shape))


class TransformerBlock(nn.Module):
    """Self-attention, attention to a context, a gated feed-forward net, each after a norm; a sum (Rombach et al. 2022).

    x: (B, n, C), context: (B, m, E), mask: (B, m) or None; returns (B, n, C).
    """

    num_heads: int = 1
    dtype: Any = jnp.float32
    implementation: Implementation = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch n c"], context: Any, mask: Any = None) -> Float[Array, "batch n c"]:
        """See the class."""
        norm = functools.partial(nn.LayerNorm, epsilon=1e-5, dtype=self.dtype)
        attention = functools.partial(Attention, self.num_heads, self.dtype, implementation=self.implementation)
        x = x + attention(name="self")(norm(name="norm_1")(x))
        x = x + attention(name="cross")(norm(name="norm_2")(x), context, mask)
        h = nn.Dense(8 * x.shape[-1], dtype=self.dtype, name="gated")(norm(name="norm_3")(x))
        h, gate = jnp.split(h, 2, -1)
        h = h * nn.gelu(gate, approximate=False)
        return x + nn.Dense(x.shape[-1], dtype=self.dtype, name="out")(h)


class CrossAttentionBlock(nn.Module):
    """norm, `depth` transformer blocks over all places with a context, zero-initialised projection; plus the input.

    x: (B, *space, C), context: (B, m, E), mask: (B, m) or None; returns the shape of x (Rombach et al. 2022).
    """

    num_heads: int = 1
    dtype: Any = jnp.float32
    depth: int = 1
    norm_groups: int | None = None
    implementation: Implementation = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch *space c"], context: Any, mask: Any = None
    ) -> Float[Array, "batch *space c"]:
        """See the class."""
        channels = x.shape[-1]
        h = group_norm(channels, self.dtype, groups=self.norm_groups, eps=1e-6)(x)
        h = nn.Dense(channels, dtype=self.dtype, name="in")(h.reshape(x.shape[0], -1, channels))
        for _ in range(self.depth):
            h = TransformerBlock(self.num_heads, self.dtype, self.implementation)(h, context, mask)
        return x + nn.Dense(channels, dtype=self.dtype, kernel_init=ZEROS, name="out")(h).reshape(x.shape)
