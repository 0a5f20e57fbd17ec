"""Captions as a condition: a transformer over their words, trained along with the network that attends to it.

    h = E[tokens] + p,  h <- h + attention(norm h),  h <- h + W_2 gelu(W_1 norm h),  context = norm h

(Vaswani et al. 2017; pre-norm as in Radford et al. 2021.) Token 0 is padding: a caption is as long as its other tokens.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from diffax.nn.attention import Attention
from diffax.nn.layers import sinusoidal
from diffax.typing import Array, Float, Key, Num

PADDING = 0


class TextEncoder(nn.Module):
    """tokens (B, m), ints in [0, vocab_size), 0 for padding -> (embeddings (B, m, width), mask (B, m)).

    Embeddings are zero at the padding, and how much of it there is changes nothing else. Positions are sinusoidal, so m
    may be any length.

    Attributes:
      vocab_size: rows of the word table, the one of the padding among them.
      width: of the embeddings; even, and divisible by `num_heads`.
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
          ValueError: if the tokens are no ints (B, m), or the width does not fit.
        """
        tokens = jnp.asarray(tokens)
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(f"tokens must be ints of shape (B, m), got {tokens.dtype} of shape {tokens.shape}")
        mask = tokens != PADDING
        h = nn.Embed(self.vocab_size, self.width, dtype=self.dtype, name="words")(tokens)
        h = h + sinusoidal(jnp.arange(tokens.shape[1]), self.width, scale=1.0).astype(self.dtype)
        for i in range(self.depth):
            normed = self._norm(f"norm_{i}_1")(h)
            h = h + Attention(self.num_heads, self.dtype, name=f"attention_{i}")(normed, mask=mask)
            inner = nn.Dense(4 * self.width, dtype=self.dtype, name=f"dense_{i}_1")(self._norm(f"norm_{i}_2")(h))
            h = h + nn.Dense(self.width, dtype=self.dtype, name=f"dense_{i}_2")(nn.gelu(inner))
        h = self._norm("norm")(h)
        return jnp.where(mask[..., None], h, jnp.zeros_like(h)), mask

    def _norm(self, name):
        return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name=name)


class Captioned(nn.Module):
    """y = network(x, t, context = text(tokens)): a network with cross-attention and its text encoder as one.

    network: called as `network(x, t, context=, context_mask=, key=)`: `UNet(attention="cross", context_dim=width)`.
    The null caption, for guidance, has no words: zeros.
    """

    network: nn.Module
    text: TextEncoder

    def __call__(
        self, x: Float[Array, "batch *space c"], t: Any, tokens: Any = None, *, key: Key | None = None
    ) -> Float[Array, "batch *space out"]:
        """The prediction y. tokens: (B, m), or None for the null caption; the others as of the network."""
        tokens = jnp.full((x.shape[0], 1), PADDING) if tokens is None else tokens
        context, mask = self.text(tokens)
        return self.network(x, t, context=context, context_mask=mask, key=key)
