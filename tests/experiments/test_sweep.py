"""Sweeps: runs and their ids, invalid sweeps, skipped, failed and retried runs, locks, and the oracle."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from sweeping_runs import Fake, attempts, command, results, states, tree, write

import diffax
from diffax.pretrained import spent, step_grid
from experiments import sweep
from experiments.benchmarks import distributions, problems
from experiments.configs import smoke
from experiments.configs.settings import change, flatten
from experiments.models import samplers
from experiments.reporting.reading import read_sweep
from experiments.sweeping import chain, product, seeds, settings, tasks, zipped
from experiments.sweeping import definition as definitions
from experiments.sweeping.folder import Folder

__all__ = ["command"]  # a fixture

ROOT = Path(__file__).parents[2]
ENV = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}


@pytest.fixture
def fake(monkeypatch):
    """fake(seed3=error) replaces the task of the oracle by `Fake` and returns it."""

    def install(**at):
        task = Fake(**at)
        monkeypatch.setitem(sweep.TASKS, "oracle", sweep.TASKS["oracle"]._replace(run=task))
        return task

    return install


def one_line(done):
    """The error line of a command with invalid input."""
    assert done.status == 2, (done.out, done.err)
    assert done.err.count("\n") == 1, done.err
    assert done.err.startswith("error: ")
    return done.err


# Runs


def test_axes_combine():
    a, b = {"config.a": [1, 2]}, {"config.b": [3, 4]}
    assert [tuple(one.values()) for one in product(a, b)] == [(1, 3), (1, 4), (2, 3), (2, 4)]
    assert product(a | b) == product(a, b)
    assert [tuple(one.values()) for one in zipped(a, b)] == [(1, 3), (2, 4)]
    assert chain(a, b) == [{"config.a": 1}, {"config.a": 2}, {"config.b": 3}, {"config.b": 4}]
    assert seeds(2, 5) == [{"config.seed": 5}, {"config.seed": 6}]
    assert product(zipped(a, b), seeds(2))[1] == {"config.a": 1, "config.b": 3, "config.seed": 1}
    assert product() == [{}]
    assert zipped() == chain() == []
    assert product(a, []) == []


def test_a_result_of_a_helper_may_be_changed_in_place():
    """No two runs share a dict with each other or with the arguments."""
    axis = [{"config.a": 1}]
    product(axis)[0]["config.b"] = 2
    chain(axis)[0]["config.b"] = 2
    assert axis == [{"config.a": 1}]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: product({"config.a": [1]}, {"config.a": [2]}), "config.a must be in one axis only, got 1 and 2"),
        (lambda: zipped({"config.a": [1]}, {"config.a": [2]}), "config.a must be in one axis only, got 1 and 2"),
        (lambda: zipped({"config.a": [1, 2]}, seeds(3)), "zipped axes must have one length, got 2, 3"),
        (lambda: product({"config.a": "ddim"}), "the values of config.a must be a list, got 'ddim'"),
        (lambda: product({"config.a": 3}), "the values of config.a must be a list, got 3"),
        (lambda: seeds(0), "seeds must be at least 1, got 0"),
    ],
)
def test_axes_that_do_not_combine(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Ids


def training_run(**overrides):
    """The config of a training run. In the names of overrides a double underscore stands for a dot."""
    config = settings.training(smoke.get_config())
    for key, value in overrides.items():
        change(config, "config." + key.replace("__", "."), value, settings.KNOWN["train"]())
    return config


def test_an_id_does_not_depend_on_the_order_of_keys_or_the_type_of_numbers():
    config = training_run(schedule={"name": "linear", "beta_min": 0.2, "beta_max": 20.0})

    def reversed_(value):
        return {k: reversed_(v) for k, v in reversed(value.items())} if isinstance(value, dict) else value

    same = definitions.identity(config)
    assert definitions.identity(ConfigDict(reversed_(config.to_dict()))) == same
    assert definitions.identity(ConfigDict(json.loads(json.dumps(config.to_dict())))) == same
    assert len(same) == 12
    assert set(same) <= set("0123456789abcdef")


@pytest.mark.parametrize(
    "overrides",
    [
        "[{'config.sigma_data': v} for v in (1, 1.0)]",
        "[{'config.optimizer.clip_norm': v} for v in (2.0, 2)]",
        "[{'config.schedule': {'name': 'linear', 'beta_max': v}} for v in (25, 25.0)]",
        "[{'config.loss.weighting': 'min_snr', 'config.loss.weighting_parameters': {'gamma': v}} for v in (5, 5.0)]",
        "[{'config.loss.weighting': 'min_snr', 'config.loss.weighting_parameters.gamma': v} for v in (5, 5.0)]",
        "[{'config.dataset.labels': v} for v in ((1, 2), [1, 2])]",
        "[{'config.seed': 0}, {'config.dataset.num_threads': 3}]",
    ],
)
def test_two_spellings_of_one_run_are_refused(command, tmp_path, overrides):
    path = write(tmp_path / "s.py", "settings.training(smoke.get_config())", overrides=overrides)
    assert "has the config of run 0" in one_line(command(path, tmp_path / "w", "--dry_run"))


def test_counts_stay_ints(tmp_path):
    overrides = "[{'config.schedule': {'name': 'linear_betas', 'num_steps': 50, 'beta_end': 1}}]"
    path = write(tmp_path / "s.py", "settings.training(smoke.get_config())", overrides=overrides)
    (run,) = definitions.load(path).runs.values()
    assert type(run.config.schedule.num_steps) is int
    assert type(run.config.schedule.beta_end) is float


FREE = {
    "config.dataset.data_dir",
    "config.dataset.num_threads",
    "config.dataset.cache",
    "config.train.checkpoint_every",
    "config.train.compile_cache",
    "config.train.keep_latest",
    "config.train.keep_every",
    "config.train.keep_best",
    "config.train.profile",
    "config.train.sample_every",
}


@pytest.mark.parametrize("task", list(settings.KNOWN))
def test_every_setting_that_matters_changes_the_id(task):
    """For every kind of run, each setting is changed alone. Paths and settings of speed do not change the id."""
    base = settings.KNOWN[task]()
    seen, same = {}, definitions.identity(base)
    for key, value in flatten(base.to_dict()).items():
        other = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: v + 0.25, str: lambda v: v + "x"}
        other[type(None)] = lambda v: 0.25
        changed = other.get(type(value), lambda v: [*v, 1])(value)
        config = base.copy_and_resolve_references()
        *groups, name = key.split(".")[1:]
        parent = config
        for group in groups:
            parent = parent[group]
        with config.ignore_type():
            parent[name] = changed
        identity = definitions.identity(config)
        assert (identity == same) == (key in FREE), key
        assert key in FREE or identity not in seen, (key, seen.get(identity))
        seen[identity] = key
    assert len(seen) >= 10


# Bad input


def other(text):
    """A sweep of three seeds with these overrides instead."""
    return {"overrides": text}


@pytest.mark.parametrize(
    ("how", "more", "message"),
    [
        (other("seeds(2) + seeds(1)"), (), "run 2 of bad (seed=0) has the config of run 0 (seed=0)"),
        (other("[{}, {'config.seed': 0}]"), (), "run 1 of bad (seed=0) has the config of run 0 (as the base)"),
        (other("[{'config.stepz': 3}]"), (), "run 0 of bad (stepz=3): config.stepz is not a setting; those of config"),
        (other("[{}, {'config.seed.x': 3}]"), (), "run 1 of bad (seed.x=3): config.seed.x is not a setting"),
        (other("[{'seed': 3}]"), (), "run 0 of bad (seed=3): seed is not a setting: keys must start with config."),
        (other("[{'config.seed': 1.5}]"), (), "run 0 of bad (seed=1.5): config.seed must be of type int, got 1.5"),
        (other("[{'config.seed': True}]"), (), "config.seed must be of type int, got True"),
        (other("[{'config.eta': '1'}]"), (), "config.eta must be of type float or None, got '1'"),
        (other("[{'config.eta': float('nan')}]"), (), "(eta=nan): config.eta must be >= 0, got nan"),
        (other("[{'config.sampler': 'ddimm'}]"), (), "(sampler=ddimm): config.sampler must be one of"),
        (other("[{'config.sampler': 'heun', 'config.eta': 1}]"), (), "config.eta must be 0 for heun, which has none"),
        (other("[{'config.calls': 1}]"), (), "(calls=1): config.calls must suffice for a step of ddim"),
        (other("[{'config.task': 'train'}]"), (), "config.task must be that of get_config, got 'train'"),
        (other("[{3: 1}]"), (), "run 0 of bad (3=1): 3 is not a setting: keys must be strings"),
        (other("[['config.seed', 1]]"), (), "run 0 of bad (['config.seed', 1]): overrides must be a dict"),
        (other("[]"), (), "must yield at least one run, got none"),
        (other("seeds(0)"), (), "seeds must be at least 1, got 0"),
        (other("1 / 0"), (), "division by zero"),
        ({"base": "settings.orakel()"}, (), "orakel"),
        ({"base": "{}"}, (), "must return a ConfigDict, got dict"),
        ({"base": "smoke.get_config()"}, (), "config.task must be one of train, sample, oracle, got None"),
        ({"changes": "config.more = 1"}, (), "config.more is not a setting"),
        ({"changes": "del config.end"}, (), "config.end is missing"),
        ({}, ("--set=config.calls",), "set must be config.KEY=VALUE, got 'config.calls'"),
        ({}, ("--set=config.cals=3",), "config.cals is not a setting"),
        ({}, ("--set=config.calls=many",), "config.calls must be of type int, got 'many'"),
        ({}, ("--only=feed",), "only must be the id of a run or config.KEY=VALUE, got feed"),
        ({}, ("--only=config.sed=1",), "only must name a setting of a run, got config.sed"),
        (
            {},
            ("--only=config.seed=9",),
            "only must select at least one run that has all settings, got config.seed=9",
        ),
        ({}, ("--shard=4/3",), "shard must be I/N with 1 <= I <= N, got '4/3'"),
        ({}, ("--shard=0/3",), "shard must be I/N with 1 <= I <= N, got '0/3'"),
        ({}, ("--shard=1",), "shard must be I/N with 1 <= I <= N, got '1'"),
        ({}, ("--shard=a/b",), "shard must be I/N with 1 <= I <= N, got 'a/b'"),
        ({}, ("--way=vmap", "--group=0"), "group must be"),
        ({"overrides": "product({'config.seed': [0, -1]})"}, (), "(seed=-1): config.seed must be an integer >= 0, got"),
        ({"overrides": "product({'config.seed': [2**31]})"}, (), "config.seed must be an integer < 2^31, got 2147483"),
    ],
)
def test_an_invalid_sweep_is_an_error_of_one_line(command, tmp_path, fake, how, more, message):
    """The line names the run and the key. No files are written."""
    task = fake()
    assert message in one_line(command(write(tmp_path / "bad.py", **how), tmp_path / "w", *more))
    assert not task.computed
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("def get_overrides():\n    return []\n", "must define get_config()"),
        ("get_config = 3\ndef get_overrides():\n    return []\n", "must define get_config()"),
        ("def get_config(:\n", "cannot be read: SyntaxError"),
        ("import nothing_like_it\n", "cannot be read: ModuleNotFoundError"),
        (None, "sweep must be a Python file"),
    ],
)
def test_an_invalid_sweep_file_is_an_error_of_one_line(command, tmp_path, content, message):
    if content is not None:
        (tmp_path / "bad.py").write_text(content)
    assert message in one_line(command(tmp_path / "bad.py", tmp_path / "w"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("{'config.optimizer': 3}", "(optimizer=3): config.optimizer must be a group of settings, got 3"),
        ("{'config.evaluation': 3}", "(evaluation=3): config.evaluation must be a group of settings, got 3"),
        ("{'config.optimizer': {'learning_rate': 1e-3}}", "config.optimizer.accumulate is missing"),
        ("{'config.optimizer': {'rate': 1e-3}}", "config.optimizer.rate is not a setting"),
        ("{'config.schedule': {'name': 'linear', 'beta': 3}}", "config.schedule.beta is no parameter of linear"),
        ("{'config.evaluation.metrics': ('fid',)}", "metrics must be"),
        ("{'config.evaluation.num': 1}", "config.evaluation.num must be"),
    ],
)
def test_groups_are_checked_like_single_settings(command, tmp_path, overrides, message):
    path = write(tmp_path / "bad.py", "settings.training(smoke.get_config())", overrides=f"[{overrides}]")
    error = one_line(command(path, tmp_path / "w"))
    assert message in error
    assert "error: run " in error


def test_a_folder_accepts_only_its_own_sweep(command, tmp_path, fake):
    """Name, base and way must be the same. More runs are added, and free settings may change."""
    task, folder = fake(), tmp_path / "w"
    path = write(tmp_path / "a.py")
    assert command(path, folder).status == 0
    before = tree(folder)
    refused = {
        "has the sweep a, not b; choose another --workdir": (write(tmp_path / "b.py"), folder),
        "has the sweep a with config.calls = 20, got 8": (path, folder, "--set=config.calls=8"),
        "with --way = 'vmap', got 'loop'": (path, folder, "--way=loop"),
        "with --group = 1024, got 3": (path, folder, "--group=3"),
    }
    for message, arguments in refused.items():
        assert message in one_line(command(*arguments))
    assert tree(folder) == before
    assert len(task.computed) == 3
    assert command(write(tmp_path / "a.py", overrides="seeds(5)"), folder).status == 0
    assert len(task.computed) == 5
    assert len(read_sweep(folder).having("done")) == 5
    (folder / "sweep.json").write_text("{")
    assert "sweep.json must be JSON" in one_line(command(path, folder))
    (folder / "sweep.json").write_text("[1]")
    assert "must be an object with the keys" in one_line(command(path, folder))


def change_result(path, edit):
    value = json.loads(path.read_text())
    value = edit(value) or value
    path.write_text(value if isinstance(value, str) else json.dumps(value))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda value: "{", "result.json is no"),
        (lambda value: "[1]", "result.json must be an object"),
        (lambda value: value.pop("floors") and None, "floors"),
        (lambda value: value.pop("id") and None, "id"),
        (lambda value: value.update(id="0" * 12), "id"),
        (lambda value: value.update(metrics=[1.0]), "metrics"),
        (lambda value: value.update(metrics={}), "metrics"),
        (lambda value: value.update(conditions=1), "conditions"),
        (lambda value: value["metrics"].update(error=float("nan")), "metrics.error must be"),
        (lambda value: value["metrics"].update(error="1"), "metrics.error must be"),
        (lambda value: value["metrics"].update(error=True), "metrics.error must be"),
        (lambda value: value["cost"].pop("seconds") and None, "seconds"),
    ],
)
def test_a_corrupt_result_is_reported_and_computed_again_with_retry(command, tmp_path, fake, edit, message):
    """The error names the run and the reason. Other runs are computed."""
    task, folder = fake(), tmp_path / "w"
    path = write(tmp_path / "s.py")
    assert command(path, folder, "--only=config.seed=1").status == 0
    (corrupt,) = results(folder)
    sound = tree(folder / "runs" / corrupt)
    change_result(folder / "runs" / corrupt / "result.json", edit)
    assert states(command(path, folder, "--list"))[f"seed=1  ({corrupt_line(command, path, folder)})"] == "corrupt"
    done = command(path, folder)
    assert done.status == 1
    (line,) = [line for line in done.err.splitlines() if line.startswith(f"{corrupt}  corrupt ")]
    assert message in line
    assert "--retry" in done.err
    assert "Traceback" not in done.err
    assert len(task.computed) == 3
    assert [run.state for run in read_sweep(folder).runs] == ["done", "corrupt", "done"]
    assert command(path, folder, "--retry").status == 0
    assert task.computed.count(corrupt) == 2
    assert len(results(folder)) == 3
    after = tree(folder / "runs" / corrupt)
    assert sound.keys() == after.keys()


def corrupt_line(command, path, folder):
    """The reason that the list shows for the one corrupt run."""
    (line,) = [line for line in command(path, folder, "--list").out.splitlines() if "  corrupt  " in line]
    return line.split("(", 1)[1].removesuffix(")")


@pytest.mark.parametrize("name", ["failed.json", "provenance.json"])
@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_other_damaged_files_do_not_stop_a_sweep(command, tmp_path, fake, name, content):
    fake(seed1=RuntimeError("no"))
    folder, path = tmp_path / "w", write(tmp_path / "s.py")
    assert command(path, folder).status == 1
    (failed,) = (run.id for run in read_sweep(folder).having("failed"))
    (folder / "runs" / failed / name).write_text(content)
    assert "failed" in states(command(path, folder, "--list")).values()
    fake()
    assert command(path, folder, "--retry").status == 0
    assert len(results(folder)) == 3


# Failed runs


@pytest.mark.parametrize("way", ["loop", "vmap"])
@pytest.mark.parametrize(
    ("what", "message"),
    [
        (RuntimeError("the disk\nis gone"), "RuntimeError: the disk is gone"),
        (float("nan"), "metrics.error must be"),
        (float("inf"), "metrics.error must be"),
    ],
)
def test_a_failed_run_does_not_stop_the_others(command, tmp_path, fake, way, what, message):
    """It has one line of error and status 1, and is computed again only with --retry."""
    task, folder, path = fake(seed1=what), tmp_path / "w", write(tmp_path / "s.py")
    done = command(path, folder, f"--way={way}")
    assert done.status == 1
    assert len(task.computed) == 3
    assert len(results(folder)) == 2
    assert "2 finished, 1 failed" in done.err
    (line,) = [line for line in done.err.splitlines() if "  failed  " in line]
    assert message in line
    assert "seed=1" in line
    (failed,) = read_sweep(folder).having("failed")
    assert message in failed.error
    done = command(path, folder, f"--way={way}")
    assert (done.status, len(task.computed)) == (1, 3)
    sound = fake()
    done = command(path, folder, f"--way={way}", "--retry")
    assert (done.status, sound.computed) == (0, [failed.id])
    assert attempts(folder)[failed.id] == 2
    assert not (failed.folder / "failed.json").exists()


@pytest.mark.parametrize("kind", [RuntimeError, SystemExit, MemoryError])
def test_a_task_that_raises_only_fails_its_own_unit(command, tmp_path, monkeypatch, kind):
    seen = []

    def run(job):
        seen.append(job.runs[0].config.seed)
        if job.runs[0].config.seed == 0:
            raise kind("out of memory")
        yield from Fake()(job)

    monkeypatch.setitem(sweep.TASKS, "oracle", sweep.TASKS["oracle"]._replace(run=run))
    done = command(write(tmp_path / "s.py"), tmp_path / "w", "--way=loop")
    assert (done.status, seen) == (1, [0, 1, 2])
    assert f"{kind.__name__}: out of memory" in done.err
    assert len(results(tmp_path / "w")) == 2


def test_an_interrupt_ends_the_command_and_marks_no_run_as_failed(command, tmp_path, monkeypatch):
    def run(job):
        raise KeyboardInterrupt
        yield

    path, folder = write(tmp_path / "s.py"), tmp_path / "w"
    with monkeypatch.context() as patch:
        patch.setitem(sweep.TASKS, "oracle", sweep.TASKS["oracle"]._replace(run=run))
        with pytest.raises(KeyboardInterrupt):
            command(path, folder, "--way=loop")
    assert [run.state for run in read_sweep(folder).runs] == ["started", "waiting", "waiting"]
    assert [*states(command(path, folder, "--list", "--way=loop")).values()] == ["interrupted", "waiting", "waiting"]


# Skipped runs, and the runs of each worker


def test_finished_runs_are_skipped(command, tmp_path, fake):
    task, folder, path = fake(), tmp_path / "w", write(tmp_path / "s.py")
    assert command(path, folder, "--only=config.seed=2").status == 0
    done = command(path, folder)
    assert len(task.computed) == len(set(task.computed)) == 3
    assert "[3/3]" in done.out
    before = tree(folder)
    done = command(path, folder)
    assert (done.status, len(task.computed)) == (0, 3)
    assert "all 3 runs are finished" in done.out
    assert tree(folder) == before


def test_the_files_of_a_run(command, tmp_path, fake):
    fake()
    folder, path = tmp_path / "w", write(tmp_path / "s.py")
    assert command(path, folder, "--set=config.calls=8").status == 0
    run = read_sweep(folder).runs[2]
    config = json.loads((run.folder / "config.json").read_text())
    assert (config["calls"], config["seed"]) == (8, 2)
    assert definitions.identity(ConfigDict(config)) == run.id
    provenance = json.loads((run.folder / "provenance.json").read_text())
    assert provenance["attempts"] == 1
    assert provenance["packages"]["jax"] == jax.__version__
    assert provenance["num_devices"] == 8
    assert "--set=config.calls=8" in provenance["command"]
    assert {"commit", "dirty", "device", "seconds", "started", "way", "together"} <= provenance.keys()
    result = json.loads((run.folder / "result.json").read_text())
    assert result["metrics"] == {"error": 2.0}
    assert result["cost"]["seconds"] >= 0
    assert (run.folder / "metrics.jsonl").read_text() == '{"step": 0, "error": 2.0}\n'


@pytest.mark.parametrize("flag", ["--list", "--dry_run"])
def test_list_and_dry_run_write_no_files(command, tmp_path, fake, flag):
    task, folder, path = fake(seed1=RuntimeError("no")), tmp_path / "w", write(tmp_path / "s.py")
    done = command(path, folder, flag)
    assert (done.status, folder.exists()) == (0, False)
    assert [*states(done).values()] == ["waiting"] * 3
    command(path, folder, "--only=config.seed=0")
    command(path, folder, "--only=config.seed=1")
    before, computed = tree(folder), len(task.computed)
    done = command(path, folder, flag)
    assert [*states(done).values()] == ["finished", "failed", "waiting"]
    assert done.out.splitlines()[-1] == "1 finished, 1 failed, 1 waiting"
    assert (done.status, tree(folder), len(task.computed)) == (0, before, computed)


@pytest.mark.parametrize("way", ["loop", "vmap"])
def test_shards_are_disjoint_and_complete(command, tmp_path, fake, way):
    task, folder = fake(), tmp_path / "w"
    path = write(tmp_path / "s.py", overrides="product({'config.calls': [5, 8, 10, 20]}, seeds(5))")
    sizes = []
    for shard in ("1/3", "2/3", "3/3"):
        before = len(task.computed)
        assert command(path, folder, f"--way={way}", "--group=2", f"--shard={shard}").status == 0
        sizes.append(len(task.computed) - before)
    assert sum(sizes) == len(set(task.computed)) == 20
    assert min(sizes) >= 5
    assert len(results(folder)) == 20


def test_only_by_id_and_by_setting(command, tmp_path, fake):
    path = write(tmp_path / "s.py", overrides="product({'config.calls': [5, 8]}, seeds(3))")
    everything = command(path, tmp_path / "w", "--list").out.splitlines()[:-1]
    ids = [line.split()[0] for line in everything]
    cases = {
        (f"--only={ids[1]}", f"--only={ids[4]}"): [ids[1], ids[4]],
        ("--only=config.seed=1",): [ids[1], ids[4]],
        ("--only=config.seed=1", "--only=config.calls=8"): [ids[4]],
        ("--only=config.sampler=ddim",): ids,
    }
    for flags, wanted in cases.items():
        done = command(path, tmp_path / "w", "--list", *flags)
        assert [line.split()[0] for line in done.out.splitlines()[:-1]] == wanted


WORKER = """
import sys, time
import sweeping_runs
from absl import app
from experiments import sweep
from experiments.sweeping.folder import Result
def run(job):
    for one in job.runs:
        time.sleep({seconds})
        yield one, Result({{"error": float(one.config.seed)}}, {{}}, {{}}, {{}})
