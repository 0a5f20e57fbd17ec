"""The command line: settings, flags, paths, locks and exit statuses."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from commands import DATA, built, imported, run, save_run
from test_experiments import ENV, ROOT, call, command

from diffax import pretrained
from experiments.configs import digits, settings, smoke
from experiments.model import build
from experiments.run import command as run_command
from experiments.run import sample_folder, workdir

TRAIN, TRAIN_FLAGS = imported("train")


@pytest.mark.parametrize(
    ("argument", "hint"),
    [
        ("config.train.num_steps=7", "write --config.train.num_steps=7; flags"),
        ("config.train.num_steps", "write --config.train.num_steps=VALUE; flags"),
        ("workdir=there", "write --workdir=there; flags"),
        ("other", "unknown argument 'other'; flags are --NAME=VALUE and settings --config.KEY=VALUE"),
    ],
)
def test_the_error_for_a_positional_argument_suggests_a_flag(argument, hint, capsys, monkeypatch):
    for name in TRAIN_FLAGS:
        TRAIN_FLAGS[name].unparse()
    monkeypatch.setattr(run_command.flags, "FLAGS", TRAIN_FLAGS)
    argument_line = ["train", "--config=smoke", "--workdir=w", argument]
    with pytest.raises(SystemExit) as ended:
        run_command.parse(argument_line)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: unknown argument {argument!r}")
    assert hint in error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("config.train.num_step=7", "config.train.num_step is not a setting; .*: did you mean 'num_steps'?"),
        ("config.optimiser.b1=0.5", "config.optimiser.b1 is not a setting; .*: did you mean 'optimizer'?"),
        ("config.seeds=1", "config.seeds is not a setting; .*: did you mean 'seed'?"),
        ("config.seed", "config.seed needs a value: --config.seed=VALUE"),
        ("config.seed=1.5", "config.seed must be of type int, got 1.5"),
        ("config.dataset.flip=1", "config.dataset.flip must be of type bool, got 1"),
    ],
)
def test_the_error_for_an_unknown_setting_suggests_the_nearest_one(change, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        settings.load_config("smoke", [change])


def test_a_config_is_loaded_by_its_name():
    assert settings.load_config("digits").to_dict() == digits.get_config().to_dict()
    assert settings.load_config(str(Path(digits.__file__))).to_dict() == digits.get_config().to_dict()
    with pytest.raises(ValueError, match=r"config must be a file or one of .*, got digit: did you mean 'digits'\?"):
        settings.load_config("digit")


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("config.schedule.beta_max=25", 25),
        ("config.loss.weighting_parameters.gamma=2.5", 2.5),
        ("config.loss.times_parameters.mean=-0.5", -0.5),
        ("config.train.num_steps=1e3", 1000),
        ("config.optimizer.learning_rate=1", 1.0),
        ("config.network.channel_multipliers=1,2,4", (1, 2, 4)),
        ("config.network.channel_multipliers=(2,)", (2,)),
        ("config.lora.patterns=*kernel,label/*", ("*kernel", "label/*")),
        ("config.dataset.labels=", ()),
        ("config.dataset.test_split=test[:50%]", "test[:50%]"),
        ("config.dataset.flip=true", True),
        ("config.sampling.eta=0.5", 0.5),
        ("config.sampling.eta=none", None),
    ],
)
def test_a_value_is_read_by_the_type_of_its_default(change, value):
    result = settings.flatten(settings.load_config("smoke", [change]).to_dict())[change.partition("=")[0]]
    expected = list(value) if isinstance(value, tuple) else value
    assert (result, type(result)) == (expected, type(expected))


def test_parameters_of_schedules_and_weightings_reach_the_model():
    changes = ["schedule.name=linear", "schedule.beta_max=25", "loss.weighting=min_snr"]
    changes += ["loss.weighting_parameters.gamma=2.5"]
    config = settings.load_config("smoke", [f"config.{change}" for change in changes])
    model = built(config)
    assert model.diffusion.schedule().beta_max == 25
    assert model.loss.weighting.parameters == {"gamma": 2.5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("optimizer.learning_rate=-1", "config.optimizer.learning_rate must be > 0, got -1"),
        ("optimizer.decay=stepwise", "config.optimizer.decay must be one of"),
        ("sampling.eta=2", "config.sampling.eta must be in"),
        ("network.num_heads=3", "config.network.num_heads must divide"),
        ("network.channels=7", "config.network"),
        ("schedule.name=linear|schedule.beta_min=-1", "config.schedule.beta_min must be > 0, got -1"),
        ("loss.weighting=min_snr|loss.weighting_parameters.gamma=-1", "config.loss.weighting_parameters.gamma must be"),
        ("loss.times=loss_aware|loss.times_parameters.num_bins=0", "config.loss.times_parameters.num_bins must be"),
    ],
)
def test_an_error_of_a_constructor_begins_with_the_setting(change, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        built(settings.load_config("smoke", [f"config.{part}" for part in change.split("|")]))


PATHS = [
    ("train", "workdir", ("--config=smoke",)),
    ("sample", "checkpoint", ("--out=/tmp",)),
    ("sample", "from_diffusers", ("--out=/tmp",)),
    ("evaluate", "samples", ()),
    ("evaluate", "checkpoint", ()),
    ("export", "checkpoint", ("--out=/tmp/none",)),
]


def home_error(name, flag, more, monkeypatch, tmp_path, capsys):
    """The error of a command whose path flag is a folder below ~."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as ended:
        run(name, f"--{flag}=~/file", *more)
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(("name", "flag", "more"), PATHS)
def test_the_home_folder_is_expanded_in_paths(name, flag, more, monkeypatch, tmp_path, capsys):
    error = home_error(name, flag, more, monkeypatch, tmp_path, capsys)
    assert str(tmp_path / "file") in error
    assert "~" not in error


