"""From one step to many devices."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "data"


def replicate(tree: Any, devices: Sequence[Any] | None = None) -> Any:
    """The tree with a copy on each device, leaf shapes unchanged: the layout that `data_parallel` takes and gives."""
    mesh = Mesh(np.asarray(devices or jax.local_devices()), (AXIS,))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


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
        return np.reshape(leaf, (len(devices), -1) + leaf.shape[1:])

    return lambda state, batch: mapped(state, jax.tree.map(split, batch))
