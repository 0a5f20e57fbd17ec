"""Exports: parameters without training state, for inference."""

import os
import shutil
from pathlib import Path
from typing import Any

from orbax.checkpoint import v1 as ocp

from diffax.training import manifest
from diffax.training.arrays import abstract, by_itself, check_arrays, describe
from diffax.typing import Params, Tree

KIND = "export"  # distinguishes the manifest of an export from that of a checkpoint


def save_export(directory: str | os.PathLike[str], params: Params, record: dict[str, Any]) -> None:
    """Write parameters and their record (JSON) to a new folder.

    Raises:
      OSError: if the folder exists and is not empty.
    """
    folder = Path(directory).absolute()
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    tree = {"params": params}
    ocp.save(part, tree)
    manifest.seal(part, {"kind": KIND, "arrays": describe(tree), "record": record})
    os.rename(part, folder)
    manifest.sync(folder.parent)


def load_export(directory: str | os.PathLike[str], like: Tree) -> Any:
    """The parameters of an export, with the shapes, dtypes and shardings of `like`.

    Raises:
      CheckpointError: if a file is missing or damaged.
      ValueError: if the arrays do not match those of `like`; the message shows the first difference.
    """
    folder, tree = Path(directory).absolute(), {"params": like}
    check_arrays(folder, manifest.verify(folder)["arrays"], describe(tree))
    with by_itself():
        return ocp.load(folder, abstract(tree))["params"]


def export_record(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """The record of an export.

    Raises:
      CheckpointError: if the manifest is missing or damaged.
    """
    record: dict[str, Any] = manifest.read(Path(directory))["record"]
    return record


def is_export(directory: str | os.PathLike[str]) -> bool:
    """Whether a folder was written by `save_export`."""
    folder = Path(directory)
    if not (folder / manifest.MANIFEST).exists():
        return False
    try:
        return manifest.read(folder).get("kind") == KIND
    except manifest.CheckpointError:  # a damaged export is still an export: `load_export` reports the damage
        return True
