"""Rows of training, in float32: three steps of a tiny network; and its checkpoint."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from golden_inputs import array, key
from golden_networks import named

import diffax
from diffax.nn.mlp import MLP
from diffax.training.checkpoints import Checkpoints
from diffax.training.optimizers import optimizer
from diffax.training.state import init_state
from diffax.training.step import train_step

CHECKPOINT = Path(__file__).parent / "checkpoint"
NETWORK = lambda: MLP(channels=8, depth=1)
OPTIMIZER = lambda: optimizer(learning_rate=0.01, num_steps=10, warmup_steps=2, weight_decay=0.1)
INIT_STATE = init_state
LOSS = lambda predict, batch, keys: diffax.denoising_loss(keys, predict, diffax.Cosine(), "v", batch["x"], batch["t"])
STEP = lambda loss, accumulate: train_step(loss, OPTIMIZER(), ema_decay=0.9, accumulate=accumulate)
SAVE = lambda folder, step, state: _save(folder, step, state)
RESTORE = lambda folder, like: Checkpoints(folder, read_only=True).restore_latest(like).state
FIELDS = {
    "step": lambda state: state.step,
    "params": lambda state: state.params,
    "ema": lambda state: state.ema,
    "opt_state": lambda state: state.opt_state,
    "key": lambda state: jax.random.key_data(state.key),
}


def _save(folder, step, state):
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(step, state, {"name": "golden"})


def fresh():
    """The state before the first step."""
    with jax.disable_jit(False):
        params = jax.jit(NETWORK().init)(key("init"), jnp.zeros((1, 3)), 0.5)
        return INIT_STATE(key("state"), params, OPTIMIZER())


def trained(accumulate=1):
    """The state after three steps, and the metrics of each."""
    net = NETWORK()

    def loss(params, batch, keys):
        return LOSS(lambda x, t: net.apply(params, x, t), batch, keys)

    with jax.disable_jit(False):
        state, step, seen = fresh(), jax.jit(STEP(loss, accumulate)), []
        for i in range(3):
            batch = {"x": array(f"batch{i}", 4, 3), "t": jnp.array([0.1, 0.4, 0.6, 0.9]), "index": jnp.arange(4)}
            state, metrics = step(state, batch)
            seen.append(metrics)
    return state, seen


def arrays(state):
    """{field: {path and shape: leaf}} of a state."""
    return {name: {k: np.asarray(v) for k, v in named(of(state)).items()} for name, of in FIELDS.items()}


def steps(accumulate):
    """The row of `trained`."""
    state, seen = trained(accumulate)
    return {"state": arrays(state), "metrics": seen}


ROWS = {
    "steps": lambda: steps(1),
    "steps-accumulated": lambda: steps(2),
    "learning_rate": lambda: _updates(),
}


def _updates():
    """The updates of the optimizer for a constant gradient: its learning rates."""
    optimizer, params = OPTIMIZER(), {"w": jnp.ones(2)}
    state, result = optimizer.init(params), []
    for _ in range(10):
        updates, state = optimizer.update({"w": jnp.array([0.1, -0.2])}, state, params)
        result.append(updates["w"])
    return jnp.stack(result)
