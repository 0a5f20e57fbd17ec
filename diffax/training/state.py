"""What a training run carries from step to step."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from diffax._pytrees import pytree
from diffax.typing import Key, Params, Tree


@pytree
class TrainState:
    """Everything that the next step needs. The same layout on one device and on many.

    step: () int32, steps taken; params: the network's; ema: their moving average; opt_state: the optimiser's;
    key: () the run's one source of randomness, never changed: a step folds its number into it;
    memory: what the loss remembers of earlier steps, () if nothing.
    """

    step: Any
    params: Any
    ema: Any
    opt_state: Any
    key: Any
    memory: Any = ()


def init_state(key: Key, params: Params, optimizer: optax.GradientTransformation, memory: Tree = ()) -> TrainState:
    """The state before the first step. The key is consumed."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params),  # not the same buffers: the state is donated
        opt_state=optimizer.init(params),
        key=key,
        memory=memory,
    )
