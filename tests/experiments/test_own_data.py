"""The blocks of docs/data.md run, and models of every kind of data give samples in the units of the data."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray
from commands import imported, run, train
from PIL import Image

from experiments.configs import own, settings
from experiments.data import kinds
from experiments.data.datasets import open_dataset
from experiments.run import heldout

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.S)
PREPARED = [line for block in BLOCKS for line in block.splitlines() if "experiments.prepare" in line]
RNG = np.random.default_rng(0)


def quietly_train(name, data_dir, workdir, *, steps=3, **changes):
    config = own.get_config()
    config.dataset.update({"name": name, "data_dir": str(data_dir), "batch_size": 8})
    config.network.update({"channels": 8, "channel_multipliers": (1, 2), "attention_levels": (), "conditional": False})
    config.train.update({"num_steps": steps, "log_every": steps, "checkpoint_every": steps, "compile_cache": False})
    config.sampling.num_steps = 3
    for path, value in changes.items():
        group, key = path.split("__")
        config[group][key] = value
    return train(config, workdir)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with the files that the page names."""
    folder = tmp_path_factory.mktemp("files")
    photos = folder / "photos"
    photos.mkdir()
    for number in range(20):
        pixels = RNG.integers(0, 255, (30 + number, 40, 3), np.uint8)
        Image.fromarray(pixels).save(photos / f"{number}.jpg")
    winds = RNG.normal(280, 5, (30, 16, 32, 2)).astype(np.float32)
    axes = ("time", "lat", "lon")
    names = {name: (axes, winds[..., i], {"units": "m/s"}) for i, name in enumerate("uv")}
    xarray.Dataset(names).to_netcdf(folder / "winds.nc", engine="netcdf4")
    np.savez(folder / "signals.npz", x=RNG.normal(size=(30, 64, 1)).astype(np.float32))
    towns = RNG.choice(["north", "south"], 60)
    rows = "\n".join(f"{x},{y},{town}" for (x, y), town in zip(RNG.normal(100, 3, (60, 2)), towns, strict=True))
    (folder / "places.csv").write_text(f"east,north,town\n{rows}\n")
    np.save(folder / "volumes.npy", RNG.normal(size=(30, 8, 8, 8, 1)).astype(np.float32))
    mask = np.arange(6) < RNG.integers(2, 7, (40, 1))
    np.savez(folder / "sets.npz", x=RNG.normal(5, 2, (40, 6, 3)).astype(np.float32), mask=mask)
    (folder / "mymodule.py").write_text(re.search(r"```python\n(.*?)```", PAGE.read_text(), re.S)[1])
    return folder


