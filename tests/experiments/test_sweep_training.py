"""Sweeps that train or sample: runs in one program equal separate runs, and kills do not change results."""

import inspect
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import DATA
from sweeping_runs import attempts, command, results, states, write

import diffax
from diffax import training
from diffax.pretrained import SCHEDULES
from experiments.configs import smoke
from experiments.configs.settings import change
from experiments.evaluation import measures
from experiments.models import objectives
from experiments.reporting import document, tables
from experiments.reporting.reading import read_sweep
from experiments.run import inputs as inputs_module
from experiments.run import loading
from experiments.run.inputs import opened
from experiments.run.loading import save_export
from experiments.sweeping import definition as definitions
from experiments.sweeping import measuring, sample_task, settings, tasks, train_task
from experiments.sweeping.folder import Result

__all__ = ["command"]  # a fixture

ROOT = Path(__file__).parents[2]
ENV = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}

SMALL = """
config.dataset.num_threads = 1
config.network.name = "mlp"
config.network.channels = 16
config.network.depth = 1
config.train.num_steps = 6
config.train.log_every = 1
config.train.checkpoint_every = 2
config.sampling.num_steps = 3
config.evaluation.num = 20
config.evaluation.batch_size = 20
config.evaluation.classifier_steps = 1
config.evaluation.metrics = ("accuracy",)
"""
TRAINING = "settings.training(smoke.get_config())"


def training_sweep(path, overrides, changes="", data_dir=""):
    changes = f"{SMALL}\nconfig.dataset.data_dir = {str(data_dir)!r}\n{changes}"
    return write(path, TRAINING, changes, overrides)


@pytest.fixture
def unmeasured(monkeypatch):
    """Skip the samples and their metrics, so that the result is the last loss."""
    monkeypatch.setattr(measuring, "prepared", lambda *_: None)
    monkeypatch.setattr(train_task, "_measure", lambda *_: Result({}, {}, {}, {}))


