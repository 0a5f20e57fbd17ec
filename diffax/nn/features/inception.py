"""InceptionV3 as the Fréchet Inception distance has it (Szegedy et al. 2016; Heusel et al. 2017): 2,048 features.

It differs from the network of the paper: average pools do not count the padding, and the last block has a max pool in
place of one. The weights are those of the TensorFlow graph of 2015-12-05 in the layout of pytorch-fid and
torch-fidelity, from a file that the user provides (its name ends in 6726825d). An image is resized to 299 x 299 as
TensorFlow 1 did, and then scaled to (pixel - 128) / 128:

    y_i = (1 - w) x_j + w x_(j+1),   i H / 299 = j + w      no half-pixel centres, no antialias filter

With any other resize the numbers are not FIDs.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffax.nn.features.convolutions import Convolution, Network
from diffax.typing import Array

FILE = "pt_inception-2015-12-05-6726825d.pth of pytorch-fid"  # where the weights are

Link = tuple[str, int, tuple[int, int]]  # name, out, window


@runtime_checkable
class Unit(Protocol):
    """A convolution with its norm and ReLU, named by the module of both."""

    def __call__(
        self, name: str, x: Array, out: int, window: tuple[int, int], *, stride: int = 1, padding: str = "VALID"
    ) -> Array:
        """(B, H, W, C) to (B, H', W', out)."""
        ...


def layers(conv: Convolution, x: Array) -> Array:
    """(B, H, W, 3), H and W >= 75, to (B, 2048)."""

    def unit(
        name: str, x: Array, out: int, window: tuple[int, int], *, stride: int = 1, padding: str = "VALID"
    ) -> Array:
        return jax.nn.relu(conv(f"{name}.conv", f"{name}.bn", x, out, window, stride=stride, padding=padding))

    x = unit("Conv2d_1a_3x3", x, 32, (3, 3), stride=2)
    x = unit("Conv2d_2a_3x3", x, 32, (3, 3))
    x = unit("Conv2d_2b_3x3", x, 64, (3, 3), padding="SAME")
    x = nn.max_pool(x, (3, 3), (2, 2))
    x = unit("Conv2d_3b_1x1", x, 80, (1, 1))
    x = unit("Conv2d_4a_3x3", x, 192, (3, 3))
    x = nn.max_pool(x, (3, 3), (2, 2))
    for name, pooled in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
        x = _block_a(unit, name, x, pooled)
    x = _block_b(unit, "Mixed_6a", x)
    for name, inner in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        x = _block_c(unit, name, x, inner)
    x = _block_d(unit, "Mixed_7a", x)
    x = _block_e(unit, "Mixed_7b", x, _average)
    x = _block_e(unit, "Mixed_7c", x, lambda x: nn.max_pool(x, (3, 3), padding="SAME"))
    return x.mean((1, 2))


def _average(x: Array) -> Array:
    result: Array = nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)
    return result


def _chain(unit: Unit, x: Array, *links: Link) -> Array:
    """One branch of units, padded."""
    for name, out, window in links:
        x = unit(name, x, out, window, padding="SAME")
    return x


def _join(*branches: Array) -> Array:
    return jnp.concatenate(branches, -1)


def _block_a(unit: Unit, at: str, x: Array, pooled: int) -> Array:
    return _join(
        _chain(unit, x, (f"{at}.branch1x1", 64, (1, 1))),
        _chain(unit, x, (f"{at}.branch5x5_1", 48, (1, 1)), (f"{at}.branch5x5_2", 64, (5, 5))),
        _chain(unit, x, *((f"{at}.branch3x3dbl_{i}", n, (k, k)) for i, n, k in ((1, 64, 1), (2, 96, 3), (3, 96, 3)))),
        _chain(unit, _average(x), (f"{at}.branch_pool", pooled, (1, 1))),
    )


def _block_b(unit: Unit, at: str, x: Array) -> Array:
    y = _chain(unit, x, (f"{at}.branch3x3dbl_1", 64, (1, 1)), (f"{at}.branch3x3dbl_2", 96, (3, 3)))
    return _join(
        unit(f"{at}.branch3x3", x, 384, (3, 3), stride=2),
        unit(f"{at}.branch3x3dbl_3", y, 96, (3, 3), stride=2),
        nn.max_pool(x, (3, 3), (2, 2)),
    )


def _block_c(unit: Unit, at: str, x: Array, n: int) -> Array:
    row, column = (1, 7), (7, 1)
    once = (("1", n, (1, 1)), ("2", n, row), ("3", 192, column))
    twice = (("1", n, (1, 1)), ("2", n, column), ("3", n, row), ("4", n, column), ("5", 192, row))
    return _join(
        _chain(unit, x, (f"{at}.branch1x1", 192, (1, 1))),
        _chain(unit, x, *((f"{at}.branch7x7_{i}", out, window) for i, out, window in once)),
        _chain(unit, x, *((f"{at}.branch7x7dbl_{i}", out, window) for i, out, window in twice)),
        _chain(unit, _average(x), (f"{at}.branch_pool", 192, (1, 1))),
    )


def _block_d(unit: Unit, at: str, x: Array) -> Array:
    y = _chain(unit, x, (f"{at}.branch3x3_1", 192, (1, 1)))
    wide = ((1, (1, 1)), (2, (1, 7)), (3, (7, 1)))
    z = _chain(unit, x, *((f"{at}.branch7x7x3_{i}", 192, window) for i, window in wide))
    return _join(
        unit(f"{at}.branch3x3_2", y, 320, (3, 3), stride=2),
        unit(f"{at}.branch7x7x3_4", z, 192, (3, 3), stride=2),
        nn.max_pool(x, (3, 3), (2, 2)),
    )


def _block_e(unit: Unit, at: str, x: Array, pool: Callable[[Array], Array]) -> Array:
    y = _chain(unit, x, (f"{at}.branch3x3_1", 384, (1, 1)))
    z = _chain(unit, x, (f"{at}.branch3x3dbl_1", 448, (1, 1)), (f"{at}.branch3x3dbl_2", 384, (3, 3)))
    return _join(
        _chain(unit, x, (f"{at}.branch1x1", 320, (1, 1))),
        _chain(unit, y, (f"{at}.branch3x3_2a", 384, (1, 3))),
        _chain(unit, y, (f"{at}.branch3x3_2b", 384, (3, 1))),
        _chain(unit, z, (f"{at}.branch3x3dbl_3a", 384, (1, 3))),
        _chain(unit, z, (f"{at}.branch3x3dbl_3b", 384, (3, 1))),
        _chain(unit, pool(x), (f"{at}.branch_pool", 192, (1, 1))),
    )


def resize(x: Array, size: int) -> Array:
    """(B, H, W, C) to (B, size, size, C), the equation of the module."""
    for axis in (2, 1):  # the order decides the last bit
        length = x.shape[axis]
        place = np.arange(size, dtype=np.float32) * np.float32(length / size)
        low = place.astype(int)
        weight = (place - low).reshape([-1 if a == axis else 1 for a in range(4)])
        below, above = (jnp.take(x, at, axis) for at in (low, np.minimum(low + 1, length - 1)))
        x = below + (above - below) * weight
    return x


NETWORK = Network(
    "the Inception of FID",
    layers,
    size=299,
    width=2048,
    prepare=lambda pixels: (resize(pixels, 299) - 128) / 128,
    # The file of torchvision has the same layers from another training, and 1,000 classes.
    head={"fc.weight": (1008, 2048)},
)
