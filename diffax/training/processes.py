"""Several processes that train one model: agreement between them, and requests to stop.

With one process, each function does its work without communication.
"""

import contextlib
import hashlib
import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar("T")
TOGETHER = 0.2  # seconds
STOPPED = 75  # exit status of a run that was asked to stop and has saved: start it again (EX_TEMPFAIL of sysexits.h)


class ElsewhereError(ValueError):
    """Work that all processes do together failed on another process."""


def is_first() -> bool:
    """Whether this process is the one that writes files and prints."""
    return jax.process_index() == 0


def on_all(work: Callable[[], T]) -> T:
    """Return work(), which all processes call; if it fails on one of them, raise an error on each.

    Without this, the other processes would wait in their next collective operation for a process that has ended.

    Raises:
      ElsewhereError: if `work` failed on another process. On the process where it failed, its own error is raised.
    """
    error: Exception | None = None
    try:
        result = work()
    except Exception as raised:
        error = raised
    if jax.process_count() > 1:
        failed = np.asarray(multihost_utils.process_allgather(np.int32(error is not None)))
        if error is None and failed.any():
            raise ElsewhereError(f"process {int(failed.argmax())} failed; see its log")
    if error is not None:
        raise error
    return result


def check_equal(values: dict[str, Any]) -> None:
    """Raise `ValueError` on all processes if a value (JSON) is not the same on all; the error names the first."""
    if jax.process_count() == 1:
        return
    texts = [json.dumps(value, sort_keys=True) for value in values.values()]
    digests = np.stack([np.frombuffer(hashlib.sha256(text.encode()).digest()[:8], np.uint32) for text in texts])
    gathered = np.asarray(multihost_utils.process_allgather(digests))
    for index, name in enumerate(values):
        others = [i for i in range(len(gathered)) if (gathered[i, index] != gathered[0, index]).any()]
        if others:
            raise ValueError(f"{name} must be the same on all processes, got another value on process {others[0]}")


def check_shared(folder: Path) -> None:
    """Raise `ValueError` on all processes if one of them does not see what the first one writes into a folder."""
    if jax.process_count() == 1:
        return
    path = folder / ".processes"
    token = str(multihost_utils.broadcast_one_to_all(np.uint32(secrets.randbits(32))))
    on_all(lambda: path.write_text(token) if is_first() else None)

    def look() -> None:
        if not path.exists() or path.read_text() != token:
            raise ValueError(f"workdir must be one folder that all processes share, got another folder at {folder}")

    try:
        on_all(look)
    finally:
        if is_first():
            path.unlink()


class StopRequest(contextlib.AbstractContextManager["StopRequest"]):
    """SIGTERM or Ctrl-C as a request to stop after the current step; a second one ends the process at once.

    A thread receives the signals, because Python runs handlers between bytecodes only: the second signal also ends a
    process that compiles, or waits for the devices or for a save. Its exit status is 128 + the signal's number, 130 for
    Ctrl-C.

    With several processes, a request to any of them stops all at the same step. Outside the main thread, where Python
    cannot handle signals, there are no requests.
    """

    def __init__(self) -> None:
        self._requested = False
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is not threading.main_thread():
            return self
        # With `jax.distributed`, JAX itself handles SIGTERM: `reached_preemption_sync_point` reports it.
        numbers = {signal.SIGINT} if jax.distributed.is_initialized() else {signal.SIGINT, signal.SIGTERM}
        for number in numbers:
            self._stack.callback(signal.signal, number, signal.signal(number, self._request))
        receiver, sender = socket.socketpair()
        sender.setblocking(False)
        thread = threading.Thread(target=_end_at_second, args=(receiver, numbers), daemon=True)
        # In reverse order: restore the file descriptor, close its socket, which ends the thread, and wait for that.
        self._stack.callback(thread.join)
        self._stack.callback(sender.close)
        self._stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False))
        thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _request(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if number == signal.SIGINT and jax.distributed.is_initialized():
            os.kill(os.getpid(), signal.SIGTERM)
        self._requested = True

    def requested(self, step: int) -> bool:
        """Whether to stop after this step. All processes must call it after each step."""
        if not jax.distributed.is_initialized():
            return self._requested
        return bool(multihost_utils.reached_preemption_sync_point(step))


def _end_at_second(receiver: socket.socket, numbers: set[signal.Signals]) -> None:
    """Receive the numbers of signals until the other end is closed; end the process at the second of `numbers`.

    Signals within `TOGETHER` of the first one count as that one: `timeout` sends its signal twice, to the process and
    to its group.
    """
    first = None
    with receiver:
        while data := receiver.recv(1):
            if data[0] not in numbers:
                continue
            if first is not None and time.monotonic() - first > TOGETHER:
                _write_error(b"ended without saving")
                os._exit(128 + data[0])
            if first is None and data[0] == signal.SIGINT:
                _write_error(b"stopping after this step; press Ctrl-C again to end now without saving")
            first = first or time.monotonic()


def _write_error(text: bytes) -> None:
    """Write a line to stderr without `print`, which could wait for a lock of the main thread."""
    with contextlib.suppress(OSError):
        os.write(sys.stderr.fileno(), b"\n" + text + b"\n")
