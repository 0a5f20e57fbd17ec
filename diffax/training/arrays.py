"""Helpers of checkpoints: describe, compare and load the arrays of a tree."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from diffax.training.state import TrainState
from diffax.typing import Leaf, Tree


def filled(state: TrainState) -> dict[str, Any]:
    """The fields of the state that contain arrays. Without empty fields, a new field keeps old checkpoints valid."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: value for name, value in fields.items() if jax.tree.leaves(value)}


def describe(tree: Tree) -> dict[str, str]:
    """{path: "dtype[shape]"} of the arrays of a tree. A key array has its key type as dtype.

    >>> describe({"w": jax.numpy.ones((2, 3)), "key": jax.random.key(0)})
    {"['key']": 'key<fry>[]', "['w']": 'float32[2,3]'}
    """

    def leaf(v: Leaf) -> Any:
        return f"{v.dtype}[{','.join(map(str, v.shape))}]"

    return {jax.tree_util.keystr(path): leaf(v) for path, v in jax.tree_util.tree_leaves_with_path(tree)}


def by_itself(partial: bool = False) -> ocp.Context:
    """An Orbax context in which only this process loads, without a barrier that the other processes must reach.

    partial: whether to load only some of the leaves.
    """
    context, process = ocp.Context(), jax.process_index()
    context.pytree.loading.partial_load = partial
    context.multiprocessing.active_processes = {process}
    context.multiprocessing.primary_host = process
    context.multiprocessing.barrier_sync_key_prefix = f"process_{process}"
    return context


def check_arrays(folder: Path, saved: dict[str, str], expected: dict[str, str]) -> None:
    """Raise `ValueError` if the results of `describe` for two trees differ; the message shows the first difference."""
    for path in sorted(saved.keys() | expected.keys()):
        if saved.get(path) != expected.get(path):
            condition, actual = (v.get(path, "nothing") for v in (expected, saved))
            raise ValueError(f"checkpoint {folder} must hold {path} = {condition}, got {actual}")


def abstract(tree: Tree) -> Any:
    """The shapes, dtypes and shardings of a tree. A leaf without a sharding gets the first local device."""
    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def leaf(v: Leaf) -> Any:
        sharding = getattr(v, "sharding", None) or default
        return jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=sharding)

    return jax.tree.map(leaf, tree)
