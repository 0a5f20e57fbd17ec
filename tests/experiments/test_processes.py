"""Runs as processes: several processes that train one model, kills, and a full disk. All tests here are slow.

`--kills` is the number of kills.
"""

import dataclasses
import random
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_experiments import ENV, ROOT, command, metrics, training_flags
from test_faults import log_of
from test_training import KEY, D, batch_of, on

from diffax.training import Checkpoints, init_state, train_step
from experiments.run import loading

pytestmark = pytest.mark.slow


def start(count, line, *, devices=4):
    """Start `count` processes with the commands line(i), connected through one coordinator."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    env = {**ENV, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    if count > 1:
        env |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return [subprocess.Popen(line(i), env={**env, "JAX_PROCESS_ID": str(i)}, cwd=ROOT, **pipes) for i in range(count)]


def processes(count, flags, *, devices=4, heartbeat=10, each=lambda i: ()):
    """Start `count` processes that train one model on this machine."""
    more = (*flags, f"--heartbeat_seconds={heartbeat}")
    return start(count, lambda i: command("train", *more, *each(i)), devices=devices)


def finish(running, timeout=240):
    """Wait for the processes; return (status, output) of each."""
    return [(process.communicate(timeout=timeout)[0], process.returncode)[::-1] for process in running]


def wait_for(condition, running, timeout=240):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end
        for process in running:
            assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


def steps_of(workdir):
    folder = workdir / "checkpoints"
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal()) if folder.is_dir() else []


@pytest.mark.parametrize("which", [0, 1])
def test_two_processes_stop_at_one_step_and_one_process_resumes(which, data_dir, tmp_path):
    """SIGTERM to one of two processes: both stop after the same step.

    Then one process resumes on 2 devices with another form. The losses are those of an uninterrupted run.
    """
    settings = (
        "--config.train.sample_every=1000",
        "--config.train.checkpoint_every=100",
        "--config.train.num_steps=40",
    )
    flags = training_flags(data_dir, tmp_path / "two", *settings)
    running = processes(2, (*flags, "--config.parallel=fsdp"))
    wait_for(lambda: (tmp_path / "two" / "metrics.jsonl").exists() and len(metrics(tmp_path / "two")) > 2, running)
    running[which].send_signal(signal.SIGTERM)
    ended = finish(running)
    assert [status for status, _ in ended] == [75, 75], ended
    assert len(steps_of(tmp_path / "two")) == 1
    (alone,) = finish(processes(1, (*flags, "--config.parallel=pmap"), devices=2))
    assert alone[0] == 0, alone
    assert f"restored step {steps_of(tmp_path / 'two')[0]}" in alone[1]
    (straight,) = finish(processes(1, training_flags(data_dir, tmp_path / "one", *settings), devices=1))
    assert straight[0] == 0, straight
    lines, expected = (log_of(tmp_path / name) for name in ("two", "one"))
    assert [line["step"] for line in lines] == [line["step"] for line in expected]
    np.testing.assert_allclose([m["loss"] for m in lines], [m["loss"] for m in expected], rtol=1e-5)


@pytest.mark.parametrize("which", [0, 1])
def test_when_one_of_two_processes_is_killed_the_other_ends(which, data_dir, tmp_path):
    """The other process ends within the heartbeat timeout; then two processes resume from the last checkpoint."""
    settings = ("--config.train.sample_every=1000", "--config.train.checkpoint_every=5")
    flags = training_flags(data_dir, tmp_path, *settings)
    running = processes(2, flags, heartbeat=10)
    wait_for(lambda: steps_of(tmp_path), running)
    running[which].kill()
    start = time.monotonic()
    ended = finish(running, timeout=60)
    assert time.monotonic() - start < 40
    assert ended[1 - which][0] not in (0, 75)
    ended = finish(processes(2, flags, heartbeat=100))
    assert [status for status, _ in ended] == [0, 0], ended
    assert "restored step" in ended[0][1]
    assert [m["step"] for m in metrics(tmp_path)] == [1, 5, 10, 15, 20]


APART = """
import os, sys
import jax, numpy as np
jax.distributed.initialize(num_processes=2, process_id=int(os.environ["JAX_PROCESS_ID"]))
from jax.experimental import multihost_utils
from test_processes import descent
from test_training import batch_of
from diffax.training import Checkpoints
state, run = descent("fsdp", 8)
share = slice(jax.process_index(), None, 2)
def step(state, i):
    return run(state, {name: value[share] for name, value in batch_of(16, i).items()})
for i in range(5):
    state, _ = step(state, i)
with Checkpoints(sys.argv[1] + "/checkpoints") as checkpoints:
    checkpoints.save(5, state, {})
at_5 = {name: np.asarray(multihost_utils.process_allgather(value["w"], tiled=True))
        for name, value in (("params", state.params), ("ema", state.ema), ("mu", state.opt_state[0].mu))}
for i in range(5, 15):
    state, metrics = step(state, i)
if jax.process_index() == 0:
    np.savez(sys.argv[1] + "/at_5.npz", key=jax.random.key_data(state.key), loss=metrics["loss"], **at_5)
