"""Attention, as a function and in blocks: o_i = sum_j softmax_j(q_i k_j / sqrt(d)) v_j (Vaswani et al. 2017).

All blocks call `attend`, which calls `jax.nn.dot_product_attention`. The docstring of `attend` states when the fused
kernel of a GPU is used.
"""

import dataclasses
import functools
from typing import Literal, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike

from diffax._checks import Condition, check, check_count, choose
from diffax.nn.layers import ZEROS, Norm, group_norm
from diffax.nn.positions import rotate
from diffax.typing import Array, Float

Implementation = Literal["xla", "cudnn"] | None
Network = TypeVar("Network", bound=nn.Module)


@dataclasses.dataclass(frozen=True)
class Attention:
    """Settings of the attention in a U-Net: its levels, its heads and its context.

    Args:
      levels: indices of the levels with attention; level 1 is 16x16 for a 32x32 input.
      middle: whether the middle has attention.
      num_heads: number of heads, which must divide the channels.
      head_channels: channels per head; replaces `num_heads`.
      context_dim: width E of the context (B, m, E). None for self-attention among the positions of x only
        (`AttentionBlock`); otherwise transformer blocks also attend to the context (`CrossAttentionBlock`).
      depth: number of transformer blocks in each cross-attention block; 1 without a context.
      implementation: see `attend`.

    Raises:
      ValueError: if a setting is out of its range.

    >>> Attention(head_channels=64).heads(320), Attention(num_heads=8).heads(320)
    (5, 8)
    """

    levels: tuple[int, ...] = (1,)
    middle: bool = True
    num_heads: int = 1
    head_channels: int | None = None
    context_dim: int | None = None
    depth: int = 1
    implementation: Implementation = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(self.levels))  # Settings must be hashable, and a list is not.
        for level in self.levels:
            check_count("levels", level, 0)
        for name in ("num_heads", "depth"):
            check_count(name, getattr(self, name))
        for name in ("head_channels", "context_dim"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        if self.context_dim is None:
            check("depth", self.depth, Condition("1 where context_dim is None", lambda v: v == 1))
        if self.implementation is not None:
            choose("implementation", self.implementation, ("xla", "cudnn"))

    def heads(self, width: int) -> int:
        """The number of heads for `width` channels.

        Raises:
          ValueError: if `num_heads` or `head_channels` does not divide the channels.
        """
        if self.head_channels is None:
            return check_heads(width, self.num_heads)
        if width % self.head_channels:
            raise ValueError(f"head_channels must divide the {width} channels, got {self.head_channels}")
        return width // self.head_channels


def with_implementation(net: Network, implementation: Implementation) -> Network:
    """The same network with another implementation of attention; a network without attention is returned unchanged.

    The parameters are the same. `with_implementation(net, "xla")` supports forward-mode derivatives.
    """
    settings = getattr(net, "attention", None)
    if isinstance(settings, Attention):
        return net.clone(attention=dataclasses.replace(settings, implementation=implementation))
    return net.clone(implementation=implementation) if hasattr(net, "implementation") else net


def attend(
    q: Float[Array, "batch n heads d"],
    k: Float[Array, "batch m heads d"],
    v: Float[Array, "batch m heads d"],
    mask: ArrayLike | None = None,
    *,
    implementation: Implementation = None,
) -> Float[Array, "batch n heads d"]:
    """softmax(q k / sqrt(d)) v.

    mask: (B, m), True for real tokens and False for padding; None if all tokens are real. The result is zero in
    examples without any real token.

    implementation: "xla"; "cudnn", the fused kernel of NVIDIA GPUs, which raises an error where it is not supported;
    or None. None selects "cudnn" for self-attention (q, k and v of one shape) without a mask, in half precision, on
    GPUs from Ampere on, with a head size that is a multiple of 8 and at most 128, or 256 on Hopper. Otherwise JAX
    selects the implementation; JAX up to 0.12 always selects "xla". The cuDNN kernel does not store the (n, m) scores,
    but it supports reverse-mode derivatives only: for forward mode through a network, as in `diffax.log_likelihood`,
    use `with_implementation(net, "xla")`.
    """
    if implementation is None and mask is None and q.shape == k.shape == v.shape and _fused(q.dtype, q.shape[-1]):
        implementation = "cudnn"
    if mask is None:
        return jax.nn.dot_product_attention(q, k, v, implementation=implementation)
    mask = jnp.asarray(mask, bool)
    has_tokens = mask.any(-1)
    # Softmax over no tokens is undefined, like its gradient: unmask examples without tokens, then set their result to 0
    allowed = mask | ~has_tokens[:, None]
    allowed = allowed[:, None, None, :]
    if implementation == "cudnn":  # The kernel does not broadcast a mask over the queries.
        allowed = jnp.broadcast_to(allowed, (len(q), 1, q.shape[1], k.shape[1]))
    result = jax.nn.dot_product_attention(q, k, v, mask=allowed, implementation=implementation)
    return jnp.where(has_tokens[:, None, None, None], result, jnp.zeros_like(result))


def _fused(dtype: DTypeLike, head_size: int) -> bool:
    """Whether cuDNN's kernel supports this dtype and head size on the first device, forward and backward."""
    if jax.default_backend() != "gpu" or dtype not in (jnp.float16, jnp.bfloat16) or head_size % 8:
        return False
    major = str(getattr(jax.local_devices()[0], "compute_capability", "")).split(".")[0]
    if not major.isdigit() or int(major) < 8:  # On AMD GPUs this is a name.
        return False
    return head_size <= (256 if major == "9" else 128)


def split_heads(x: Float[Array, "batch n c"], num_heads: int) -> Float[Array, "batch n heads d"]:
    """Split the channels into `num_heads` heads of equal size.

    Raises:
      ValueError: if `num_heads` does not divide the channels.
    """
    return x.reshape(*x.shape[:-1], check_heads(x.shape[-1], num_heads), -1)


def check_heads(channels: int, num_heads: int) -> int:
    """Check `num_heads` and return it.

    Raises:
      ValueError: if `num_heads` does not divide the channels.
    """
    if num_heads < 1 or channels % num_heads:
        raise ValueError(f"num_heads must divide the {channels} channels, got {num_heads}")
    return num_heads


class AttentionBlock(nn.Module):
    """A self-attention block: x + (norm, multi-head attention among all positions, projection)(x).

    The projection is zero at initialisation. x: (B, *space, C), C divisible by `num_heads`; returns the same shape.

    Attributes:
      num_heads: number of heads.
      dtype: dtype of the computation.
      rescale: divisor of the sum, see `Residual`.
      norm: settings of the group norm.
      implementation: see `attend`.
    """

    num_heads: int = 1
    dtype: DTypeLike = jnp.float32
    rescale: float = 1.0
    norm: Norm = Norm()
    implementation: Implementation = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch *space c"]) -> Float[Array, "batch *space c"]:
        """See the class."""
        channels = x.shape[-1]
        h = group_norm(channels, self.dtype, self.norm)(x)
        h = h.reshape(x.shape[0], -1, channels)
        q, k, v = (
            split_heads(nn.Dense(channels, dtype=self.dtype, name=name)(h), self.num_heads) for name in ("q", "k", "v")
        )
        h = attend(q, k, v, implementation=self.implementation).reshape(x.shape)
        h = nn.Dense(channels, dtype=self.dtype, kernel_init=ZEROS, name="out")(h)
        return (x + h) / self.rescale if self.rescale != 1 else x + h


class MultiHeadAttention(nn.Module):
    """Multi-head attention of x (B, n, C) to a context (B, m, E), or to x itself; returns (B, n, C).

    mask: (B, m), the real tokens of the context, see `attend`. angles: rotation angles of the queries and keys, from
    `rotary_angles`; None for no rotation.

    Attributes:
      num_heads: number of heads.
      dtype: dtype of the computation.
      bias: whether the projections to queries, keys and values have a bias.
      implementation: see `attend`.
      kernel_init: initialiser of the projections to queries, keys and values.
      out_init: initialiser of the output projection.
    """

    num_heads: int = 1
    dtype: DTypeLike = jnp.float32
    bias: bool = False
    implementation: Implementation = None
    kernel_init: Initializer = nn.initializers.lecun_normal()
    out_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch n c"],
        context: Float[Array, "batch m e"] | None = None,
        mask: ArrayLike | None = None,
        angles: Float[Array, "n half"] | None = None,
    ) -> Float[Array, "batch n c"]:
        """See the class."""
        context = x if context is None else context.astype(self.dtype)
        channels = x.shape[-1]

        dense = functools.partial(nn.Dense, channels, dtype=self.dtype)
        q, k, v = (
            split_heads(dense(use_bias=self.bias, kernel_init=self.kernel_init, name=name)(source), self.num_heads)
            for name, source in (("q", x), ("k", context), ("v", context))
        )
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        h = attend(q, k, v, mask, implementation=self.implementation)
        return dense(kernel_init=self.out_init, name="out")(h.reshape(x.shape))


