"""Parameters alone, for inference."""

import os
from typing import Any

from orbax.checkpoint import v1 as ocp

from diffax.training.checkpoints import abstract


def save_export(directory: str | os.PathLike, params: Any, record: dict[str, Any]) -> None:
    """Writes parameters alone, with their record, for inference. The folder must not exist."""
    ocp.save(os.path.abspath(directory), {"params": params}, custom_metadata=record)


def load_export(directory: str | os.PathLike, like: Any) -> Any:
    """The parameters of an export, with the shapes, dtypes and shardings of `like`."""
    return ocp.load(os.path.abspath(directory), abstract({"params": like}))["params"]


def export_record(directory: str | os.PathLike) -> dict[str, Any]:
    """The record of an export."""
    return dict(ocp.metadata(os.path.abspath(directory)).custom_metadata)
