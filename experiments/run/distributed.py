"""Several processes, one run: who is there, that all mean the same run, and when to stop.

`--distributed`, or JAX_COORDINATOR_ADDRESS in the environment, starts `jax.distributed`; on TPU VMs and under SLURM it
finds the others by itself, elsewhere JAX_NUM_PROCESSES and JAX_PROCESS_ID say who this is.
"""

import contextlib
import hashlib
import json
import os
import secrets
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from experiments.run.workdir import usage_errors

DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Several processes, one of which this is; see docs/launch.md.")
HEARTBEAT = flags.DEFINE_integer("heartbeat_seconds", 100, "How long after one process is gone the others end.")

T = TypeVar("T")
STOPPED = 75  # exit status of a run that was told to stop and saved: start it again (EX_TEMPFAIL of sysexits.h)


class ElsewhereError(ValueError):
    """What was done together failed on another process."""


def start() -> None:
    """Joins the other processes, if there are to be any; what is wrong with that is one line and status 2."""
    with usage_errors():
        _start()


def _start() -> None:
    if HEARTBEAT.value < 1:
        raise ValueError(f"heartbeat_seconds must be >= 1, got {HEARTBEAT.value}")
    if not (DISTRIBUTED.value or "JAX_COORDINATOR_ADDRESS" in os.environ):
        return
    given: dict[str, Any] = {}
    for argument in ("num_processes", "process_id"):
        text = os.environ.get(f"JAX_{argument.upper()}")
        if text is not None and not text.isdecimal():
            raise ValueError(f"JAX_{argument.upper()} must be an int >= 0, got {text!r}")
        given[argument] = None if text is None else int(text)
    try:
        jax.distributed.initialize(
            **given, heartbeat_timeout_seconds=HEARTBEAT.value, shutdown_timeout_seconds=HEARTBEAT.value
        )
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"distributed needs to know the other processes: {error}") from error


def is_first() -> bool:
    """Whether this process writes what there is one of."""
    return jax.process_index() == 0


def together(work: Callable[[], T]) -> T:
    """`work()`, and its error on this process; where it fails on another one, an `ElsewhereError` that says on which.

    So that none goes on, to wait for one that is gone.
    """
    failed: Exception | None = None
    try:
        result = work()
    except Exception as error:
        failed = error
    if jax.process_count() > 1:
        of_all = np.asarray(multihost_utils.process_allgather(np.int32(failed is not None)))
        if failed is None and of_all.any():
            raise ElsewhereError(f"process {int(of_all.argmax())} failed: it says why")
    if failed is not None:
        raise failed
    return result


def agree(values: dict[str, Any]) -> None:
    """Raises `ValueError`, on all processes, if one of them means something else; names the first difference."""
    if jax.process_count() == 1:
        return
    texts = [json.dumps(value, sort_keys=True) for value in values.values()]
    digests = np.stack([np.frombuffer(hashlib.sha256(text.encode()).digest()[:8], np.uint32) for text in texts])
    of_all = np.asarray(multihost_utils.process_allgather(digests))
    for place, name in enumerate(values):
        others = [i for i in range(len(of_all)) if (of_all[i, place] != of_all[0, place]).any()]
        if others:
            raise ValueError(f"{name} must be the same on all processes, got another one on process {others[0]}")


def see_the_same(folder: Path) -> None:
    """Raises `ValueError`, on all processes, if one of them does not find in a folder what the first wrote there."""
    if jax.process_count() == 1:
        return
    path = folder / ".processes"
    word = str(multihost_utils.broadcast_one_to_all(np.uint32(secrets.randbits(32))))
    together(lambda: path.write_text(word) if is_first() else None)

    def look():
        if not path.exists() or path.read_text() != word:
            raise ValueError(f"workdir must be one folder that all processes share, got {folder}, which is another one")

    try:
        together(look)
    finally:
        if is_first():
            path.unlink()


class Stop(contextlib.AbstractContextManager):
    """SIGTERM as a question: has somebody asked the run to stop? Over several processes all stop at the same step."""

    def __init__(self):
        self._asked = False

    def __enter__(self):
        if not jax.distributed.is_initialized():  # otherwise that listens
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *exc):
        if not jax.distributed.is_initialized():
            signal.signal(signal.SIGTERM, self._before)

    def _ask(self, number, frame):
        self._asked = True

    def asked(self, step: int) -> bool:
        """Whether to stop after this step; all processes ask at each."""
        if not jax.distributed.is_initialized():
            return self._asked
        return multihost_utils.reached_preemption_sync_point(step)
