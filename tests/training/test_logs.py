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
    """The records of an offline file of wandb, a LevelDB log. The file and each record have a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, place = path.read_bytes(), 7
    while place + 7 <= len(data):
        size = int.from_bytes(data[place + 4 : place + 6], "little")
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data[place + 7 : place + 7 + size])
        yield record
        place += 7 + size


def lines_of(folder):
    """(logged values, ids of the runs) of all offline files in a folder."""
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
        time.sleep(1.1)  # the name of an offline file contains its start in seconds
    values, ids = lines_of(tmp_path / "digits")
    assert [(line["_step"], line["loss"]) for line in values] == [("2", "0.5"), ("6", "0.5")]
    assert all("samples" in line and "runs" not in line for line in values)
    assert len(ids) == 1


def test_the_error_without_wandb_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="wandb must be installed to log to it: pip install wandb"):
        training.WandbLog(tmp_path)


def test_logs_pass_pictures_and_close_to_the_logs_that_support_them(tmp_path):
    class PictureLog:
        pictures, closed = (), False

        def start(self, step):
            pass

        write = sync = lambda *args: None

        def picture(self, step, name, picture):
            self.pictures = (*self.pictures, (step, name, picture.shape))

        def close(self):
            self.closed = True

    log, other = PictureLog(), training.JsonLog(tmp_path / "metrics.jsonl")
    logs = training.Logs([log, other])
    logs.start(0)
    logs.picture(3, "samples", np.zeros((2, 2, 3), np.uint8))
    logs.close()
    assert log.pictures == ((3, "samples", (2, 2, 3)),)
    assert log.closed
