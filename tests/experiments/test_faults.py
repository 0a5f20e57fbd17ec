"""Faults inside the test process: signals, losses that are not finite, bad data, full disks. See test_processes."""

import os
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from commands import built, train
from test_experiments import metrics
from test_training import batch_of, on

from diffax.training import Checkpoints, JsonLog, init_state, manifest, processes, train_step
from experiments.configs import smoke
from experiments.data.datasets import Dataset, RecordError, open_dataset
from experiments.data.pipeline import batches, records_of_batch
from experiments.models.objectives import Objective
from experiments.models.optimizers import Optimizer
from experiments.run import inputs
from experiments.run.inputs import FORMS


def small(data_dir, **settings):
    """A config of a few steps; the tests replace its network."""
    config = smoke.get_config()
    config.dataset.data_dir = str(data_dir)
    config.train.update({"num_steps": 12, "log_every": 4, "checkpoint_every": 4, "compile_cache": False, **settings})
    return config


def optimizer(config):
    return Optimizer(**config.optimizer.to_dict(), num_steps=config.train.num_steps, normalises=False)


class Model:
    """A model of one number, which compiles quickly."""

    def __init__(self, config, data):
        self.optimizer = optimizer(config)

    def init(self, key):
        return {"w": jnp.ones(())}

    def objective(self):
        return Objective(lambda params, batch, keys: (params["w"] - batch["x"].mean((1, 2, 3))) ** 2)


@pytest.fixture
def prepared(data_dir, tmp_path, monkeypatch):
    """start(workdir, at_batch, **settings) trains and returns the workdir; at_batch maps (number, batch) to a batch."""
    monkeypatch.setattr(inputs, "build", Model)

    def start(workdir="run", at_batch=lambda n, batch: batch, **settings):
        class Data:
            def __init__(self, *args, **options):
                self._data = batches(*args, **options)
                self.get_state, self.set_state = self._data.get_state, self._data.set_state

            def __next__(self):
                batch = next(self._data)
                return at_batch(self._data.get_state()["next_index"], batch)

        monkeypatch.setattr(inputs.pipeline, "batches", Data)
        return train(small(data_dir, **settings), tmp_path / workdir)

    return start


def end_of(workdir):
    """[step, w, numbers of the optimiser ..] of the newest checkpoint."""
    state = init_state(jax.random.key(0), {"w": jnp.ones(())}, optimizer(smoke.get_config()).make())
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        restored = checkpoints.restore_latest(state)
    return [restored.step, *(float(v) for v in jax.tree.leaves((restored.state.params, restored.state.opt_state)))]


def log_of(workdir):
    """The lines of metrics.jsonl, without speed and memory."""
    return [{k: v for k, v in line.items() if "second" not in k and "memory" not in k} for line in metrics(workdir)]


def nan_at(*places):
    return lambda n, batch: {**batch, "x": batch["x"] * (np.nan if n in places else 1)}


def test_sigterm_saves_and_the_resumed_run_equals_an_uninterrupted_one(prepared, tmp_path):
    """The run stops within one step, with status 75; parameters, optimiser and log end up equal."""

    def terminate(n, batch):
        if n == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        prepared(at_batch=terminate)
    assert end_of(tmp_path / "run")[0] == 6
    assert stopped.value.code == processes.STOPPED == 75
    assert signal.getsignal(signal.SIGTERM) is before
    workdir, straight = prepared(), prepared("straight")
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.steps == [8, 12]
    assert end_of(workdir) == end_of(straight)
    assert log_of(workdir) == log_of(straight)
    assert [line["step"] for line in log_of(workdir)] == [1, 4, 8, 12]


