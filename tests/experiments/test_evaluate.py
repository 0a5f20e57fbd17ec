"""`evaluate` inside the test process: errors before a classifier is trained, and errors while metrics are computed."""

import json

import numpy as np
import pytest
from commands import imported, run

from experiments.configs import digits
from experiments.data.datasets import open_dataset
from experiments.evaluation import classifier, comparison
from experiments.evaluation.measures import Measures

evaluate, _ = imported("evaluate")


@pytest.fixture
def folder(data_dir, tmp_path):
    """A folder as `experiments.sample` writes it, with 80 digits of the test split as the samples."""
    data = digits.get_config().dataset.to_dict() | {"data_dir": str(data_dir)}
    images, labels = (part[:80] for part in open_dataset("digits", str(data_dir)).arrays(data["test_split"]))
    np.savez(tmp_path / "shard_00000.npz", samples=((images + 1) * 8).round().astype(np.uint8), labels=labels)
    sampling = {"sampler": "none", "num_steps": 1, "guidance": 1.0}
    settings = {"num": 80, "shard_size": 100, "step": 1, "sampling": sampling, "dataset": data}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    return tmp_path


def call(folder, *more):
    run("evaluate", f"--samples={folder}", *more)


def refused(capsys, folder, *more):
    """The error line of `evaluate` for invalid input."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        call(folder, *more)
    output = capsys.readouterr()
    assert (ended.value.code, output.out, output.err.count("\n")) == (2, "", 1)
    assert not (folder / "evaluation.json").exists()
    return output.err


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--repeats=0", "error: repeats must be an int >= 1, got 0\n"),
        ("--repeats=-3", "error: repeats must be an int >= 1, got -3\n"),
        ("--seed=-1", "error: seed must be an int >= 0, got -1\n"),
    ],
)
def test_bad_flags_are_refused_before_a_classifier_is_trained(flag, message, folder, capsys, monkeypatch):
    trained = []
    monkeypatch.setattr(classifier, "train", lambda *args, **settings: trained.append(settings))
    assert refused(capsys, folder, flag) == message
    assert trained == []


def test_an_error_while_metrics_are_computed_is_one_line(folder, capsys):
    """Test images that are also training images are detected when the features are compared."""
    settings = json.loads((folder / "settings.json").read_text())
    settings["dataset"]["test_split"] = settings["dataset"]["train_split"]
    (folder / "settings.json").write_text(json.dumps(settings))
    error = refused(capsys, folder, "--metrics=memorisation", "--classifier_steps=1")
    assert error.startswith("error: memorisation needs at least two test images that are not training images, got ")


def test_errors_of_the_input_are_one_line_and_bugs_keep_their_traceback(folder, capsys, monkeypatch):
    """A ValueError of `compare` becomes one line. Errors of other types are raised unchanged."""

    def fails(error):
        def failing(*args):
            raise error

        return failing

    monkeypatch.setattr(comparison, "open_case", lambda *args: None)
    monkeypatch.setattr(comparison, "compare", fails(ValueError("max_iterations must\n do, got 3")))
    assert refused(capsys, folder) == "error: max_iterations must do, got 3\n"
    for error in (TypeError("x"), KeyError("x"), IndexError("x"), AssertionError("x"), ZeroDivisionError("x")):
        monkeypatch.setattr(comparison, "compare", fails(error))
        with pytest.raises(type(error)):
            call(folder)
    # A ValueError outside `compare` is a bug, so it is raised unchanged.
    monkeypatch.setattr(comparison, "compare", lambda *args: Measures({}, {}, {}, {}))
    monkeypatch.setattr(evaluate, "report", fails(ValueError("of the report")))
    with pytest.raises(ValueError, match="of the report"):
        call(folder)
