"""The folder of a run: config.json, metrics.jsonl, checkpoints/, samples/, tensorboard/; and its lock."""

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import filelock

from diffax.pretrained import is_export, read_config
from diffax.training import Checkpoints
from diffax.training.processes import is_first
from experiments.configs import default
from experiments.configs.settings import flatten

# Settings that may change when a run is resumed; claim() raises for a change of any other. They do not affect the loss
# or the batches. config.train.num_steps does affect later steps: a cosine learning rate reaches 0 there, so a run that
# is resumed with more steps has another learning rate from then on, and its result differs from that of a run started
# with this number of steps. With config.optimizer.decay = "constant" the results are equal.
CHANGEABLE = (
    "config.parallel",
    "config.train.",
    "config.sampling.",
    "config.latent.",  # the autoencoder's parameters must not change: their digest is in the checkpoint
    "config.lora.base",  # likewise for the parameters of the base
    "config.dataset.data_dir",
    "config.dataset.num_threads",
    "config.dataset.cache",
    "config.dataset.classifier_split",
    "config.dataset.test_split",
)
_LOCKS: dict[Path, filelock.BaseFileLock] = {}  # kept until the process ends


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: readers see the old content or the new one."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    os.replace(part, path)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """The value of a JSON file, None if there is no file."""
    return json.loads(path.read_text()) if path.exists() else None


def check_writable(folder: Path, name: str = "workdir") -> None:
    """Create the folder; raise `ValueError` if it is not writable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{name} must be a writable folder, got {folder} ({error.strerror})") from error


def lock(workdir: Path, name: str = "workdir") -> None:
    """Lock a folder until this process ends; the lock is released even if the process is killed.

    Raises:
      ValueError: if another process has locked it.
    """
    if workdir in _LOCKS:
        return
    file = filelock.FileLock(workdir / ".lock")
    try:
        file.acquire(blocking=False)
    except filelock.Timeout as error:
        raise ValueError(f"{name} must not be in use by another run, got {workdir}") from error
    _LOCKS[workdir] = file


def claim(workdir: Path, settings: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Lock a folder for a run, check that its newest checkpoint, if any, is of this run, and write config.json.

    settings: the config, as a dict. identity: of the data, the autoencoder and the base of the run.

    Raises:
      ValueError: if the folder is not writable, is in use, or has a checkpoint of a run with another config or
        identity; the error has the first difference.
    """
    check_writable(workdir)
    lock(workdir)
    if (checkpoint := newest(workdir)) is not None:  # without a checkpoint, another config may replace config.json
        step, record = checkpoint
        before, now = flatten(record["config"]), flatten(settings)
        for key in sorted(before.keys() | now.keys(), key=lambda key: (key != "config.model", key)):
            if before.get(key) != now.get(key) and not key.startswith(CHANGEABLE):
                raise ValueError(
                    f"workdir {workdir} has a run with {key} = {before.get(key)!r}, got {now.get(key)!r}; "
                    "choose another --workdir"
                )
        for name, value in identity.items():
            if (saved := record["identity"].get(name)) != value:
                raise ValueError(
                    f"workdir {workdir} has a run whose {name} was {saved} at step {step}, got {value}; "
                    "choose another --workdir"
                )
    write_json(workdir / "config.json", settings)


def newest(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """(step, record) of the newest intact checkpoint of a run, None if nothing was saved; prints the skipped ones.

    Settings that did not exist at the time of the run get their defaults.

    Raises:
      CheckpointError: if there are checkpoints, but none is intact.
    """
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        step, skipped = checkpoints.newest()
        for number, reason in skipped if is_first() else ():
            print(f"warning: checkpoint {number} is damaged: {reason}", file=sys.stderr)
        return None if step is None else (step, completed(checkpoints.record(step)))


def completed(record: dict[str, Any]) -> dict[str, Any]:
    """The record, with the defaults of settings that did not exist at the time of the run."""
    if "config" not in record:  # the record of several runs of a sweep
        return record
    known, config = json.loads(default.get_config().to_json()), record["config"]
    groups = {key: value for key, value in known.items() if isinstance(value, dict) and key != "schedule"}
    config = known | config | {key: value | config.get(key, {}) for key, value in groups.items()}
    return {**record, "config": config}


def load_record(folder: Path, name: str = "checkpoint") -> tuple[int | None, dict[str, Any]]:
    """(step, record) of the newest intact checkpoint of a run; (None, record) of an export.

    name: of the argument, for the error.

    Raises:
      ValueError: if the folder has neither.
    """
    if is_export(folder):
        content = read_config(folder)
        if "config" not in content["more"]:
            raise ValueError(f"{name} must be an export of experiments.export, got {folder}")
        return None, completed({**content["more"], "step": content["step"], "words": content["words"] or None})
    if (checkpoint := newest(folder)) is None:
        raise ValueError(f"{name} must be a run's workdir or an export, got {folder}, which has no checkpoint")
    return checkpoint
