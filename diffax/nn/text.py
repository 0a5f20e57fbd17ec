"""Captions as a condition: a transformer over their words, trained along with the network that attends to it.

    h = E[tokens] + p,  h <- h + attention(norm h),  h <- h + W_2 gelu(W_1 norm h),  context = norm h

(Vaswani et al. 2017; pre-norm as in Radford et al. 2021.) Token 0 is padding: a caption is as long as its other tokens.
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
    """tokens (B, m), ints in [0, vocab_size), 0 for padding -> (embeddings (B, m, width), mask (B, m)).

    Embeddings are zero at the padding, and how much of it there is changes nothing else. Positions are sinusoidal, so m
    may be any length.

    Attributes:
      vocab_size: rows of the word table, the one of the padding among them.
      width: of the embeddings; even, at least 4, and divisible by `num_heads`.
      depth: transformer blocks.
      num_heads: attention heads.
      dtype: what it computes in.
    """

    vocab_size: int
    width: int = 128
    depth: int = 2
    num_heads: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Num[Any, "batch m"]) -> tuple[Float[Array, "batch m e"], Num[Array, "batch m"]]:
        """See the class.

        Raises:
          ValueError: if the tokens are no ints (B, m) or not in [0, vocab_size), or the settings do not fit. Tokens
            that are traced, as under `jax.jit`, cannot be checked: from vocab_size on they give NaN, and negative ones
            count from the end.
        """
        for name in ("vocab_size", "width", "num_heads"):
            check_count(name, getattr(self, name))
        check_count("depth", self.depth, 0)
        check("width", self.width, Condition("even and at least 4", lambda v: (v >= 4) & (v % 2 == 0)))
        given, tokens = tokens, jnp.asarray(tokens)
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(f"tokens must be ints of shape (B, m), got {tokens.dtype} of shape {tokens.shape}")
        check("tokens", given, interval(f"[0, {self.vocab_size})"))
        mask = tokens != PADDING
        # Words as large as the sinusoids beside them: at Flax's 1 / sqrt(width) a caption is mostly its length.
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
    """y = network(x, t, context = text(tokens)): a network with cross-attention and its text encoder as one.

    network: called as `network(x, t, context=, context_mask=, key=)`: a `UNet` with
      `attention=Attention(context_dim=width)`, or a `DiT`. One with vector_dim = width is given the mean of the words
      as `vector`, which reaches every block beside the time, as an embedding of the whole caption does in GLIDE (Nichol
      et al. 2022).
    The null caption, for guidance, has no words: zeros.
    """

    network: nn.Module
    text: TextEncoder

    def __call__(
        self, x: Float[Array, "batch *space c"], t: Times, tokens: Examples | None = None, *, key: Key | None = None
    ) -> Float[Array, "batch *space out"]:
        """The prediction y. tokens: (B, m), or None for the null caption; the others as of the network."""
        tokens = jnp.full((x.shape[0], 1), PADDING) if tokens is None else tokens
        context, mask = self.text(tokens)
        whole = {}
        if getattr(self.network, "vector_dim", None) is not None:  # words that are not there are zeros
            words = jnp.maximum(mask.sum(1, keepdims=True), 1).astype(context.dtype)
            whole["vector"] = context.sum(1) / words
        y: Array = self.network(x, t, context=context, context_mask=mask, key=key, **whole)
        return y
