"""From one step to many devices: `data_parallel` by pmap, `sharded` by jit with shardings. One contract, one layout.

    state = place(state, mesh, rule)                  on the devices, leaf shapes unchanged
    step = data_parallel(step, mesh)                  a copy of the state on each device (rule "replicate")
    step = sharded(step, mesh, rule)                  or a part of it: rule "fsdp"
    state, metrics = step(state, batch)               batch: (B, ...) leaves, NumPy, this process's share

Over several processes (`jax.distributed`) each calls the same functions, with its own share of the batch: an equal
part of it, in any order, since each example carries its place in the whole batch (`train_step`).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffax._checks import choose
from diffax.typing import Batch, Leaf, Params, Tree

AXIS = "data"
SMALL = 1024  # entries: what is smaller is not worth a message between devices


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """All devices, of all processes, in one axis `data`; or those given."""
    return Mesh(np.asarray(jax.devices() if devices is None else devices), (AXIS,))


def _replicate(leaf: Leaf, count: int) -> PartitionSpec:
    return PartitionSpec()


def _fsdp(leaf: Leaf, count: int) -> PartitionSpec:
    """Split along the largest axis that divides by the number of devices."""
    fits = [axis for axis, size in enumerate(leaf.shape) if size % count == 0]
    if leaf.size < SMALL or not fits:
        return PartitionSpec()
    longest = max(fits, key=lambda axis: leaf.shape[axis])
    return PartitionSpec(*[AXIS if axis == longest else None for axis in range(leaf.ndim)])


RULES = {"replicate": _replicate, "fsdp": _fsdp}


def layout(tree: Tree, mesh: Mesh, rule: str = "replicate") -> Any:
    """The sharding of each leaf: "replicate", a copy on each device; "fsdp", split along its largest axis that divides.

    Leaves under 1,024 entries are copied by either rule.

    Source: Rajbhandari et al. 2020 (ZeRO, stage 3); Zhao et al. 2023 (FSDP).

    Raises:
      ValueError: for another rule.

    >>> mesh = make_mesh(jax.devices()[:1])
    >>> list(layout({"w": jnp.ones((64, 32))}, mesh, "fsdp")["w"].spec)
    ['data', None]
    """
    of_leaf = choose("rule", rule, RULES)
    return jax.tree.map(lambda leaf: NamedSharding(mesh, of_leaf(leaf, mesh.size)), tree)


def place(tree: Tree, mesh: Mesh, rule: str = "replicate") -> Any:
    """A copy of the tree in that layout, leaf shapes unchanged: what the steps below take and give.

    All processes give the same tree.
    """
    # Never an alias: the step donates its state, which must not delete the arrays that the caller holds.
    # (`device_put(..., may_alias=False)` says so too, but not for typed keys.)
    copy = jax.tree.map(lambda leaf: jax.random.clone(leaf) if _is_key(leaf) else jnp.copy(leaf), tree)
    return jax.tree.map(_put, copy, layout(tree, mesh, rule))


def _is_key(leaf: Leaf) -> Any:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _put(leaf: Leaf, sharding: NamedSharding) -> Any:
    """`device_put` of what all processes hold alike, also onto devices of others; those take no typed keys."""
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    if _is_key(leaf):
        impl = jax.random.key_impl(leaf)
        data = _put(jax.random.key_data(leaf), sharding)
        return _wrap(impl, sharding)(data)
    data = np.asarray(leaf)
    return jax.make_array_from_callback(data.shape, sharding, lambda index: data[index])


@functools.lru_cache
def _wrap(impl: str, sharding: NamedSharding) -> Any:
    return jax.jit(lambda v: jax.random.wrap_key_data(v, impl=impl), out_shardings=sharding)


class ParallelStep:
    """`step(state, batch) -> (state, metrics)` over devices; `lower(state, batch)` as of a jitted function."""

    def __init__(
        self, compiled: Callable[..., Any], arguments: Callable[..., Any], result: Callable[..., Any] = lambda out: out
    ) -> None:
        self._compiled, self._arguments, self._result = compiled, arguments, result

    def __call__(self, state: Tree, batch: Batch) -> tuple[Any, Any]:
        """One step. The state is donated."""
        result: tuple[Any, Any] = self._result(self._compiled(*self._arguments(state, batch)))
        return result

    def lower(self, state: Tree, batch: Batch) -> Any:
        """The program, traced and not compiled: its cost, or `compile()` and its memory."""
        return self._compiled.lower(*self._arguments(state, batch))  # type: ignore[attr-defined]


def data_parallel(step: Callable[..., Any], mesh: Mesh | None = None) -> ParallelStep:
    """`step(state, batch)` by `jax.pmap` over the devices, each taking an equal part of the batch.

    The state is not stacked: its leaves have the same shapes as on one device (`in_axes=(None, 0)`). Put the
    first state on the devices with `place`, or the step compiles twice. The state is donated.

    Args:
      step: (state, batch, *, axis_name) -> (state, metrics), from `train_step`.
      mesh: of `make_mesh`; None for all devices.

    Returns:
      (state, batch) -> (state, metrics), with batch leaves (B, ...), those of this process.

    Raises:
      ValueError: (from the returned function) if B is no multiple of the number of devices: pmap itself would
        run on fewer devices, or fail obscurely.
    """
    mesh = make_mesh() if mesh is None else mesh
    mapped = jax.pmap(
        functools.partial(step, axis_name=AXIS),
        axis_name=AXIS,
        devices=list(mesh.devices.flat),
        in_axes=(None, 0),
        out_axes=None,
        donate_argnums=0,
    )
    count = _local(mesh)

    def split(batch: Batch) -> Any:
        _check_batch(batch, count)
        return jax.tree.map(lambda leaf: np.reshape(leaf, (count, -1, *leaf.shape[1:])), batch)

    if count == mesh.size:
        return ParallelStep(mapped, lambda state, batch: (state, split(batch)))
    # Over several processes pmap's arrays are those of this one's devices alone.
    local = mesh.local_mesh
    return ParallelStep(
        mapped, lambda state, batch: (_over(local, state), split(batch)), functools.partial(_over, mesh)
    )


def _over(mesh: Mesh, tree: Tree) -> Any:
    """The same buffers, a copy on each device of this process, as an array over all of a mesh."""
    sharding = NamedSharding(mesh, PartitionSpec())

    def leaf(v: Leaf) -> Any:
        parts = [shard.data for shard in v.addressable_shards]
        return jax.make_array_from_single_device_arrays(v.shape, sharding, parts)

    return jax.tree.map(leaf, tree)


def sharded(step: Callable[..., Any], mesh: Mesh | None = None, rule: str = "replicate") -> ParallelStep:
    """`step(state, batch)` by `jax.jit` over the devices, the state in the layout of a rule. Same contract.

    The compiler puts in what has to be sent: with "fsdp" parameters are gathered where they are used, and gradients,
    optimiser and EMA live in parts. Put the first state on the devices with `place`, by the same rule.

    Args:
      step: (state, batch) -> (state, metrics), from `train_step`.
      mesh: of `make_mesh`; None for all devices.
      rule: "replicate" or "fsdp", see `layout`.

    Raises:
      ValueError: for another rule, and (from the returned function) as `data_parallel`.
    """
    mesh = make_mesh() if mesh is None else mesh
    choose("rule", rule, RULES)
    of_batch, everywhere = NamedSharding(mesh, PartitionSpec(AXIS)), NamedSharding(mesh, PartitionSpec())

    @functools.partial(jax.jit, donate_argnums=0)
    def one(state: Tree, batch: Batch) -> Any:
        state, metrics = step(state, batch)
        state = jax.lax.with_sharding_constraint(state, layout(state, mesh, rule))
        return state, jax.lax.with_sharding_constraint(metrics, everywhere)

    count = _local(mesh)

    def put(batch: Batch) -> Any:
        _check_batch(batch, count)
        return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(of_batch, np.asarray(leaf)), batch)

    return ParallelStep(one, lambda state, batch: (state, put(batch)))


def over_batch(f: Callable[..., Any], mesh: Mesh | None = None) -> Callable[..., Any]:
    """`f(params, *batch)` of a jitted f that treats each example by itself, the batch spread over all devices.

    Returns:
      (params, *batch) -> NumPy arrays, on every process. batch: trees of (B, ...) arrays or None, any B, the same on
      all processes; params: in any layout.
    """
    mesh = make_mesh() if mesh is None else mesh
    of_batch, everywhere = NamedSharding(mesh, PartitionSpec(AXIS)), NamedSharding(mesh, PartitionSpec())
    gather = jax.jit(lambda tree: tree, out_shardings=everywhere)
    copied = functools.partial(jax.device_put, device=everywhere) if everywhere.is_fully_addressable else gather

    def run(params: Params, *batch: Batch) -> Any:
        size = len(jax.tree.leaves(batch)[0])
        filled = np.resize(np.arange(size), size + -size % mesh.size)  # up to a multiple of the devices
        spread = jax.tree.map(lambda leaf: _put(leaf[filled], of_batch), batch)
        found = gather(f(copied(params), *spread))
        return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0))[:size], found)

    return run


def _local(mesh: Mesh) -> Any:
    return sum(device.process_index == jax.process_index() for device in mesh.devices.flat)


def _check_batch(batch: Batch, count: int) -> None:
    for leaf in jax.tree.leaves(batch):
        if len(leaf) % count:
            raise ValueError(f"batch size must be a multiple of {count} devices, got {len(leaf)}")