def test_a_loss_that_is_not_finite_stops_the_run(prepared, capsys, tmp_path):
    """The error names the step, the records of the batch and the newest checkpoint, whose parameters are finite."""
    with pytest.raises(SystemExit) as stopped:
        prepared(at_batch=nan_at(7))
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert "error: step 7 is not finite (grad_norm nan, loss nan); skipped steps in a row: 1; step 4 is kept; " in error
    assert re.search(r"its batch has the records( \d+){16} of split 'train'$", error.strip())
    step, w, *_ = end_of(tmp_path / "run")
    assert (step, np.isfinite(w)) == (4, True)
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_a_record_that_cannot_be_read_ends_the_run_with_one_line(prepared, capsys, tmp_path):
    """The newest checkpoint is kept."""

    def at_batch(n, batch):
        if n == 7:
            raise RecordError("record 3 of split 'train' of digits cannot be read")
        return batch

    with pytest.raises(SystemExit) as stopped:
        prepared(at_batch=at_batch)
    assert stopped.value.code == 1
    assert "error: record 3 of split 'train' of digits cannot be read" in capsys.readouterr().err
    assert end_of(tmp_path / "run")[0] == 4


def test_the_best_checkpoint_is_chosen_by_the_newest_value_of_the_log(prepared, capsys):
    """Also at checkpoints without a line of the log, and after the run is resumed between the two."""
    settings = {"log_every": 5, "checkpoint_every": 3, "keep_best": "loss"}
    prepared(num_steps=6, **settings)
    workdir = prepared(num_steps=12, **settings)
    for step in (9, 12):
        newest = [line["loss"] for line in log_of(workdir) if line["step"] <= step][-1]
        assert manifest.read(workdir / "checkpoints" / str(step))["best"] == newest
    with pytest.raises(SystemExit):
        prepared("other", keep_best="-fid")
    assert "keep_best must be \"\", or one of loss, grad_norm or -one, got '-fid'" in capsys.readouterr().err


def test_bad_steps_are_skipped_up_to_a_limit(prepared, capsys):
    """At most `max_skipped` steps in a row are skipped. The log counts them; they do not change the state."""
    workdir = prepared(at_batch=nan_at(2, 3, 7), max_skipped=2)
    assert [line.get("skipped") for line in log_of(workdir)] == [None, 2, 1, None]
    assert all(np.isfinite(line["loss"]) for line in log_of(workdir))
    assert end_of(workdir)[0] == 12
    with pytest.raises(SystemExit):
        prepared("five", at_batch=nan_at(5, 6, 7, 8, 9), max_skipped=4)
    assert "step 9 is not finite" in capsys.readouterr().err
    assert np.isfinite(end_of(workdir.parent / "five")[1])


@pytest.mark.slow_cases("pmap")
@pytest.mark.newest
@pytest.mark.parametrize("form", FORMS)
def test_a_gradient_that_is_not_finite_does_not_change_the_state(form):
    """The loss is finite, but the slope of sqrt(0) is not. In any layout, with and without accumulation."""

    def loss(params, batch, keys):
        return jnp.sqrt(jnp.sum((params["w"] * batch["x"]) ** 2, -1)) + params["w"].sum()

    for accumulate in (1, 2):
        optimizer = optax.adam(0.1)
        state = init_state(jax.random.key(0), {"w": jnp.ones(8)}, optimizer)
        step = train_step(loss, optimizer, ema_decay=0.9, accumulate=accumulate)
        state, run = on(form, 8, state, step)
        state, _ = run(state, batch_of(16))
        before = jax.tree.map(np.asarray, (state.params, state.ema, state.opt_state))
        bad = batch_of(16)
        bad["x"] = bad["x"].copy()
        bad["x"][3] = 0
        state, result = run(state, bad)
        assert np.isfinite(result["loss"])
        assert not result["finite"]
        jax.tree.map(np.testing.assert_array_equal, (state.params, state.ema, state.opt_state), before)
        state, result = run(state, batch_of(16))
        assert result["finite"]
        assert int(state.step) == 3
        assert (np.asarray(state.params["w"]) != before[0]["w"]).all()


def test_steps_without_a_line_of_the_log_do_not_read_arrays(prepared, monkeypatch):
    """Arrays are read only when a line of the log or a checkpoint is due, so other steps do not synchronise.

    `float`, `if`, NumPy and `device_get` all read the `_value` of an array.
    """
    kind, read, now = type(jnp.ones(1)), [], [0]
    value = kind._value
    monkeypatch.setattr(kind, "_value", property(lambda array: (read.append(now[0]), value.fget(array))[1]))
    assert float(jnp.ones(())) == 1
    assert read == [0]  # control: the property records a read

    def at_batch(n, batch):
        now[0] = n
        return batch

    prepared(num_steps=12, log_every=6, checkpoint_every=6, at_batch=at_batch)
    assert set(read) - {0} == {1, 6, 12}


