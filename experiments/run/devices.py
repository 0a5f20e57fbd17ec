"""One device for each core of a CPU; rates of a training step on its devices; the compile cache."""

import contextlib
import importlib.util
import os
import resource
import sys
from pathlib import Path
from typing import Any

import jax

from diffax.training.flops import memory, peak, training_flops

# Seconds that a device waits for the others in an all-reduce. After XLA's 40 a run aborts on a machine that is busy.
PATIENCE = "--xla_cpu_collective_call_terminate_timeout_seconds"
MOST_DEVICES = 8  # of a CPU, since each device has a copy of the training state


def use_cores(parts: int = 0) -> None:
    """On a CPU, make each core a device, which is faster than one device of all cores (docs/training.md).

    The number of devices is the largest divisor of `parts` up to 8 and up to the number of cores. Nothing changes with
    several processes, after JAX's first computation, or if JAX_NUM_CPU_DEVICES or XLA_FLAGS set the number.

    Args:
      parts: equal parts of a batch that may be on different devices, its examples or groups of them; 0 for any number.
    """
    config: Any = jax.config
    flag = "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if config.jax_num_cpu_devices >= 0 or flag or jax.distributed.is_initialized():
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = max(n for n in range(1, min(cores, MOST_DEVICES) + 1) if parts % n == 0)
    with contextlib.suppress(RuntimeError):  # a backend is in use
        config.update("jax_num_cpu_devices", count)
        flags = os.environ.get("XLA_FLAGS", "")
        if count > 1 and PATIENCE not in flags and importlib.util.find_spec("libtpu") is None:
            os.environ["XLA_FLAGS"] = f"{flags} {PATIENCE}=3600".strip()


def rates(batch_size: int, flops: float | None, devices: list[Any], steps_per_second: float) -> dict[str, float]:
    """The numbers about speed and memory in a line of the log.

    flops: of a step, by `training_flops`. share_of_peak is always relative to the peak in bfloat16. memory_per_device
    and memory_of_process are peaks in bytes; the second, the resident set, is logged if the backend does not report the
    first (CPU).
    """
    result = {"steps_per_second": steps_per_second, "images_per_second": steps_per_second * batch_size}
    if flops:
        result["flops_per_second"] = steps_per_second * flops
        if known := peak(devices[0].device_kind):
            result["share_of_peak"] = result["flops_per_second"] / (known.bfloat16 * len(devices))
    if used := memory([device for device in devices if device.process_index == jax.process_index()]):
        result["memory_per_device"] = used
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        result["memory_of_process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return result


def flops_of_step(objective: Any, state: Any, batch: dict[str, Any], kind: str) -> float | None:
    """The operations of a training step on a device of this kind; None for a device without a known peak.

    objective: with `loss`, `update_memory` and `uses`. state: shapes of the training state. batch: shapes of the whole
      batch.
    """
    if not peak(kind):
        return None
    keys = jax.eval_shape(lambda key: jax.random.split(key, len(batch["index"])), state.key)
    rest = () if objective.update_memory is None else (state.memory,)
    used = {name: getattr(state, name) for name in objective.uses}

    def loss(params: Any, batch: Any, keys: Any, used: Any, *rest: Any) -> Any:
        return objective.loss(params, batch, keys, *rest, **used)

    return training_flops(loss, state.params, batch, keys, used, *rest)


def cache_compilations(folder: Path) -> None:
    """Keep compiled programs in this folder, unless JAX_COMPILATION_CACHE_DIR names another."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(folder))
