"""The arrays of a tree, as checkpoints and exports name, compare and load them."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from diffax.training.state import TrainState
from diffax.typing import Leaf, Tree


def filled(state: TrainState) -> dict[str, Any]:
    """The fields that hold arrays: a field that is new and empty leaves old checkpoints as they are."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: value for name, value in fields.items() if jax.tree.leaves(value)}


def describe(tree: Tree) -> dict[str, str]:
    """{path: "dtype[shape]"} of the arrays of a tree; of keys their type.

    >>> describe({"w": jax.numpy.ones((2, 3)), "key": jax.random.key(0)})
    {"['key']": 'key<fry>[]', "['w']": 'float32[2,3]'}
    """

    def leaf(v: Leaf) -> Any:
        return f"{v.dtype}[{','.join(map(str, v.shape))}]"

    return {jax.tree_util.keystr(path): leaf(v) for path, v in jax.tree_util.tree_leaves_with_path(tree)}


def by_itself(partial: bool = False) -> ocp.Context:
    """A context in which this process loads alone: the others may be elsewhere. partial: some of the leaves."""
    context, here = ocp.Context(), jax.process_index()
    context.pytree.loading.partial_load = partial
    context.multiprocessing.active_processes = {here}
    context.multiprocessing.primary_host = here
    context.multiprocessing.barrier_sync_key_prefix = f"process_{here}"
    return context


def check_arrays(folder: Path, saved: dict[str, str], wanted: dict[str, str]) -> None:
    """Raises `ValueError` at the first difference of what `describe` says of two trees."""
    for path in sorted(saved.keys() | wanted.keys()):
        if saved.get(path) != wanted.get(path):
            there, asked = saved.get(path, "nothing"), wanted.get(path, "nothing")
            raise ValueError(f"checkpoint {folder} must hold {path} = {asked}, got {there}")


def abstract(tree: Tree) -> Any:
    """The shapes, dtypes and shardings of a tree; what has no sharding goes to the first local device."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def leaf(v: Leaf) -> Any:
        sharding = getattr(v, "sharding", None) or here
        return jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=sharding)

    return jax.tree.map(leaf, tree)
