"""One training step, with the same result on one device, under pmap and under jit with shardings."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from diffax import random
from diffax._checks import check, check_count, interval
from diffax.training.state import TrainState
from diffax.typing import Batch, Keys, Leaf, Params, Scalar, Tree

Loss = Callable[..., Any]  # (params, batch, keys (B,)) -> (B,); for a loss with a memory see `train_step`


def train_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: Scalar,
    update_memory: Callable[..., Any] | None = None,
    uses: Sequence[str] = (),
    accumulate: int = 1,
) -> Callable[..., Any]:
    """Build `step(state, batch, *, axis_name=None) -> (state, metrics)`.

    Args:
      loss: (params, batch, keys) -> (B,) losses of the examples; keys: (B,), one for each example. With
        `update_memory`: (params, batch, keys, memory) -> ((B,) losses, aux), where aux is any tree of (B, ...) arrays.
      optimizer: an optax transformation.
      ema_decay: in [0, 1), may be traced; the decay warms up as min(ema_decay, (1 + n) / (10 + n)) after n steps.
      update_memory: (memory, aux) -> memory, the update of `state.memory` for a loss that depends on earlier steps. It
        gets `aux` of the whole batch, so that the memory does not depend on the layout. None: a loss without a memory.
      uses: fields of the state that `loss` and `update_memory` get as keyword arguments, as they are before the step:
        "ema" for a target network, "step" for a schedule.
      accumulate: number of parts of the batch to process one after another, to save memory; their gradients are
        averaged. It must divide the number of examples of each device.

    A batch is a dict of (B, ...) arrays that includes `index`, the position of each example in the whole batch. The key
    of an example is fold_in(fold_in(state.key, step), index), so its noise, time and dropout do not depend on the
    layout of the batch over devices. With `axis_name`, losses and gradients are averaged over that axis.

    If the loss or the gradient is not finite, only `step` changes: parameters, EMA, optimiser state and memory stay.

    Metrics, all (): `loss`; `grad_norm`, before clipping; and `finite`, whether the update was applied.

    Raises:
      ValueError: if ema_decay is outside [0, 1), accumulate is not an int >= 1, or (from the step) accumulate does not
        divide the number of examples of a device.
    """
    check("ema_decay", ema_decay, interval("[0, 1)"))
    check_count("accumulate", accumulate)

    def mean_loss(params: Params, batch: Batch, keys: Keys, given: tuple[Tree, dict[str, Any]]) -> Any:
        memory, used = given
        if update_memory is None:
            return jnp.mean(loss(params, batch, keys, **used)), ()
        losses, aux = loss(params, batch, keys, memory, **used)
        return jnp.mean(losses), aux

    gradient = in_parts(jax.value_and_grad(mean_loss, has_aux=True), accumulate)

    def step(state: TrainState, batch: Batch, *, axis_name: str | None = None) -> tuple[TrainState, Any]:
        keys = random.keys_at(random.fold_in(state.key, state.step), batch["index"])
        used = {name: getattr(state, name) for name in uses}
        (value, aux), grads = gradient(state.params, batch, keys, (state.memory, used))
        if axis_name is not None:
            value, grads = jax.lax.pmean((value, grads), axis_name)
            aux = jax.lax.all_gather(aux, axis_name, tiled=True)
        new = _update(optimizer, ema_decay, state, grads)
        new["memory"] = state.memory if update_memory is None else update_memory(state.memory, aux, **used)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        # Select on the device, so that the host does not have to synchronise.
        new = jax.tree.map(lambda v, old: jnp.where(finite, v, old), new, {name: getattr(state, name) for name in new})
        metrics = {"loss": value, "grad_norm": norm, "finite": finite}
        return dataclasses.replace(state, step=state.step + 1, **new), metrics

    return step


def _update(
    optimizer: optax.GradientTransformation, ema_decay: Scalar, state: TrainState, grads: Params
) -> dict[str, Any]:
    """The parameters, their moving average and the optimiser state after one update."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
    ema = jax.tree.map(lambda e, p: e + ((1 - decay) * (p - e)).astype(e.dtype), state.ema, params)
    return {"params": params, "ema": ema, "opt_state": opt_state}


def in_parts(gradient: Callable[..., Any], count: int) -> Callable[..., Any]:
    """`gradient(params, batch, keys, given) -> ((mean, aux), grads)`, averaged over `count` parts of the batch.

    The parts are processed one after another. Example i is in part i mod count, so that each part of a batch that is
    sharded over devices stays sharded, and no example moves to another device.
    """
    if count == 1:
        return gradient

    def split(leaf: Leaf) -> Any:
        if len(leaf) % count:
            raise ValueError(f"accumulate must divide the {len(leaf)} examples of a device, got {count}")
        return jnp.swapaxes(leaf.reshape(len(leaf) // count, count, *leaf.shape[1:]), 0, 1)

    def join(leaf: Leaf) -> Any:
        return jnp.swapaxes(leaf, 0, 1).reshape(-1, *leaf.shape[2:])

    def averaged(params: Params, batch: Batch, keys: Keys, given: Tree) -> Any:
        def add(total: Tree, part: Tree) -> Any:
            (value, aux), grads = gradient(params, *part, given)
            return jax.tree.map(jnp.add, total, (value, grads)), aux

        parts = jax.tree.map(split, (batch, keys))
        (value_shape, _), grad_shapes = jax.eval_shape(gradient, params, *jax.tree.map(lambda v: v[0], parts), given)
        zeros = jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), (value_shape, grad_shapes))
        total, aux = jax.lax.scan(add, zeros, parts)
        value, grads = jax.tree.map(lambda v: v / count, total)
        return (value, jax.tree.map(join, aux)), grads

    return averaged
