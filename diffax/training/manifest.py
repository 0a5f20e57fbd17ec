"""The digest of each file of a folder, and of the list itself: it is what was written, or there is an error."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

MANIFEST = "MANIFEST"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, or none that can be restored."""


def seal(folder: Path, body: dict[str, Any]) -> None:
    """Writes the manifest of what a folder holds, with the body (JSON); then all of it is on the disk."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    text = json.dumps(body | {"files": {str(path.relative_to(folder)): _digest(path) for path in files}})
    (folder / MANIFEST).write_text(f"{_of_text(text)}\n{text}\n")
    for path in (*folder.rglob("*"), folder):  # folders too, for the names in them
        sync(path)


def read(folder: Path) -> dict[str, Any]:
    """The body that a folder was sealed with.

    Raises:
      CheckpointError: if the manifest is missing or damaged.
    """
    try:
        digest, text = (folder / MANIFEST).read_text().rstrip("\n").split("\n", 1)
    except OSError as error:
        raise CheckpointError(f"{MANIFEST} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise CheckpointError(f"{MANIFEST} is not what was written") from error
    if digest != _of_text(text):
        raise CheckpointError(f"{MANIFEST} is not what was written")
    body: dict[str, Any] = json.loads(text)
    return body


def verify(folder: Path) -> dict[str, Any]:
    """The body, once each file was read.

    Raises:
      CheckpointError: if one is missing or is not what was written.
    """
    body = read(folder)
    for name, digest in body["files"].items():
        try:
            found = _digest(folder / name)
        except OSError as error:
            raise CheckpointError(f"{name} cannot be read ({error.strerror})") from error
        if found != digest:
            raise CheckpointError(f"{name} is not what was written")
    return body


def sync(path: Path) -> None:
    """Returns when a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _of_text(text: str) -> Any:
    return hashlib.blake2b(text.encode()).hexdigest()


def _digest(path: Path) -> Any:
    with path.open("rb") as file:
        return hashlib.file_digest(file, hashlib.blake2b).hexdigest()
