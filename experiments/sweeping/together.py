"""Several runs in one program: f(shared, *own) of one run, for K of them, each with its own.

    loop    one after another, by a program of one run that is compiled once
    vmap    all at once, by one batched program
    map     one after another inside one program (`jax.lax.map`)

`vmap` and `map` spread the runs over the devices, each an equal part of them. On a CPU a network's convolutions take
longer batched over parameters, and inside a loop of XLA longer still, so `loop` is what is fastest there.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "runs"
WAYS: dict[str, Callable[[Callable], Callable]] = {
    "vmap": lambda f: lambda shared, *own: jax.vmap(lambda *args: f(shared, *args))(*own),
    "map": lambda f: lambda shared, *own: jax.lax.map(lambda args: f(shared, *args), own),
}
NAMES = ("loop", *WAYS)


def several(f: Callable, way: str, *, donate: bool = False) -> Callable:
    """(shared, *own) -> f(shared, *own) over a leading axis (K, ...) of what is each run's own, compiled.

    The runs are spread over the local devices: K is a multiple of their number, see `filled`. donate: the buffers of
    the first tree that is each run's own.
    """
    inner = WAYS[way](f)

    def call(shared, *own):
        if jax.local_device_count() == 1:
            return inner(shared, *own)
        each = PartitionSpec(AXIS)
        specs = (PartitionSpec(), *[each] * len(own))
        return jax.shard_map(inner, mesh=_mesh(), in_specs=specs, out_specs=each, check_vma=False)(shared, *own)

    return jax.jit(call, donate_argnums=1 if donate else ())


def filled(items: list[Any]) -> list[Any]:
    """The items, the last of them repeated up to a multiple of the devices; what it gives again is dropped."""
    return items + items[-1:] * (-len(items) % jax.local_device_count())


def stacked(trees: list[Any]) -> Any:
    """Trees of arrays (...) as one of (K, ...), spread over the devices as `several` takes it."""

    def leaf(*leaves):
        return (np if isinstance(leaves[0], np.ndarray) else jnp).stack(leaves)

    return jax.device_put(jax.tree.map(leaf, *trees), NamedSharding(_mesh(), PartitionSpec(AXIS)))


def packed(trees: list[Any], way: str) -> Any:
    """What a program of this way takes for these runs: of a loop there is one."""
    return trees[0] if way == "loop" else stacked(filled(trees))


def part(tree: Any, way: str, place: int) -> Any:
    """One run's part of what such a program gives, on the device that has it.

    To index an array that is spread over devices is a collective for each leaf; many of them under way at once can
    wait for each other for ever where simulated devices share a few threads.
    """
    return tree if way == "loop" else jax.tree.map(lambda leaf: _row(leaf, place), tree)


def _row(leaf: Any, place: int) -> Any:
    if not isinstance(leaf, jax.Array):
        return leaf[place]
    for shard in leaf.addressable_shards:
        first, last, _ = shard.index[0].indices(len(leaf))
        if first <= place < last:
            return shard.data[place - first]
    raise IndexError(f"place must be below {len(leaf)}, got {place}")


def _mesh() -> Mesh:
    return Mesh(np.array(jax.local_devices()), (AXIS,))
