"""One program for several runs: f(shared, *own) over a leading axis of runs, spread over the devices."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "runs"


def several(f: Callable[..., Any]) -> Callable[..., Any]:
    """(shared, *own) -> f(shared, *own) of each run, compiled; K is a multiple of the local devices, see `filled`."""

    def mapped(shared: Any, *own: Any) -> Any:
        return jax.vmap(lambda *args: f(shared, *args))(*own)

    def call(shared: Any, *own: Any) -> Any:
        if jax.local_device_count() == 1:
            return mapped(shared, *own)
        each = PartitionSpec(AXIS)
        specs = (PartitionSpec(), *[each] * len(own))
        return jax.shard_map(mapped, mesh=_mesh(), in_specs=specs, out_specs=each, check_vma=False)(shared, *own)

    return jax.jit(call)


def filled(items: Sequence[Any]) -> list[Any]:
    """The items, the last one repeated up to a multiple of the devices; its further results are dropped."""
    return [*items, *[items[-1]] * (-len(items) % jax.local_device_count())]


def stacked(trees: Sequence[Any]) -> Any:
    """Trees of arrays (...) as one tree of arrays (K, ...), spread over the devices as `several` takes it."""

    def leaf(*leaves: Any) -> Any:
        return (np if isinstance(leaves[0], np.ndarray) else jnp).stack(leaves)

    return jax.device_put(jax.tree.map(leaf, *trees), NamedSharding(_mesh(), PartitionSpec(AXIS)))


def row(tree: Any, index: int) -> Any:
    """The part of one run, on its device.

    Indexing an array that is spread over devices would be a collective operation for each leaf; many at a time can
    block each other where simulated devices share a few threads.
    """

    def leaf(v: Any) -> Any:
        if not isinstance(v, jax.Array):
            return v[index]
        for shard in v.addressable_shards:
            first, last, _ = shard.index[0].indices(len(v))
            if first <= index < last:
                return shard.data[index - first]
        raise IndexError(f"index must be below {len(v)}, got {index}")

    return jax.tree.map(leaf, tree)


def _mesh() -> Mesh:
    return Mesh(np.array(jax.local_devices()), (AXIS,))
