"""One training step, the same on one device, under pmap and under jit with shardings."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from diffax.training.state import TrainState

Loss = Callable[..., Any]  # (params, batch, keys (B,)) -> (B,); with a memory see `train_step`


def train_step(
    loss: Loss, optimizer: optax.GradientTransformation, *, ema_decay: float, remember: Callable | None = None
) -> Callable:
    """Builds `step(state, batch, *, axis_name=None) -> (state, metrics)`.

    Args:
      loss: (params, batch, keys) -> the loss of each example, (B,); keys: (B,), one for each example.
      optimizer: an optax transformation.
      ema_decay: in [0, 1); the average warms up as min(ema_decay, (1 + n) / (10 + n)) after n steps.
      remember: (memory, seen) -> memory, for a loss that follows earlier ones: then it is
        (params, batch, keys, memory) -> ((B,), seen), where seen is any tree of (B, ...) arrays. `remember` gets
        the whole batch's, so that the memory does not depend on the layout.

    A batch is a dict of (B, ...) arrays, one of which is `index`: the place of each example in the whole batch.
    The key of an example is fold_in(fold_in(state.key, step), index), so its noise, time and dropout do not
    depend on how the batch is laid out over devices. With `axis_name` losses and gradients are averaged over it.

    Metrics: `loss`, and `grad_norm` before clipping; both ().

    Raises:
      ValueError: if ema_decay lies outside [0, 1).
    """
    if not 0 <= ema_decay < 1:
        raise ValueError(f"ema_decay must be in [0, 1), got {ema_decay}")

    def mean_loss(params, batch, keys, memory):
        losses, seen = (loss(params, batch, keys), ()) if remember is None else loss(params, batch, keys, memory)
        return jnp.mean(losses), seen

    def step(state: TrainState, batch: Any, *, axis_name: str | None = None) -> tuple[TrainState, Any]:
        step_key = jax.random.fold_in(state.key, state.step)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(step_key, batch["index"])
        of_params = jax.value_and_grad(mean_loss, has_aux=True)
        (value, seen), grads = of_params(state.params, batch, keys, state.memory)
        if axis_name is not None:
            value, grads = jax.lax.pmean((value, grads), axis_name)
            seen = jax.lax.all_gather(seen, axis_name, tiled=True)
        memory = state.memory if remember is None else remember(state.memory, seen)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
        ema = jax.tree.map(lambda e, p: e + ((1 - decay) * (p - e)).astype(e.dtype), state.ema, params)
        metrics = {"loss": value, "grad_norm": optax.tree.norm(grads)}
        new = {"step": state.step + 1, "params": params, "ema": ema, "opt_state": opt_state, "memory": memory}
        return dataclasses.replace(state, **new), metrics

    return step
