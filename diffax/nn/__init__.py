"""Flax Linen networks. The other packages only call `predict(x, t)`, so any other network works as well.

In float32 the networks support `jax_numpy_dtype_promotion=strict` and `jax_numpy_rank_promotion=raise`. In half
precision they do not support strict promotion, because Flax's norms and pooling promote to float32.
"""

from diffax.nn import features
from diffax.nn.attention import Attention, with_implementation
from diffax.nn.autoencoder import Autoencoder
from diffax.nn.dit import DIT_SIZES, DiT
from diffax.nn.edm2 import EDM2
from diffax.nn.layers import Norm, Residual, TimeEmbedding
from diffax.nn.mlp import MLP
from diffax.nn.unet import UNet

__all__ = [
    "DIT_SIZES",
    "EDM2",
    "MLP",
    "Attention",
    "Autoencoder",
    "DiT",
    "Norm",
    "Residual",
    "TimeEmbedding",
    "UNet",
    "features",
    "with_implementation",
]
