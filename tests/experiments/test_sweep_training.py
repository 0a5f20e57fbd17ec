"""Sweeps that train and that sample: runs of one program are what each is alone, and kills change nothing."""

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
from sweeping_runs import attempts, command, results, states, write

from diffax.training import init_state, make_mesh, train_step
from experiments.configs import smoke
from experiments.data import images
from experiments.data.datasets import open_dataset
from experiments.data.pipeline import batches
from experiments.evaluation import measures
from experiments.models import build, networks, objectives, samplers
from experiments.reporting import document, summary, tables
from experiments.reporting.reading import read_sweep
from experiments.run import opening, training
from experiments.sweeping import definition as definitions
from experiments.sweeping import judging, sample_task, settings, together, traced, train_task
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
    """No samples are drawn: the result is the last loss."""
    monkeypatch.setattr(train_task, "_judge", lambda *_: None)
    monkeypatch.setattr(
        train_task, "_measure", lambda program, one, opened, swept, last, judge, folder: Result(last, {}, {}, {})
    )


def losses(folder, run):
    """[loss] of metrics.jsonl."""
    lines = [json.loads(line) for line in (folder / "runs" / run.id / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return np.array([line["loss"] for line in lines])


class Alone:
    """Runs of `experiments.run.training`'s parts, by plain configs, on one device."""

    def __init__(self):
        self._known = {}

    def losses(self, config):
        """[loss] of each step."""
        first, step = self._of(config)
        state, data, found = first(jax.random.key(config.seed)), self._data(config), []
        for _ in range(config.train.num_steps):
            state, metrics = step(state, jax.tree.map(jnp.asarray, next(data)))
            found.append(metrics["loss"])
        return np.array(jax.device_get(found))

    def _data(self, config):
        settings = config.dataset
        dataset = open_dataset(settings.name, settings.data_dir, settings.labels)
        return batches(dataset, settings.train_split, settings.batch_size, seed=config.seed, num_threads=1, cache=True)

    def _of(self, config):
        """Programs that know nothing of the seed: one for all that differ in it."""
        key = json.dumps({**config.to_dict(), "seed": 0})
        if key not in self._known:
            run, _ = opening.checked(config, make_mesh(jax.devices()[:1]), networks.network, "diffusion")
            optimizer, decay = build.optimizer(config), config.optimizer.ema_decay

            def first(key):
                init_key, state_key = jax.random.split(key)
                return init_state(state_key, build.init_params(config, run.net, run.shape, init_key), optimizer)

            step = train_step(objectives.objective(config, run.net).loss, optimizer, ema_decay=decay)
            self._known[key] = jax.jit(first), jax.jit(step)
        return self._known[key]


@pytest.fixture(scope="module")
def alone():
    return Alone()


# One program


SEEDS_AND_RATES = "product({'config.optimizer.learning_rate': [1e-3, 4e-3]}, seeds(8))[:11]"


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize(
    "way", ["vmap", pytest.param("map", marks=pytest.mark.slow), pytest.param("loop", marks=pytest.mark.slow)]
)
def test_runs_of_one_program_are_the_separate_runs(command, alone, tmp_path, way):
    """11 of 8 seeds x 2 learning rates on 8 devices, over 30 steps."""
    path = training_sweep(tmp_path / "s.py", SEEDS_AND_RATES, "config.train.num_steps = 30")
    more, compiled = ("--only=config.seed=1",) if way == "loop" else ("--group=16",), []
    with pytest.MonkeyPatch.context() as patch:
        original = train_task.train_step
        patch.setattr(train_task, "train_step", lambda *args, **kwargs: compiled.append(1) or original(*args, **kwargs))
        done = command(path, tmp_path / "w", f"--way={way}", *more)
    assert done.status == 0, done.err
    assert len(compiled) <= 2, "once to make it, once for shapes"
    every = definitions.load(path).runs
    runs = [every[id] for id in results(tmp_path / "w")]
    assert len(runs) == (2 if way == "loop" else 11)
    rates = {run.config.optimizer.learning_rate: run for run in runs}
    assert len(rates) == 2
    for run in rates.values():
        wanted = alone.losses(train_task.experiment(run.config))
        np.testing.assert_allclose(losses(tmp_path / "w", run), wanted, rtol=1e-5, err_msg=run.label)
    ends = {tuple(losses(tmp_path / "w", run)) for run in runs}
    assert len(ends) == len(runs)


@pytest.mark.slow
@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("way", ["vmap", "map", "loop"])
def test_runs_of_one_program_are_the_separate_runs_of_the_unet(command, alone, tmp_path, way):
    changes = "config.network.name = 'unet'\nconfig.network.channels = 8\nconfig.train.num_steps = 30"
    changes += "\nconfig.dataset.batch_size = 8"  # of 16, `map` takes ten minutes on a CPU
    path = training_sweep(tmp_path / "s.py", SEEDS_AND_RATES, changes)
    assert (
        command(path, tmp_path / "w", f"--way={way}", "--only=config.seed=1" if way == "loop" else "--group=16").status
        == 0
    )
    every, done = definitions.load(path).runs, results(tmp_path / "w")
    assert len(done) == (2 if way == "loop" else 11)
    for run in [every[id] for id in done][:: 1 if way == "loop" else 3]:
        wanted = alone.losses(train_task.experiment(run.config))
        np.testing.assert_allclose(losses(tmp_path / "w", run), wanted, rtol=1e-5, err_msg=run.label)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["vmap", "map", "loop"])
def test_runs_of_one_program_on_one_device(alone, tmp_path, way):
    """The command in a process of its own."""
    path = training_sweep(tmp_path / "s.py", SEEDS_AND_RATES, "config.train.num_steps = 30")
    done = subprocess.run(line(path, tmp_path / "w", f"--way={way}"), env=env(1), cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr
    for run in [*definitions.load(path).runs.values()][::3]:
        wanted = alone.losses(train_task.experiment(run.config))
        np.testing.assert_allclose(losses(tmp_path / "w", run), wanted, rtol=1e-5, err_msg=run.label)


# What is traced


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
    """A small training run."""
    config = settings.training(smoke.get_config()) if base is None else base.copy_and_resolve_references()
    known = settings.KNOWN["train"]()
    if base is None:
        config.network.update({"name": "mlp", "channels": 16, "depth": 1})
    for key, value in overrides.items():
        settings.change(config, key, value, known)
    return config


def ends(program, opened, config, steps=3):
    """Parameters and their average after a few steps, as one array."""
    swept = program.first(traced.arrays(traced.split(config)[1]))
    for step in range(steps):
        opened.data.set_state(opened.data.get_state() | {"next_index": step})
        swept, _ = program.step(swept, next(opened.data))
    leaves = jax.tree.leaves(jax.device_get((swept.state.params, swept.state.ema)))
    return np.concatenate([np.ravel(leaf) for leaf in leaves])


def ends_alone(config, opened, steps=3):
    config = train_task.experiment(config)
    objective = objectives.objective(config, opened.net)
    init_key, state_key = jax.random.split(jax.random.key(config.seed))
    state = init_state(
        state_key, build.init_params(config, opened.net, opened.shape, init_key), build.optimizer(config)
    )
    step = jax.jit(train_step(objective.loss, build.optimizer(config), ema_decay=config.optimizer.ema_decay))
    for number in range(steps):
        opened.data.set_state(opened.data.get_state() | {"next_index": number})
        state, _ = step(state, jax.tree.map(jnp.asarray, next(opened.data)))
    leaves = jax.tree.leaves(jax.device_get((state.params, state.ema)))
    return np.concatenate([np.ravel(leaf) for leaf in leaves])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "other"),
    [
        pytest.param(TRACED, OTHER, id="denoising"),
        pytest.param(HYBRID, {"config.loss.vlb_weight": 5.0}, id="hybrid", marks=pytest.mark.slow),
    ],
)
def test_one_program_serves_every_value_of_what_is_traced(monkeypatch, base, other):
    """Each by itself changes what comes out, all together give what a program of these values alone gives."""
    base, traces = changed(base), []
    everything = changed(other, base)
    original = objectives.objective
    monkeypatch.setattr(objectives, "objective", lambda config, net: traces.append(1) or original(config, net))
    opened, _ = opening.checked(train_task.experiment(base), make_mesh(), networks.network, "diffusion")
    program = train_task._compile(opened, "loop")
    before = ends(program, opened, base)
    compiled = len(traces)
    for key, value in other.items():
        config = changed({key: value}, base)
        assert train_task.alike(config) == train_task.alike(base), key
        assert np.abs(ends(program, opened, config) - before).max() > 1e-6, key
    together_ = ends(program, opened, everything)
    assert len(traces) == compiled
    np.testing.assert_allclose(together_, ends_alone(everything, opened), rtol=1e-4, atol=1e-6)