def losses(folder, run):
    """The losses in metrics.jsonl."""
    lines = [json.loads(line) for line in (folder / "runs" / run.id / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return np.array([line["loss"] for line in lines])


class Alone:
    """Separate runs on one device by the functions of `experiments.train`, with hyperparameters that are not traced."""

    def __init__(self):
        self._known = {}

    def losses(self, config):
        """The loss of each step."""
        first, step = self._of(config)
        inputs, values = opened(config, 1), []
        state, data = first(jax.random.key(config.seed)), inputs.read(cache=True)
        for _ in range(config.train.num_steps):
            state, metrics = step(state, jax.tree.map(jnp.asarray, next(data)))
            values.append(metrics["loss"])
        return np.array(jax.device_get(values))

    def _of(self, config):
        """The compiled functions of a config, shared by all seeds."""
        key = json.dumps({**config.to_dict(), "seed": 0})
        if key not in self._known:
            self._known[key] = tuple(map(jax.jit, plain(opened(config, 1).model)))
        return self._known[key]


def plain(model):
    """(key -> first state, step) of a model."""
    optimizer = model.optimizer.make()

    def first(key):
        init_key, state_key = jax.random.split(key)
        return training.init_state(state_key, model.init(init_key), optimizer)

    return first, training.train_step(model.objective().loss, optimizer, ema_decay=model.optimizer.ema_decay)


@pytest.fixture(scope="module")
def alone():
    return Alone()


# One program


SEEDS_AND_RATES = "product({'config.optimizer.learning_rate': [1e-3, 4e-3]}, seeds(8))[:11]"


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("way", ["vmap", pytest.param("loop", marks=pytest.mark.slow)])
def test_runs_of_one_program_equal_separate_runs(command, alone, tmp_path, way):
    """11 of the 16 runs with 8 seeds and 2 learning rates, on 8 devices, over 30 steps."""
    path = training_sweep(tmp_path / "s.py", SEEDS_AND_RATES, "config.train.num_steps = 30")
    more, compiled, begun = ("--only=config.seed=1",) if way == "loop" else ("--group=16",), [], []
    with pytest.MonkeyPatch.context() as patch:
        original, first = training.train_step, training.init_state
        patch.setattr(training, "init_state", lambda *args, **kwargs: begun.append(1) or first(*args, **kwargs))
        patch.setattr(training, "train_step", lambda *args, **kwargs: compiled.append(1) or original(*args, **kwargs))
        done = command(path, tmp_path / "w", f"--way={way}", *more)
    assert done.status == 0, done.err
    assert len(compiled) <= 2, "one trace for the program and one for shapes"
    assert len(begun) == 1
    every = definitions.load(path).runs
    runs = [every[id] for id in results(tmp_path / "w")]
    assert len(runs) == (2 if way == "loop" else 11)
    rates = {run.config.optimizer.learning_rate: run for run in runs}
    assert len(rates) == 2
    for run in rates.values():
        wanted = alone.losses(run.config)
        np.testing.assert_allclose(losses(tmp_path / "w", run), wanted, rtol=1e-5, err_msg=run.label)
    ends = {tuple(losses(tmp_path / "w", run)) for run in runs}
    assert len(ends) == len(runs)


@pytest.mark.slow
@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("way", ["vmap", "loop"])
def test_runs_of_one_program_equal_separate_runs_for_the_unet(command, alone, tmp_path, way):
    changes = "config.network.name = 'unet'\nconfig.network.channels = 8\nconfig.train.num_steps = 30"
    changes += "\nconfig.dataset.batch_size = 8"
    path = training_sweep(tmp_path / "s.py", SEEDS_AND_RATES, changes)
    assert (
        command(path, tmp_path / "w", f"--way={way}", "--only=config.seed=1" if way == "loop" else "--group=16").status
        == 0
    )
    every, done = definitions.load(path).runs, results(tmp_path / "w")
    assert len(done) == (2 if way == "loop" else 11)
    for run in [every[id] for id in done][:: 1 if way == "loop" else 3]:
        wanted = alone.losses(run.config)
        np.testing.assert_allclose(losses(tmp_path / "w", run), wanted, rtol=1e-5, err_msg=run.label)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["vmap", "loop"])
def test_runs_of_one_program_on_one_device_equal_separate_runs(alone, tmp_path, way):
    """The command runs in a process with one device."""
    path = training_sweep(tmp_path / "s.py", SEEDS_AND_RATES, "config.train.num_steps = 30")
    done = subprocess.run(line(path, tmp_path / "w", f"--way={way}"), env=env(1), cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr
    for run in [*definitions.load(path).runs.values()][::3]:
        wanted = alone.losses(run.config)
        np.testing.assert_allclose(losses(tmp_path / "w", run), wanted, rtol=1e-5, err_msg=run.label)


# Traced settings


TRACED = {
    "config.schedule": {"name": "linear", "beta_min": 0.1, "beta_max": 20.0},
    "config.prediction": "edm",
    "config.loss.weighting": "min_snr",
    "config.loss.weighting_parameters": {"gamma": 5.0},
    "config.loss.times": "logit_normal",
    "config.loss.times_parameters": {"mean": 0.0, "std": 1.0},
    "config.optimizer.weight_decay": 0.01,
    "config.optimizer.clip_norm": 1e6,
    "config.optimizer.ema_decay": 0.05,
    "config.optimizer.warmup_steps": 0,
    "config.network.dropout_rate": 0.0,
    "config.train.num_steps": 4,
}
OTHER = {
    "config.seed": 7,
    "config.sigma_data": 0.7,
    "config.loss.p_uncond": 0.6,
    "config.optimizer.learning_rate": 5e-3,
    "config.optimizer.weight_decay": 0.5,
    "config.optimizer.b1": 0.5,
    "config.optimizer.b2": 0.6,
    "config.optimizer.clip_norm": 1e-3,
    "config.optimizer.ema_decay": 0.02,
    "config.schedule.beta_min": 0.5,
    "config.schedule.beta_max": 12.0,
    "config.loss.weighting_parameters.gamma": 0.5,
    "config.loss.times_parameters.mean": -1.0,
    "config.loss.times_parameters.std": 0.4,
}
HYBRID = {
    "config.loss.objective": "hybrid",
    "config.loss.bin_width": 2 / 16,
    "config.network.learned_variance": True,
    "config.prediction": "eps",
}


def changed(overrides, base=None):
    """The config of a small training run with overrides."""
    config = settings.training(smoke.get_config()) if base is None else base.copy_and_resolve_references()
    allowed = settings.KNOWN["train"]()
    if base is None:
        config.network.update({"name": "mlp", "channels": 16, "depth": 1})
    for key, value in overrides.items():
        change(config, key, value, allowed)
    return config


def program_of(config):
    """The key of the program of a run."""
    return train_task.parse(config)[0]


def model_of(config):
    """The model of a config."""
    return opened(config, 8).model


def leaves_of(state):
    leaves = jax.tree.leaves(jax.device_get((state.params, state.ema)))
    return np.concatenate([np.ravel(leaf) for leaf in leaves])


def ends(program, config, steps=3):
    """One array of the parameters and their average after a few steps."""
    state = program.step.place(program.first(tasks.traced(model_of(config)), config.seed))
    data = opened(config, 8).read(cache=True)
    for _ in range(steps):
        state, _ = program.step(state, next(data))
    return leaves_of(state)


def ends_alone(config, steps=3):
    first, step = plain(model_of(config))
    state, data = first(jax.random.key(config.seed)), opened(config, 8).read(cache=True)
    for _ in range(steps):
        state, _ = jax.jit(step)(state, jax.tree.map(jnp.asarray, next(data)))
    return leaves_of(state)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "other"),
    [
        pytest.param(TRACED, OTHER, id="denoising"),
        pytest.param(HYBRID, {"config.loss.vlb_weight": 5.0}, id="hybrid", marks=pytest.mark.slow),
    ],
)
def test_one_program_covers_all_values_of_traced_settings(monkeypatch, base, other):
    """Each setting alone changes the result. All of them together give the result of a program without tracing."""
    base, traces = changed(base), []
    everything = changed(other, base)
    original = objectives.objective
    monkeypatch.setattr(objectives, "objective", lambda *args, **kwargs: traces.append(1) or original(*args, **kwargs))
    program = train_task._compile(opened(base, 8), "pmap", "loop")
    before = ends(program, base)
    compiled = len(traces)
    for key, value in other.items():
        config = changed({key: value}, base)
        assert program_of(config) == program_of(base), key
        assert np.abs(ends(program, config) - before).max() > 1e-6, key
    together = ends(program, everything)
    assert len(traces) == compiled
    np.testing.assert_allclose(together, ends_alone(everything), rtol=1e-4, atol=1e-6)


