"""Training steps on many devices: `data_parallel` by pmap, `sharded` by jit with shardings; both have one interface.

    state = place(state, mesh, rule)                  on the devices, leaf shapes unchanged
    step = data_parallel(step, mesh)                  replicates the state (rule "replicate")
    step = sharded(step, mesh, rule)                  replicates it, or shards it (rule "fsdp")
    step = over_runs(step, mesh)                      K runs in one program: leaves (K, ...), spread over the devices
    state, metrics = step(state, batch)               batch: NumPy leaves (B, ...), the part of this process

With several processes (`jax.distributed`), each process calls the same functions with its own part of the batch. All
parts have the same size. The order is free, since each example has its position in the whole batch (`train_step`).
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
SMALL = 1024  # entries; smaller leaves are replicated, since sharding them saves less than their messages cost


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with one axis, `data`. devices: None for all devices of all processes."""
    return Mesh(np.asarray(jax.devices() if devices is None else devices), (AXIS,))


def _replicate(leaf: Leaf, count: int) -> PartitionSpec:
    return PartitionSpec()


def _fsdp(leaf: Leaf, count: int) -> PartitionSpec:
    """Split the largest axis whose size is a multiple of the number of devices."""
    fits = [axis for axis, size in enumerate(leaf.shape) if size % count == 0]
    if leaf.size < SMALL or not fits:
        return PartitionSpec()
    longest = max(fits, key=lambda axis: leaf.shape[axis])
    return PartitionSpec(*[AXIS if axis == longest else None for axis in range(leaf.ndim)])


RULES = {"replicate": _replicate, "fsdp": _fsdp}


def layout(tree: Tree, mesh: Mesh, rule: str = "replicate") -> Any:
    """The sharding of each leaf of a tree.

    Args:
      tree: a tree of arrays or of their shapes.
      mesh: of `make_mesh`.
      rule: "replicate" puts a copy of each leaf on each device. "fsdp" splits each leaf along its largest axis whose
        size is a multiple of the number of devices; leaves without such an axis, or with fewer than 1,024 entries, are
        replicated.

    Raises:
      ValueError: if the rule is unknown.

    Source: Rajbhandari et al. 2020 (ZeRO, stage 3); Zhao et al. 2023 (FSDP).

    >>> mesh = make_mesh(jax.devices()[:1])
    >>> list(layout({"w": jnp.ones((64, 32))}, mesh, "fsdp")["w"].spec)
    ['data', None]
    """
    spec = choose("rule", rule, RULES)
    return jax.tree.map(lambda leaf: NamedSharding(mesh, spec(leaf, mesh.size)), tree)


def place(tree: Tree, mesh: Mesh, rule: str = "replicate") -> Any:
    """A copy of the tree in the layout of a rule, leaf shapes unchanged. The steps below take and return this layout.

    All processes must pass the same tree.
    """
    return _copied(tree, layout(tree, mesh, rule))


def _copied(tree: Tree, layout: Tree) -> Any:
    """A copy of the tree with these shardings."""
    # Copy explicitly: the step donates its state, and donating an alias would delete the caller's arrays.
    # `device_put(..., may_alias=False)` does not copy typed keys.
    copy = jax.tree.map(lambda leaf: jax.random.clone(leaf) if _is_key(leaf) else jnp.copy(leaf), tree)
    return jax.tree.map(_put, copy, layout)


