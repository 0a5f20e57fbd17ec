"""The training loop: resumed runs with equal bits, signals, skipped steps, and several runs in one program."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffax import training
from diffax.training.running import RunningMetrics

PAGE = Path(__file__).parents[2] / "docs" / "training.md"
D = 4


def quadratic(params, batch, keys):
    noise = jax.vmap(lambda key: jax.random.normal(key, (D,)))(keys)
    return jnp.sum((params["w"] - batch["x"] - 0.1 * noise) ** 2, -1)


def batch(step):
    return {"x": np.random.default_rng([3, step]).normal(size=(8, D)).astype(np.float32)}


OPTIMIZER = optax.adam(0.1)
STEP = training.sharded(training.train_step(quadratic, OPTIMIZER, ema_decay=0.9), training.make_mesh(jax.devices()[:1]))


def first_state():
    return training.init_state(jax.random.key(0), {"w": jnp.zeros(D)}, OPTIMIZER)


def fit(folder=None, *, num_steps=10, **settings):
    settings = {"log_every": 2, "checkpoint_every": 4} | settings
    checkpoints = None if folder is None else folder / "checkpoints"
    if folder is not None:
        folder.mkdir(exist_ok=True)
        settings.setdefault("log", training.JsonLog(folder / "metrics.jsonl"))
    return training.fit(STEP, first_state, batch, num_steps=num_steps, checkpoints=checkpoints, **settings)


def lines(folder):
    """The lines of the log, without the speed."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "steps_per_second"} for row in rows]


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, (a.params, a.ema, a.opt_state), (b.params, b.ema, b.opt_state))


class InterruptError(Exception):
    """Raised to end a run before its last step."""


@pytest.mark.newest
@pytest.mark.parametrize("at", [1, 4, 7, 9])
def test_an_interrupted_run_ends_with_the_same_bits(at, tmp_path):
    whole = fit(tmp_path / "whole")

    def interrupt(step, state):
        if step == at:
            raise InterruptError

    with pytest.raises(InterruptError):
        fit(tmp_path / "twice", callbacks=[training.Every(1, interrupt)])
    again = fit(tmp_path / "twice")
    same(whole.state, again.state)
    assert lines(tmp_path / "twice") == lines(tmp_path / "whole")
    assert [row["step"] for row in lines(tmp_path / "whole")] == [1, 2, 4, 6, 8, 10]
    assert again.logged["loss"] == whole.logged["loss"]


def test_the_first_state_is_made_only_without_a_checkpoint(tmp_path):
    fit(tmp_path, num_steps=4)
    calls = []

    def counted():
        calls.append(1)
        return first_state()

    end = training.fit(STEP, counted, batch, num_steps=6, checkpoints=tmp_path / "checkpoints")
    assert len(calls) == 1  # only for the shapes
    assert int(end.state.step) == end.step == 6
    further = training.fit(STEP, first_state(), batch, num_steps=3, checkpoints=tmp_path / "checkpoints")
    assert further.step == int(further.state.step) == 6


@pytest.fixture
def interrupts():
    """Make Ctrl-C raise KeyboardInterrupt, as in a process of a user. Workers of pytest-xdist ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_and_saves(number, tmp_path, capfd):
    whole = fit(tmp_path / "whole")

    def send(step, state):
        if step == 5:
            for _ in range(2):  # `timeout` sends a signal to the process and to its group
                os.kill(os.getpid(), number)
                time.sleep(0.01)

    before = signal.getsignal(number)
    with pytest.raises(training.Stopped) as stopped:
        fit(tmp_path / "stopped", callbacks=[training.Every(1, send)])
    assert (stopped.value.code, stopped.value.step) == (75, 5)
    output = capfd.readouterr()
    assert "stopped: step 5 is saved" in output.out
    assert ("press Ctrl-C again" in output.err) == (number == signal.SIGINT)
    assert signal.getsignal(number) == before
    same(whole.state, fit(tmp_path / "stopped").state)


BUSY = """
import hashlib, sys
import jax, jax.numpy as jnp, optax
from diffax import training