def test_the_traced_settings_above_cover_every_number_of_a_model():
    """They change each leaf of a model, except the leaves of sampling."""
    for base, other in ((TRACED, OTHER), (HYBRID, {"config.loss.vlb_weight": 5.0})):
        config = changed(base)
        before, moved = jax.tree_util.tree_leaves_with_path(model_of(config)), set()
        for key, value in other.items():
            after = jax.tree.leaves(model_of(changed({key: value}, config)))
            moved |= {jax.tree_util.keystr(path) for (path, v), w in zip(before, after, strict=True) if v != w}
        paths = {jax.tree_util.keystr(path) for path, _ in before}
        if base is TRACED:
            assert paths - moved <= {".loss.vlb_weight"}, paths - moved
        else:
            assert moved == {".loss.vlb_weight"}


def test_a_change_of_a_static_setting_makes_another_program():
    base = changed({})
    for key, value in {
        "config.prediction": "eps",
        "config.train.num_steps": 7,
        "config.network.dropout_rate": 0.2,
        "config.schedule": {"name": "linear", "beta_max": 10.0},
        "config.evaluation.num": 300,
        "config.dataset.batch_size": 8,
        "config.sampling.eta": 0.5,  # from the default of the sampler to a value
    }.items():
        assert program_of(changed({key: value}, base)) != program_of(base), key
    some, others = (changed({"config.sampling.eta": eta}, base) for eta in (0.5, 0.8))
    assert program_of(some) == program_of(others)
    for key, value in {"config.dataset.num_threads": 5, "config.seed": 3}.items():
        assert program_of(changed({key: value}, base)) == program_of(base), key


GIVEN = {"shift": 0.5, "sigma_min": 0.01, "sigma_max": 80.0}  # parameters without a default


@pytest.mark.slow_cases("linear", "sigmoid")
@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "learned"])
def test_every_schedule_takes_traced_parameters(name):
    parameters = {
        key: float(GIVEN.get(key, parameter.default))
        for key, parameter in inspect.signature(SCHEDULES[name]).parameters.items()
        if key != "num_steps" and isinstance(GIVEN.get(key, parameter.default), (int, float))
    }
    model = model_of(changed({"config.schedule": {"name": name, **parameters}}))
    numbers = model.diffusion.curve.numbers
    assert len(numbers) == (0 if name.endswith("_betas") else len(parameters)), "tables are made on the host"

    def level(model):
        return model.diffusion.schedule()(0.5)

    jax.eval_shape(level, tasks.traced(model))
    if numbers:
        for value, wanted in zip(level(tasks.traced(model)), level(model), strict=True):
            np.testing.assert_allclose(value, wanted, rtol=1e-5)