sweep.TASKS["oracle"] = sweep.TASKS["oracle"]._replace(run=run)
from absl import flags
flags.FLAGS.append_flag_values(sweeping_runs._OWN)
sweep.main(flags.FLAGS(sys.argv))
"""


def start(path, folder, *more, seconds=0.02):
    """Start a process that computes a sweep; each run takes this number of seconds."""
    line = [sys.executable, "-c", WORKER.format(seconds=seconds), f"--sweep={path}", f"--workdir={folder}", *more]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(line, env=ENV, cwd=ROOT, start_new_session=True, **pipes)


def test_two_workers_do_not_compute_the_same_run(tmp_path):
    path, folder = write(tmp_path / "s.py", overrides="seeds(40)"), tmp_path / "w"
    running = [start(path, folder, "--way=loop") for _ in range(2)]
    ended = [process.communicate(timeout=120) for process in running]
    assert {*attempts(folder).values()} == {1}, ended
    assert len(results(folder)) == 40, ended
    counts = [out.count("error ") for out, _ in ended]
    assert sum(counts) == 40
    assert not any("Traceback" in err for _, err in ended)


def test_the_lock_of_a_killed_process_is_released(command, tmp_path, fake):
    """While the process runs, other processes skip its run."""
    path, folder = write(tmp_path / "s.py"), tmp_path / "w"
    process = start(path, folder, "--way=loop", seconds=600)
    try:
        end = time.monotonic() + 60
        while not [*folder.glob("runs/*/provenance.json")]:
            assert time.monotonic() < end, process.poll()
            time.sleep(0.05)
        task = fake()
        done = command(path, folder, "--list", "--way=loop")
        assert [*states(done).values()] == ["running", "waiting", "waiting"]
        done = command(path, folder, "--way=loop")
        assert (done.status, len(task.computed)) == (1, 2)
        assert "1 running" in done.err
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert [*states(command(path, folder, "--list", "--way=loop")).values()] == ["interrupted", *["finished"] * 2]
    done = command(path, folder, "--way=loop")
    assert (done.status, len(task.computed)) == (0, 3)
    assert sorted(attempts(folder).values()) == [1, 1, 2]


def test_a_run_that_is_locked_for_a_moment_is_computed(command, tmp_path, fake, monkeypatch):
    """Another process, such as one with --list, may hold a lock for a moment, so a failed lock is tried again."""
    task, path, folder = fake(), write(tmp_path / "s.py"), tmp_path / "w"
    lock, seen = Folder.lock, []

    def busy(self, runs, *args, **kwargs):
        seen.append(runs)
        if len(seen) == 1:
            return lock_held(lock(self, runs, *args, **kwargs))
        return lock(self, runs, *args, **kwargs)

    monkeypatch.setattr(Folder, "lock", busy)
    assert command(path, folder, "--way=loop").status == 0
    assert len(task.computed) == 3


class lock_held:  # noqa: N801
    """A lock of another process: entering it returns False."""

    def __init__(self, lock):
        self.lock = lock

    def __enter__(self):
        return False

    def __exit__(self, *_):
        return None


@pytest.mark.parametrize("checkpoint", [True, False])
def test_an_interrupted_unit_resumes_with_all_of_its_runs(command, tmp_path, monkeypatch, checkpoint):
    """Its checkpoint covers all runs of the unit, so --only does not restrict them. Other runs follow separately."""
    path, folder, units = write(tmp_path / "s.py", overrides="seeds(5)"), tmp_path / "w", []

    def install(stop=None, **at):
        task = Fake(**at)

        def run(job):
            units.append([one.config.seed for one in job.runs])
            for one, outcome in task(job):
                if one.config.seed == stop:
                    if checkpoint:
                        (job.folder.run(job.runs[0]) / "checkpoints" / "5").mkdir(parents=True)
                    raise KeyboardInterrupt
                yield one, outcome

        monkeypatch.setitem(sweep.TASKS, "oracle", sweep.TASKS["oracle"]._replace(run=run))
        return task

    way = ("--way=vmap", "--group=4")
    install(seed1=RuntimeError("no"))
    assert command(path, folder, *way, "--only=config.seed=1").status == 1
    install(stop=2)
    with pytest.raises(KeyboardInterrupt):
        command(path, folder, *way)
    before = results(folder)
    install()
    command(path, folder, *way, "--only=config.seed=3", "--retry")
    assert units == [[1], [0, 2, 3], [0, 2, 3]]
    assert len(results(folder)) == 3
    assert results(folder).items() >= before.items()
    assert not [*folder.glob("runs/*/checkpoints"), *folder.glob("runs/*/group.json")]
    units.clear()
    assert command(path, folder, *way, "--retry").status == 0
    assert units == [[1], [4]]
    assert sorted(attempts(folder).values()) == [1, 1, 2, 2, 2]


def test_an_interrupted_unit_resumes_before_failed_runs_are_computed_again(command, tmp_path, monkeypatch):
    path, folder, units = write(tmp_path / "s.py", overrides="seeds(4)"), tmp_path / "w", []
    path2 = write(tmp_path / "t" / "s.py", overrides="seeds(4)")

    def run(job):
        units.append([one.config.seed for one in job.runs])
        if len(units) == 2:
            (job.folder.run(job.runs[0]) / "checkpoints" / "5").mkdir(parents=True)
            raise KeyboardInterrupt
        yield from Fake(**({"seed0": RuntimeError("no")} if len(units) == 1 else {}))(job)

    monkeypatch.setitem(sweep.TASKS, "oracle", sweep.TASKS["oracle"]._replace(run=run))
    assert command(path, folder, "--only=config.seed=0").status == 1
    with pytest.raises(KeyboardInterrupt):
        command(path, folder)
    assert command(path2, folder, "--retry").status == 0
    assert units == [[0], [1, 2, 3], [1, 2, 3], [0]]


def test_a_folder_in_place_of_a_result_is_a_corrupt_result(command, tmp_path, fake):
    task = fake()
    path, folder = write(tmp_path / "s.py"), tmp_path / "w"
    (one, *_) = definitions.load(path).runs
    (folder / "runs" / one / "result.json").mkdir(parents=True)
    assert command(path, folder).status == 1
    assert sorted(states(command(path, folder, "--list")).values()) == ["corrupt", "finished", "finished"]
    assert len(task.computed) == 2
    assert command(path, folder, "--retry").status == 0
    assert len(results(folder)) == 3


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_parent(tmp_path, number):
    """Otherwise a worker would keep its accelerator."""
    overrides = "product({'config.calls': [*range(3, 40)]}, {'config.sampler': ['dpmpp_3m', 'unipc']})"
    line = [sys.executable, "-m", "experiments.sweep", f"--sweep={write(tmp_path / 's.py', overrides=overrides)}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": ENV, "cwd": ROOT}
    parent = subprocess.Popen([*line, f"--workdir={tmp_path / 'w'}", "--workers=2"], **quiet)

    def worker_ids():
        result = subprocess.run(["pgrep", "-f", f"workdir={tmp_path / 'w'}.*--worker="], capture_output=True, text=True)
        return result.stdout.split()

    wait_for(lambda: len(worker_ids()) == 2 and attempts(tmp_path / "w"))
    parent.send_signal(number)
    parent.wait()
    wait_for(lambda: not worker_ids(), 10)
    assert len(results(tmp_path / "w")) < 74


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


# The oracle


@pytest.fixture
def few_grids(monkeypatch):
    """Keep three grids only, because all grids of one length are compiled together."""
    monkeypatch.setattr(problems, "GRIDS", {name: problems.GRIDS[name] for name in ("uniform", "karras", "log_snr")})


def oracle_sweep(path, overrides, examples=8):
    return write(path, changes=f"config.examples = {examples}", overrides=overrides)


@pytest.mark.usefixtures("x64", "few_grids")
def test_the_oracle_equals_a_direct_computation(command, tmp_path):
    """For a sampler with and without noise. The direct computation uses no code of sweeps."""
    overrides = "zipped({'config.eta': [0.0, 0.0, 0.7]}, {'config.grid': ['uniform', 'karras', 'karras']})"
    changes = "config.examples = 8\nconfig.calls = 5\nconfig.seed = 3\nconfig.sampler = 'sa_solver'"
    with jax.enable_x64(False):
        done = command(write(tmp_path / "s.py", changes=changes, overrides=overrides), tmp_path / "w")
    assert done.status == 0, done.err
    schedule, data = problems.SCHEDULES["linear"], problems.mixture(2)
    x = jnp.asarray(float(schedule(1.0).sigma) * np.random.default_rng(3).normal(size=(8, 2)))
    exact, _ = problems.exact("linear", data, x)
    quantiles = distributions.quantiles(data, 8)

    @jax.jit
    def draw(eta, times):
        return diffax.sample(jax.random.key(3), diffax.sa_solver(schedule, tau=eta), data.denoiser(schedule), x, times)

    runs = read_sweep(tmp_path / "w").having("done")
    assert len(runs) == 3
    for run in runs:
        eta, grid = run.overrides["config.eta"], run.overrides["config.grid"]
        samples = draw(eta, jnp.asarray(problems.step_grid("linear", grid, 5, 0.01)))
        assert run.metrics["sliced"] == pytest.approx(float(distributions.sliced(samples, quantiles)), abs=1e-9)
        assert run.cost["calls"] == 5
        assert ("rms" in run.metrics) == (eta == 0)
        if eta == 0:
            rms = float(jnp.sqrt(jnp.mean((samples - exact) ** 2)))
            assert run.metrics["rms"] == pytest.approx(rms, abs=1e-9)


@pytest.mark.usefixtures("few_grids")
def test_the_ways_of_the_oracle_agree_and_each_compiles_once(command, tmp_path, monkeypatch):
    """Each way has one program for each sampler and number of calls."""
    overrides = "product({'config.sampler': ['ddim']}, {'config.calls': [3, 4]}, {'config.eta': [0.0, 0.5]}, seeds(2))"
    path, metrics_by_way, row = oracle_sweep(tmp_path / "s.py", overrides, 9), {}, diffax.samplers.CATALOGUE["ddim"]
    for way, more in {"loop": (), "vmap": ("--only=config.calls=3",)}.items():
        traces = []

        def counted(schedule, eta=None, traces=traces):
            traces.append(isinstance(eta, jax.core.Tracer))
            return row.make(schedule, **({} if eta is None else {"eta": eta}))

        monkeypatch.setitem(diffax.samplers.CATALOGUE, "ddim", row._replace(make=counted))
        assert command(path, tmp_path / way, f"--way={way}", *more).status == 0
        metrics_by_way[way] = {id: result["metrics"] for id, result in results(tmp_path / way).items()}
        assert sum(traces) == 2 - len(more), way
        assert len(metrics_by_way[way]) == 4 * sum(traces)
    for id, metrics in metrics_by_way["vmap"].items():
        assert metrics == pytest.approx(metrics_by_way["loop"][id], abs=1e-9)


@pytest.mark.slow
def test_the_same_command_gives_the_same_bits(command, tmp_path):
    path = oracle_sweep(tmp_path / "s.py", "product({'config.eta': [0.0, 0.5], 'config.calls': [3]}, seeds(2))")
    for name in ("one", "two"):
        tasks.PROGRAMS.clear()
        assert command(path, tmp_path / name).status == 0
    assert results(tmp_path / "one") == results(tmp_path / "two")
    assert len(results(tmp_path / "one")) == 4


# Each sampler is compiled, so the quick run has only some samplers with eta, and one other sampler for each number of
# calls in a step.
FAST = ("ddim", "dpmpp_2m_sde", "sa_solver", "dpmpp_sde", "ddpm", "heun", "dpm_solver", "pndm")


@pytest.mark.slow_cases("ddpm", "ddim", "dpmpp_sde", "dpmpp_2m_sde", "sa_solver")
@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in diffax.samplers.names()]
)
def test_eta_and_the_number_of_calls_are_those_of_the_catalogue(name):
    """eta changes the samples of exactly the samplers in WITH_ETA, and `spent` counts every denoiser call."""
    schedule, x, calls = problems.SCHEDULES["linear"], jax.random.normal(jax.random.key(1), (4, 2)), []

    def denoise(x, t):
        jax.debug.callback(lambda: calls.append(1))
        x0 = x * (1 - t) / 2
        return diffax.Moments(x0, jnp.zeros_like(x0)) if name == "ddpm_learned" else x0

    @jax.jit
    def draw(eta):
        grid = step_grid(name, "uniform", schedule, 4)
        return diffax.sample(jax.random.key(0), diffax.samplers.by_name(name, schedule, eta), denoise, x, grid)

    still = np.asarray(draw(0.0))
    jax.effects_barrier()
    assert len(calls) == spent(name, schedule, 4)
    noisy = np.asarray(draw(0.7))
    assert np.isfinite(noisy).all()
    assert (np.abs(noisy - still).max() > 1e-4) == (name in samplers.WITH_ETA)


NOISY_AT_THEIR_DEFAULT = ("dpmpp_sde", "dpm2_ancestral", "dpmpp_2s_ancestral", "dpmpp_2m_sde", "sa_solver", "ddim")


@pytest.mark.parametrize("name", NOISY_AT_THEIR_DEFAULT)
def test_eta_none_is_the_default_of_the_sampler(name):
    """At its default a stochastic sampler draws noise, so samples depend on the key; those of ddim do not."""
    schedule, x = problems.SCHEDULES["linear"], jnp.ones((4, 2))

    @jax.jit
    def draw(key):
        sampler = diffax.samplers.by_name(name, schedule, None)
        return diffax.integrate(key, sampler, lambda x, t: x * (1 - t) / 2, x, jnp.linspace(1.0, 0.1, 4)).x

    differs = bool(jnp.any(draw(jax.random.key(0)) != draw(jax.random.key(1))))
    assert differs == samplers.draws_noise(name, None) == (name != "ddim")


@pytest.mark.slow
@pytest.mark.parametrize("name", diffax.samplers.names())
def test_spent_counts_the_calls_for_any_number_of_grid_points(name):
    schedule, data = problems.SCHEDULES["linear"], problems.mixture(2)
    for points in (2, 3, 7):  # not 1: without jit, JAX cannot run a scan of length 0
        calls = []

        def counted(x, t, calls=calls):
            calls.append(1)
            x0 = data.denoiser(schedule)(x, t)
            return diffax.Moments(x0, jnp.zeros_like(x0)) if name == "ddpm_learned" else x0

        with jax.disable_jit():
            sampler, grid = (
                diffax.samplers.by_name(name, schedule, 0.0),
                step_grid(name, "uniform", schedule, points),
            )
            diffax.sample(jax.random.key(0), sampler, counted, jnp.ones((2, 2)), grid)
        assert len(calls) == spent(name, schedule, points), points


@pytest.mark.parametrize("name", diffax.samplers.names())
def test_a_grid_has_the_most_entries_that_the_budget_allows(name):
    schedule = problems.SCHEDULES["linear"]
    for calls in range(1, 30):
        try:
            points = tasks.grid_entries("config.calls", name, schedule, calls)
        except ValueError as error:
            assert f"config.calls must suffice for a step of {name}" in str(error)  # noqa: PT017
            assert spent(name, schedule, 2) > calls
            continue
        assert spent(name, schedule, points) <= calls < spent(name, schedule, points + 1)


@pytest.mark.slow
def test_two_workers_of_the_command_share_an_oracle_sweep(tmp_path):
    """The results of --workers=2 equal those of one process."""
    overrides = "product({'config.sampler': ['ddim', 'heun'], 'config.calls': [5, 8]}, seeds(10))"
    path = oracle_sweep(tmp_path / "s.py", overrides)
    line = [sys.executable, "-m", "experiments.sweep", f"--sweep={path}", "--way=vmap", "--group=3"]
    for name, more in {"two": ("--workers", "2"), "one": ()}.items():
        done = subprocess.run(
            [*line, f"--workdir={tmp_path / name}", *more], env=ENV, cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "all 40 runs are finished" in done.stdout
        assert {*attempts(tmp_path / name).values()} == {1}
    assert results(tmp_path / "one") == results(tmp_path / "two")
    assert len(results(tmp_path / "one")) == 40


# Samplers and metrics that a sweep file adds


OWN = '''
"""A sweep with a sampler and a metric of its own."""
import diffax
from experiments.sweeping import product, settings

def get_config():
    config = settings.oracle()
    config.examples = 8
    config.calls = 4
    return config

def get_overrides():
    return product({"config.sampler": ["mine"], "config.eta": [0.0]})

def get_samplers():
    return {"mine": lambda schedule, eta: diffax.ddim(schedule, eta=ETA)}

def get_metrics():
    return {"mean_shift": lambda x, y: float(abs(x.mean() - y.mean()))}
'''


@pytest.fixture
def own_names():
    """Remove names that a sweep file has added."""
    from experiments.evaluation import families

    yield
    diffax.samplers.CATALOGUE.pop("mine", None)
    samplers.NAMES.pop("mine", None)
    samplers.WITH_ETA.discard("mine")
    if "mean_shift" in families.NAMES:
        families.NAMES.remove("mean_shift")
        families.FAMILIES.pop()


@pytest.mark.usefixtures("own_names", "few_grids")
def test_a_sampler_of_the_sweep_file_is_part_of_the_id(command, tmp_path):
    """A changed formula gives another id. In a file without samplers and metrics, comments may change."""
    path, folder = tmp_path / "s.py", tmp_path / "w"
    path.write_text(OWN.replace("ETA", "0.0"))
    assert command(path, folder).status == 0
    (first,) = results(folder).values()
    path.write_text(OWN.replace("ETA", "1.0"))
    tasks.PROGRAMS.clear()  # this process keeps its programs; the real command starts a new process
    assert command(path, tmp_path / "v").status == 0
    (second,) = results(tmp_path / "v").values()
    assert first["id"] != second["id"]
    assert first["metrics"]["sliced"] != second["metrics"]["sliced"]
    plain = write(tmp_path / "p.py")
    before = list(definitions.load(plain).runs)
    plain.write_text(f"{plain.read_text()}\n# a comment\n")
    assert list(definitions.load(plain).runs) == before


@pytest.mark.usefixtures("own_names")
def test_a_metric_of_the_sweep_file_is_measured(tmp_path):
    from experiments.evaluation import families
    from experiments.evaluation.extractors import Extractor
    from experiments.evaluation.measures import Real, measure

    (tmp_path / "s.py").write_text(OWN.replace("ETA", "0.0"))
    definitions.load(tmp_path / "s.py")
    assert families.check_names(["mean_shift"], False) == ("mean_shift",)
    images = np.arange(32.0).reshape(8, 2, 2, 1)
    real = Real(images, np.zeros(8), images + 1, np.zeros(8))
    flat = Extractor("flat", "0" * 16, 4, lambda x: x.reshape(len(x), -1))
    found = measure(flat, images + 3, real, names=("mean_shift",))
    assert (found.metrics["mean_shift"], found.floors["mean_shift"]) == (2.0, 1.0)


@pytest.mark.usefixtures("own_names")
@pytest.mark.parametrize(("old", "new"), [('"mine"', '"heun"'), ('"mean_shift"', '"fd"')])
def test_a_sweep_file_cannot_replace_a_sampler_or_metric_of_diffax(command, tmp_path, old, new):
    (tmp_path / "s.py").write_text(OWN.replace("ETA", "0.0").replace(old, new))
    error = one_line(command(tmp_path / "s.py", tmp_path / "w"))
    assert f"must have names that are not in diffax, got '{new.strip(chr(34))}'" in error


@pytest.mark.parametrize("name", ["get_samplers", "get_metrics"])
def test_an_error_in_a_function_of_a_sweep_file_is_one_line(command, tmp_path, name):
    write(tmp_path / "s.py")
    (tmp_path / "s.py").write_text(f"{(tmp_path / 's.py').read_text()}\ndef {name}():\n    return 1 / 0\n")
    assert "cannot be read: ZeroDivisionError" in one_line(command(tmp_path / "s.py", tmp_path / "w"))
