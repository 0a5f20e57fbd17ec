"""The training state and its initialisation."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from diffax._pytrees import pytree
from diffax.typing import Key, Params, Tree


@pytree
class TrainState:
    """The state of training between two steps, with the same leaf shapes on one device and on many.

    Attributes:
      step: () int32, number of steps so far.
      params: parameters of the network.
      ema: moving average of the parameters.
      opt_state: state of the optimiser.
      key: () the only source of randomness of the run. It never changes: each step folds its number into it.
      memory: state of the loss, see `train_step`; () for a loss without one.
      hyper: numbers that the step is computed with and that stay as they are, such as the learning rates of the runs of
        `over_runs`; () for none.
    """

    step: Any
    params: Any
    ema: Any
    opt_state: Any
    key: Any
    memory: Any = ()
    hyper: Any = ()


def init_state(
    key: Key, params: Params, optimizer: optax.GradientTransformation, memory: Tree = (), hyper: Tree = ()
) -> TrainState:
    """The state before the first step. Consumes the key."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params),  # a copy, since a buffer must not be donated twice
        opt_state=optimizer.init(params),
        key=key,
        memory=memory,
        hyper=hyper,
    )
