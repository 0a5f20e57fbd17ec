"""The training loss on held-out examples, in total and by noise level, during the training of a diffusion model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np

from diffax import random
from diffax.training import Every
from diffax.training.parallel import over_batch
from diffax.training.processes import is_first
from experiments.models.objectives import Objective
from experiments.run.inputs import Inputs

EXAMPLES, BINS, BATCH = 256, 8, 64  # examples: at most two batches
NAMES = tuple(f"heldout_{number}" for number in range(1, BINS + 1))


def measure(
    inputs: Inputs,
    objective: Objective,
    split: str,
    workdir: Path,
    mesh: Any,
    message: Callable[[str], Any],
    *,
    batch_size: int,
    seed: int,
    every: int,
) -> list[Every]:
    """The loss of two batches of a split, at most 256 examples, by the averaged parameters, always with the same noise.

    heldout_k uses the training times between the quantiles (k - 1) / 8 and k / 8 of their distribution, so that
    heldout_1 has the least noise and `heldout`, their mean, estimates the same expectation as the training loss.
    Conditions are not dropped, and there is no dropout. Each call also draws heldout.png in the workdir, from the lines
    of metrics.jsonl. [] if the split does not exist, or every is 0.
    """
    if not every:
        return []
    try:
        batch = inputs.examples(split, min(EXAMPLES, 2 * batch_size), mesh)
    except ValueError as error:
        message(f"no held-out loss is measured: {error}")
        return []
    # Whole groups on each device, in each part; without groups a part may have any size.
    unit = 1 if objective.group == 1 else objective.group * (mesh.size // jax.process_count())
    count, size = len(batch["x"]) // unit * unit, max(BATCH // unit, 1) * unit
    if not count:
        message(f"no held-out loss is measured: split {split!r} has fewer than {unit} examples")
        return []
    batch = {name: values[:count] for name, values in batch.items()}
    batch["index"] = np.arange(count, dtype=np.int32)
    keys = random.keys_at(jax.random.key(seed), jnp.arange(count))
    # Stratified over the examples inside each bin.
    inner = (np.arange(count) + 0.5) / count

    @jax.jit
    def loss(variables: Any, batch: Any, keys: Any) -> Any:
        params, memory, used = variables
        result = objective.loss(params, batch, keys, *memory, **used)
        return result[0] if memory else result

    spread = over_batch(loss, mesh)

    def call(step: int, state: Any) -> dict[str, float]:
        memory: tuple[Any, ...] = ()
        means = []
        used = {name: getattr(state, name) for name in objective.uses}
        if objective.update_memory is not None:
            memory = (state.memory if objective.follows else objective.memory,)
        variables = state.ema, memory, used
        for number in range(BINS):
            whole = {**batch, "u": np.asarray((number + inner) / BINS, np.float32)}
            parts = [slice(at, at + size) for at in range(0, count, size)]
            rows = [spread(variables, jax.tree.map(lambda v, p=part: v[p], whole), keys[part]) for part in parts]
            means.append(float(np.mean(np.concatenate(rows), dtype=np.float64)))
        values = {"heldout": float(np.mean(means)), **dict(zip(NAMES, means, strict=True))}
        if is_first():
            message(f"held-out loss {values['heldout']:.4f}; by noise level {' '.join(f'{v:.4f}' for v in means)}")
            try:
                plot(workdir, step, values)
            except OSError as error:
                message(f"warning: heldout.png cannot be written ({error.strerror})")
        return values

    return [Every(every, call)]


def plot(workdir: Path, step: int, values: dict[str, float]) -> None:
    """Draw heldout.png: the loss of both splits over the steps, and the held-out loss by noise level."""
    path = workdir / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    measured = [line for line in lines if "heldout" in line] + [{"step": step, **values}]
    figure = matplotlib.figure.Figure((9, 3.5), 120, layout="constrained")
    both, levels = figure.subplots(1, 2)
    trained = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    both.plot(*zip(*trained, strict=True), label="training", linewidth=0.8)
    both.plot([line["step"] for line in measured], [line["heldout"] for line in measured], "o-", label="held out", ms=3)
    both.set(xlabel="step", ylabel="loss", yscale="log")
    both.legend()
    for number, name in enumerate(NAMES):
        colour = matplotlib.colormaps["viridis"](number / (BINS - 1))
        label = f"{number + 1}" + (" (least noise)" if number == 0 else "")
        y = [line[name] / measured[0][name] for line in measured]
        levels.plot([line["step"] for line in measured], y, "o-", color=colour, label=label, ms=2, linewidth=0.8)
    levels.set(xlabel="step", ylabel="held-out loss / first value")
    levels.legend(title="noise level", fontsize=6, title_fontsize=7)
    figure.savefig(workdir / "heldout.png")