@pytest.mark.parametrize("setting", ["weighting", "times"])
def test_every_distribution_and_weighting_takes_traced_parameters(setting):
    table = {"weighting": objectives.WEIGHTINGS, "times": objectives.TIMES}[setting]
    count = 0
    for name, make in table.items():
        parameters = {
            key: float(p.default)
            for key, p in inspect.signature(make).parameters.items()
            if key not in (*objectives.SHARED, *settings.COUNTS) and isinstance(p.default, (int, float))
        }
        model = model_of(changed({f"config.loss.{setting}": name, f"config.loss.{setting}_parameters": parameters}))
        assert len(getattr(model.loss, setting).numbers) == len(parameters), name
        count += len(parameters)

        def built(model):
            objectives.make(getattr(model.loss, setting), table, model.diffusion)
            return 0

        jax.eval_shape(built, tasks.traced(model))
    assert count >= 3


def test_rows_of_a_program_are_padded_to_a_multiple_of_the_devices():
    """The padding repeats the last run."""
    for count in (1, 7, 8, 9):
        trees = [{"x": np.float32(i)} for i in range(count)]
        rows = train_task.stacked(trees)["x"]
        assert len(rows) % 8 == 0
        np.testing.assert_array_equal(rows, np.minimum(np.arange(len(rows)), count - 1))


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("way", ["vmap", pytest.param("loop", marks=pytest.mark.slow)])
def test_a_loss_that_is_not_finite_ends_only_its_own_run(command, tmp_path, way):
    """The results of the other runs in the program do not change."""
    rates = "{'config.optimizer.learning_rate': [1e-3, 1e38, 2e-3]}"
    path = training_sweep(tmp_path / "s.py", f"product({rates})", "config.optimizer.clip_norm = 1e9")
    more = (f"--way={way}", *(() if way == "loop" else ("--group=8",)))
    done = command(path, tmp_path / "w", *more)
    assert done.status == 1
    (line_,) = [line for line in done.err.splitlines() if "  failed  " in line]
    assert "NotFiniteError: step " in line_
    sound = training_sweep(tmp_path / "t" / "s.py", "product({'config.optimizer.learning_rate': [1e-3, 2e-3]})",
                           "config.optimizer.clip_norm = 1e9")  # fmt: skip
    assert command(sound, tmp_path / "t" / "w", *more).status == 0
    assert results(tmp_path / "w") == results(tmp_path / "t" / "w")
    assert command(path, tmp_path / "w", *more).status == 1
    assert sorted(attempts(tmp_path / "w").values()) == [1, 1, 1]
    assert command(path, tmp_path / "w", *more, "--retry").status == 1
    assert sorted(attempts(tmp_path / "w").values()) == [1, 1, 2]


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("way", ["vmap", pytest.param("loop", marks=pytest.mark.slow)])
def test_an_interrupted_run_resumes_from_its_checkpoint(command, tmp_path, monkeypatch, way):
    """After interrupts at four different steps, the results equal those of an uninterrupted sweep to the bit."""
    path = training_sweep(tmp_path / "s.py", "seeds(2)", "config.train.log_every = 4")
    assert command(path, tmp_path / "straight", f"--way={way}").status == 0
    for number, stop in enumerate((4, 1, 6, 3)):
        with monkeypatch.context() as patch:
            interrupt_at(patch, stop * (2 if way == "vmap" else 1))
            try:
                command(path, tmp_path / "w", f"--way={way}")
            except KeyboardInterrupt:
                done = command(path, tmp_path / "w", "--list", f"--way={way}")
                assert "interrupted" in states(done).values(), number
    assert command(path, tmp_path / "w", f"--way={way}").status == 0
    assert results(tmp_path / "w") == results(tmp_path / "straight")
    for run in read_sweep(tmp_path / "w").runs:
        straight = tmp_path / "straight" / "runs" / run.id / "metrics.jsonl"
        assert without_speed(run.folder / "metrics.jsonl") == without_speed(straight)
    assert not [*(tmp_path / "w").glob("runs/*/checkpoints")]