def test_every_float_that_is_traced_is_tested():
    tested = {*OTHER, "config.loss.vlb_weight", "config.sampling.eta"}
    assert {*traced.FLOATS, traced.SEED} <= tested
    assert all(any(key.startswith(group) for key in tested) for group in traced.GROUPS)


def test_what_is_static_makes_another_program():
    base = changed({})
    for key, value in {
        "config.prediction": "eps",
        "config.train.num_steps": 7,
        "config.network.dropout_rate": 0.2,
        "config.schedule": {"name": "linear", "beta_max": 10.0},
        "config.evaluation.num": 30,
        "config.dataset.batch_size": 8,
        "config.sampling.eta": 0.5,  # from the sampler's own to a value
    }.items():
        assert train_task.alike(changed({key: value}, base)) != train_task.alike(base), key
    some, others = (changed({"config.sampling.eta": eta}, base) for eta in (0.5, 0.8))
    assert train_task.alike(some) == train_task.alike(others)
    for key, value in {"config.dataset.num_threads": 5, "config.dataset.data_dir": "x"}.items():
        assert train_task.alike(changed({key: value}, base)) == train_task.alike(base), key


@pytest.mark.parametrize("base", [TRACED, HYBRID, {}])
def test_split_and_bind_are_inverse(base):
    config = changed(base)
    _, values = traced.split(config)
    bound = traced.bind(config, values)
    assert bound.to_dict() == config.to_dict()
    arrays = traced.arrays(values)
    assert arrays["config.seed"].dtype == jnp.int32
    again = traced.bind(config, {key: value + 1 for key, value in values.items()})
    assert again.seed == config.seed + 1
    assert traced.split(again)[0] == traced.split(config)[0]
    assert traced.split(again)[1] == {key: value + 1 for key, value in values.items()}
    assert config.to_dict() == changed(base).to_dict(), "the config itself stays"