def test_a_full_disk_is_reported_and_the_run_continues(prepared, monkeypatch, capsys):
    """One checkpoint and two writes of the log fail; the next checkpoint and the next write succeed."""
    save, writes = Checkpoints._commit, []

    def commit(self, response, part, body):
        if body["step"] == 8:
            response.result()
            raise OSError(28, "No space left on device")
        return save(self, response, part, body)

    class File:
        def __init__(self, file):
            self._file = file

        def __getattr__(self, name):
            return getattr(self._file, name)

        def write(self, data):
            writes.append(data)
            if len(writes) in (2, 3):
                self._file.write(data[:5])
                raise OSError(28, "No space left on device")
            return self._file.write(data)

    start = JsonLog.start
    monkeypatch.setattr(
        JsonLog, "start", lambda self, step: (start(self, step), setattr(self, "_file", File(self._file)))[0]
    )
    monkeypatch.setattr(Checkpoints, "_commit", commit)
    workdir = prepared()
    output = capsys.readouterr()
    assert "warning: step 8 could not be saved, step 4 is kept: [Errno 28] No space" in output.out
    assert "warning: metrics.jsonl cannot be written now (No space left on device)" in output.err
    assert end_of(workdir)[0] == 12
    assert [line["step"] for line in log_of(workdir)] == [1, 4, 8, 12]


def test_a_run_of_another_network_is_refused(prepared, monkeypatch, capsys):
    prepared(num_steps=4)
    monkeypatch.setattr(Model, "init", lambda self, key: {"w": jnp.ones((2,))})
    with pytest.raises(SystemExit):
        prepared()
    assert "['w'] = float32[2], got float32[]" in capsys.readouterr().err


def test_a_run_of_other_data_is_refused(prepared, monkeypatch, capsys):
    """The data set has more examples than at the start of the run."""
    workdir = prepared(num_steps=4)
    describe = Dataset.describe
    monkeypatch.setattr(Dataset, "describe", lambda self, split: describe(self, split) | {"length": 10_000})
    with pytest.raises(SystemExit) as stopped:
        prepared()
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert re.search(r"has a run whose data was .*'length': 997} at step 4, got .*'length': 10000}", error)
    assert end_of(workdir)[0] == 4


def test_a_run_beyond_the_number_of_steps_is_not_changed(prepared, capsys):
    workdir = prepared(num_steps=8)
    prepared(num_steps=4)
    assert "done: step 8" in capsys.readouterr().out
    assert end_of(workdir)[0] == 8


def test_a_run_without_an_intact_checkpoint_does_not_start_again(prepared, capsys):
    workdir = prepared(num_steps=8)
    for step in (4, 8):
        (workdir / "checkpoints" / str(step) / "MANIFEST").unlink()
    before = (workdir / "metrics.jsonl").read_text()
    with pytest.raises(SystemExit) as stopped:
        prepared()
    assert stopped.value.code == 2
    assert "is intact: step 8: MANIFEST cannot be read (No such file or directory); step 4: " in capsys.readouterr().err
    assert (workdir / "metrics.jsonl").read_text() == before


def test_a_damaged_checkpoint_is_skipped(prepared, capsys):
    straight, workdir = prepared("straight"), prepared(num_steps=8)
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.steps == [4, 8]
    (workdir / "checkpoints" / "8" / "MANIFEST").write_text("")
    prepared()
    text = capsys.readouterr()
    assert "warning: checkpoint 8 is damaged and was moved aside: MANIFEST does not match its digest" in text.out
    assert "restored step 4" in text.out
    assert end_of(workdir) == end_of(straight)
    assert log_of(workdir) == log_of(straight)


# Data


class Source(list):
    """A list of records, in which None is a record that cannot be read."""

    def __getitem__(self, place):
        record = super().__getitem__(place)
        if record is None:
            raise OSError("checksum mismatch")
        return record