@pytest.mark.parametrize(("name", "flag", "more"), PATHS)
def test_a_bucket_is_refused(name, flag, more, capsys):
    with pytest.raises(SystemExit) as ended:
        run(name, f"--{flag}=gs://bucket/run", *more)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert f"error: {flag} must be a folder of this machine or a mounted one, got gs://bucket/run" in error


HOLD = """
import sys, time
from pathlib import Path
from experiments.run.workdir import lock
lock(Path(sys.argv[1]))
print("locked", flush=True)
time.sleep(600)
"""


def test_a_workdir_in_use_is_refused_and_its_lock_ends_with_the_process(tmp_path):
    line, config = [sys.executable, "-c", HOLD, str(tmp_path)], smoke.get_config().to_dict()
    holder = subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=ENV, cwd=ROOT)
    try:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match="workdir must not be in use by another run, got"):
            workdir.claim(tmp_path, config, {})
        assert not (tmp_path / "config.json").exists()
    finally:
        holder.kill()
        holder.communicate()
    workdir.claim(tmp_path, config, {})
    assert (tmp_path / "config.json").exists()
    workdir._LOCKS.pop(tmp_path).release()


def test_a_folder_of_samples_keeps_its_settings_and_draws_unreadable_shards_again(tmp_path):
    sample_settings = {"seed": 0, "sampling": {"guidance_interval": (0.0, 1.0)}}
    for _ in range(2):
        sample_folder.claim(tmp_path, sample_settings)
    with pytest.raises(ValueError, match=r"out .* has samples with seed = 0, got 1; choose another --out"):
        sample_folder.claim(tmp_path, sample_settings | {"seed": 1})
    indices = []
    for path, index in sample_folder.missing_shards(tmp_path, 7, 3):
        sample_folder.save_shard(path, index, index)
        indices.append(index.tolist())
    assert indices == [[0, 1, 2], [3, 4, 5], [6]]
    assert sample_folder.load_samples(tmp_path, 4, 3).samples.tolist() == [0, 1, 2, 3]
    (tmp_path / "shard_00001.npz").write_bytes(b"cut short")
    assert [path.name for path, _ in sample_folder.missing_shards(tmp_path, 7, 3)] == ["shard_00001.npz"]


def test_the_number_of_samples_may_grow_and_full_shards_stay(tmp_path):
    for num, drawn in ((4, ["shard_00000.npz", "shard_00001.npz"]), (7, ["shard_00001.npz", "shard_00002.npz"])):
        sample_folder.claim(tmp_path, {"num": num})
        missing = list(sample_folder.missing_shards(tmp_path, num, 3))
        assert [path.name for path, _ in missing] == drawn
        for path, index in missing:
            sample_folder.save_shard(path, index, index)
    assert sample_folder.load_samples(tmp_path, 7, 3).samples.tolist() == list(range(7))
    with pytest.raises(ValueError, match=r"out .* has samples with num = 7, got 5; choose another --out"):
        sample_folder.claim(tmp_path, {"num": 5})


