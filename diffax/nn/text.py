"""Conditioning on captions: a transformer text encoder, trained together with the network that attends to its output.

    h = E[tokens] + p,  h <- h + attention(norm h),  h <- h + W_2 gelu(W_1 norm h),  context = norm h

(Vaswani et al. 2017; pre-norm as in Radford et al. 2021.) p is the sinusoidal embedding of the position. Token 0 is
padding, so captions of different lengths can share a batch.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from diffax._checks import Condition, check, check_count, interval
from diffax.nn.attention import MultiHeadAttention
from diffax.nn.layers import sinusoidal
from diffax.typing import Array, Examples, Float, Key, Num, Times

PADDING = 0


class TextEncoder(nn.Module):
    """A text encoder: tokens (B, m), ints in [0, vocab_size) -> (embeddings (B, m, width), mask (B, m)).

    Padding tokens have zero embeddings and do not affect the other embeddings. The positional embedding is sinusoidal,
    so that any length m works.

    Attributes:
      vocab_size: number of rows of the word table, including the padding token 0.
      width: width of the embeddings; even, at least 4, and a multiple of `num_heads`.
      depth: number of transformer blocks, >= 0.
      num_heads: number of attention heads.
      dtype: dtype of the computation; parameters are float32.
    """

    vocab_size: int
    width: int = 128
    depth: int = 2
    num_heads: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Num[Any, "batch m"]) -> tuple[Float[Array, "batch m e"], Array]:
        """The embeddings and the mask of the tokens, see the class.

        Raises:
          ValueError: if the tokens are not ints of shape (B, m) in [0, vocab_size), or a setting is out of range. The
            values of traced tokens, as under `jax.jit`, cannot be checked: a token >= vocab_size gives NaN, and a
            negative one indexes the table from its end.
        """
        for name in ("vocab_size", "width", "num_heads"):
            check_count(name, getattr(self, name))
        check_count("depth", self.depth, 0)
        check("width", self.width, Condition("even and at least 4", lambda v: (v >= 4) & (v % 2 == 0)))
        unconverted, tokens = tokens, jnp.asarray(tokens)
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(f"tokens must be ints of shape (B, m), got {tokens.dtype} of shape {tokens.shape}")
        check("tokens", unconverted, interval(f"[0, {self.vocab_size})"))
        mask = tokens != PADDING
        # Word embeddings need the scale of the positional sinusoids. Flax's default std of 1 / sqrt(width) is so small
        # that the positions dominate and captions differ mainly by their length.
        init = nn.initializers.normal(1.0)
        h = nn.Embed(self.vocab_size, self.width, dtype=self.dtype, embedding_init=init, name="words")(tokens)
        h = h + sinusoidal(jnp.arange(tokens.shape[1]), self.width, scale=1.0).astype(self.dtype)[None]
        for i in range(self.depth):
            normed = self._norm(f"norm_{i}_1")(h)
            h = h + MultiHeadAttention(self.num_heads, self.dtype, name=f"attention_{i}")(normed, mask=mask)
            inner = nn.Dense(4 * self.width, dtype=self.dtype, name=f"dense_{i}_1")(self._norm(f"norm_{i}_2")(h))
            h = h + nn.Dense(self.width, dtype=self.dtype, name=f"dense_{i}_2")(nn.gelu(inner))
        h = self._norm("norm")(h)
        return jnp.where(mask[..., None], h, jnp.zeros_like(h)), mask

    def _norm(self, name: str) -> nn.LayerNorm:
        return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name=name)


class Captioned(nn.Module):
    """A network with cross-attention and its text encoder in one module: y = network(x, t, context = text(tokens)).

    The null caption, for guidance, consists of padding only, so that its embeddings are zero.

    Attributes:
      network: called as `network(x, t, context=, context_mask=, key=)`: a `UNet` with
        `attention=Attention(context_dim=width)`, or a `DiT` with `cross_attention`. A network with vector_dim = width
        also gets the mean of the word embeddings as `vector`, which is added to the time embedding of every block, like
        the caption embedding of GLIDE (Nichol et al. 2022).
      text: the text encoder.
    """

    network: nn.Module
    text: TextEncoder

    def __call__(
        self,
        x: Float[Array, "batch *space c"],
        t: Times,
        tokens: Examples | None = None,
        *,
        key: Key | None = None,
        **options: Any,
    ) -> Float[Array, "batch *space out"]:
        """The prediction y. tokens: (B, m), or None for the null caption; other arguments as of the network."""
        tokens = jnp.full((x.shape[0], 1), PADDING) if tokens is None else tokens
        context, mask = self.text(tokens)
        condition = {}
        if getattr(self.network, "vector_dim", None) is not None:
            # The embeddings of padding are zero, so the sum over all tokens is the sum over the words.
            num_words = jnp.maximum(mask.sum(1, keepdims=True), 1).astype(context.dtype)
            condition["vector"] = context.sum(1) / num_words
        y: Array = self.network(x, t, context=context, context_mask=mask, key=key, **condition, **options)
        return y