"""


def descent(form, count):
    """(state, step) of a loss with many parameters, on `count` devices."""
    optimizer = optax.adam(0.1)
    loss = lambda params, batch, keys: jnp.sum((params["w"].sum(0)[:D] - batch["x"]) ** 2, -1)
    state = init_state(KEY, {"w": jnp.ones((64, 32))}, optimizer)
    return on(form, count, state, train_step(loss, optimizer, ema_decay=0.9))


@pytest.mark.parametrize(("form", "devices"), [("pmap", 2), ("fsdp", 8)])
def test_one_process_resumes_from_the_checkpoint_of_two(form, devices, tmp_path):
    """The restored bits are equal. After ten more steps the loss equals that of the two processes, which continued."""
    paths = [str(ROOT / "tests" / folder) for folder in ("", "experiments", "training")]
    env = f"import sys; sys.path[:0] = {paths!r}\n"
    ended = finish(start(2, lambda i: [sys.executable, "-c", env + APART, str(tmp_path)]))
    assert [status for status, _ in ended] == [0, 0], ended
    saved = np.load(tmp_path / "at_5.npz")
    state, run = descent(form, devices)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        restored = checkpoints.restore_latest(state)
    state = restored.state
    assert (restored.step, int(state.step)) == (5, 5)
    for name, value in (("params", state.params), ("ema", state.ema), ("mu", state.opt_state[0].mu)):
        np.testing.assert_array_equal(value["w"], saved[name])
    np.testing.assert_array_equal(jax.random.key_data(state.key), saved["key"])
    for i in range(5, 15):
        state, step = run(state, batch_of(16, i))
    np.testing.assert_allclose(step["loss"], saved["loss"], rtol=1e-6)


def elsewhere(mount, line):
    """The command, preceded by this mount in its own namespace. Skips the test where mounts are not allowed."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mounts of one's own here")
    return ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh", *line]


def test_processes_of_different_folders_stop(data_dir, tmp_path):
    """The workdir of the second process has the same path, but is on another file system."""
    flags = (*training_flags(data_dir, tmp_path / "run"), "--heartbeat_seconds=10")
    line = command("train", *flags)
    (tmp_path / "run").mkdir()
    other = elsewhere(f"mount -t tmpfs tmpfs {tmp_path / 'run'}", line)
    ended = finish(start(2, lambda i: other if i else line))
    assert [status for status, _ in ended] == [2, 2], ended
    assert "error: process 1 failed; see its log" in ended[0][1]
    assert "error: workdir must be one folder that all processes share, got" in ended[1][1]
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not (tmp_path / "run" / ".processes").exists()


def test_processes_with_different_configs_stop(data_dir, tmp_path):
    running = processes(2, training_flags(data_dir, tmp_path), each=lambda i: (f"--config.seed={i}",))
    for status, text in finish(running):
        assert status == 2, text
        assert "error: the config must be the same on all processes, got another value on process 1" in text
    assert not (tmp_path / "checkpoints").exists()


def test_kills_at_random_times_do_not_change_a_bit(data_dir, tmp_path, request):
    """The same command runs after each SIGKILL; the final parameters and log are those of an uninterrupted run."""
    settings = ("--config.train.sample_every=1000", "--config.train.checkpoint_every=3", "--config.train.num_steps=60")
    (straight,) = finish(processes(1, training_flags(data_dir, tmp_path / "straight", *settings), devices=2))
    assert straight[0] == 0, straight
    flags, draw, kills = training_flags(data_dir, tmp_path / "killed", *settings), random.Random(0), 0
    while kills < request.config.getoption("--kills"):
        (process,) = processes(1, flags, devices=2)
        before = max(steps_of(tmp_path / "killed"), default=0)
        # Kill at a time between the start of the process and a few steps after its first save.
        if draw.random() < 0.8 and before < 54:
            wait_for(lambda before=before: max(steps_of(tmp_path / "killed"), default=0) > before, [process])
        time.sleep(draw.random() * 0.3)
        process.kill()
        process.communicate()
        kills += 1
    (end,) = finish(processes(1, flags, devices=2))
    assert end[0] == 0, end
    assert log_of(tmp_path / "killed") == log_of(tmp_path / "straight")
    trained = loading.load(tmp_path / "straight")
    like = init_state(jax.random.key(0), trained.params, trained.model.optimizer.make())
    ends = []
    for name in ("killed", "straight"):
        with Checkpoints(tmp_path / name / "checkpoints", read_only=True) as checkpoints:
            ends.append(checkpoints.restore_latest(like).state)
    same = lambda a, b: np.testing.assert_array_equal(jax.random.key_data(a), jax.random.key_data(b))
    same(*(end.key for end in ends))
    jax.tree.map(np.testing.assert_array_equal, *(dataclasses.replace(end, key=()) for end in ends))


def test_a_run_on_a_full_disk_resumes_once_there_is_space(data_dir, tmp_path):
    """On a file system of 4 MB. The saved checkpoints stay intact, and the same command completes the run."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        settings = ("--config.train.sample_every=1000", "--config.train.checkpoint_every=5")
        flags = training_flags(data_dir, disk / "run", *settings, "--config.train.compile_cache=False")
        (process,) = processes(1, flags, devices=1)
        wait_for(lambda: steps_of(disk / "run"), [process])
        ballast = disk / "ballast"
        try:
            with ballast.open("wb") as file:
                while True:
                    file.write(bytes(4096))
        except OSError:
            pass
        ((status, text),) = finish([process])
        assert status == 1, text
        assert "could not be saved, step" in text
        assert "error: step 20 could not be saved" in text  # the error line of the run
        assert "space" in text.lower()  # TensorStore also prints lines about its failed writes
        saved = steps_of(disk / "run")
        assert saved
        ballast.unlink()
        (again,) = finish(processes(1, flags, devices=1))
        assert again[0] == 0, again
        assert f"restored step {saved[-1]}" in again[1]
        assert [m["step"] for m in metrics(disk / "run")] == [1, 5, 10, 15, 20]
    finally:
        subprocess.run(["umount", str(disk)], check=False)
