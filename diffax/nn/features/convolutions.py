"""Pretrained networks of convolutions with batch norm, their weights from files with the names of torch.

A network is a function (conv, x) -> features that calls conv(name, norm, x, out, window, ...) for each convolution. The
names and shapes of its weights come from a trace of this function. Batch norm with fixed statistics is affine, and
`fold` puts it into the kernel and the bias:

    gamma (W x - m) / sqrt(v + eps) + beta = (gamma / sqrt(v + eps) W) x + (beta - gamma m / sqrt(v + eps))
"""

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from diffax.typing import Array, Examples, Leaf

NORM = ("weight", "bias", "running_mean", "running_var")
EPSILON = 1e-3  # of the norms
UNUSED = r"_?fc\.(weight|bias)|.*\.num_batches_tracked"  # names of tensors that no feature depends on
LISTED = 8  # problems in an error


class Folded(NamedTuple):
    """A convolution after its norm: kernel (*window, in / groups, out), bias (out,)."""

    kernel: Leaf
    bias: Leaf


@runtime_checkable
class Convolution(Protocol):
    """A convolution with its norm, on x (B, H, W, C): (B, H', W', out).

    name, norm: names of the two in torch. window: (rows, columns). groups: 1, or C for a depthwise convolution, which
    pads as "SAME".
    """

    def __call__(
        self,
        name: str,
        norm: str,
        x: Array,
        out: int,
        window: tuple[int, int],
        *,
        stride: int = 1,
        padding: str = "VALID",
        groups: int = 1,
    ) -> Array:
        """The convolution and its norm."""
        ...


Layers = Callable[[Convolution, Array], Array]


class Network(NamedTuple):
    """A pretrained network.

    title: for errors. layers: (conv, x (B, H, W, 3)) -> (B, width). size: of the input. prepare: pixels (B, H, W, 3) in
    [0, 255] -> the input (B, size, size, 3). head: shapes of tensors of the classifier's head; `fold` checks them in a
    file that has them.
    """

    title: str
    layers: Layers
    size: int
    width: int
    prepare: Callable[[Array], Array]
    head: dict[str, tuple[int, ...]]


def apply(layers: Layers, folded: Callable[[str, str, tuple[int, ...]], Folded], x: Array) -> Array:
    """The layers on x (B, H, W, 3).

    folded: (name of the convolution, name of its norm, shape of the weight in torch (out, in / groups, *window)) -> its
    parameters.
    """

    def conv(
        name: str,
        norm: str,
        x: Array,
        out: int,
        window: tuple[int, int],
        *,
        stride: int = 1,
        padding: str = "VALID",
        groups: int = 1,
    ) -> Array:
        kernel, bias = folded(name, norm, (out, x.shape[-1] // groups, *window))
        if groups > 1:
            return _depthwise(kernel, x, stride) + bias
        y = lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=lax.Precision.HIGHEST,
        )
        return y + bias

    return layers(conv, x)


def _depthwise(kernel: Leaf, x: Array, stride: int) -> Array:
    """A depthwise convolution, padded as "SAME", by shifted products: XLA's own is ten times slower on a CPU."""
    (rows, columns), sizes = kernel.shape[:2], x.shape[1:3]
    out = [-(-size // stride) for size in sizes]
    reach = [(n - 1) * stride + 1 for n in out]
    more = [max(r + k - 1 - size, 0) for r, k, size in zip(reach, (rows, columns), sizes, strict=True)]
    x = jnp.pad(x, ((0, 0), *((n // 2, n - n // 2) for n in more), (0, 0)))
    parts = [
        x[:, i : i + reach[0] : stride, j : j + reach[1] : stride] * kernel[i, j, 0]
        for i in range(rows)
        for j in range(columns)
    ]
    return functools.reduce(jnp.add, parts)


def features(network: Network, params: dict[str, Folded], images: Examples) -> Array:
    """(B, H, W, 1 or 3) in [-1, 1] to (B, width); gray is repeated three times.

    Raises:
      ValueError: for other shapes.
    """
    x = jnp.asarray(images, jnp.float32)
    if x.ndim != 4 or x.shape[-1] not in (1, 3):
        raise ValueError(f"images must have shape (N, H, W, 1) or (N, H, W, 3), got {x.shape}")
    x = jnp.broadcast_to(x, (*x.shape[:-1], 3))
    return apply(network.layers, lambda name, norm, shape: params[name], network.prepare((x + 1) * 127.5))


def kernels(network: Network) -> dict[str, tuple[str, tuple[int, ...]]]:
    """{name of a convolution: (name of its norm, shape of its weight in torch)}."""
    result: dict[str, tuple[str, tuple[int, ...]]] = {}

    def record(name: str, norm: str, shape: tuple[int, ...]) -> Folded:
        result[name] = norm, shape
        return Folded(jnp.zeros((*shape[2:], shape[1], shape[0])), jnp.zeros(shape[0]))

    shape = (1, network.size, network.size, 3)
    jax.eval_shape(lambda x: apply(network.layers, record, x), jax.ShapeDtypeStruct(shape, jnp.float32))
    return result


def shapes(network: Network) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that the network needs, as torch has them."""
    result: dict[str, tuple[int, ...]] = {}
    for name, (norm, shape) in kernels(network).items():
        result[f"{name}.weight"] = shape
        result |= {f"{norm}.{part}": shape[:1] for part in NORM}
    return result


def fold(network: Network, tensors: dict[str, np.ndarray]) -> dict[str, Folded]:
    """The parameters of a network in float32 from tensors with the names of torch.

    Raises:
      ValueError: if tensors are missing, not finite, of another shape or unknown; the error lists them.
    """
    expected = shapes(network) | {name: shape for name, shape in network.head.items() if name in tensors}
    problems = []
    for name, shape in expected.items():
        if name not in tensors:
            problems.append(f"{name} is missing")
        elif tensors[name].shape != shape:
            problems.append(f"{name} must be {shape}, got {tensors[name].shape}")
        elif not np.issubdtype(tensors[name].dtype, np.floating) or not np.isfinite(tensors[name]).all():
            problems.append(f"{name} must be finite floats")
    problems += [f"{n} is unknown" for n in tensors if n not in expected and not re.fullmatch(UNUSED, n)]
    if problems:
        more = f"; and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
        raise ValueError(f"these are not the weights of {network.title}: {'; '.join(problems[:LISTED])}{more}")

    params = {}
    for name, (norm, _) in kernels(network).items():
        gamma, beta, mean, variance = (np.asarray(tensors[f"{norm}.{part}"], np.float64) for part in NORM)
        scale = gamma / np.sqrt(variance + EPSILON)
        kernel: Any = np.moveaxis(np.asarray(tensors[f"{name}.weight"], np.float64), (0, 1), (3, 2)) * scale
        bias: Any = beta - mean * scale
        params[name] = Folded(kernel.astype(np.float32), bias.astype(np.float32))
    return params
