"""Warm start from a run: arrays that fit are used, others are listed, and the first loss is lower."""

import json

import numpy as np
import pytest
from commands import error_of_train, train
from test_interop import FOLDERS

from diffax.nn.interop import folder
from experiments.configs import settings, smoke
from experiments.run.loading import load


def config_of(num_steps, **changes):
    config = smoke.get_config()
    config.train.update({"num_steps": num_steps, "log_every": 1, "sample_every": 1000, "checkpoint_every": 1000})
    config.train.heldout_every = 1000
    for path, value in changes.items():
        group, _, key = path.partition("__")
        if key:
            config[group][key] = value
        else:
            config[group] = value
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first")
    train(config_of(150), folder)
    return folder


def first_loss(folder):
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["loss"]


@pytest.mark.slow
def test_a_run_that_starts_from_another_begins_with_a_lower_loss(run, tmp_path, capsys):
    train(config_of(1), tmp_path / "fresh")
    capsys.readouterr()
    changes = {"optimizer__learning_rate": 1e-4, "dataset__batch_size": 64, "seed": 1}
    train(config_of(1, init_from=str(run), **changes), tmp_path / "warm")
    assert first_loss(tmp_path / "warm") < 0.9 * first_loss(tmp_path / "fresh")
    assert f"start from {run}" in capsys.readouterr().out


@pytest.mark.slow
def test_arrays_that_do_not_fit_are_listed_and_initialised(run, tmp_path, capsys):
    train(config_of(1, init_from=str(run), network__conditional=False, sampling__guidance=1.0), tmp_path / "warm")
    output = capsys.readouterr().out
    assert "not used: " in output
    assert "arrays" in output


@pytest.mark.slow
def test_a_resumed_run_does_not_need_the_run_it_started_from(run, tmp_path, capsys):
    moved = tmp_path / "moved"
    run.rename(moved)
    try:
        train(config_of(1, init_from=str(moved)), tmp_path / "warm")
    finally:
        moved.rename(run)
    train(config_of(2, init_from=str(moved)), tmp_path / "warm")
    assert "restored step 1" in capsys.readouterr().out


def test_a_warm_start_from_a_folder_without_a_model_is_refused(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    error = error_of_train(config_of(1, init_from=str(tmp_path / "empty")), tmp_path / "warm", capsys)
    assert "config.init_from must be" in error


def fine_tuning(path, num_steps, **changes):
    """The config of a run on digits with the network of a folder of diffusers."""
    config = config_of(num_steps, **changes)
    own = settings.load_config("diffusers", [f"config.init_from={path}"])
    config.update({"init_from": str(path), "prediction": own.prediction, "schedule": own.schedule})
    config.network.update({"name": "diffusers", "time": own.network.time, "diffusers": own.network.diffusers})
    return config


@pytest.mark.slow
def test_a_run_that_starts_from_a_folder_of_diffusers_begins_with_a_lower_loss(tmp_path, capsys):
    """The folder has the weights of a run; the config of the fixture has other numbers of channels and classes."""
    fixture = FOLDERS / "unet_plain"
    train(fine_tuning(fixture, 100), tmp_path / "first")
    trained = load(tmp_path / "first")
    assert "initialised, since the shapes differ: ['conv_in']['kernel']" in capsys.readouterr().out
    shapes = {"in_channels": 1, "out_channels": 1, "num_class_embeds": 11}
    config = json.loads((fixture / "config.json").read_text()) | shapes
    folder.save_model(tmp_path / "folder", {"params": trained.params}, config)
    train(fine_tuning(tmp_path / "folder", 1, seed=1, optimizer__learning_rate=1e-4), tmp_path / "warm")
    assert "arrays" in capsys.readouterr().out
    train(fine_tuning(fixture, 1, seed=1), tmp_path / "fresh")
    assert first_loss(tmp_path / "warm") < 0.9 * first_loss(tmp_path / "fresh")
    trained = load(tmp_path / "warm")
    x, t = np.ones((1, 8, 8, 1), np.float32), np.float32(0.4)
    result = trained.model.diffusion.predict(trained.params, np.zeros(1, int))(x, t)
    expected = folder.load_model(tmp_path / "folder")
    expected = expected._replace(params={"params": trained.params}).predict(np.zeros(1, int))(x, t)
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_a_network_of_diffusers_needs_its_folder(tmp_path):
    with pytest.raises(ValueError, match=r"config.init_from must be a folder saved by diffusers, got '.*nowhere'"):
        settings.load_config("diffusers", [f"config.init_from={tmp_path / 'nowhere'}"])
