"""Checkpoints on Orbax: the whole training state by step, and an EMA-only export for inference.

Beside the arrays a checkpoint carries a JSON record: the run's config, the data's range, the data position.
"""

import dataclasses
import os
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from diffax.training.state import TrainState


class Checkpoints:
    """The checkpoints of one run: DIRECTORY/<step>/. Use as a context manager, or call `close`.

    Keeps the latest `keep_latest` and, if `keep_every` > 0, every step that is a multiple of it. One process trains
    and saves; all others open the folder `read_only`, which leaves alone what is being written.

    Raises:
      ValueError: if keep_latest < 1 or keep_every < 0.
    """

    def __init__(
        self, directory: str | os.PathLike, *, keep_latest: int = 2, keep_every: int = 0, read_only: bool = False
    ):
        if keep_latest < 1:
            raise ValueError(f"keep_latest must be >= 1, got {keep_latest}")
        if keep_every < 0:
            raise ValueError(f"keep_every must be >= 0, got {keep_every}")
        policies = ocp.training.preservation_policies
        keep: list[Any] = [policies.LatestN(keep_latest)]
        if keep_every:
            keep.append(policies.EveryNSteps(keep_every))
        self._checkpointer = ocp.training.Checkpointer(
            os.path.abspath(directory),
            preservation_policy=policies.AnyPreservationPolicy(keep),
            cleanup_tmp_directories=not read_only,  # what a killed save left behind
        )

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    @property
    def steps(self) -> list[int]:
        """The steps that can be restored, ascending."""
        return sorted(int(c.step) for c in self._checkpointer.checkpoints)

    def save(self, step: int, state: TrainState, record: dict[str, Any]) -> None:
        """Writes the state and its record; returns when they are on disk."""
        self._checkpointer.save(step, _filled(state), force=True, custom_metadata=record)

    def record(self, step: int) -> dict[str, Any]:
        """The record that was saved with a step."""
        return dict(self._checkpointer.metadata(step).custom_metadata)

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state saved at a step, with the shapes, dtypes and shardings of `like`.

        like: a state, or the same tree of `jax.ShapeDtypeStruct`s with shardings.
        """
        return dataclasses.replace(like, **self._checkpointer.load(step, _abstract(_filled(like))))

    def restore_ema(self, step: int, like: Any) -> Any:
        """The averaged parameters of a step alone, with the shapes, dtypes and shardings of `like`.

        Raises:
          ValueError: if `like` has other leaves.
        """
        saved = self._checkpointer.metadata(step).metadata["ema"]
        if other := sorted(_paths(saved) ^ _paths(like)):
            raise ValueError(f"like must have the parameters of step {step}, got a difference at {other[0]}")
        context = ocp.Context()
        context.pytree.loading.partial_load = True
        with context:
            return self._checkpointer.load(step, _abstract({"ema": like}))["ema"]

    def close(self) -> None:
        """Waits for what is being written."""
        self._checkpointer.close()


def save_export(directory: str | os.PathLike, params: Any, record: dict[str, Any]) -> None:
    """Writes parameters alone, with their record, for inference. The folder must not exist."""
    ocp.save(os.path.abspath(directory), {"params": params}, custom_metadata=record)


def load_export(directory: str | os.PathLike, like: Any) -> Any:
    """The parameters of an export, with the shapes, dtypes and shardings of `like`."""
    return ocp.load(os.path.abspath(directory), _abstract({"params": like}))["params"]


def export_record(directory: str | os.PathLike) -> dict[str, Any]:
    """The record of an export."""
    return dict(ocp.metadata(os.path.abspath(directory)).custom_metadata)


def _paths(tree: Any) -> set[str]:
    return {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


def _filled(state: TrainState) -> dict[str, Any]:
    """The fields that hold arrays: a field that is new and empty leaves old checkpoints as they are."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: value for name, value in fields.items() if jax.tree.leaves(value)}


def _abstract(tree: Any) -> Any:
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def leaf(v):
        sharding = getattr(v, "sharding", None) or here
        return jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=sharding)

    return jax.tree.map(leaf, tree)