def interrupt_at(patch, count):
    """Raise KeyboardInterrupt at the batch of this number; batches of all runs are counted together."""
    original, taken = inputs_module.Inputs.batches, []

    class Interrupted:
        def __init__(self, data):
            self._data = data
            self.get_state, self.set_state = data.get_state, data.set_state

        def __next__(self):
            taken.append(1)
            if len(taken) == count:
                raise KeyboardInterrupt
            return next(self._data)

    patch.setattr(inputs_module.Inputs, "batches", lambda self, *args, **how: Interrupted(original(self, *args, **how)))


def without_speed(path):
    """The lines of a log, without the speed."""
    lines = map(json.loads, path.read_text().splitlines())
    return [{key: value for key, value in line.items() if key != "steps_per_second"} for line in lines]


@pytest.mark.slow
@pytest.mark.usefixtures("unmeasured")
def test_runs_with_a_checkpoint_of_another_number_of_devices_start_again(command, tmp_path, monkeypatch):
    """No run fails."""
    path = training_sweep(tmp_path / "s.py", "seeds(2)")
    assert command(path, tmp_path / "straight", "--way=vmap").status == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 12)
        patch.setattr(train_task, "filled", lambda items: [*items, *items[-1:] * 14])
        with pytest.raises(KeyboardInterrupt):
            command(path, tmp_path / "w", "--way=vmap")
    assert [path.name for path in (tmp_path / "w").glob("runs/*/checkpoints/4")] == ["4"]
    assert command(path, tmp_path / "w", "--way=vmap").status == 0
    assert results(tmp_path / "w") == results(tmp_path / "straight")


def env(devices):
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}")
    return {**ENV, "XLA_FLAGS": flags, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


def line(path, folder, *more):
    return [sys.executable, "-m", "experiments.sweep", f"--sweep={path}", f"--workdir={folder}", *more]


def killed(path, folder, count, *more, devices):
    """Run a sweep to its end with `count` kills of its process group, each at a random time after a run has started."""
    rng = random.Random(0)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    for _ in range(count):
        begun = sum(attempts(folder).values())
        process = subprocess.Popen(line(path, folder, *more), env=env(devices), cwd=ROOT, **quiet)
        while process.poll() is None and sum(attempts(folder).values()) == begun:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 2))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return subprocess.run(line(path, folder, *more), env=env(devices), cwd=ROOT, capture_output=True, text=True)


def report_of(folder):
    """The text of report.md."""
    sweep = read_sweep(folder)
    return document.report(sweep, sweep.metrics, [tables.flat(sweep, sweep.metrics)], [])


def check_kills(tmp_path, data_dir, overrides, count, devices, *more):
    """Assert that results, logs and report equal those of an uninterrupted sweep."""
    changes = "config.train.num_steps = 40\nconfig.train.log_every = 10\nconfig.train.checkpoint_every = 5"
    path = training_sweep(tmp_path / "s.py", overrides, changes, data_dir)
    straight = subprocess.run(
        line(path, tmp_path / "a", *more), env=env(devices), cwd=ROOT, capture_output=True, text=True
    )
    assert straight.returncode == 0, straight.stderr
    done = killed(path, tmp_path / "b", count, *more, devices=devices)
    assert done.returncode == 0, done.stderr
    assert results(tmp_path / "b") == results(tmp_path / "a")
    assert len(results(tmp_path / "b")) == len(definitions.load(path).runs)
    for id in results(tmp_path / "a"):
        contents = [json.loads((tmp_path / name / "runs" / id / "result.json").read_text()) for name in "ab"]
        assert contents[0]["metrics"] == contents[1]["metrics"]
        logs = [without_speed(tmp_path / name / "runs" / id / "metrics.jsonl") for name in "ab"]
        assert logs[0] == logs[1]
    assert report_of(tmp_path / "a") == report_of(tmp_path / "b")
    assert not [*(tmp_path / "b").glob("runs/*/checkpoints")]
    return attempts(tmp_path / "b")


