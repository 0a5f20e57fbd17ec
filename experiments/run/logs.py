"""Logs of a run by name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffax import training
from diffax._checks import choose

LOGS: dict[str, Any] = {  # (workdir, config) -> log
    "jsonl": lambda workdir, config: training.JsonLog(workdir / "metrics.jsonl"),
    "tensorboard": lambda workdir, config: training.TensorBoardLog(workdir / "tensorboard"),
    "wandb": lambda workdir, config: training.WandbLog(workdir, config=config),
}


def by_name(names: Sequence[str], workdir: Path, settings: dict[str, Any]) -> training.Logs:
    """The logs of these names as one log. settings: the config, for Weights & Biases.

    Raises:
      ValueError: for an unknown name, or a log whose package is not installed.
    """
    return training.Logs(choose("report_to", name, LOGS)(workdir, settings) for name in names)
