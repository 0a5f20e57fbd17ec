"""Training steps at the largest batch that fits: images/s, TFLOP/s, share of the peak, memory, compile time.

The step is AdamW with clipping, dropout where the network has it, and EMA; data is on the device before timing starts.
Steps are dispatched without waiting for each other, as in a training run; the time of a step is the median over chunks
of them. TFLOP/s are model FLOPs (`diffax.training.flops`): attention is counted, recomputation is not.
"""

import gc
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffax.nn import with_implementation
from diffax.training import flops
from experiments.benchmarks.accelerator import networks
from experiments.benchmarks.accelerator.worker import Context, one_line

COLUMNS = (
    ("parameters", "parameters", ",d"),
    ("batch", "batch", "d"),
    ("step ms", "step_ms", ".1f"),
    ("images/s", "images_per_s", ".0f"),
    ("TFLOP/s", "tflops", ".1f"),
    ("% of peak", "percent_of_peak", ".1f"),
    ("memory GiB", "memory_gib", ".1f"),
    ("compile s", "compile_s", ".0f"),
)
WANTED = (
    ("dit_b2", "bfloat16"),
    ("ddpm", "bfloat16"),
    ("dit_xl2", "bfloat16"),
    ("edm2_xs", "bfloat16"),
    ("ddpm", "float32"),
)
CHUNKS, SECONDS = 5, 6.0
LEAST = 20.0  # seconds that a compilation and a few steps need


def rows(context: Context) -> Iterator[dict[str, Any]]:
    """A row for each network and dtype; if no batch size fits, a row with the error of the smallest one."""
    for name, dtype in WANTED:
        label = {"name": f"{name} {dtype}"}
        if not context.quick and context.left() < LEAST:
            yield label | {"skipped": f"{context.left():.0f} s were left"}
            continue
        case = networks.case(name, context.quick)
        try:
            yield label | fitting(case, dtype, context.quick)
        except Exception as error:
            yield label | without_fused_attention(case, dtype, context.quick, error)


def fitting(case: networks.Case, dtype: str, quick: bool) -> dict[str, Any]:
    """The measurement at the first batch size that fits.

    Raises:
      Exception: any error of a step other than out of memory.
    """
    result: dict[str, Any] = {}
    for size in networks.batches(case.batch, memory_limit()):
        try:
            return measure(case, dtype, size, quick)
        except Exception as error:  # JAX has no exception type for out of memory
            if not out_of_memory(error):
                raise
            result = {"batch": size, "error": f"batch {size} does not fit: {one_line(error)}"}
        gc.collect()  # the traceback referred to the arrays of the failed attempt
        jax.clear_caches()
    return result


def without_fused_attention(case: networks.Case, dtype: str, quick: bool, error: Exception) -> dict[str, Any]:
    """The measurement with XLA's attention on a GPU, where the fused kernel may have failed; otherwise the error."""
    failed = {"error": one_line(error)}
    if jax.default_backend() != "gpu" or dtype == "float32":
        return failed
    try:
        row = fitting(case._replace(net=with_implementation(case.net, "xla")), dtype, quick)
    except Exception:
        return failed
    return row | {"note": f"with XLA's attention: {failed['error'][:120]}"}


def memory_limit() -> int | None:
    """Bytes of device memory that this process may use, None if the backend does not report it."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


def out_of_memory(error: BaseException) -> bool:
    """Whether the error means that the device is out of memory."""
    return isinstance(error, MemoryError) or any(
        text in str(error)
        for text in ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory", "ALLOC_FAILED", "ailed to allocate")
    )


def measure(case: networks.Case, dtype: str, size: int, quick: bool) -> dict[str, Any]:
    """One row.

    Raises:
      MemoryError: before anything runs, if the compiled step needs more memory than the device has.
    """
    net = case.net.clone(dtype=jnp.dtype(dtype).type)
    step, optimizer = networks.step_of(net)
    state = networks.state_of(net, case.shape, optimizer)
    batch = jax.device_put(networks.batch_of(case, size))
    keys = jax.eval_shape(lambda key: jax.random.split(key, size), state.key)
    operations = flops.training_flops(networks.loss_of(net), state.params, batch, keys)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    start = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
    compiling = time.perf_counter() - start
    needed, limit = memory_needed(compiled), memory_limit()
    if needed and limit and needed > limit:
        raise MemoryError(f"the step needs {needed / networks.GIB:.1f} GiB, the device has {limit / networks.GIB:.1f}")
    seconds = step_seconds(compiled, state, batch, 0.2 if quick else SECONDS)
    median = float(np.median(seconds))
    peak = flops.peak(jax.local_devices()[0].device_kind)
    share = None if peak is None else 100 * operations / median / getattr(peak, dtype)
    return {
        "dtype": dtype,
        "parameters": parameters,
        "batch": size,
        "step_ms": 1e3 * median,
        "step_range_ms": [1e3 * min(seconds), 1e3 * max(seconds)],
        "images_per_s": size / median,
        "gflop_per_image": operations / size / 1e9,
        "tflops": operations / median / 1e12,
        "percent_of_peak": share,
        "memory_gib": needed and needed / networks.GIB,
        "compile_s": compiling,
    }


def memory_needed(compiled: Any) -> int | None:
    """Bytes of the arguments, temporaries and results of a compiled function; results may reuse donated arguments."""
    sizes = compiled.memory_analysis()
    if sizes is None:
        return None
    results = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return sizes.argument_size_in_bytes + sizes.temp_size_in_bytes + max(results, 0)


def step_seconds(step: Callable, state: Any, batch: Any, seconds: float) -> list[float]:
    """Seconds of a step: the means of CHUNKS chunks, which take `seconds` in total."""
    for _ in range(2):
        start = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        single = time.perf_counter() - start
    count, times = max(1, round(seconds / CHUNKS / single)), []
    for _ in range(CHUNKS):
        start = time.perf_counter()
        for _ in range(count):
            state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        times.append((time.perf_counter() - start) / count)
    return times
