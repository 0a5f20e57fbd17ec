"""Networks of convolutions with batch norm: one description gives the shapes of the weights and the network itself.

A network is a function (conv, x) -> features that calls conv(name, norm, x, out, window, ...) for each convolution.
Batch norm with fixed statistics is affine, so it goes into the kernel and the bias:

    gamma (W x - m) / sqrt(v + eps) + beta = (gamma / sqrt(v + eps) W) x + (beta - gamma m / sqrt(v + eps))
"""

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

NORM = ("weight", "bias", "running_mean", "running_var")
NAMED = 8  # problems that a message lists


class Folded(NamedTuple):
    """A convolution after its norm: kernel (*window, in / groups, out), bias (out,)."""

    kernel: Any
    bias: Any


def _convolve(folded: Folded, x: Any, stride: int, padding: str, groups: int) -> Any:
    if groups > 1:
        return _depthwise(folded.kernel, x, stride) + folded.bias
    y = lax.conv_general_dilated(
        x,
        folded.kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=lax.Precision.HIGHEST,
    )
    return y + folded.bias


def _depthwise(kernel: Any, x: Any, stride: int) -> Any:
    """Each channel by itself, padded as "SAME". By shifted products: XLA's own is ten times slower on a CPU."""
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


def apply(network: Callable, params: dict[str, Folded], x: Any) -> Any:
    """The network with these parameters on x (B, H, W, C)."""

    def conv(name, norm, x, out, window, *, stride=1, padding="VALID", groups=1):
        return _convolve(params[name], x, stride, padding, groups)

    return network(conv, x)


def shapes(network: Callable, size: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that it needs, as torch has them, from its run on a picture of this size."""
    found: dict[str, tuple[int, ...]] = {}

    def conv(name, norm, x, out, window, *, stride=1, padding="VALID", groups=1):
        inputs = x.shape[-1] // groups
        found[f"{name}.weight"] = (out, inputs, *window)
        found.update({f"{norm}.{part}": (out,) for part in NORM})
        return _convolve(Folded(jnp.zeros((*window, inputs, out)), jnp.zeros(out)), x, stride, padding, groups)

    jax.eval_shape(lambda x: network(conv, x), jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))
    return found


def check_tensors(what: str, tensors: dict[str, np.ndarray], wanted: dict[str, tuple[int, ...]], unused: str) -> None:
    """Raises `ValueError` unless all wanted tensors are there and finite, and the others match the pattern `unused`."""
    problems = []
    for name, shape in wanted.items():
        if name not in tensors:
            problems.append(f"{name} is missing")
        elif tensors[name].shape != shape:
            problems.append(f"{name} must be {shape}, got {tensors[name].shape}")
        elif not np.issubdtype(tensors[name].dtype, np.floating) or not np.isfinite(tensors[name]).all():
            problems.append(f"{name} must be finite floats")
    problems += [f"{n} is unknown" for n in tensors if n not in wanted and not re.fullmatch(unused, n)]
    if problems:
        more = f"; and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
        raise ValueError(f"these are not the weights of {what}: {'; '.join(problems[:NAMED])}{more}")


def fold(network: Callable, tensors: dict[str, np.ndarray], epsilon: float, size: int) -> dict[str, Folded]:
    """The parameters, in float32. epsilon: of the norms; size: of a picture that the network can take."""
    params = {}

    def conv(name, norm, x, out, window, *, stride=1, padding="VALID", groups=1):
        gamma, beta, mean, variance = (np.asarray(tensors[f"{norm}.{part}"], np.float64) for part in NORM)
        scale = gamma / np.sqrt(variance + epsilon)
        kernel = np.moveaxis(np.asarray(tensors[f"{name}.weight"], np.float64), (0, 1), (3, 2)) * scale
        params[name] = Folded(kernel.astype(np.float32), (beta - mean * scale).astype(np.float32))
        return _convolve(params[name], x, stride, padding, groups)

    jax.eval_shape(lambda x: network(conv, x), jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))
    return params


def three_channels(x: Any) -> Any:
    """(B, H, W, 1 or 3) as (B, H, W, 3): gray three times.

    Raises:
      ValueError: for other shapes.
    """
    if x.ndim != 4 or x.shape[-1] not in (1, 3):
        raise ValueError(f"images must have shape (N, H, W, 1) or (N, H, W, 3), got {tuple(x.shape)}")
    return jnp.broadcast_to(x, (*x.shape[:-1], 3))