@pytest.mark.slow
def test_two_kills_do_not_change_results(data_dir, tmp_path):
    """At random times of a sweep on one device."""
    tried = check_kills(tmp_path, data_dir, "seeds(2)", 2, 1, "--way=loop")
    assert max(tried.values()) > 1, tried


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("way", [("--way=loop",), ("--way=vmap", "--group=2")])
def test_many_kills_do_not_change_results(data_dir, tmp_path, request, way, devices):
    """This also shows that the same command in two folders gives the same bits."""
    count, overrides = (
        max(5, request.config.getoption("--kills")),
        "product({'config.prediction': ['eps', 'v']}, seeds(2))",
    )
    tried = check_kills(tmp_path, data_dir, overrides, count, devices, *way)
    assert max(tried.values()) > 1, tried


@pytest.mark.slow
def test_workers_save_when_their_parent_gets_sigterm(data_dir, tmp_path):
    """The parent waits for its workers and ends with status 75. The same command then resumes from the checkpoints."""
    changes = "config.train.num_steps = 2000\nconfig.train.checkpoint_every = 2000"
    path, folder = training_sweep(tmp_path / "s.py", "seeds(2)", changes, data_dir), tmp_path / "w"
    flags = ("--way=loop", "--workers=2")
    parent = subprocess.Popen(line(path, folder, *flags), env=env(1), cwd=ROOT, stdout=subprocess.DEVNULL)
    while len([log for log in folder.glob("runs/*/metrics.jsonl") if log.stat().st_size]) < 2:
        assert parent.poll() is None
        time.sleep(0.05)
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(60) == 75
    assert not results(folder)
    saved = [int(step.name) for step in folder.glob("runs/*/checkpoints/*") if step.name.isdecimal()]
    assert len(saved) == 2
    assert max(saved) < 2000
    done = subprocess.run(line(path, folder, *flags), env=env(1), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(results(folder)) == 2
    assert set(attempts(folder).values()) == {2}


def test_a_run_costs_the_calls_of_its_sampler(tmp_path):
    """A step of Heun takes two calls and the final x0 takes one, so the run uses 17 of 18 calls."""
    config = changed({"config.sampling.sampler": "heun", "config.sampling.num_steps": 18})
    config.evaluation.num = 4
    program = SimpleNamespace(generate=lambda params, keys, label: np.zeros((len(keys), 1)))
    job = SimpleNamespace(folder=SimpleNamespace(run=lambda run: tmp_path), keep="none")
    prepared = None, lambda x, path: measures.Measures({"fd": float(len(x))}, {}, {}, {})
    run = definitions.Run("id", {}, config)
    result = train_task._measure(program, run, opened(config, 8), {}, prepared, job)
    assert result.cost["calls"] == 17
    assert result.metrics["fd"] == 4.0


# Sampling


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An export of a network that was trained for a few steps."""
    overrides = {"config.optimizer.learning_rate": 0.02, "config.optimizer.warmup_steps": 0}
    config = changed({**overrides, "config.train.num_steps": 30})
    inputs = opened(config, 1)
    first, step = plain(inputs.model)
    settings = {"num_steps": 30, "progress": training.Progress("step", 30, silent=True)}
    one = training.sharded(step, training.make_mesh(jax.devices()[:1]))
    fitted = training.fit(one, lambda: first(jax.random.key(0)), inputs.read(cache=True), **settings)
    folder = tmp_path_factory.mktemp("trained") / "export"
    whole = {key: value for key, value in config.to_dict().items() if key not in ("task", "evaluation")}
    save_export(folder, inputs, jax.device_get(fitted.state.ema), 30, None, {"config": whole})
    return folder


def labels_of(evaluation, data, of_model, num_classes, folder):
    """Labels that cycle through the classes."""
    return np.arange(evaluation.num) % num_classes


@pytest.fixture
def kept(monkeypatch):
    """Save the samples of each run as samples.npy instead of measuring them."""

    def measure(x, path):
        np.save(path.with_suffix(".npy"), x)
        return measures.Measures({"mean": float(x.mean())}, {}, {}, {})

    monkeypatch.setattr(measuring, "prepared", lambda *settings: (labels_of(*settings), measure))


def sampling_sweep(path, overrides, checkpoint):
    changes = f"config.checkpoint = {str(checkpoint)!r}\nconfig.calls = 4\nconfig.evaluation.num = 20\n"
    changes += "config.sampling.eta = 0.0\nconfig.evaluation.batch_size = 16\nconfig.evaluation.metrics = ('accuracy',)"
    return write(path, "settings.sampling()", changes, overrides)


def counted(patch, *names):
    """A list that gets one entry for each trace of one of these samplers."""
    traces = []
    for name in names:
        row = diffax.samplers.CATALOGUE[name]

        def build_one(schedule, row=row, **settings):
            if any(isinstance(v, jax.core.Tracer) for v in jax.tree.leaves(settings)):
                traces.append(1)
            return row.make(schedule, **settings)

        patch.setitem(diffax.samplers.CATALOGUE, name, row._replace(make=build_one))
    return traces


POINTS = """chain(
        product({'config.sampling.grid': ['uniform', 'quadratic'], 'config.sampling.guidance': [1.0, 2.0],
                 'config.sampling.eta': [0.0, 0.8]}, seeds(2)),
        product({'config.sampling.sampler': ['heun'], 'config.calls': [5]}, seeds(1)),
        product({'config.sampling.guidance': [3.0]}),
    )"""


@pytest.mark.slow
@pytest.mark.usefixtures("kept")
def test_the_ways_of_sampling_agree_with_each_other_and_with_sample(command, checkpoint, tmp_path, monkeypatch):
    """There is one compilation for each sampler and length, with and without guidance."""
    path, drawn = sampling_sweep(tmp_path / "s.py", POINTS, checkpoint), {}
    for way, count, *more in (("loop", 2), ("vmap", 2, "--group=16")):
        with monkeypatch.context() as patch:
            traces = counted(patch, "ddim")
            done = command(path, tmp_path / way, f"--way={way}", *more)
        assert done.status == 0, done.err
        assert len(traces) == count, way
        drawn[way] = {p.parent.name: np.load(p) for p in (tmp_path / way).glob("runs/*/samples.npy")}
        assert len(drawn[way]) == 18
    for id, samples in drawn["vmap"].items():
        np.testing.assert_allclose(samples, drawn["loop"][id], atol=1e-4, err_msg=id)
    (one,) = (
        run
        for run in read_sweep(tmp_path / "vmap").runs
        if run.own.items()
        >= {
            "config.sampling.grid": "quadratic",
            "config.sampling.guidance": 2.0,
            "config.sampling.eta": 0.8,
            "config.seed": 1,
        }.items()
    )
    assert one.cost["calls"] == 4
    flags = "--num=20 --batch_size=7 --sampler=ddim --num_steps=4 --grid=quadratic --guidance=2 --eta=0.8 --seed=1"
    subprocess.run(
        [sys.executable, "-m", "experiments.sample", f"--checkpoint={checkpoint}", f"--out={tmp_path / 'out'}",
         *flags.split()], env=env(1), cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    pixels = np.load(tmp_path / "out" / "shard_00000.npz")["samples"].astype(int)
    samples_in_pixels = DATA["digits"].units.denormalise(drawn["vmap"][one.id]).astype(int)
    assert np.abs(pixels - samples_in_pixels).max() <= 1
    assert (pixels == samples_in_pixels).mean() > 0.99
    assert len(np.unique(pixels)) > 2
    unlike = [np.abs(samples - drawn["vmap"][one.id]).max() for id, samples in drawn["vmap"].items() if id != one.id]
    assert min(unlike) > 1e-3


@pytest.mark.slow_cases("vmap")
@pytest.mark.parametrize("way", ["vmap", "loop"])
def test_samples_that_are_not_finite_only_fail_their_own_run(command, checkpoint, tmp_path, monkeypatch, way):
    measure = lambda x, path: measures.Measures({"mean": float(DATA["digits"].units.denormalise(x).mean())}, {}, {}, {})
    monkeypatch.setattr(measuring, "prepared", lambda *settings: (labels_of(*settings), measure))
    path = sampling_sweep(tmp_path / "s.py", "product({'config.sampling.guidance': [2.0, 1e39]})", checkpoint)
    done = command(path, tmp_path / "w", f"--way={way}")
    assert done.status == 1
    assert sorted(states(command(path, tmp_path / "w", "--list", f"--way={way}")).values()) == ["failed", "finished"]
    assert "sampling.guidance=1e+39" in done.err
    assert "samples must be finite, got nan in sample 0" in done.err


@pytest.mark.usefixtures("kept")
def test_a_checkpoint_that_changed_is_refused(command, checkpoint, tmp_path, monkeypatch):
    """The same path has other parameters; no samples are drawn from them."""
    path = sampling_sweep(tmp_path / "s.py", "seeds(1)", checkpoint)
    assert command(path, tmp_path / "w", "--way=loop").status == 0
    trained = loading.load(checkpoint)
    other = trained._replace(params=jax.tree.map(lambda v: v + 1e-3, trained.params))
    monkeypatch.setattr(loading, "load", lambda *_: other)
    sample_task._opened.cache_clear()
    done = command(path, tmp_path / "w", "--way=loop")
    sample_task._opened.cache_clear()
    assert done.status == 2
    assert f"inputs.{checkpoint} = 'step 30, " in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("[{'config.checkpoint': ''}]", "config.checkpoint must be a run's workdir or an export"),
        ("[{'config.checkpoint': '/nothing/here'}]", "config.checkpoint must be a run's workdir or an export"),
        ("[{'config.sampling.sampler': 'heun', 'config.sampling.eta': 0.5}]", "config.sampling.eta must be 0 for heun"),
        ("[{'config.sampling.sampler': 'heun', 'config.calls': 2}]", "config.calls must suffice for a step of heun"),
        ("[{'config.sampling.guidance': float('inf')}]", "config.sampling.guidance must be finite"),
        ("[{'config.sampling.guidance_rescale': 2.0}]", "config.sampling.guidance_rescale must be in [0, 1]"),
        ("[{'config.sampling.num_steps': 2}]", "config.sampling.num_steps is not a setting"),
        ("[{'config.evaluation.metrics': ('fid',)}]", "metrics must be one of"),
        ("[{'config.evaluation.extractor': 'vgg'}]", "config.evaluation.extractor must be one of"),
        ("[{'config.sampling.sampler': 'ddpm_learned'}]", "must not be ddpm_learned"),
    ],
)
def test_an_invalid_sampling_sweep_is_an_error_of_one_line(command, checkpoint, tmp_path, overrides, message):
    done = command(sampling_sweep(tmp_path / "s.py", overrides, checkpoint), tmp_path / "w")
    assert done.status == 2
    assert message in done.err
    assert done.err.startswith("error: run 0" if "not a setting" in message else "error: run ")
    assert done.err.count("\n") == 1


# ---------------------------------------------------------------------------------------------- few steps


@pytest.mark.slow
def test_a_sweep_starts_from_another_run_and_measures_at_several_numbers_of_calls(command, tmp_path):
    """The first loss is that of the other run's parameters; a changed source is another sweep."""
    changes = "config.optimizer.warmup_steps = 0\nconfig.optimizer.ema_decay = 0.5\nconfig.train.checkpoint_every = 999"
    source = training_sweep(
        tmp_path / "source.py",
        "seeds(1)",
        f"{changes}\nconfig.train.num_steps = 200\nconfig.optimizer.learning_rate = 5e-3",
    )
    assert command(source, tmp_path / "source", "--keep=export").status == 0
    ((id, _),) = results(tmp_path / "source").items()
    export = tmp_path / "source" / "runs" / id / "export"
    changes += f"\nconfig.train.num_steps = 1\nconfig.init_from = {str(export)!r}\nconfig.evaluation.calls = (1, 3)"
    path = training_sweep(tmp_path / "few.py", "seeds(2)", changes)
    done = command(path, tmp_path / "few")
    assert done.status == 0, done.err
    for content in results(tmp_path / "few").values():
        assert set(content["metrics"]) == {"loss", "accuracy_1", "accuracy_3"}
        assert "calls" not in content["cost"]
    run = next(iter(definitions.load(path).runs.values()))
    values = {}
    for name in ("", str(export)):
        config = run.config.copy_and_resolve_references()
        config.init_from = name
        inputs = opened(config, 1)
        params = loading.load(export).params if name else inputs.model.init(jax.random.key(0))
        batch = next(inputs.read(cache=True))
        keys = jax.random.split(jax.random.key(0), len(batch["x"]))
        values[name] = float(inputs.objective().loss(params, batch, keys).mean())
    first = losses(tmp_path / "few", run)[0]
    assert values[str(export)] < 0.8 * values[""]
    assert abs(first - values[str(export)]) < 0.3 * abs(first - values[""])
    loading_digest = train_task.parse(run.config)[1][str(export)]
    assert loading_digest == loading.digest(loading.load(export).params)
