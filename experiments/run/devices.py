"""Rates of a training step on its devices; the compile cache."""

import os
import resource
import sys
from pathlib import Path
from typing import Any

import jax

from diffax.training.flops import memory, peak, training_flops


def rates(batch_size: int, flops: float | None, devices: list[Any], steps_per_second: float) -> dict[str, float]:
    """The numbers about speed and memory in a line of the log.

    flops: of a step, by `training_flops`. share_of_peak is relative to the peak in bfloat16, whatever the step computes
    in. memory_per_device and memory_of_process are peaks in bytes; the second, the resident set, is logged where the
    backend does not report the first (CPU).
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

    objective: with `loss` and `update_memory`. state: shapes of the training state. batch: shapes of the whole batch.
    """
    if not peak(kind):
        return None
    keys = jax.eval_shape(lambda key: jax.random.split(key, len(batch["index"])), state.key)
    rest = () if objective.update_memory is None else (state.memory,)
    return training_flops(objective.loss, state.params, batch, keys, *rest)


def cache_compilations(folder: Path) -> None:
    """Keep compiled programs in this folder, unless JAX_COMPILATION_CACHE_DIR names another."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(folder))