def busy(step, state):
    if step == 5:
        print("busy", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes in native code, where no handler runs

loss = lambda params, batch, keys: (params["w"] - batch["x"]) ** 2
first = training.init_state(jax.random.key(0), {"w": jnp.zeros(())}, optax.sgd(0.1))
training.fit(
    training.train_step(loss, optax.sgd(0.1), ema_decay=0.9),
    first,
    lambda step: {"x": jnp.ones(8)},
    num_steps=10,
    checkpoints=sys.argv[1],
    checkpoint_every=2,
    callbacks=[training.Every(1, busy)],
)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(number, tmp_path):
    """Also while the main thread is in native code. The status is that of a process ended by the signal."""
    line = [sys.executable, "-c", BUSY, str(tmp_path / "checkpoints")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(line, **pipes, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"}) as process:
        limit = threading.Timer(60, process.kill)
        limit.start()
        assert "busy\n" in process.stdout
        process.send_signal(number)
        if number == signal.SIGINT:
            assert any("press Ctrl-C again" in line for line in process.stderr)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(number)
        _, error = process.communicate()
        limit.cancel()
    assert process.returncode == 128 + number
    assert error.strip() == "ended without saving"
    assert training.Checkpoints(tmp_path / "checkpoints", read_only=True).steps == [2, 4]


def spoilt(steps):
    """Batches with a NaN loss at these steps, counted from 1."""
    return lambda step: {"x": batch(step)["x"] * (np.nan if step + 1 in steps else 1)}


def test_bad_steps_are_skipped_up_to_a_limit(tmp_path):
    settings = {"num_steps": 8, "log_every": 4, "log": training.JsonLog(tmp_path / "metrics.jsonl")}
    end = training.fit(STEP, first_state, spoilt({3, 6}), max_skipped=1, **settings)
    assert [row.get("skipped") for row in lines(tmp_path)] == [None, 1, 1]
    assert int(end.state.opt_state[0].count) == 6
    assert int(end.state.step) == 8
    with pytest.raises(
        training.NotFiniteError,
        match=r"step 4 is not finite \(grad_norm nan, loss nan\); skipped steps in a row: 2; no",
    ):
        training.fit(STEP, first_state, spoilt({3, 4}), max_skipped=1, num_steps=8, log_every=4)
    with pytest.raises(training.NotFiniteError, match=r"step 6 is not finite.*; step 4 is kept"):
        training.fit(STEP, first_state, spoilt({6}), num_steps=8, checkpoints=tmp_path / "saved", checkpoint_every=2)


def test_callbacks_are_due_at_their_steps_and_log_values():
    calls, rows = [], []
    callbacks = [
        training.Every(3, lambda step, state: calls.append((step, int(state.step)))),
        training.Every(4, lambda step, state: {"measured": float(step)}),
    ]
    fit(num_steps=7, log_every=5, callbacks=callbacks, log=lambda step, values: rows.append((step, values)))
    assert calls == [(3, 3), (6, 6), (7, 7)]
    assert [(step, values.get("measured")) for step, values in rows] == [(1, None), (4, 4.0), (5, None), (7, 7.0)]


def test_the_record_is_in_each_checkpoint(tmp_path):
    fit(tmp_path, record={"name": "mine"})
    with training.Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        assert {checkpoints.record(step)["name"] for step in checkpoints.steps} == {"mine"}


class Positions:
    """An iterator of batches with a position, like the iterators of Grain."""

    def __init__(self):
        self.at = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.at += 1
        return batch(self.at - 1)

    def get_state(self):
        return {"at": self.at}

    def set_state(self, position):
        self.at = position["at"]


def test_an_iterator_continues_at_its_position(tmp_path):
    whole = training.fit(STEP, first_state, Positions(), num_steps=6)
    training.fit(STEP, first_state, Positions(), num_steps=4, checkpoints=tmp_path)
    same(whole.state, training.fit(STEP, first_state, Positions(), num_steps=6, checkpoints=tmp_path).state)
    same(whole.state, fit(num_steps=6).state)
    with pytest.raises(ValueError, match="batches must be a function of the step, or an iterator with get_state"):
        training.fit(STEP, first_state, map(batch, range(9)), num_steps=6, checkpoints=tmp_path)
    assert training.fit(STEP, first_state, map(batch, range(9)), num_steps=6).step == 6


RATES = [0.1, 0.03]


def several(scale=lambda step: (1.0, 1.0), **settings):
    """Train two runs with different learning rates, stacked in one state."""

    def step(state, batch):
        return training.train_step(quadratic, optax.adam(state.hyper), ema_decay=0.9)(state, batch)

    def first():
        states = [
            training.init_state(jax.random.key(0), {"w": jnp.zeros(D)}, optax.adam(rate), hyper=jnp.float32(rate))
            for rate in RATES
        ]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)

    def batches(number):
        x = batch(number)["x"]
        index = np.tile(np.arange(len(x), dtype=np.int32), (2, 1))
        return {"x": np.stack([x * factor for factor in scale(number + 1)]), "index": index}

    mesh = training.make_mesh(jax.devices()[:2])
    return training.fit(training.over_runs(step, mesh), first, batches, num_steps=8, log_every=2, **settings)


def test_several_runs_in_one_program_equal_separate_runs(tmp_path):
    rows = []
    end = several(log=lambda step, values: rows.append(values["loss"]), checkpoints=tmp_path, checkpoint_every=3)
    for index, rate in enumerate(RATES):
        optimizer, losses = optax.adam(rate), []
        step = training.train_step(quadratic, optimizer, ema_decay=0.9)
        alone = training.fit(
            step,
            training.init_state(jax.random.key(0), {"w": jnp.zeros(D)}, optimizer),
            batch,
            num_steps=8,
            log_every=2,
            log=lambda step, values, losses=losses: losses.append(values["loss"]),
        )
        np.testing.assert_allclose(end.state.ema["w"][index], alone.state.ema["w"], rtol=1e-5)
        np.testing.assert_allclose([row[index] for row in rows], losses, rtol=1e-5)
    assert end.state.hyper.tolist() == pytest.approx(RATES)


def test_a_failed_run_stops_and_the_others_continue(tmp_path):
    rows = []
    end = several(lambda step: (np.nan if step > 3 else 1.0, 1.0), log=lambda step, values: rows.append(values))
    assert list(end.failed) == [0]
    assert "step 4 is not finite" in str(end.failed[0])
    assert np.isnan(rows[-1]["loss"]).tolist() == [True, False]
    np.testing.assert_array_equal(end.state.ema["w"][1], several().state.ema["w"][1])
    with pytest.raises(training.NotFiniteError, match="step 5"):
        several(lambda step: (np.nan if step > 3 else 1.0, np.nan if step > 4 else 1.0))


def test_several_runs_write_lines_of_json_and_get_their_indices(tmp_path):
    """If a batch has no `index`, each run gets the positions of its examples."""
    seen = []

    def step(state, batch):
        seen.append(batch["index"].shape)
        return training.train_step(quadratic, OPTIMIZER, ema_decay=0.9)(state, batch)

    def first():
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), first_state(), first_state())

    run = training.over_runs(step, training.make_mesh(jax.devices()[:2]))
    both = lambda number: {"x": np.stack([batch(number)["x"]] * 2)}
    settings = {"num_steps": 2, "log": training.JsonLog(tmp_path / "metrics.jsonl"), "log_every": 1}
    with training.Checkpoints(tmp_path / "checkpoints", best="loss") as checkpoints:
        end = training.fit(run, first, both, checkpoints=checkpoints, **settings)
    assert seen == [(8,)]
    assert np.shape(lines(tmp_path)[-1]["loss"]) == (2,)
    np.testing.assert_array_equal(end.state.params["w"][0], end.state.params["w"][1])
    np.testing.assert_array_equal(end.state.params["w"][0], fit(num_steps=2).state.params["w"])