def _is_key(leaf: Leaf) -> Any:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _put(leaf: Leaf, sharding: NamedSharding) -> Any:
    """`device_put` of a leaf that is equal on all processes; the sharding may include devices of other processes.

    A typed key cannot be put on devices of other processes. For such a key the raw data is put and wrapped again.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    if _is_key(leaf):
        impl = jax.random.key_impl(leaf)
        data = _put(jax.random.key_data(leaf), sharding)
        return _wrap_keys(impl, sharding)(data)
    data = np.asarray(leaf)
    return jax.make_array_from_callback(data.shape, sharding, lambda index: data[index])


@functools.lru_cache
def _wrap_keys(impl: str, sharding: NamedSharding) -> Any:
    return jax.jit(lambda v: jax.random.wrap_key_data(v, impl=impl), out_shardings=sharding)


class ParallelStep:
    """`step(state, batch) -> (state, metrics)` on several devices; `lower(state, batch)` as for a jitted function.

    Attributes:
      layout: tree of arrays or shapes -> the sharding of each leaf of a state.
      batch_axis: the axis of the examples in a batch, 1 after an axis of runs.
    """

    def __init__(
        self,
        compiled: Callable[..., Any],
        arguments: Callable[..., Any],
        layout: Callable[[Tree], Any],
        result: Callable[..., Any] = lambda out: out,
        batch_axis: int = 0,
    ) -> None:
        self._compiled, self._arguments, self._result = compiled, arguments, result
        self.layout, self.batch_axis = layout, batch_axis

    def __call__(self, state: Tree, batch: Batch) -> tuple[Any, Any]:
        """One step. The state is donated."""
        result: tuple[Any, Any] = self._result(self._compiled(*self._arguments(state, batch)))
        return result

    def lower(self, state: Tree, batch: Batch) -> Any:
        """The lowered program, not compiled: for its cost analysis, or for `compile()` and its memory analysis."""
        return self._compiled.lower(*self._arguments(state, batch))  # type: ignore[attr-defined]

    def place(self, state: Tree) -> Any:
        """A copy of a state in the layout of this step."""
        return _copied(state, self.layout(state))


def data_parallel(step: Callable[..., Any], mesh: Mesh | None = None) -> ParallelStep:
    """`step(state, batch)` by `jax.pmap` over the devices, with an equal part of the batch on each.

    The state is not stacked: its leaves have the same shapes as on one device (`in_axes=(None, 0)`). Put the initial
    state on the devices with `place`; otherwise the step compiles twice. The state is donated.

    Args:
      step: (state, batch, *, axis_name) -> (state, metrics), from `train_step`.
      mesh: of `make_mesh`; None for all devices.

    Returns:
      (state, batch) -> (state, metrics). The batch leaves (B, ...) are the part of this process.

    Raises:
      ValueError: (from the returned function) if B is not a multiple of the number of devices of this process. pmap
        alone would use fewer devices or fail with an obscure message.
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
    count = _local_count(mesh)

    def split(batch: Batch) -> Any:
        _check_batch(batch, count)
        return jax.tree.map(lambda leaf: np.reshape(leaf, (count, -1, *leaf.shape[1:])), batch)

    replicated = functools.partial(layout, mesh=mesh)
    if count == mesh.size:
        return ParallelStep(mapped, lambda state, batch: (state, split(batch)), replicated)
    # With several processes, pmap takes and returns arrays on the devices of this process only.
    local = mesh.local_mesh
    return ParallelStep(
        mapped,
        lambda state, batch: (_on_mesh(local, state), split(batch)),
        replicated,
        functools.partial(_on_mesh, mesh),
    )


def _on_mesh(mesh: Mesh, tree: Tree) -> Any:
    """The replicated arrays of this process as replicated arrays on a mesh; the buffers are shared, not copied."""
    sharding = NamedSharding(mesh, PartitionSpec())

    def leaf(v: Leaf) -> Any:
        parts = [shard.data for shard in v.addressable_shards]
        return jax.make_array_from_single_device_arrays(v.shape, sharding, parts)

    return jax.tree.map(leaf, tree)