GIVEN = {"shift": 0.5, "sigma_min": 0.01, "sigma_max": 80.0}  # where there is no default


@pytest.mark.slow_cases("linear", "sigmoid")
@pytest.mark.parametrize("name", [name for name in build.SCHEDULES if name != "learned"])
def test_every_schedule_takes_traced_parameters(name):
    """As `bind` gives them; shapes alone, values where they are trained above."""
    parameters = {
        key: float(GIVEN.get(key, found.default))
        for key, found in inspect.signature(build.SCHEDULES[name]).parameters.items()
        if key != "num_steps" and isinstance(GIVEN.get(key, found.default), (int, float))
    }
    config = changed({"config.schedule": {"name": name, **parameters}})
    values = {key: v for key, v in traced.split(config)[1].items() if key.startswith("config.schedule.")}
    assert len(values) == (0 if name.endswith("_betas") else len(parameters)), "a table is the host's work"

    def level(values):
        return build.schedule(traced.bind(config, values))(0.5)

    jax.eval_shape(level, traced.arrays(values))
    if values:
        for found, wanted in zip(level(traced.arrays(values)), level(values), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("setting", ["weighting", "times"])
def test_every_law_and_weighting_takes_traced_parameters(setting):
    table = {"weighting": objectives.WEIGHTINGS, "times": objectives.LAWS}[setting]
    count = 0
    for name, make in table.items():
        known = inspect.signature(make).parameters if make else {}
        parameters = {
            key: float(p.default)
            for key, p in known.items()
            if key not in ("schedule", "sigma_data", *settings.COUNTS) and isinstance(p.default, (int, float))
        }
        config = changed({f"config.loss.{setting}": name, f"config.loss.{setting}_parameters": parameters})
        values = {key: v for key, v in traced.split(config)[1].items() if "_parameters." in key}
        assert len(values) == len(parameters), name
        count += len(values)

        def built(values, config=config):
            bound = traced.bind(config, values)
            (objectives.weighting if setting == "weighting" else objectives.law)(bound)
            return 0

        jax.eval_shape(built, traced.arrays(values))
    assert count >= 3


def test_more_runs_than_a_multiple_of_the_devices():
    """What is filled up is dropped; one of each remains."""
    for count in (1, 7, 8, 9):
        items = [{"x": np.float32(i)} for i in range(count)]
        filled = together.filled(items)
        assert len(filled) % 8 == 0
        assert filled[:count] == items
        for way in together.WAYS:
            call = together.several(lambda shared, own: shared + 2 * own["x"], way)
            found = call(jnp.float32(1.0), together.stacked(filled))
            parts = [together.part(found, way, place) for place in range(count)]
            np.testing.assert_array_equal(parts, 1 + 2 * np.arange(count))
            assert [part.devices() for part in parts] == [
                {jax.local_devices()[place * 8 // len(filled)]} for place in range(count)
            ]  # nothing is gathered


# What fails, and what is interrupted


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("way", ["vmap", pytest.param("loop", marks=pytest.mark.slow)])
def test_a_loss_that_is_not_finite_ends_one_run_alone(command, tmp_path, way):
    """The others of its program are what they are without it."""
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
def test_what_is_interrupted_goes_on_from_its_checkpoint(command, tmp_path, monkeypatch, way):
    """At any step, bit for bit, and no step before the checkpoint is done again; other devices begin anew."""
    path = training_sweep(tmp_path / "s.py", "seeds(2)", "config.train.log_every = 4")
    assert command(path, tmp_path / "straight", f"--way={way}").status == 0
    original, taken = train_task._Training._batch, []
    for number, stop in enumerate((4, 1, 6, 3)):

        def batch(self, stop=stop):
            taken.append(1)
            if len(taken) == stop:
                raise KeyboardInterrupt
            return original(self)

        taken.clear()
        with monkeypatch.context() as patch:
            patch.setattr(train_task._Training, "_batch", batch)
            try:
                command(path, tmp_path / "w", f"--way={way}")
            except KeyboardInterrupt:
                done = command(path, tmp_path / "w", "--list", f"--way={way}")
                assert "interrupted" in states(done).values(), number
    assert command(path, tmp_path / "w", f"--way={way}").status == 0
    assert results(tmp_path / "w") == results(tmp_path / "straight")
    for run in read_sweep(tmp_path / "w").runs:
        straight = tmp_path / "straight" / "runs" / run.id / "metrics.jsonl"
        assert (run.folder / "metrics.jsonl").read_text() == straight.read_text()
    assert not [*(tmp_path / "w" / "units").iterdir()]


@pytest.mark.slow
@pytest.mark.usefixtures("unmeasured")
def test_a_checkpoint_that_does_not_fit_is_begun_anew(command, tmp_path, monkeypatch):
    """Of other devices, or damaged: nothing fails for it."""
    path = training_sweep(tmp_path / "s.py", "seeds(2)")
    assert command(path, tmp_path / "straight", "--way=vmap").status == 0
    original, taken = train_task._Training._batch, []

    def batch(self):
        taken.append(1)
        if len(taken) == 6:
            raise KeyboardInterrupt
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(train_task._Training, "_batch", batch)
        patch.setattr(together, "filled", lambda items: items + items[-1:] * 14)
        with pytest.raises(KeyboardInterrupt):
            command(path, tmp_path / "w", "--way=vmap")
    assert [path.name for path in (tmp_path / "w" / "units").glob("*/4")] == ["4"]
    assert command(path, tmp_path / "w", "--way=vmap").status == 0
    assert results(tmp_path / "w") == results(tmp_path / "straight")


def env(devices):
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}")
    return {**ENV, "XLA_FLAGS": flags, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


def line(path, folder, *more):
    return [sys.executable, "-m", "experiments.sweep", f"--sweep={path}", f"--workdir={folder}", *more]


def killed(path, folder, count, *more, devices):
    """Runs a sweep to its end with `count` kills of its process group, each at a random time after a run was begun."""
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
    """What report.md is made of."""
    sweep = read_sweep(folder)
    metrics = summary.chosen_metrics((), sweep)
    return document.report(sweep, metrics, [tables.flat(sweep, metrics)], [])


def check_kills(tmp_path, data_dir, overrides, count, devices, *more):
    """Results, logs and report are those of a sweep that nobody disturbed."""
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
        of = [json.loads((tmp_path / name / "runs" / id / "result.json").read_text()) for name in "ab"]
        assert of[0]["metrics"] == of[1]["metrics"]
        logs = [(tmp_path / name / "runs" / id / "metrics.jsonl").read_bytes() for name in "ab"]
        assert logs[0] == logs[1]
    assert report_of(tmp_path / "a") == report_of(tmp_path / "b")
    assert [*(tmp_path / "b" / "units").iterdir()] == []
    return attempts(tmp_path / "b")


@pytest.mark.slow
def test_kills_change_nothing(data_dir, tmp_path):
    """Twice, at random times of a sweep on one device."""
    tried = check_kills(tmp_path, data_dir, "seeds(2)", 2, 1, "--way=loop")
    assert max(tried.values()) > 1, tried


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("way", [("--way=loop",), ("--way=vmap", "--group=2"), ("--way=map", "--group=2")])
def test_many_kills_change_nothing(data_dir, tmp_path, request, way, devices):
    """And the same command in two folders gives the same bits."""
    count, overrides = (
        max(5, request.config.getoption("--kills")),
        "product({'config.prediction': ['eps', 'v']}, seeds(2))",
    )
    tried = check_kills(tmp_path, data_dir, overrides, count, devices, *way)
    assert max(tried.values()) > 1, tried


def test_a_run_costs_the_calls_of_its_sampler(monkeypatch, tmp_path):
    """Heun's steps make two, so that of 18 calls one is left over."""
    config = changed({"config.sampling.sampler": "heun", "config.sampling.num_steps": 18})
    monkeypatch.setattr(judging, "stored", lambda drawn, dataset: drawn)
    monkeypatch.setattr(judging, "picture", lambda *_: None)
    stubs = SimpleNamespace(
        generate=lambda params, keys, label: np.zeros((len(keys), 1)),
        state=SimpleNamespace(ema={}),
        values=None,
        config=config,
        dataset=None,
        run=lambda one: tmp_path,
    )
    judged = None, lambda pixels: measures.Measures({"fd": 1.0}, {}, {}, {})
    result = train_task._measure(stubs, stubs, stubs, stubs, {"loss": 1.0}, judged, stubs)
    assert result.cost["calls"] == 17
    assert result.metrics == {"loss": 1.0, "fd": 1.0}


# Sampling


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The workdir of a network that has seen a few steps."""
    overrides = {"config.optimizer.learning_rate": 0.02, "config.optimizer.warmup_steps": 0}
    config = train_task.experiment(changed({**overrides, "config.train.num_steps": 30}))
    folder = tmp_path_factory.mktemp("trained")
    run = opening.prepare(config, folder, networks.network, "diffusion")
    training.train(run, objectives.objective(config, run.net), lambda *_: {})
    return folder


@pytest.fixture
def kept(monkeypatch):
    """Samples are not measured but kept, as samples.npy of each run."""

    def picture(path, drawn, dataset):
        np.save(path.with_suffix(".npy"), drawn)

    def judge(*_):
        return SimpleNamespace(dataset=None), lambda found: measures.Measures({"mean": float(found.mean())}, {}, {}, {})

    monkeypatch.setattr(judging, "judge", judge)
    monkeypatch.setattr(judging, "stored", lambda drawn, dataset: drawn)
    monkeypatch.setattr(judging, "picture", picture)


def sampling_sweep(path, overrides, checkpoint):
    changes = f"config.checkpoint = {str(checkpoint)!r}\nconfig.calls = 4\nconfig.evaluation.num = 20\n"
    changes += "config.sampling.eta = 0.0\nconfig.evaluation.batch_size = 16\nconfig.evaluation.metrics = ('accuracy',)"
    return write(path, "settings.sampling()", changes, overrides)


def counted(patch, *names):
    """A list that has an entry for each time that one of these samplers is traced."""
    traces = []
    for name in names:
        make = samplers.SAMPLERS[name]

        def build_one(schedule, eta, make=make):
            if isinstance(eta, jax.core.Tracer):
                traces.append(1)
            return make(schedule, eta)

        patch.setitem(samplers.SAMPLERS, name, build_one)
    return traces


POINTS = """chain(
        product({'config.sampling.grid': ['uniform', 'quadratic'], 'config.sampling.guidance': [1.0, 2.0],
                 'config.sampling.eta': [0.0, 0.8]}, seeds(2)),
        product({'config.sampling.sampler': ['heun'], 'config.calls': [5]}, seeds(1)),
        product({'config.sampling.guidance': [3.0]}),
    )"""


@pytest.mark.slow
@pytest.mark.usefixtures("kept")
def test_the_ways_of_sampling_agree_and_are_the_command_that_samples(command, checkpoint, tmp_path, monkeypatch):
    """One compile for each sampler and length, guided or not; pixels of `experiments.sample`."""
    path, drawn = sampling_sweep(tmp_path / "s.py", POINTS, checkpoint), {}
    guided = "--only=config.sampling.guidance=2.0"
    for way, programs, *more in (("loop", 3), ("vmap", 3, "--group=16"), ("map", 1, "--group=16", guided)):
        with monkeypatch.context() as patch:
            traces = counted(patch, "ddim", "heun")
            done = command(path, tmp_path / way, f"--way={way}", *more)
        assert done.status == 0, done.err
        assert len(traces) == programs, way
        drawn[way] = {p.parent.name: np.load(p) for p in (tmp_path / way).glob("runs/*/samples.npy")}
        assert len(drawn[way]) == (18 if programs == 3 else 8)
    for way in ("vmap", "map"):
        for id, samples in drawn[way].items():
            np.testing.assert_allclose(samples, drawn["loop"][id], atol=1e-4, err_msg=f"{way} {id}")
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
    ours = images.to_pixels(drawn["vmap"][one.id], 0, 16).astype(int)
    assert np.abs(pixels - ours).max() <= 1
    assert (pixels == ours).mean() > 0.99
    assert len(np.unique(pixels)) > 2
    unlike = [np.abs(samples - drawn["vmap"][one.id]).max() for id, samples in drawn["vmap"].items() if id != one.id]
    assert min(unlike) > 1e-3


@pytest.mark.slow_cases("vmap")
@pytest.mark.parametrize("way", ["vmap", "loop"])
def test_samples_that_are_not_finite_fail_their_run_alone(command, checkpoint, tmp_path, monkeypatch, way):
    judge = lambda found: measures.Measures({"mean": float(found.mean())}, {}, {}, {})
    monkeypatch.setattr(judging, "judge", lambda *_: (SimpleNamespace(dataset=SimpleNamespace(low=0, high=16)), judge))
    monkeypatch.setattr(judging, "picture", lambda *_: None)
    path = sampling_sweep(tmp_path / "s.py", "product({'config.sampling.guidance': [2.0, 1e39]})", checkpoint)
    done = command(path, tmp_path / "w", f"--way={way}")
    assert done.status == 1
    assert sorted(states(command(path, tmp_path / "w", "--list", f"--way={way}")).values()) == ["failed", "finished"]
    assert "sampling.guidance=1e+39" in done.err
    assert "samples must be finite, got nan in sample 0" in done.err


@pytest.mark.usefixtures("kept")
def test_a_checkpoint_that_changed_is_refused(command, checkpoint, tmp_path, monkeypatch):
    """Under the same path: other parameters; nothing is computed from them."""
    path = sampling_sweep(tmp_path / "s.py", "seeds(1)", checkpoint)
    assert command(path, tmp_path / "w", "--way=loop").status == 0
    model = sample_task._model(str(checkpoint))
    other = model._replace(params=jax.tree.map(lambda v: v + 1e-3, model.params))
    monkeypatch.setattr(sample_task, "_model", lambda checkpoint: other)
    done = command(path, tmp_path / "w", "--way=loop")
    assert done.status == 2
    assert f"inputs.{checkpoint} = 'step 30, " in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("[{'config.checkpoint': ''}]", "config.checkpoint must name a run's workdir or an export"),
        ("[{'config.checkpoint': '/nothing/here'}]", "config.checkpoint must be a run's workdir or an export"),
        ("[{'config.sampling.sampler': 'heun', 'config.sampling.eta': 0.5}]", "config.sampling.eta must be 0 for heun"),
        ("[{'config.sampling.sampler': 'heun', 'config.calls': 2}]", "config.calls must pay for a step of heun"),
        ("[{'config.sampling.guidance': float('inf')}]", "config.sampling.guidance must be finite"),
        ("[{'config.sampling.guidance_rescale': 2.0}]", "config.sampling.guidance_rescale must be in [0, 1]"),
        ("[{'config.sampling.num_steps': 2}]", "config.sampling.num_steps is no setting"),
        ("[{'config.evaluation.metrics': ('fid',)}]", "metrics must be one of"),
        ("[{'config.evaluation.extractor': 'vgg'}]", "config.evaluation.extractor must be one of"),
        ("[{'config.sampling.sampler': 'ddpm_learned'}]", "must not be ddpm_learned"),
    ],
)
def test_what_is_no_sampling_sweep_is_one_line(command, checkpoint, tmp_path, overrides, message):
    done = command(sampling_sweep(tmp_path / "s.py", overrides, checkpoint), tmp_path / "w")
    assert done.status == 2
    assert message in done.err
    assert done.err.startswith("error: run 0" if "no setting" in message else "error: run ")
    assert done.err.count("\n") == 1
