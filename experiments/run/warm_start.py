"""Warm start: initial parameters of a run from another run, an export or a folder of diffusers, where they fit."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from diffax import random, training
from diffax.nn.interop import folder as diffusers
from diffax.nn.interop.scheduler import FILE as SCHEDULER
from experiments.models.digests import digest
from experiments.run import loading, workdir
from experiments.run.command import path_of

LISTED = 8  # parameters in a message


class WarmStart(NamedTuple):
    """Initial parameters. values: {path: array}; folder, digest: of their source; trained_for: a note on it."""

    values: dict[str, np.ndarray]
    folder: Path
    digest: str
    trained_for: str = ""

    def onto(self, params: Any) -> Any:
        """`params`, with the values of the other model where path and shape are equal."""

        def leaf(path: Any, own: Any) -> Any:
            value = self.values.get(jax.tree_util.keystr(path))
            return own if value is None or value.shape != own.shape else value.astype(own.dtype)

        return jax.tree_util.tree_map_with_path(leaf, params)

    def describe(self, params: Any) -> str:
        """A text that lists the arrays that fit and those that do not. params: those of the run, or their shapes.

        Raises:
          ValueError: if nothing fits.
        """
        own = {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
        other = {path: value.shape for path, value in self.values.items()}
        fit = [path for path, shape in own.items() if other.get(path) == shape]
        if not fit:
            raise ValueError(
                f"config.init_from must have parameters of this network, got none that fit in {self.folder}"
            )
        lines = [f"start from {self.folder}: {len(fit)} of {len(own)} arrays{self.trained_for}"]
        differ = [path for path, shape in own.items() if other.get(path, shape) != shape]
        new = [path for path in own if path not in other]
        for title, paths in (
            ("initialised, since the shapes differ", [f"{path} {own[path]}, there {other[path]}" for path in differ]),
            ("initialised, since they are missing there", new),
            ("not used", [path for path in other if path not in own]),
        ):
            if paths:
                more = f" and {len(paths) - LISTED} more" if len(paths) > LISTED else ""
                lines.append(f"  {title}: {', '.join(paths[:LISTED])}{more}")
        return "\n".join(lines)


def first_state(
    seed: Any, init: Any, start: WarmStart | None, optimizer: Any, *, memory: Any = (), hyper: Any = ()
) -> training.TrainState:
    """The state before the first step of a run. init: key -> parameters; start: replaces those that fit."""
    init_key, state_key = jax.random.split(random.threefry(jax.random.key(seed)))
    params = init(init_key)
    return training.init_state(state_key, params if start is None else start.onto(params), optimizer, memory, hyper)


def opened(path: str, kind: str, own: Path) -> WarmStart | None:
    """As `read`; None for no path, or if this run, in the folder `own`, has a checkpoint already."""
    return read(path, kind) if path and workdir.newest(own) is None else None


def read(path: str, kind: str) -> WarmStart:
    """The averaged parameters of a workdir or an export, or the weights in a folder of diffusers.

    Raises:
      ValueError: if the folder has no model of this kind, or weights of diffusers that cannot be read.
    """
    folder = path_of("config.init_from", path)
    if (part := diffusers.model_folder(folder)) is not None:
        params, trained_for = diffusers.load_model(part).params["params"], _scheduler_of(folder)
    else:
        params, trained_for = loading.load(folder, "config.init_from", kind).params, ""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    values = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    return WarmStart(values, folder, digest(params), trained_for)


def _scheduler_of(folder: Path) -> str:
    """The prediction kind and the betas that diffusers recorded for a network, as text."""
    for path in (folder / "scheduler" / SCHEDULER, folder / SCHEDULER):
        if path.exists():
            settings = json.loads(path.read_text())
            betas = f"{settings.get('beta_schedule')} betas {settings.get('beta_start')} to {settings.get('beta_end')}"
            return f", trained for prediction {settings.get('prediction_type')!r} and {betas}"
    return ""
