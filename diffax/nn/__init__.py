"""Flax Linen networks. The core only ever sees `predict(x, t)`, so any other network works as well."""

from diffax.nn.unet import UNet

__all__ = ["UNet"]
