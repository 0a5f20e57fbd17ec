"""From one step to many devices."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "data"


def replicate(tree: Any, devices: Sequence[Any] | None = None) -> Any:
    """A copy of the tree on each device, leaf shapes unchanged: the layout that `data_parallel` takes and gives."""

    # Never an alias: the step donates its state, which must not delete the arrays that the caller holds.
    # (`device_put(..., may_alias=False)` says so too, but not for typed keys.)
    def copy(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.clone(leaf) if is_key else jnp.copy(leaf)

    mesh = Mesh(np.asarray(devices or jax.local_devices()), (AXIS,))
    return jax.device_put(jax.tree.map(copy, tree), NamedSharding(mesh, PartitionSpec()))


def data_parallel(step: Callable, devices: Sequence[Any] | None = None) -> Callable:
    """`step(state, batch)` by `jax.pmap` over the local devices, each taking an equal part of the batch.

    The state is not stacked: its leaves have the same shapes as on one device (`in_axes=(None, 0)`). Put the
    first state on the devices with `replicate`, or the step compiles twice. The state is donated.

    Args:
      step: (state, batch, *, axis_name) -> (state, metrics), from `train_step`.
      devices: the local devices to use; None for all.

    Returns:
      (state, batch) -> (state, metrics), with batch leaves (B, ...).

    Raises:
      ValueError: (from the returned function) if B is no multiple of the number of devices: pmap itself would
        run on fewer devices, or fail obscurely.
    """
    devices = list(devices or jax.local_devices())
    mapped = jax.pmap(
        functools.partial(step, axis_name=AXIS),
        axis_name=AXIS,
        devices=devices,
        in_axes=(None, 0),
        out_axes=None,
        donate_argnums=0,
    )

    def split(leaf):
        if leaf.shape[0] % len(devices):
            raise ValueError(f"batch size must be a multiple of {len(devices)} devices, got {leaf.shape[0]}")
        return np.reshape(leaf, (len(devices), -1, *leaf.shape[1:]))

    return lambda state, batch: mapped(state, jax.tree.map(split, batch))