@pytest.fixture(scope="module")
def sets(files):
    """The folder of the data sets that the page prepares, and of a set of point sets."""
    lines = [*PREPARED, "python -m experiments.prepare --name=sets --arrays=sets.npz"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(files)
        patch.setenv("HOME", str(files))
        patch.setattr(sys, "path", [*sys.path])
        for line in lines:
            run("prepare", *line.split()[3:], f"--data_dir={files / 'data'}")
    return files / "data"


def test_every_set_of_the_page_can_be_opened(sets):
    opened = {path.name: open_dataset(path.name, str(sets)) for path in sets.iterdir() if (path / "1.0.0").exists()}
    shapes = {name: (dataset.shape, dataset.units.kind) for name, dataset in opened.items()}
    assert shapes == {
        "photos": ((32, 32, 3), "image"),
        "winds": ((16, 32, 2), "field"),
        "signals": ((64, 1), "field"),
        "places": ((2,), "points"),
        "volumes": ((8, 8, 8, 1), "field"),
        "waves": ((64, 1), "field"),
        "sets": ((6, 3), "points"),
    }
    assert opened["places"].class_names == ("north", "south")
    assert opened["winds"].units.units == ("m/s", "m/s")
    assert (sets / "winds.png").exists()


@pytest.mark.parametrize(
    ("name", "changes", "suffix"),
    [
        ("winds", {}, ".nc"),
        pytest.param("places", {"network__name": "mlp", "network__conditional": True}, ".csv", marks=pytest.mark.slow),
        pytest.param(
            "sets",
            {"network__name": "dit", "network__patch_size": 0, "network__positions": "none"},
            ".xyz",
            marks=pytest.mark.slow,
        ),
        pytest.param("signals", {}, ".nc", marks=pytest.mark.slow),
        pytest.param("volumes", {}, ".nc", marks=pytest.mark.slow),
        pytest.param("photos", {}, ".png", marks=pytest.mark.slow),
    ],
)
def test_samples_of_a_trained_model_are_in_the_units_of_the_data(sets, tmp_path, capsys, name, changes, suffix):
    workdir = quietly_train(name, sets, tmp_path / "run", **changes)
    run("sample", f"--checkpoint={workdir}", f"--out={tmp_path / 'out'}", "--num=6")
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"next: python -m experiments.evaluate --samples={tmp_path / 'out'}"
    run("evaluate", last.split()[-1])
    assert "measured by           values" in capsys.readouterr().out
    assert (tmp_path / "out" / "samples").with_suffix(suffix).exists()
    shard = np.load(tmp_path / "out" / "shard_00000.npz")
    dataset = open_dataset(name, str(sets))
    assert (shard["samples"].shape, shard["samples"].dtype) == ((6, *dataset.shape), np.dtype(dataset.units.dtype))
    if name == "winds":
        written = xarray.open_dataset(tmp_path / "out" / "samples.nc")
        np.testing.assert_allclose(written["u"], shard["samples"][..., 0])
        assert written["u"].attrs["units"] == "m/s"
        assert 200 < shard["samples"].mean() < 360  # an untrained network already has the mean of the data
    if name == "sets":
        outside = shard["samples"][~shard["masks"]]
        np.testing.assert_allclose(outside, np.broadcast_to(dataset.units.mean, outside.shape), rtol=1e-5)


KIND = '''
"""Levels: one number after another, as text."""

import numpy as np

RANKS, DTYPES, CHANNELS = (2,), (), ()


def normalise(x, units):
    return units.normalise(x)


def denormalise(x, units):
    return units.denormalise(x)


def save(path, x, units, mask=None):
    path.with_suffix(".txt").write_text("\\n".join(" ".join(f"{v:.6g}" for v in row.ravel()) for row in x))
    return [path.with_suffix(".txt")]


def picture(x, units, columns=10, titles=(), mask=None):
    return np.zeros((8, 8, 3), np.uint8)
'''


def test_a_new_kind_of_data_needs_one_file(files, tmp_path, monkeypatch):
    (tmp_path / "kinds").mkdir()
    (tmp_path / "kinds" / "levels.py").write_text(KIND)
    monkeypatch.setattr(kinds, "__path__", [*kinds.__path__, str(tmp_path / "kinds")])
    arrays = f"--arrays={files / 'signals.npz'}"
    run("prepare", "--name=levels", arrays, "--kind=levels", f"--data_dir={tmp_path}")
    workdir = quietly_train("levels", tmp_path, tmp_path / "run", steps=1)
    run("sample", f"--checkpoint={workdir}", f"--out={tmp_path / 'out'}", "--num=3")
    written = np.loadtxt(tmp_path / "out" / "samples.txt")
    np.testing.assert_allclose(written, np.load(tmp_path / "out" / "shard_00000.npz")["samples"][..., 0], rtol=1e-4)


def test_held_out_loss_is_logged_by_noise_level(sets, tmp_path):
    watch = imported("train")[0].watch
    config = own.get_config()
    config.dataset.update({"name": "signals", "data_dir": str(sets), "batch_size": 8})
    config.network.update({"channels": 8, "channel_multipliers": (1,), "attention_levels": (), "conditional": False})
    config.train.update({"num_steps": 4, "log_every": 2, "checkpoint_every": 4, "heldout_every": 2, "sample_every": 4})
    config.sampling.num_steps = 2
    train(config, tmp_path, watch=watch)
    lines = [line for line in (tmp_path / "metrics.jsonl").read_text().splitlines() if "heldout" in line]
    values = [json.loads(line) for line in lines]
    assert [line["step"] for line in values] == [2, 4]
    for line in values:
        assert np.isclose(line["heldout"], np.mean([line[name] for name in heldout.NAMES]))
        assert line["learning_rate"] > 0
    assert (tmp_path / "heldout.png").exists()


@pytest.mark.parametrize(("shape", "channels"), [((32, 32, 3), None), ((64, 64, 3), 16), ((4096, 1), 16)])
def test_for_large_examples_a_network_with_fewer_channels_is_suggested(shape, channels, tmp_path, capsys):
    path = tmp_path / "x.npy"
    np.save(path, np.random.default_rng(0).normal(size=(20, *shape)).astype(np.float32))
    run("prepare", "--name=sized", f"--arrays={path}", f"--data_dir={tmp_path / 'data'}")
    line = capsys.readouterr().out.splitlines()[-1]
    assert ("--config.network.channels=16" in line) == (channels == 16)
    config = settings.load_config("own", [word.removeprefix("--") for word in line.split() if "--config." in word])
    assert (config.network.channels, config.network.channel_multipliers) == (
        (32, (1, 2, 2)) if channels is None else (16, (1, 2, 4, 4))
    )


def test_groups_take_precedence_over_time_and_a_failed_write_leaves_no_picture(tmp_path, capsys, monkeypatch):
    times = {"time": np.arange(12), "station": ("time", np.repeat(np.arange(6), 2))}
    xarray.Dataset({"u": (("time", "x"), RNG.normal(size=(12, 8)))}, times).to_netcdf(tmp_path / "u.nc")
    words = [f"--arrays={tmp_path / 'u.nc'}", "--variables=u", f"--data_dir={tmp_path / 'data'}"]

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("experiments.data.prepared.write", fail)
        with pytest.raises(SystemExit):
            run("prepare", "--name=stations", *words, "--group=station")
    assert not [*(tmp_path / "data").iterdir()]
    run("prepare", "--name=stations", *words, "--group=station")
    assert "train 10 by group" in capsys.readouterr().out


def test_a_contact_sheet_has_a_column_for_each_class(tmp_path, monkeypatch):
    seen = {}

    def keep(path, x, units, columns, titles, mask):
        seen.update(x=x, columns=columns, titles=titles)

    x, label = np.repeat(np.arange(40.0), 16).reshape(40, 4, 4, 1), np.arange(40) % 4
    np.savez(tmp_path / "x.npz", x=x.astype(np.float32), label=label)
    monkeypatch.setattr("experiments.prepare.save_picture", keep)
    run("prepare", "--name=four", f"--arrays={tmp_path / 'x.npz'}", "--label=label", f"--data_dir={tmp_path / 'data'}")
    assert (seen["columns"], seen["titles"]) == (4, ("0", "1", "2", "3"))
    first = seen["x"][:, 0, 0, 0]
    assert (np.diff(first[0::4]) > 0).all()  # in order within a class
    assert len(first) % 4 == 0
