"""The entry points as processes, on the smoke config."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import ml_collections
import numpy as np
import pytest
from commands import DATA, built, train
from PIL import Image

from experiments.configs import cifar10_ddpm, default, digits, digits_dit, digits_flow, mnist5k, smoke
from experiments.data import images
from experiments.run import loading

ROOT = Path(__file__).parents[2]
ENV = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}


def xla_flags(devices):
    """XLA_FLAGS of the tests, with another number of devices."""
    return os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}")


def command(name, *flags):
    return [sys.executable, "-m", f"experiments.{name}", *flags]


def call(name, *flags, devices=1, ok=True):
    """Run an entry point and return its standard output; with ok=False, assert status 2 and return the error line."""
    env = {**ENV, "XLA_FLAGS": xla_flags(devices)}
    done = subprocess.run(command(name, *flags), capture_output=True, text=True, env=env, cwd=ROOT)
    if ok:
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout
    assert done.returncode == 2, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def training_flags(data_dir, workdir, *more):
    config = "--config=experiments/configs/smoke.py"
    return (config, f"--workdir={workdir}", f"--config.dataset.data_dir={data_dir}", *more)


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory):
    """The workdir of a finished smoke run, and its standard output."""
    workdir = tmp_path_factory.mktemp("run")
    return workdir, call("train", *training_flags(data_dir, workdir))


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_training_writes_the_log_the_checkpoints_the_config_and_samples(trained):
    workdir, text = trained
    assert [m["step"] for m in metrics(workdir)] == [1, 5, 10, 15, 20]
    assert metrics(workdir)[-1]["loss"] < metrics(workdir)[0]["loss"]
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["10", "20"]
    assert json.loads((workdir / "config.json").read_text())["network"]["channels"] == 8
    with Image.open(workdir / "samples" / "step_0000020.png") as picture:
        assert picture.size[0] >= 400
    first = text.splitlines()[0]
    for part in ("digits 8x8x1", "parameters", "1 x cpu", "batch 16 per device", jax.__version__):
        assert part in first
    assert "step 20/20  loss " in text
    assert "ETA" in text
    assert "\r" not in text  # a log file has whole lines, without a progress bar


@pytest.mark.slow
def test_a_killed_run_resumes_from_its_last_checkpoint(trained, data_dir, tmp_path):
    """SIGKILL after the first checkpoint: the same command then ends with the bits of an uninterrupted run."""
    env = {**ENV, "XLA_FLAGS": xla_flags(1)}
    process = subprocess.Popen(
        command("train", *training_flags(data_dir, tmp_path, "--config.train.sample_every=1000")),
        env=env,
        cwd=ROOT,
    )
    while process.poll() is None and not (tmp_path / "checkpoints" / "10" / "MANIFEST").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "loss": 0.0}\n{"step": 1')  # a partial line, as after a kill
    text = call("train", *training_flags(data_dir, tmp_path))
    assert "restored step 10 from" in text
    straight, resumed = metrics(trained[0]), metrics(tmp_path)
    assert [m["step"] for m in resumed] == [m["step"] for m in straight]
    assert resumed[-1]["loss"] == straight[-1]["loss"]
    params, expected = (loading.load(folder).params for folder in (tmp_path, trained[0]))
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_a_finished_run_is_not_changed(trained, data_dir):
    before = metrics(trained[0])
    assert "done: step 20" in call("train", *training_flags(data_dir, trained[0]))
    assert metrics(trained[0]) == before


def test_a_run_of_another_config_is_refused_and_its_files_are_kept(trained, data_dir):
    before = sorted(trained[0].rglob("*"))
    message = call("train", *training_flags(data_dir, trained[0], "--config.network.channels=16"), ok=False)
    assert "config.network.channels = 8, got 16" in message
    assert sorted(trained[0].rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize("module", [smoke, digits])
def test_eight_devices_agree_with_one(module, data_dir, tmp_path):
    """The losses of 30 steps of a config, with dropout, agree to a relative 1e-5."""
    config, losses = module.get_config(), []
    config.dataset.data_dir = str(data_dir)
    config.train.update({"num_steps": 30, "log_every": 1, "sample_every": 1000, "checkpoint_every": 1000})
    config.train.compile_cache = False
    for form, count in (("pmap", 1), *((form, 8) for form in ("pmap", "jit", "fsdp"))):
        config.parallel = form
        workdir = train(config, tmp_path / f"{form}_{count}", count)
        losses.append([line["loss"] for line in metrics(workdir)])
    for others in losses[1:]:
        np.testing.assert_allclose(others, losses[0], rtol=1e-5)


SAMPLE = ("--num=20", "--shard_size=8", "--num_steps=4", "--sampler=ddpm", "--guidance=1.5", "--labels=3,7")


def shards(folder):
    files = [np.load(folder / f"shard_0000{i}.npz") for i in range(3)]
    return [np.concatenate([f[name] for f in files]) for name in ("samples", "labels")]


@pytest.mark.slow
def test_samples_do_not_depend_on_the_batch_and_missing_shards_are_redrawn(trained, tmp_path):
    flags = (f"--checkpoint={trained[0]}", f"--out={tmp_path}", *SAMPLE)
    call("sample", *flags, "--batch_size=8")
    samples, labels = shards(tmp_path)
    assert samples.shape == (20, 8, 8, 1)
    assert samples.dtype == np.uint8
    assert samples.max() <= 16  # the range of the data
    assert labels.tolist() == [3, 7] * 10
    assert len(np.unique(samples.reshape(20, -1), axis=0)) == 20
    modified = (tmp_path / "shard_00000.npz").stat().st_mtime_ns
    (tmp_path / "shard_00001.npz").write_bytes(b"cut short")
    call("sample", *flags, "--batch_size=3")
    again, _ = shards(tmp_path)
    assert (tmp_path / "shard_00000.npz").stat().st_mtime_ns == modified
    assert np.abs(again.astype(int) - samples).max() <= 1  # rounding to pixels may differ in the last bit
    assert (again != samples).mean() < 0.01
    message = call("sample", *flags, "--seed=1", ok=False)
    assert "seed = 0, got 1" in message


def test_export_sample_evaluate(trained, tmp_path):
    export, out = tmp_path / "export", tmp_path / "samples"
    call("export", f"--checkpoint={trained[0]}", f"--out={export}")
    size = lambda folder: sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    assert size(export) < 0.5 * size(trained[0] / "checkpoints" / "20")
    call("sample", f"--checkpoint={export}", f"--out={out}", "--num=20")
    flags = (f"--samples={out}", "--classifier_steps=30")
    message = call("evaluate", *flags, ok=False)
    assert (
        "fd needs at least 65 examples of each set (or allow_few) in the 64 features of classifier, got 20 sam"
        in message
    )
    assert "metrics must be one of fd, fd_infinity," in call("evaluate", *flags, "--metrics=fid", ok=False)
    message = call("evaluate", *flags, "--extractor=inception_v3", "--allow_few", ok=False)
    assert "extractor inception_v3 needs inception_weights=FILE" in message
    text = call("evaluate", *flags, "--allow_few")
    for part in (
        "FD(classifier)",
        "real-to-real floor",
        "n = 20 each",
        "accuracy on real",
        "of 400 test images",
    ):
        assert part in text
    assert "FID" not in text
    result = json.loads((out / "evaluation.json").read_text())
    assert result["conditions"]["n"] == 20
    assert f"measured by           classifier {result['conditions']['extractor_hash']};" in text
    for name, values in (("FD(classifier)     ", result["metrics"]), ("real-to-real floor ", result["floors"])):
        assert f"{name}   {values['fd']:.3f} +- " in text
    assert f"accuracy on samples   {result['metrics']['accuracy']:.2%}" in text


@pytest.mark.slow
def test_img2img_starts_from_the_picture(trained, tmp_path):
    """Samples from a low noise level stay close to the picture; samples from a high level do not."""
    from sklearn.datasets import load_digits

    digit = load_digits().images[3]
    path, distances = tmp_path / "digit.png", []
    Image.fromarray((digit * 15.9).astype(np.uint8)).save(path)
    for level in (0.02, 0.95):
        out = tmp_path / str(level)
        call(
            "sample",
            f"--checkpoint={trained[0]}",
            f"--out={out}",
            "--num=4",
            f"--init_image={path}",
            f"--noise_level={level}",
        )
        samples = np.load(out / "shard_00000.npz")["samples"][..., 0]
        distances.append(np.abs(samples - digit).mean())
    assert distances[0] < 2
    assert distances[1] > 2 * distances[0]


@pytest.mark.slow_cases(but=["sample-flags10-checkpoint must be a run's workdir or an export, got /nowhere"])
@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("train", ["--config.foo=1"], "config.foo is not a setting; those of config are autoencoder,"),
        ("train", ["--config.seed.x=1"], "config.seed.x is not a setting: config.seed is a value, not a group"),
        ("train", ["--config.schedule.beta_max=3.0"], "config.schedule.beta_max is no parameter of cosine; those"),
        ("train", ["--config.network.num_heads=3"], "num_heads must divide the 16 channels, got 3"),
        ("train", ["--config.dataset.batch_size=many"], "config.dataset.batch_size must be of type int, got 'many'"),
        (
            "train",
            ["--workdir=/proc/nowhere"],
            "workdir must be a writable folder, got /proc/nowhere",
        ),
        ("train", ["--config.dataset.name=cifar10"], "dataset.name = 'cifar10' is not prepared in"),
        (
            "train",
            ["--config.dataset.batch_size=1000"],
            "at most the 997 examples of split 'train', got 1000",
        ),
        ("sample", ["--labels=3,10"], "labels must be ints in [0, 9], got '10'"),
        ("sample", ["--sampler=euler9"], "sampler must be one of ddpm, ddim, euler,"),
        (
            "sample",
            ["--checkpoint=/nowhere"],
            "checkpoint must be a run's workdir or an export, got /nowhere",
        ),
        (
            "evaluate",
            ["--samples=/nowhere"],
            "samples must be a folder written by experiments.sample, got /nowhere",
        ),
    ],
)
def test_bad_input_on_the_command_line(name, flags, message, trained, data_dir, tmp_path):
    workdir = tmp_path / "new"
    usual = {
        "train": training_flags(data_dir, workdir),
        "sample": (f"--checkpoint={trained[0]}", f"--out={workdir}"),
        "evaluate": (),
    }
    assert message in call(name, *usual[name], *flags, ok=False)
    assert not workdir.exists()


def changed(**changes):
    """The smoke config with changes. ml_collections itself refuses some of them, so they are made in the dict."""
    config = smoke.get_config().to_dict()
    for path, value in changes.items():
        *groups, key = path.split("__")
        target = config
        for group in groups:
            target = target[group]
        target[key] = value
    return ml_collections.ConfigDict(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimzer": 1}, "config.optimzer is not a setting"),
        ({"train__steps": 1}, "config.train.steps is not a setting; those of config.train are"),
        ({"seed": "0"}, "config.seed must be of type int, got '0'"),
        ({"seed": -1}, "config.seed must be an integer >= 0, got -1"),
        ({"seed": 2**31}, r"config.seed must be an integer < 2\^31, got 2147483648"),
        ({"dataset__flip": 1}, "config.dataset.flip must be of type bool, got 1"),
        (
            {"network__channel_multipliers": (1, 2.5)},
            r"channel_multipliers must be of type tuple, got \(1, 2.5\)",
        ),
        (
            {"schedule": {"name": "exponential"}},
            "config.schedule.name must be one of linear, .* got 'exponential'",
        ),
        (
            {"schedule": {"name": "cosine", "beta_max": 3.0}},
            "config.schedule.beta_max is no parameter of cosine",
        ),
        ({"schedule": {"name": "log_linear", "sigma_min": 0.1}}, "config.schedule.sigma_max is missing"),
        ({"schedule": {"name": "linear", "beta_min": -1.0}}, "beta_min must be > 0, got -1.0"),
        ({"prediction": "epsilon"}, "config.prediction must be one of x0, eps, .* got 'epsilon'"),
        ({"sampling__sampler": "euler9"}, "config.sampling.sampler must be one of ddpm, .* did you mean 'euler'"),
        (
            {"sampling__grid": "karras9"},
            "config.sampling.grid must be one of uniform_log_snr, .* did you mean 'karras'",
        ),
        ({"schedule": {"name": "cosin"}}, "config.schedule.name must be one of linear, .* did you mean 'cosine'"),
        ({"sampling__num_steps": 0}, "config.sampling.num_steps must be an int >= 1, got 0"),
        ({"sampling__eta": 1.5}, r"eta must be in \[0, 1\], got 1.5"),
        ({"dataset__batch_size": 12}, "batch_size must be a multiple of the 8 devices, got 12"),
        (
            {"loss__p_uncond": 0.0, "sampling__guidance": 2.0},
            r"guidance must be 1 without a null label .* got 2.0",
        ),
        (
            {"network__conditional": False, "sampling__guidance": 2.0},
            "guidance must be 1 for a network without classes",
        ),
        ({"train__keep_every": -1}, "config.train.keep_every must be >= 0, got -1"),
        ({"sampling__guidance": float("nan")}, "config.sampling.guidance must be finite, got nan"),
        ({"sigma_data": 0.0}, "config.sigma_data must be > 0, got 0.0"),
        (
            {"schedule": {"name": "cosine_betas", "num_steps": 0}},
            "config.schedule.num_steps must be an int >= 1, got 0",
        ),
        ({"schedule": {"name": "cosine_betas", "beta_max": 1.0}, "prediction": "eps"}, "zero terminal SNR, got 'eps'"),
        ({"optimizer__ema_decay": 1.0}, r"config.optimizer.ema_decay must be in \[0, 1\), got 1.0"),
        ({"optimizer__learning_rate": 0.0}, "learning_rate must be > 0, got 0.0"),
    ],
)
def test_a_config_is_checked_before_anything_is_built(changes, message):
    with pytest.raises(ValueError, match=message):
        built(changed(**changes), 8)


@pytest.mark.newest
@pytest.mark.parametrize(
    "module", [default, digits, digits_dit, digits_flow, mnist5k, cifar10_ddpm, smoke], ids=lambda m: m.__name__
)
def test_every_config_is_valid_and_documented(module):
    built(module.get_config())
    if module is not default:
        for word in ("python -m experiments.train", "Hardware", "Time", "Metric"):
            assert word in module.__doc__, f"{module.__name__} does not say its {word}"


def test_pixels_and_grids():
    pixels = np.arange(17).repeat(2)[:32].reshape(1, 4, 8, 1).astype(np.uint8)
    normal = 2 * pixels.astype(np.float32) / 16 - 1
    np.testing.assert_array_equal(DATA["digits"].units.denormalise(normal), pixels)
    picture = images.grid(np.ones((5, 8, 8, 3)), columns=3)
    assert picture.shape[2] == 3
    zoom = picture.shape[1] // 27
    assert picture.shape[:2] == (18 * zoom, 27 * zoom)
    assert picture[0, 0].tolist() == [255] * 3
    assert picture[-zoom * 5, -zoom * 5].tolist() == [0] * 3  # the sixth tile is blank


def test_titles_are_above_their_columns():
    tiles = images.grid(np.ones((3, 63, 63, 3)), columns=3)
    picture = images.grid(np.ones((3, 63, 63, 3)), columns=3, titles=("red", "three words, so two lines", ""))
    high = len(picture) - len(tiles)
    np.testing.assert_array_equal(picture[high:], tiles)
    inked = (picture[:high].reshape(high, 3, -1) < 128).any(2)
    assert inked.any(0).tolist() == [True, True, False]
    assert inked[high // 2 :].any(0).tolist() == [False, True, False]  # one line, and more