def test_show_config_prints_the_config_with_all_changes(tmp_path, capsys):
    for flag in TRAIN_FLAGS:
        TRAIN_FLAGS[flag].unparse()
    TRAIN_FLAGS(["train", "--config=smoke", f"--workdir={tmp_path / 'new'}", "--show_config"])
    TRAIN.main(["train", "config.schedule.name=linear", "config.schedule.beta_max=25.0"])
    text = capsys.readouterr().out
    assert "beta_max: 25.0" in text
    assert "channels: 8" in text
    assert not (tmp_path / "new").exists()


@pytest.mark.slow_cases(but=["train"])
@pytest.mark.parametrize("name", ["train", "sample", "evaluate", "export"])
def test_help_shows_the_flags_of_the_command(name):
    done = subprocess.run(command(name, "--help"), capture_output=True, text=True, env=ENV, cwd=ROOT, check=False)
    expected = {
        "train": ("config", "workdir", "show_config", "distributed", "heartbeat_seconds"),
        "sample": ("checkpoint", "out", "guidance", "from_diffusers"),
        "evaluate": ("samples", "checkpoint", "extractor"),
        "export": ("checkpoint", "out"),
    }[name]
    for flag in expected:
        assert f"--{flag}:" in done.stdout or f"--[no]{flag}:" in done.stdout, flag
    assert f"python -m experiments.{name}" in done.stdout


@pytest.mark.slow_cases(but=["samplers"])
@pytest.mark.parametrize("part", ["samplers", "train", "seeds", ""])
def test_help_shows_the_flags_of_the_benchmark(part):
    flags = (part, "--help") if part else ("--help",)
    done = subprocess.run(command("benchmark", *flags), capture_output=True, text=True, env=ENV, cwd=ROOT, check=False)
    expected = {
        "samplers": ("out", "samplers", "budgets", "quick"),
        "train": ("out", "networks", "devices", "forms"),
        "seeds": ("out", "networks", "ways", "seeds"),
        "": ("config", "batch_size", "repeats"),
    }[part]
    for flag in expected:
        assert f"--{flag}:" in done.stdout or f"--[no]{flag}:" in done.stdout, flag
    assert f"python -m experiments.benchmark {part}" in done.stdout
    assert ("python -m experiments.benchmark accelerator" in done.stdout) == (part == "")


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """The workdir of a model whose parameters are random."""
    config = smoke.get_config()
    params = jax.jit(build(config, DATA["digits"]).init)(jax.random.key(0))
    return save_run(tmp_path_factory.mktemp("untrained"), config, params)


@pytest.mark.slow
def test_an_interrupt_of_sampling_is_one_line(untrained, tmp_path):
    flags = (f"--checkpoint={untrained}", f"--out={tmp_path}", "--num=100000", "--shard_size=100000", "--batch_size=8")
    process = subprocess.Popen(
        command("sample", *flags), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV, cwd=ROOT
    )
    try:
        process.stdout.readline()  # the progress line of the first batch
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert error.split("\n") == ["", "interrupted; the same command continues from what is saved", ""]


@pytest.mark.slow
def test_the_export_of_the_command_loads_with_its_samples(untrained, tmp_path):
    """`diffax.pretrained.load` draws the samples of `experiments.sample` from the run and from the export."""
    call("export", f"--checkpoint={untrained}", f"--out={tmp_path / 'export'}")
    assert "out must not exist yet, got" in call(
        "export", f"--checkpoint={untrained}", f"--out={tmp_path / 'export'}", ok=False
    )
    shards = []
    for index, folder in enumerate((untrained, tmp_path / "export")):
        call("sample", f"--checkpoint={folder}", f"--out={tmp_path / str(index)}", "--num=12", "--seed=3")
        shards.append(np.load(tmp_path / str(index) / "shard_00000.npz")["samples"])
    np.testing.assert_array_equal(*shards)
    model = pretrained.load(tmp_path / "export")
    samples = model.denormalise(jax.jit(lambda key: model.sample(key, 12))(jax.random.key(3)))
    assert np.abs(samples.astype(int) - shards[0]).max() <= 1
    sample_settings = json.loads((tmp_path / "0" / "settings.json").read_text())
    assert sample_settings["step"] == model.step == 1
