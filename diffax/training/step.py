"""One training step, the same on one device, under pmap and under jit with shardings."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from diffax import random
from diffax._checks import check, check_count, interval
from diffax.training.state import TrainState
from diffax.typing import Batch, Keys, Leaf, Params, Scalar, Tree

Loss = Callable[..., Any]  # (params, batch, keys (B,)) -> (B,); with a memory see `train_step`


def train_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: Scalar,
    remember: Callable[..., Any] | None = None,
    accumulate: int = 1,
) -> Callable[..., Any]:
    """Builds `step(state, batch, *, axis_name=None) -> (state, metrics)`.

    Args:
      loss: (params, batch, keys) -> the loss of each example, (B,); keys: (B,), one for each example.
      optimizer: an optax transformation.
      ema_decay: in [0, 1), may be traced; the average warms up as min(ema_decay, (1 + n) / (10 + n)) after n steps.
      remember: (memory, seen) -> memory, for a loss that follows earlier ones: then it is
        (params, batch, keys, memory) -> ((B,), seen), where seen is any tree of (B, ...) arrays. `remember` gets
        the whole batch's, so that the memory does not depend on the layout.
      accumulate: how many parts of the batch the gradient is summed over, one after another, to save memory. The
        batch of each device must be a multiple of it.

    A batch is a dict of (B, ...) arrays, one of which is `index`: the place of each example in the whole batch.
    The key of an example is fold_in(fold_in(state.key, step), index), so its noise, time and dropout do not
    depend on how the batch is laid out over devices. With `axis_name` losses and gradients are averaged over it.

    Where the loss or the gradient is not finite, nothing but `step` moves: parameters, EMA, optimiser and memory stay.

    Metrics, all (): `loss`, `grad_norm` before clipping, and `finite`, whether the step was taken.

    Raises:
      ValueError: if ema_decay lies outside [0, 1), accumulate is no int >= 1, or (from the step) the batch is no
        multiple of it.
    """
    check("ema_decay", ema_decay, interval("[0, 1)"))
    check_count("accumulate", accumulate)

    def mean_loss(params: Params, batch: Batch, keys: Keys, memory: Tree) -> Any:
        losses, seen = (loss(params, batch, keys), ()) if remember is None else loss(params, batch, keys, memory)
        return jnp.mean(losses), seen

    gradient = in_parts(jax.value_and_grad(mean_loss, has_aux=True), accumulate)

    def step(state: TrainState, batch: Batch, *, axis_name: str | None = None) -> tuple[TrainState, Any]:
        keys = random.keys_at(random.fold_in(state.key, state.step), batch["index"])
        (value, seen), grads = gradient(state.params, batch, keys, state.memory)
        if axis_name is not None:
            value, grads = jax.lax.pmean((value, grads), axis_name)
            seen = jax.lax.all_gather(seen, axis_name, tiled=True)
        new = _moved(optimizer, ema_decay, state, grads)
        new["memory"] = state.memory if remember is None else remember(state.memory, seen)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        # A choice on the device: nobody waits for the host to decide.
        new = jax.tree.map(lambda v, old: jnp.where(finite, v, old), new, {name: getattr(state, name) for name in new})
        metrics = {"loss": value, "grad_norm": norm, "finite": finite}
        return dataclasses.replace(state, step=state.step + 1, **new), metrics

    return step


def _moved(
    optimizer: optax.GradientTransformation, ema_decay: Scalar, state: TrainState, grads: Params
) -> dict[str, Any]:
    """The parameters, their average and the optimiser's state after a step along the gradient."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
    ema = jax.tree.map(lambda e, p: e + ((1 - decay) * (p - e)).astype(e.dtype), state.ema, params)
    return {"params": params, "ema": ema, "opt_state": opt_state}


def in_parts(gradient: Callable[..., Any], count: int) -> Callable[..., Any]:
    """`gradient(params, batch, keys, memory) -> ((mean, seen), grads)` over `count` parts of the batch in turn.

    Example i goes into part i mod count, so that a batch that is spread over devices stays where it is.
    """
    if count == 1:
        return gradient

    def part(leaf: Leaf) -> Any:
        if len(leaf) % count:
            raise ValueError(f"accumulate must divide the {len(leaf)} examples of a device, got {count}")
        return jnp.swapaxes(leaf.reshape(len(leaf) // count, count, *leaf.shape[1:]), 0, 1)

    def whole(leaf: Leaf) -> Any:
        return jnp.swapaxes(leaf, 0, 1).reshape(-1, *leaf.shape[2:])

    def summed(params: Params, batch: Batch, keys: Keys, memory: Tree) -> Any:
        def one(total: Tree, parts: Tree) -> Any:
            (value, seen), grads = gradient(params, *parts, memory)
            return jax.tree.map(jnp.add, total, (value, grads)), seen

        parts = jax.tree.map(part, (batch, keys))
        (shape, _), of_grads = jax.eval_shape(gradient, params, *jax.tree.map(lambda v: v[0], parts), memory)
        zeros = jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), (shape, of_grads))
        total, seen = jax.lax.scan(one, zeros, parts)
        value, grads = jax.tree.map(lambda v: v / count, total)
        return (value, jax.tree.map(whole, seen)), grads

    return summed
