"""Manifests: digests of all files of a folder and of the manifest itself, so that damage raises an error."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

MANIFEST = "MANIFEST"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or no checkpoint can be restored."""


def seal(folder: Path, body: dict[str, Any]) -> None:
    """Write the manifest of a folder: the body (JSON) and the digest of each file. Sync the folder to disk."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    text = json.dumps(body | {"files": {str(path.relative_to(folder)): _digest(path) for path in files}})
    (folder / MANIFEST).write_text(f"{_text_digest(text)}\n{text}\n")
    for path in (*folder.rglob("*"), folder):  # folders too: syncing a file does not sync its name
        sync(path)


def read(folder: Path) -> dict[str, Any]:
    """The body of the manifest of a folder, including the digests of its files as "files".

    Raises:
      CheckpointError: if the manifest is missing or damaged.
    """
    try:
        digest, text = (folder / MANIFEST).read_text().rstrip("\n").split("\n", 1)
    except OSError as error:
        raise CheckpointError(f"{MANIFEST} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise CheckpointError(f"{MANIFEST} does not match its digest") from error
    if digest != _text_digest(text):
        raise CheckpointError(f"{MANIFEST} does not match its digest")
    body: dict[str, Any] = json.loads(text)
    return body


def verify(folder: Path) -> dict[str, Any]:
    """The body of the manifest, after each file was read and compared with its digest.

    Raises:
      CheckpointError: if a file is missing or does not match its digest.
    """
    body = read(folder)
    for name, digest in body["files"].items():
        try:
            actual = _digest(folder / name)
        except OSError as error:
            raise CheckpointError(f"{name} cannot be read ({error.strerror})") from error
        if actual != digest:
            raise CheckpointError(f"{name} does not match its digest")
    return body


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _text_digest(text: str) -> Any:
    return hashlib.blake2b(text.encode()).hexdigest()


def _digest(path: Path) -> Any:
    with path.open("rb") as file:
        return hashlib.file_digest(file, hashlib.blake2b).hexdigest()
