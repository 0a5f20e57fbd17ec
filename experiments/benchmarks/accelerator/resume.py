"""Bit-identical resume after SIGTERM; pmap, jit and FSDP on all devices.

    resume    a small U-Net is trained twice in separate processes: without a stop, and stopped by SIGTERM after a third
              of the steps, saved and resumed; the digests of all bits of the final states are compared
    forms     losses of the first steps by each way to spread a step over the devices, against those of one device

As in `experiments.train`, the compiled program is cached next to the run. XLA picks GPU algorithms by timing them, so
two processes that compile separately may differ in the last bits. On a GPU, further rows measure whether they differ,
and whether they agree under XLA's deterministic settings.

As a script it does one of these runs: `python -m experiments.benchmarks.accelerator.resume FOLDER NUM_STEPS`.
"""

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffax.training import Checkpoints, data_parallel, make_mesh, place, sharded
from experiments.benchmarks.accelerator import networks
from experiments.benchmarks.accelerator.worker import Context, one_line

COLUMNS = (
    ("value", "value", ".3g"),
    ("difference", "difference", ".1e"),
    ("at most", "bound", ".0e"),
    ("passed", "passed", ""),
)
DETERMINISTIC = "--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0"
STOPPED = 75
LOSS_BOUND = 1e-3  # relative: products in TF32 are summed in another order


def rows(context: Context) -> Iterator[dict[str, Any]]:
    """Rows of `forms`, then of `resume`; on a GPU also without a shared cache, if time remains."""
    yield from forms(3 if context.quick else 10)
    steps, start = 8 if context.quick else 300, context.left()
    yield _resume_row("SIGTERM and resume", steps, "", cache=True)
    seconds = start - context.left()
    for name, flags in (
        ("the same, compiled anew by each process", ""),
        ("the same, deterministic XLA", DETERMINISTIC),
    ):
        if jax.default_backend() != "gpu" or context.left() < 1.5 * seconds:
            return
        row = _resume_row(name, steps, flags, cache=False)
        yield row
        if row.get("passed"):
            return


def _resume_row(name: str, steps: int, xla_flags: str, *, cache: bool) -> dict[str, Any]:
    try:
        return {"name": name} | resume(steps, xla_flags, cache=cache)
    except Exception as error:
        return {"name": name, "error": one_line(error)}


def resume(steps: int, xla_flags: str, *, cache: bool) -> dict[str, Any]:
    """Whether the resumed run ends with the same bits as the straight one. `value`: the step where it was stopped."""
    with tempfile.TemporaryDirectory() as scratch:
        env = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {xla_flags}"}
        shared = {"JAX_COMPILATION_CACHE_DIR": f"{scratch}/cache", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        env |= shared if cache else {"JAX_ENABLE_COMPILATION_CACHE": "false"}
        straight, _ = _run(Path(scratch) / "straight", steps, env)
        stopped, at = _run(Path(scratch) / "stopped", steps, env, stop=True)
        if stopped is None:
            stopped, _ = _run(Path(scratch) / "stopped", steps, env)
    return {"value": at, "passed": at is not None and straight == stopped}


def _run(folder: Path, steps: int, env: dict[str, str], stop: bool = False) -> tuple[str | None, int | None]:
    """(digest of the final state, or None if the run was stopped; the step where it was stopped, or None).

    Raises:
      RuntimeError: if the process fails.
    """
    command = [sys.executable, "-m", "experiments.benchmarks.accelerator.resume", str(folder), str(steps)]
    last = ""
    with tempfile.TemporaryFile("w+") as errors:  # a full pipe would block the process
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=os.environ | env)
        for line in process.stdout or ():
            last = line.strip()
            if stop and last.startswith("step"):
                process.send_signal(signal.SIGTERM)
                stop = False
        if (code := process.wait()) not in (0, STOPPED):
            errors.seek(0)
            raise RuntimeError(f"exit status {code}: {errors.read()[-200:]}")
    number = last.split()[-1]
    return (None, int(number)) if code == STOPPED else (number, None)


def train(folder: Path, num_steps: int) -> None:
    """Train from the last checkpoint. On SIGTERM, save and exit with status 75; at the end, print the digest."""
    signals = []
    signal.signal(signal.SIGTERM, lambda *_: signals.append(True))
    case = networks.TOYS["ddpm"]
    step, optimizer = networks.step_of(case.net)
    mesh = make_mesh(jax.devices()[:1])
    state = place(networks.state_of(case.net, case.shape, optimizer), mesh)
    data = np.random.default_rng(0).standard_normal((num_steps, case.batch, *case.shape)).astype(np.float32)
    index = np.arange(case.batch, dtype=np.int32)
    compiled = sharded(step, mesh)
    with Checkpoints(folder) as checkpoints:
        restored = checkpoints.restore_latest(state)
        first, state = (restored.step, restored.state) if restored else (0, state)
        for number in range(first, num_steps):
            state, metrics = compiled(state, {"image": data[number], "index": index})
            jax.block_until_ready(metrics)
            if number == num_steps // 3:  # from here on the run may be stopped
                print("step", number, flush=True)
            if signals and number + 1 < num_steps:
                checkpoints.save(number + 1, state, {})
                checkpoints.wait()
                print("stopped at", number + 1, flush=True)
                raise SystemExit(STOPPED)
            if not signals and number > num_steps // 3 and first == 0:
                time.sleep(0.02)  # so that the signal arrives before the run ends
    print("digest", digest(state), flush=True)


def digest(tree: Any) -> str:
    """SHA-256 of all arrays of a tree."""
    hashed = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        data = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        hashed.update(np.asarray(data).tobytes())
    return hashed.hexdigest()


def forms(steps: int) -> Iterator[dict[str, Any]]:
    """A row for each way to spread the step over all devices: its losses against jit on one device."""
    case = networks.TOYS["ddpm"]
    everything = make_mesh()
    ways = {
        "pmap": (data_parallel, everything, "replicate"),
        "jit": (sharded, everything, "replicate"),
        "fsdp": (lambda step, mesh: sharded(step, mesh, "fsdp"), everything, "fsdp"),
    }
    reference = _losses(case, sharded, make_mesh(jax.devices()[:1]), "replicate", steps)
    for name, (parallel, mesh, rule) in ways.items():
        label = f"{name} on {mesh.size} device{'s' if mesh.size > 1 else ''}, last loss"
        try:
            losses = _losses(case, parallel, mesh, rule, steps)
        except Exception as error:
            yield {"name": label, "error": one_line(error)}
            continue
        apart, bound = float(np.abs(losses / reference - 1).max()), LOSS_BOUND
        row = {"value": float(losses[-1]), "difference": apart, "bound": bound, "passed": apart <= bound}
        yield {"name": label} | row


def _losses(case: networks.Case, parallel: Any, mesh: Any, rule: str, steps: int) -> np.ndarray:
    step, optimizer = networks.step_of(case.net)
    state = place(networks.state_of(case.net, case.shape, optimizer), mesh, rule)
    compiled, batch, losses = parallel(step, mesh), networks.batch_of(case, 8 * jax.device_count()), []
    for _ in range(steps):
        state, metrics = compiled(state, batch)
        losses.append(float(metrics["loss"]))
    return np.array(losses)


if __name__ == "__main__":
    train(Path(sys.argv[1]), int(sys.argv[2]))
