"""What the devices do: the operations of a step, the share of their peak, memory, compile cache, profiles."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

# Dense bfloat16 operations a second of one device as JAX sees it, by its `device_kind`, as their makers say.
PEAK = {
    "TPU v2": 22.5e12,  # a core; v3 too
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA L4": 121e12,
    "Tesla V100": 125e12,
}


def peak_flops(kind: str) -> float | None:
    """The peak of a device by the longest name that its kind starts with, None if it is not known.

    >>> peak_flops("NVIDIA H100 80GB HBM3"), peak_flops("TPU v5 lite"), peak_flops("cpu")
    (989000000000000.0, 197000000000000.0, None)
    """
    names = [name for name in PEAK if kind.startswith(name)]
    return PEAK[max(names, key=len)] if names else None


def flops(step: Callable, state: Any, batch: Any) -> float | None:
    """Operations of `step(state, batch)` on the whole batch, as XLA counts them before it optimises; None if not."""
    shapes = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), (state, batch))
    found = jax.jit(step).lower(*shapes).cost_analysis()
    return found.get("flops") if found else None


def memory(devices: Any) -> int | None:
    """The most bytes that any of these devices has held, None where the backend does not say."""
    stats = [device.memory_stats() for device in devices]
    return max(s["peak_bytes_in_use"] for s in stats) if stats and all(s for s in stats) else None


def rates(steps_per_second: float, batch_size: int, operations: float | None, devices: list) -> dict[str, float]:
    """What goes into the log beside the losses.

    The share is of the peak in bfloat16, whatever the step computes in; the operations are those of `flops`, to which
    what rematerialisation does again counts too.
    """
    found = {"steps_per_second": steps_per_second, "images_per_second": steps_per_second * batch_size}
    if operations:
        found["flops_per_second"] = steps_per_second * operations
        if peak := peak_flops(devices[0].device_kind):
            found["share_of_peak"] = found["flops_per_second"] / (peak * len(devices))
    if held := memory([device for device in devices if device.process_index == jax.process_index()]):
        found["memory_per_device"] = held
    return found


def cache_compilations(folder: Path) -> None:
    """Keeps what was compiled in this folder, unless JAX_COMPILATION_CACHE_DIR says where."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(folder))


class Profile:
    """A trace of the steps first .. last, both included, into a folder; of none for ()."""

    def __init__(self, steps: tuple[int, ...], folder: Path):
        self._first, self._last = steps or (0, 0)
        self._folder, self._on = folder, False

    def before(self, step: int) -> None:
        """Starts at the first of them."""
        if step == self._first:
            jax.profiler.start_trace(self._folder)
            self._on = True

    def after(self, step: int, result: Any) -> None:
        """Ends after the last of them, once it is done."""
        if self._on and step == self._last:
            self.close(result)

    def close(self, result: Any = None) -> None:
        """Ends it wherever it is."""
        if self._on:
            jax.block_until_ready(result)
            jax.profiler.stop_trace()
            self._on = False
