"""Attention, by itself and in blocks: o_i = sum_j softmax_j(q_i k_j / sqrt(d)) v_j (Vaswani et al. 2017).

All of it goes through `jax.nn.dot_product_attention`; `attend` says when a GPU's fused kernel is used.
"""

import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffax.nn.layers import ZEROS, group_norm
from diffax.nn.positions import rotate
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

    A query that has no token at all gets zeros.

    implementation: "xla"; "cudnn", the fused kernel of NVIDIA GPUs, which fails where it is not supported; or None.
    None is "cudnn" for self-attention (q, k and v of one shape) without a mask, in half precision, on GPUs from Ampere
    on, with heads of a multiple of 8 up to 128 channels, 256 on Hopper. Else it is JAX's choice, which up to 0.12 is
    "xla" everywhere. The kernel keeps no (n, m) scores in memory, but has derivatives in reverse mode alone: where
    forward mode goes through a network, as in `diffax.log_likelihood`, make it with implementation = "xla". The
    parameters are the same.
    """
    if implementation is None and mask is None and q.shape == k.shape == v.shape and _fused(q.dtype, q.shape[-1]):
        implementation = "cudnn"
    if mask is None:
        return jax.nn.dot_product_attention(q, k, v, implementation=implementation)
    mask = jnp.asarray(mask, bool)
    some = mask.any(-1)
    allowed = mask | ~some[:, None]  # a softmax over nothing has no value and no gradient
    allowed = allowed[:, None, None, :]
    if implementation == "cudnn":  # takes no mask that is the same for all queries
        allowed = jnp.broadcast_to(allowed, (len(q), 1, q.shape[1], k.shape[1]))
    found = jax.nn.dot_product_attention(q, k, v, mask=allowed, implementation=implementation)
    return jnp.where(some[:, None, None, None], found, jnp.zeros_like(found))


def _fused(dtype: Any, head_size: int) -> bool:
    """Whether cuDNN's kernel takes these here, forwards and backwards."""
    if jax.default_backend() != "gpu" or dtype not in (jnp.float16, jnp.bfloat16) or head_size % 8:
        return False
    major = str(getattr(jax.local_devices()[0], "compute_capability", "")).split(".")[0]
    if not major.isdigit() or int(major) < 8:  # AMD's have names
        return False
    return head_size <= (256 if major == "9" else 128)


def split_heads(x: Float[Array, "batch n c"], num_heads: int) -> Float[Array, "batch n heads d"]:
    """The channels as `num_heads` parts.

    Raises:
      ValueError: if there are not so many.
    """
    if num_heads < 1 or x.shape[-1] % num_heads:
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


class MultiHeadAttention(nn.Module):
    """Multi-head attention of x (B, n, C) to a context (B, m, E), or to itself; returns (B, n, C).

    mask: (B, m) of the context. angles: of `rotary_angles`, by which queries and keys are turned, or None. bias and
    kernel_init: of the maps to queries, keys and values. out_init: of the last map.
    """

    num_heads: int = 1
    dtype: Any = jnp.float32
    bias: bool = False
    implementation: Implementation = None
    kernel_init: Any = nn.initializers.lecun_normal()
    out_init: Any = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch n c"], context: Any = None, mask: Any = None, angles: Any = None
    ) -> Float[Array, "batch n c"]:
        """See the class."""
        context = x if context is None else context.astype(self.dtype)
        channels = x.shape[-1]

        dense = functools.partial(nn.Dense, channels, dtype=self.dtype)
        q, k, v = (
            split_heads(dense(use_bias=self.bias, kernel_init=self.kernel_init, name=name)(of), self.num_heads)
            for name, of in (("q", x), ("k", context), ("v", context))
        )
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        h = attend(q, k, v, mask, implementation=self.implementation)
        return dense(kernel_init=self.out_init, name="out")(h.reshape(x.shape))


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
        attention = functools.partial(
            MultiHeadAttention, self.num_heads, self.dtype, implementation=self.implementation
        )
        x = x + attention(name="self")(norm(name="norm_1")(x))
        x = x + attention(name="cross")(norm(name="norm_2")(x), context, mask)
        h = nn.Dense(8 * x.shape[-1], dtype=self.dtype, name="gated")(norm(name="norm_3")(x))
        h, gate = jnp.split(h, 2, -1)
        h = h * nn.gelu(gate, approximate=False)
        return x + nn.Dense(x.shape[-1], dtype=self.dtype, name="out")(h)


class CrossAttentionBlock(nn.Module):
    """norm, `depth` transformer blocks over all places with a context, zero-initialised projection; plus the input.

    x: (B, *space, C), context: (B, m, E), mask: (B, m) or None; returns the shape of x (Rombach et al. 2022).
    The last sum is divided by `rescale`, as that of `ResBlock`; those inside the transformer blocks are not. The norms
    have an epsilon of 1e-6, and 1e-5 inside the transformer blocks, as published weights were trained with.
    """

    num_heads: int = 1
    dtype: Any = jnp.float32
    depth: int = 1
    norm_groups: int | None = None
    implementation: Implementation = None
    rescale: float = 1.0

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
        h = nn.Dense(channels, dtype=self.dtype, kernel_init=ZEROS, name="out")(h).reshape(x.shape)
        return (x + h) / self.rescale if self.rescale != 1 else x + h
