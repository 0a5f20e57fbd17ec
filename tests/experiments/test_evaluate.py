"""`evaluate` in this process: what is refused before anything is trained, and what only the measuring finds."""

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
    """A folder as `experiments.sample` writes it, of 80 digits of the test split."""
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
    """The one line that is said."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        call(folder, *more)
    said = capsys.readouterr()
    assert (ended.value.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert not (folder / "evaluation.json").exists()
    return said.err


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


def test_what_the_measuring_finds_is_one_line(folder, capsys):
    """Test images that are training images too: known once their features are compared."""
    settings = json.loads((folder / "settings.json").read_text())
    settings["dataset"]["test_split"] = settings["dataset"]["train_split"]
    (folder / "settings.json").write_text(json.dumps(settings))
    said = refused(capsys, folder, "--metrics=memorisation", "--classifier_steps=1")
    assert said.startswith("error: memorisation needs at least two test images that are not training images, got ")


def test_errors_of_the_measuring(folder, capsys, monkeypatch):
    """Of the input: one line, whatever the message. Of the program: they stay what they are."""

    def fails(error):
        def of(*args):
            raise error

        return of

    monkeypatch.setattr(comparison, "open_case", lambda *args: None)
    monkeypatch.setattr(comparison, "compare", fails(ValueError("max_iterations must\n do, got 3")))
    assert refused(capsys, folder) == "error: max_iterations must do, got 3\n"
    for error in (TypeError("x"), KeyError("x"), IndexError("x"), AssertionError("x"), ZeroDivisionError("x")):
        monkeypatch.setattr(comparison, "compare", fails(error))
        with pytest.raises(type(error)):
            call(folder)
    # Only the measuring: a bug of the report is none of the input's.
    monkeypatch.setattr(comparison, "compare", lambda *args: Measures({}, {}, {}, {}))
    monkeypatch.setattr(evaluate, "report", fails(ValueError("of the report")))
    with pytest.raises(ValueError, match="of the report"):
        call(folder)