def sharded(step: Callable[..., Any], mesh: Mesh | None = None, rule: str = "replicate") -> ParallelStep:
    """`step(state, batch)` by `jax.jit` over the devices, with the state in the layout of a rule.

    The compiler inserts the communication. With "fsdp", parameters are gathered where they are used; gradients,
    optimiser state and EMA stay sharded. Put the initial state on the devices with `place` and the same rule. The state
    is donated.

    Args:
      step: (state, batch) -> (state, metrics), from `train_step`.
      mesh: of `make_mesh`; None for all devices.
      rule: "replicate" or "fsdp", see `layout`.

    Returns:
      (state, batch) -> (state, metrics), as `data_parallel`.

    Raises:
      ValueError: if the rule is unknown, and (from the returned function) as in `data_parallel`.
    """
    mesh = make_mesh() if mesh is None else mesh
    choose("rule", rule, RULES)
    batch_sharding, replicated = NamedSharding(mesh, PartitionSpec(AXIS)), NamedSharding(mesh, PartitionSpec())

    @functools.partial(jax.jit, donate_argnums=0)
    def sharded_step(state: Tree, batch: Batch) -> Any:
        state, metrics = step(state, batch)
        state = jax.lax.with_sharding_constraint(state, layout(state, mesh, rule))
        return state, jax.lax.with_sharding_constraint(metrics, replicated)

    count = _local_count(mesh)

    def put(batch: Batch) -> Any:
        _check_batch(batch, count)
        return jax.tree.map(
            lambda leaf: jax.make_array_from_process_local_data(batch_sharding, np.asarray(leaf)), batch
        )

    return ParallelStep(
        sharded_step, lambda state, batch: (state, put(batch)), functools.partial(layout, mesh=mesh, rule=rule)
    )


def over_runs(step: Callable[..., Any], mesh: Mesh | None = None) -> ParallelStep:
    """`step(state, batch)` of K runs in one program: each leaf of state, batch and metrics has a leading axis (K, ...).

    The runs are spread over the devices of this process, an equal part on each. What distinguishes the runs, such as a
    learning rate, is in `state.hyper`. The state is donated.

    Args:
      step: (state, batch) -> (state, metrics) of one run.
      mesh: of `make_mesh`, with devices of this process; None for all of them.

    Returns:
      (state, batch) -> (state, metrics).

    Raises:
      ValueError: (from the returned function) if K is not a multiple of the number of devices.
    """
    mesh = make_mesh(jax.local_devices()) if mesh is None else mesh
    runs = PartitionSpec(AXIS)
    mapped = jax.shard_map(jax.vmap(step), mesh=mesh, in_specs=(runs, runs), out_specs=(runs, runs), check_vma=False)
    sharding = NamedSharding(mesh, runs)

    def put(batch: Batch) -> Any:
        _check_batch(batch, mesh.size)
        return jax.device_put(batch, sharding)

    return ParallelStep(
        jax.jit(mapped, donate_argnums=0),
        lambda state, batch: (state, put(batch)),
        lambda tree: jax.tree.map(lambda leaf: sharding, tree),
        batch_axis=1,
    )


def gathered(tree: Tree, mesh: Mesh) -> Any:
    """The tree as NumPy arrays, on every process; the arrays may be spread over devices of other processes."""
    whole = jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))(tree)
    return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0)), whole)


def over_batch(f: Callable[..., Any], mesh: Mesh | None = None) -> Callable[..., Any]:
    """`f(params, *batch)` with the batch sharded over all devices.

    Args:
      f: a jitted function that computes each example independently of the others.
      mesh: of `make_mesh`; None for all devices.

    Returns:
      (params, *batch) -> NumPy arrays, on every process. params may have any layout. batch: trees of (B, ...) arrays or
      None, with any B, equal on all processes.
    """
    mesh = make_mesh() if mesh is None else mesh
    batch_sharding, replicated = NamedSharding(mesh, PartitionSpec(AXIS)), NamedSharding(mesh, PartitionSpec())
    gather = jax.jit(lambda tree: tree, out_shardings=replicated)
    replicate = functools.partial(jax.device_put, device=replicated) if replicated.is_fully_addressable else gather

    def run(params: Params, *batch: Batch) -> Any:
        size = len(jax.tree.leaves(batch)[0])
        indices = np.resize(np.arange(size), size + -size % mesh.size)  # pad to a multiple of the number of devices
        sharded_batch = jax.tree.map(lambda leaf: _put(leaf[indices], batch_sharding), batch)
        result = gather(f(replicate(params), *sharded_batch))
        return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0))[:size], result)

    return run


def _local_count(mesh: Mesh) -> Any:
    """The number of devices of this process in a mesh."""
    return sum(device.process_index == jax.process_index() for device in mesh.devices.flat)


def _check_batch(batch: Batch, count: int) -> None:
    for leaf in jax.tree.leaves(batch):
        if len(leaf) % count:
            raise ValueError(f"batch size must be a multiple of {count} devices, got {len(leaf)}")