def test_the_error_of_all_failed_runs_has_the_reason_of_each():
    with pytest.raises(training.NotFiniteError) as ended:
        several(lambda step: (np.nan if step > 1 else 1.0, np.nan if step > 4 else 1.0))
    assert [ended.value.failed[index].step for index in (0, 1)] == [2, 5]


def test_unwritten_lines_of_the_log_are_written_before_a_checkpoint(tmp_path):
    log = training.JsonLog(tmp_path / "metrics.jsonl")
    log.start(0)
    log._unwritten = b'{"step": 1}\n'  # as after a write to a full disk
    log.sync()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'
    log.close()


def test_a_position_that_is_not_json_is_refused(tmp_path):
    data = Positions()
    data.get_state = lambda: b"position"
    with pytest.raises(ValueError, match=r"batches\.get_state must return JSON"):
        training.fit(STEP, first_state, data, num_steps=2, checkpoints=tmp_path)


def test_running_metrics_are_restored_from_their_record():
    values = [1.0, 3.0, float("nan"), 5.0]
    running = RunningMetrics(1)
    for step, value in enumerate(values):
        running.add(step, {"loss": jnp.float32(value), "finite": jnp.isfinite(value)})
        running = RunningMetrics(1, json.loads(json.dumps(running.save())))
    assert running.newest()["loss"] == 5.0
    assert running.line() == {"loss": 3.0, "skipped": 1}
    assert running.line() == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_steps": 0}, "num_steps must be an int >= 1, got 0"),
        ({"log_every": 0}, "log_every must be an int >= 1, got 0"),
        ({"checkpoint_every": -1}, "checkpoint_every must be an int >= 1, got -1"),
        ({"max_skipped": -1}, "max_skipped must be an int >= 0, got -1"),
        ({"callbacks": [training.Every(0, print)]}, "every must be an int >= 1, got 0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        fit(**settings)


def test_a_profile_needs_two_steps(tmp_path):
    with pytest.raises(ValueError, match=re.escape("profile must be () or two steps (first, last), got (3, 2)")):
        training.Profile((3, 2), tmp_path)


def blocks():
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.slow_cases("fields", "signals")
@pytest.mark.parametrize("name", ["fields", "signals", "points"])
def test_the_script_of_the_docs_trains(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = [block.replace("num_steps=2000", "num_steps=2").replace("channels=16", "channels=8") for block in blocks()]
    assert len(code[0].splitlines()) <= 35
    names: dict = {}
    exec(code[0], names)
    exec(next(block for block in code if block.startswith(f"{name} =")), names)
    shape = {"fields": (2, 32, 64, 2), "signals": (2, 128, 1), "points": (2, 2)}[name]
    assert names[f"denoise_{name}"](jnp.zeros(shape), 0.5).shape == shape
    assert [row["step"] for row in lines(tmp_path / "runs" / name)] == [1, 2]
    if name == "points":
        exec(code[-1], names)
        assert names["samples"].shape == (8, 2)


@pytest.mark.slow
def test_a_killed_script_ends_with_the_same_bits(tmp_path, request):
    """The script of the docs runs as a process that is killed at random times."""
    script = tmp_path / "script.py"
    definitions = blocks()[0].replace("num_steps=2000", "num_steps=300")
    script.write_text(
        definitions
        + textwrap.dedent("""
            import hashlib, pathlib, sys

            x = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
            folder = pathlib.Path(sys.argv[1])
            folder.mkdir(exist_ok=True)
            training_fit = training.fit
            training.fit = lambda *args, **kwargs: training_fit(*args, checkpoint_every=7, **kwargs)
            denoise = train(x, nn.MLP(channels=8, depth=1), folder)
            print("RESULT", hashlib.sha256(np.asarray(denoise(jnp.asarray(x), 0.5)).tobytes()).hexdigest())
        """)
    )
    command = [sys.executable, str(script)]
    whole = subprocess.run([*command, str(tmp_path / "whole")], capture_output=True, text=True, check=True)
    random = np.random.default_rng(0)
    for _ in range(request.config.getoption("--kills")):
        process = subprocess.Popen([*command, str(tmp_path / "killed")], stdout=subprocess.PIPE, text=True)
        for line in process.stdout:  # until the steps begin
            if line.startswith(("step", "restored", "done")):
                break
        time.sleep(random.uniform(0, 0.5))
        process.kill()
        process.communicate()
    again = subprocess.run([*command, str(tmp_path / "killed")], capture_output=True, text=True, check=True)
    results = [re.findall("RESULT (.*)", output.stdout) for output in (whole, again)]
    assert results[0] == results[1]
    assert len(results[0]) == 1
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")
