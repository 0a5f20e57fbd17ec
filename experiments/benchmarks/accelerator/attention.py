"""cuDNN's fused attention against XLA's in bfloat16, forward and backward: values and speed.

error      |result - float32 result| / |float32 result| of the output and of the gradients, for each
speed-up   XLA's time over cuDNN's, forward with backward
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffax.nn.attention import attend
from experiments.benchmarks.accelerator.worker import Context, one_line

COLUMNS = (
    ("XLA ms", "xla_ms", ".3f"),
    ("cuDNN ms", "cudnn_ms", ".3f"),
    ("speed-up", "speed_up", ".2f"),
    ("XLA error", "xla_error", ".1e"),
    ("cuDNN error", "cudnn_error", ".1e"),
    ("passed", "passed", ""),
)
SHAPES = {  # (B, n, heads, head size)
    "DiT-B/2": (128, 256, 12, 64),
    "DiT-XL/2": (128, 256, 16, 72),
    "U-Net 16x16": (256, 256, 1, 256),
    "64x64 tokens": (8, 4096, 8, 64),
}
TOY = (2, 16, 2, 8)
BOUND, CHUNKS = 2e-2, 3


def rows(context: Context) -> Iterator[dict[str, Any]]:
    """A row for each shape; without a fused kernel, for XLA's attention only."""
    for name, shape in SHAPES.items():
        try:
            yield {"name": name} | compare(TOY if context.quick else shape, 2 if context.quick else 20)
        except Exception as error:
            yield {"name": name, "error": one_line(error)}
        if context.quick:
            return


def compare(shape: tuple[int, ...], repeats: int) -> dict[str, Any]:
    """Times and errors of both; if a kernel fails for the shape, the row has a note."""
    inputs = [jax.random.normal(key, shape, jnp.bfloat16) for key in jax.random.split(jax.random.key(0), 4)]
    with jax.default_matmul_precision("highest"):
        exact = _function("xla")(*(jnp.asarray(value, jnp.float32) for value in inputs))
    row: dict[str, Any] = {"shape": list(shape), "passed": True}
    for name in ("xla", "cudnn") if jax.default_backend() == "gpu" else ("xla",):
        run = _function(name)
        try:
            error = max(_relative(value, reference) for value, reference in zip(run(*inputs), exact, strict=True))
            row |= {f"{name}_error": error, f"{name}_ms": 1e3 * _seconds(run, inputs, repeats)}
        except Exception as failure:
            row["note"] = f"{name}: {one_line(failure)[:120]}"
            continue
        row["passed"] &= error <= BOUND
    if "cudnn_ms" in row and "xla_ms" in row:
        row["speed_up"] = row["xla_ms"] / row["cudnn_ms"]
    return row


def _function(implementation: Any) -> Callable[..., Any]:
    """(q, k, v, cotangent) -> the output and the three gradients."""

    @jax.jit
    def run(q, k, v, cotangent):
        out, pullback = jax.vjp(lambda q, k, v: attend(q, k, v, implementation=implementation), q, k, v)
        return out, *pullback(cotangent)

    return run


def _relative(value: Any, reference: Any) -> float:
    value, reference = np.asarray(value, np.float64), np.asarray(reference, np.float64)
    return float(np.linalg.norm(value - reference) / np.linalg.norm(reference))


def _seconds(run: Callable[..., Any], args: Any, repeats: int) -> float:
    """Seconds of a call, the median over chunks; calls of a chunk are dispatched without waiting for each other."""
    times = []
    for _ in range(CHUNKS):
        start = time.perf_counter()
        for _ in range(repeats):
            result = run(*args)
        jax.block_until_ready(result)
        times.append((time.perf_counter() - start) / repeats)
    return float(np.median(times))
