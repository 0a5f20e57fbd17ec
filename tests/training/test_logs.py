"""Logs of a run: Weights & Biases in offline mode, and several logs as one."""

import sys
import time

import numpy as np
import pytest

from diffax import training


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    return pytest.importorskip("wandb")


def records(path):
    """The records of an offline file of wandb, a log of LevelDB: each has a header of 7 bytes, as the file has."""
    from wandb.proto import wandb_internal_pb2

    data, place = path.read_bytes(), 7
    while place + 7 <= len(data):
        size = int.from_bytes(data[place + 4 : place + 6], "little")
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data[place + 7 : place + 7 + size])
        yield record
        place += 7 + size


def lines_of(folder):
    """The logged values of all offline files of a run, and the ids of the runs."""
    values, ids = [], set()
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        for record in records(path):
            if record.run.run_id:
                ids.add(record.run.run_id)
            if items := record.history.item:
                values.append({item.key or item.nested_key[0]: item.value_json for item in items})
    return values, ids


def test_wandb_gets_scalars_and_pictures_and_continues_the_run(tmp_path, offline):
    for first in (0, 4):
        log = training.WandbLog(tmp_path / "digits", config={"seed": 1})
        log.start(first)
        log.write(first + 2, {"loss": 0.5, "runs": [1.0, 2.0]})
        log.picture(first + 2, "samples", np.zeros((4, 4, 3), np.uint8))
        log.sync()
        log.close()
        time.sleep(1.1)  # offline files are named by the second in which they begin
    values, ids = lines_of(tmp_path / "digits")
    assert [(line["_step"], line["loss"]) for line in values] == [("2", "0.5"), ("6", "0.5")]
    assert all("samples" in line and "runs" not in line for line in values)
    assert len(ids) == 1


def test_wandb_that_is_not_installed_is_an_error_of_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="wandb must be installed to log to it: pip install wandb"):
        training.WandbLog(tmp_path)


def test_several_logs_show_pictures_and_close_where_they_can(tmp_path):
    class Shows:
        pictures, closed = (), False

        def start(self, step):
            pass

        write = sync = lambda *args: None

        def picture(self, step, name, picture):
            self.pictures = (*self.pictures, (step, name, picture.shape))

        def close(self):
            self.closed = True

    log, other = Shows(), training.JsonLog(tmp_path / "metrics.jsonl")
    logs = training.Logs([log, other])
    logs.start(0)
    logs.picture(3, "samples", np.zeros((2, 2, 3), np.uint8))
    logs.close()
    assert log.pictures == ((3, "samples", (2, 2, 3)),)
    assert log.closed
