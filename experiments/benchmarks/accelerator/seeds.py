"""Eight seeds trained by one program: all at once by `vmap`, or one after another by one compiled step.

Times exclude compilation. speed-up: the loop's time over that of vmap. difference: the largest relative difference of a
loss between the two.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffax.nn import MLP, UNet
from diffax.training import init_state
from experiments.benchmarks.accelerator import networks
from experiments.benchmarks.accelerator.worker import Context, one_line

COLUMNS = (
    ("seeds", "seeds", "d"),
    ("loop, steps/s of all", "loop_per_s", ".1f"),
    ("vmap, steps/s of all", "vmap_per_s", ".1f"),
    ("speed-up", "speed_up", ".2f"),
    ("difference", "difference", ".1e"),
    ("passed", "passed", ""),
)
NETWORKS: dict[str, nn.Module] = {
    "MLP": MLP(channels=128, depth=6),
    "digits U-Net": UNet(channels=32, channel_multipliers=(1, 2), dropout_rate=0.1),
}
TOY = MLP(channels=8, depth=1)
SHAPE, BATCH, BOUND = (8, 8, 1), 64, 2e-2


def rows(context: Context) -> Iterator[dict[str, Any]]:
    """A row for each network."""
    for name, net in {"MLP": TOY}.items() if context.quick else NETWORKS.items():
        try:
            yield {"name": name} | compare(net, *((2, 2) if context.quick else (8, 100)))
        except Exception as error:
            yield {"name": name, "error": one_line(error)}


def compare(net: nn.Module, seeds: int, steps: int) -> dict[str, Any]:
    """Steps per second of all seeds together, by both ways, and the difference of their losses."""
    step, optimizer = networks.step_of(net)
    params = [networks.random_params(net, SHAPE, seed) for seed in range(seeds)]
    keys = jax.random.split(jax.random.key(1), seeds)
    states = [init_state(key, tree, optimizer) for key, tree in zip(keys, params, strict=True)]
    batch = jax.device_put(networks.batch_of(networks.Case(net, SHAPE, BATCH), BATCH))
    single, together = jax.jit(step), jax.jit(jax.vmap(step, (0, None)))

    def loop(states):
        return [single(state, batch) for state in states]

    def vmapped(state):
        return together(state, batch)

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    loop_seconds, loop_losses = _timed(
        loop, states, steps, lambda out: ([s for s, _ in out], [m["loss"] for _, m in out])
    )
    vmap_seconds, vmap_losses = _timed(vmapped, stacked, steps, lambda out: (out[0], out[1]["loss"]))
    apart = float(np.abs(np.asarray(vmap_losses) / np.asarray(loop_losses) - 1).max())
    return {
        "seeds": seeds,
        "loop_per_s": seeds * steps / loop_seconds,
        "vmap_per_s": seeds * steps / vmap_seconds,
        "speed_up": loop_seconds / vmap_seconds,
        "difference": apart,
        "passed": apart <= BOUND,
    }


def _timed(run: Callable, state: Any, steps: int, split: Callable) -> tuple[float, np.ndarray]:
    """(seconds, losses (steps, seeds)). An untimed call compiles first; its result is dropped."""
    jax.block_until_ready(run(state))
    losses, start = [], time.perf_counter()
    for _ in range(steps):
        state, loss = split(run(state))
        losses.append(loss)
    jax.block_until_ready(losses)
    return time.perf_counter() - start, np.asarray(losses)
