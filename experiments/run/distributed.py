"""Several processes, one run: flags and start. Agreement between processes is in `diffax.training.processes`.

`--distributed`, or JAX_COORDINATOR_ADDRESS in the environment, starts `jax.distributed`. On TPU VMs and under SLURM it
finds the other processes automatically; elsewhere JAX_NUM_PROCESSES and JAX_PROCESS_ID must be set.
"""

import os
from typing import Any

import jax
from absl import flags

from experiments.run.command import usage_errors

DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the other processes of the run; see docs/launch.md.")
HEARTBEAT = flags.DEFINE_integer("heartbeat_seconds", 100, "If one process is gone, the others end after this time.")


def start() -> None:
    """Join the other processes, if the run has several; an error is one line and exit status 2."""
    with usage_errors():
        if HEARTBEAT.value < 1:
            raise ValueError(f"heartbeat_seconds must be >= 1, got {HEARTBEAT.value}")
        if not (DISTRIBUTED.value or "JAX_COORDINATOR_ADDRESS" in os.environ):
            return
        numbers: dict[str, Any] = {}
        for name in ("num_processes", "process_id"):
            text = os.environ.get(f"JAX_{name.upper()}")
            if text is not None and not text.isdecimal():
                raise ValueError(f"JAX_{name.upper()} must be an int >= 0, got {text!r}")
            numbers[name] = None if text is None else int(text)
        seconds = HEARTBEAT.value
        try:
            jax.distributed.initialize(**numbers, heartbeat_timeout_seconds=seconds, shutdown_timeout_seconds=seconds)
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"distributed must find the other processes of the run: {error}") from error