def dataset_of(data_dir, records):
    """The digits data set with other records."""
    digits = open_dataset("digits", str(data_dir))

    class Builder:
        def as_data_source(self, split):
            return Source(records)

    return digits._replace(builder=Builder())


def record(value=0, shape=(8, 8, 1)):
    return {"image": np.full(shape, value, np.uint8), "label": value % 10}


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "split 'train' of dataset 'digits' is empty"),
        ([record()] * 3, "dataset.batch_size must be at most the 3 examples of split 'train', got 4"),
        ([record(), None] * 4, "record [1357] of split 'train' of digits cannot be read: OSError: checksum mismatch"),
        ([record(), record(shape=(8, 7, 1))] * 4, r"record [1357] .* must have shape \(8, 8, 1\), got \(8, 7, 1\)"),
        ([{"image": record()["image"]}] * 8, "record . of split 'train' of digits cannot be read: KeyError: 'label'"),
    ],
)
def test_the_error_for_bad_data_names_the_record(records, message, data_dir):
    with pytest.raises(ValueError, match=message):
        next(batches(dataset_of(data_dir, records), "train", 4, seed=0))


def test_epochs_follow_each_other_without_a_gap(data_dir):
    """10 examples in batches of 4: five batches are two epochs, with each example twice."""
    dataset = dataset_of(data_dir, [record(i) for i in range(10)])
    data = batches(dataset, "train", 4, seed=0)
    drawn = [next(data)["label"] for _ in range(5)]
    assert [label.tolist() for label in drawn] == [records_of_batch(dataset, "train", 4, 0, n) for n in range(5)]
    labels = np.concatenate(drawn)
    assert sorted(labels[:10]) == sorted(labels[10:]) == list(range(10))


def test_shares_of_the_processes_add_up_to_the_whole_batch(data_dir):
    """The batches do not depend on the number of processes or on the position; an uneven share is refused."""
    dataset = dataset_of(data_dir, [record(i) for i in range(10)])
    whole = batches(dataset, "train", 4, seed=0)
    parts = [batches(dataset, "train", 4, seed=0, share=(p, 2)) for p in range(2)]
    for _ in range(4):
        expected, shares = next(whole), [next(part) for part in parts]
        both = {k: np.concatenate([share[k] for share in shares]) for k in expected}
        order = np.argsort(both["index"])
        for name, value in expected.items():
            np.testing.assert_array_equal(both[name][order], value)
    assert whole.get_state() == parts[1].get_state()
    with pytest.raises(ValueError, match=r"dataset.batch_size must be a multiple of the 3 processes, got 4"):
        batches(dataset, "train", 4, seed=0, share=(0, 3))


# Settings


@pytest.mark.parametrize(
    ("group", "key", "value", "message"),
    [
        ("train", "num_steps", 0, "config.train.num_steps must be >= 1, got 0"),
        ("train", "log_every", 0, "config.train.log_every must be >= 1, got 0"),
        ("dataset", "num_threads", 0, "config.dataset.num_threads must be >= 1, got 0"),
        ("train", "max_skipped", -1, "config.train.max_skipped must be >= 0, got -1"),
        ("train", "profile", (3, 2), r"config.train.profile must be \(\) or two steps \(first, last\), got \(3, 2\)"),
        ("optimizer", "accumulate", 0, "config.optimizer.accumulate must be >= 1, got 0"),
        ("network", "channels", 0, "config.network.channels must be an int >= 1, got 0"),
        ("network", "dropout_rate", 1.0, r"config.network.dropout_rate must be in \[0, 1\), got 1.0"),
        ("optimizer", "accumulate", 3, "config.optimizer.accumulate must divide the 2 examples of a device, got 3"),
    ],
)
def test_bad_settings(group, key, value, message):
    config = smoke.get_config()
    config[group][key] = value
    with pytest.raises(ValueError, match=message):
        built(config, 8)


def test_an_unknown_form_of_parallel_steps_is_refused():
    config = smoke.get_config()
    config.parallel = "tpu"
    with pytest.raises(ValueError, match=r"config.parallel must be one of pmap, jit, fsdp, got 'tpu'"):
        built(config, 8)