class TransformerBlock(nn.Module):
    """A transformer block: self-attention, attention to a context, and a gated feed-forward net (Rombach et al. 2022).

    Each of the three takes the layer norm of x, with an epsilon of 1e-5, and adds its result to x.
    x: (B, n, C), context: (B, m, E), mask: (B, m) or None; returns (B, n, C).
    """

    num_heads: int = 1
    dtype: DTypeLike = jnp.float32
    implementation: Implementation = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch n c"], context: Float[Array, "batch m e"], mask: ArrayLike | None = None
    ) -> Float[Array, "batch n c"]:
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
    """A cross-attention block: x + (norm, dense layer, `depth` transformer blocks, projection)(x).

    The projection is zero at initialisation. x: (B, *space, C), context: (B, m, E), mask: (B, m) or None; returns the
    shape of x (Rombach et al. 2022). The epsilon of the group norm is always 1e-6, as in the published networks.

    Attributes:
      num_heads: number of heads.
      dtype: dtype of the computation.
      depth: number of transformer blocks.
      norm: settings of the group norm, of which only the groups are used.
      implementation: see `attend`.
      rescale: divisor of the sum, see `Residual`.
    """

    num_heads: int = 1
    dtype: DTypeLike = jnp.float32
    depth: int = 1
    norm: Norm = Norm()
    implementation: Implementation = None
    rescale: float = 1.0

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch *space c"], context: Float[Array, "batch m e"], mask: ArrayLike | None = None
    ) -> Float[Array, "batch *space c"]:
        """See the class."""
        channels = x.shape[-1]
        h = group_norm(channels, self.dtype, dataclasses.replace(self.norm, eps=1e-6))(x)
        h = nn.Dense(channels, dtype=self.dtype, name="in")(h.reshape(x.shape[0], -1, channels))
        for _ in range(self.depth):
            h = TransformerBlock(self.num_heads, self.dtype, self.implementation)(h, context, mask)
        h = nn.Dense(channels, dtype=self.dtype, kernel_init=ZEROS, name="out")(h).reshape(x.shape)
        return (x + h) / self.rescale if self.rescale != 1 else x + h
