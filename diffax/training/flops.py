"""Operations of a training step, counted in its traced program; peaks and memory of devices.

With `kind = device.device_kind`, the share of the peak (MFU, Chowdhery et al. 2022) is

    steps per second * training_flops(loss, params, batch, keys) / (number of devices * peak(kind).bfloat16)

Use the functions as `flops.peak`, `flops.matmul_flops`, `flops.training_flops` and `flops.memory`.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
from jax.extend.core import Jaxpr


class Peak(NamedTuple):
    """Dense operations a second of one device, by the number format of its matrix products, and where that is stated.

    bfloat16: bfloat16 operands, float32 sums. float32: float32 operands at JAX's default precision, which is TF32 on
    NVIDIA's devices from Ampere on, and one pass in bfloat16 on a TPU.
    """

    bfloat16: float
    float32: float
    source: str


_A100, _H100 = "NVIDIA A100 datasheet (2021)", "NVIDIA H100 datasheet (2023), half of the figures with sparsity"
_TPU = "Google Cloud documentation, TPU system architecture"
# By `device_kind`. A TPU v2 or v3 device is one core of the two of a chip.
PEAKS = {
    "TPU v2": Peak(22.5e12, 22.5e12, _TPU),
    "TPU v3": Peak(61.5e12, 61.5e12, _TPU),
    "TPU v4": Peak(275e12, 275e12, _TPU),
    "TPU v5 lite": Peak(197e12, 197e12, _TPU),
    "TPU v5e": Peak(197e12, 197e12, _TPU),
    "TPU v5": Peak(459e12, 459e12, _TPU),
    "TPU v5p": Peak(459e12, 459e12, _TPU),
    "TPU v6 lite": Peak(918e12, 918e12, _TPU),
    "TPU v6e": Peak(918e12, 918e12, _TPU),
    "NVIDIA A100": Peak(312e12, 156e12, _A100),
    "NVIDIA H100": Peak(989.4e12, 494.7e12, f"{_H100}, SXM"),
    "NVIDIA H100 PCIe": Peak(756e12, 378e12, f"{_H100}, PCIe"),
    "NVIDIA H100 NVL": Peak(835e12, 417.5e12, f"{_H100}, NVL"),
    "NVIDIA H200": Peak(989.4e12, 494.7e12, "NVIDIA H200 datasheet (2024), half of the figures with sparsity, SXM"),
    "NVIDIA L4": Peak(121e12, 60e12, "NVIDIA L4 datasheet (2023), half of the figures with sparsity"),
    "NVIDIA GeForce RTX 4090": Peak(
        165.2e12, 82.6e12, "NVIDIA Ada GPU architecture whitepaper (2023), appendix A, dense, float32 accumulation"
    ),
}
# Words that make another device of a name in PEAKS.
OTHERS = {"Laptop", "D", "MIG", "NVL", "lite"}


def peak(kind: str) -> Peak | None:
    """The peak of a device by the longest name of PEAKS whose words its kind begins with, None if it is unknown.

    >>> peak("NVIDIA H100 80GB HBM3").bfloat16, peak("TPU v5 lite").bfloat16, peak("NVIDIA L40S"), peak("cpu")
    (989400000000000.0, 197000000000000.0, None, None)
    """
    names = [name for name in PEAKS if re.match(rf"{re.escape(name)}($|[ -])", kind)]
    if not names:
        return None
    name = max(names, key=len)
    return None if OTHERS & set(re.split("[ -]", kind.removeprefix(name))) else PEAKS[name]


def matmul_flops(function: Callable[..., Any], *args: Any) -> int:
    """Floating-point operations of the matrix products and convolutions of `function(*args)`, 2 for a multiply-add.

    The count is that of the traced program, so it does not depend on the device or on what the compiler changes. The
    body of a scan counts as often as it runs, of a `while_loop` once, of a `cond` its longest branch; cuDNN's fused
    attention counts as the two products that it fuses. args: arrays or `jax.ShapeDtypeStruct`.

    >>> matmul_flops(lambda a, b: a @ b, jax.numpy.ones((8, 16)), jax.numpy.ones((16, 4)))
    1024
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def training_flops(loss: Callable[..., Any], *args: Any) -> int:
    """Model FLOPs of a training step: 3 times those of the loss, since a backward pass has 2 products for each.

    Recomputation (`remat`) is not counted, attention is (Chowdhery et al. 2022, appendix B). args: of the loss.
    """
    return 3 * matmul_flops(loss, *args)


def _count(jaxpr: Jaxpr) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        name, params = eqn.primitive.name, eqn.params
        inputs: list[Any] = eqn.invars  # JAX declares no shape for abstract values
        outputs: list[Any] = eqn.outvars
        shapes = [v.aval.shape for v in inputs]
        if name == "dot_general":
            summed, _ = params["dimension_numbers"][0]
            total += 2 * math.prod(outputs[0].aval.shape) * math.prod(shapes[0][axis] for axis in summed)
        elif name == "conv_general_dilated":
            features = shapes[1][params["dimension_numbers"].rhs_spec[0]]
            total += 2 * math.prod(outputs[0].aval.shape) * math.prod(shapes[1]) // features
        elif name.startswith("dot_product_attention_fwd"):  # (B, n, heads, d) queries, (B, m, heads, d) keys
            total += 4 * math.prod(shapes[0]) * shapes[1][1]
        elif name == "cond":
            total += max(_count(branch.jaxpr) for branch in params["branches"])
        else:
            total += (params["length"] if name == "scan" else 1) * sum(map(_count, _inner(params)))
    return total


def _inner(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """The programs among the parameters of an operation."""
    for value in params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            part = getattr(part, "jaxpr", part)
            if hasattr(part, "eqns"):
                yield part


def memory(devices: Iterable[jax.Device]) -> int | None:
    """The largest peak of allocated bytes among these devices, None where the backend does not report it."""
    stats = [device.memory_stats() for device in devices]
    return max(s["peak_bytes_in_use"] for s in stats) if stats and all(s for s in stats) else None
