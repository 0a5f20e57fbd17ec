"""Drawing samples: a generator with its parameters, over any number of indices."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffax import random
from diffax.pretrained import Units


class Source(NamedTuple):
    """A generator of samples with its parameters and conditions.

    generate: (params, keys (B,), conditions) -> (B, *shape), normalised, on the host. cycle: conditions to repeat in
    turn: labels (N,), tokens (N, m) or arrays (N, ...) in their own units, None for none; with masks {"condition",
    "mask" (N, n)}. step: of the checkpoint. units: of the data. classes: names of the classes, or (). settings: further
    entries of settings.json. has_arrays: whether the conditions are arrays.
    """

    generate: Callable[..., np.ndarray]
    params: Any
    cycle: Any
    step: int
    units: Units
    dataset: dict[str, Any]
    sampling: dict[str, Any]
    settings: dict[str, Any]
    classes: tuple[str, ...] = ()
    has_arrays: bool = False

    def columns(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """The arrays saved with these samples: "labels" (N,), -1 for none; "masks" and "conditions" if present."""
        masks = self.cycle["mask"] if isinstance(self.cycle, dict) else None
        cycle = self.cycle["condition"] if isinstance(self.cycle, dict) else self.cycle
        is_label = cycle is not None and cycle.ndim == 1
        columns = {"labels": cycle[index % len(cycle)] if is_label else np.full(len(index), -1)}
        if masks is not None:
            columns["masks"] = masks[index % len(masks)]
        if self.has_arrays:
            columns["conditions"] = cycle[index % len(cycle)]
        return columns


def generated(diffusion: Any, data: Any, params: Any, keys: Any, which: Any, **options: Any) -> Any:
    """Samples (B, *shape) for a part of `Source.cycle`, inside a jitted function; see `Diffusion.generate`.

    diffusion: a model of `data`, whose array conditions are in their own units.
    """
    masks = {} if data.mask is None else {"mask": which["mask"]}
    condition = which["condition"] if masks else which
    if data.condition_units is not None:
        condition = data.condition_units.standardise(condition)
    return diffusion.generate(params, keys, condition, **masks, **options)


def paired(diffusion: Any, draws: Callable[..., Any], params: Any, keys: Any, which: Any) -> Any:
    """The samples of `generated` and the unit noise that they were drawn from, (B, 2, *shape)."""
    start = diffusion.times(params)[0]
    eps = diffusion.noise(params, keys, start) / diffusion.schedule(params)(start).sigma
    return jnp.stack([draws(params, keys, which), eps], 1)


def cycle_of(dataset: Any, split: str, data: Any, labels: np.ndarray | None) -> Any:
    """`Source.cycle`: the labels, or the array conditions of a split; with its masks if the data have masks."""
    condition = labels if data.condition_units is None else dataset.conditions(split)
    return condition if data.mask is None else {"condition": condition, "mask": dataset.masks(split)}


def labels_of(texts: Sequence[str], classes: int | None) -> np.ndarray | None:
    """The labels to repeat (N,): those of the texts, or all classes; None for a network without classes.

    Raises:
      ValueError: for a text that is not a label of the network.
    """
    if not texts:
        return None if classes is None else np.arange(classes)
    if classes is None:
        raise ValueError(f"labels must be empty for a network without classes, got {','.join(texts)}")
    for text in texts:
        if not text.strip().isdigit() or int(text) >= classes:
            raise ValueError(f"labels must be ints in [0, {classes - 1}], got {text!r}")
    return np.asarray([int(text) for text in texts])


def draw(
    generate: Callable[..., Any],
    params: Any,
    seed: int,
    index: np.ndarray,
    cycle: Any,
    *,
    batch_size: int,
    update: Callable[[int], Any] = lambda last: None,
) -> np.ndarray:
    """The samples of these indices (N,), on the host.

    Sample i depends only on the seed and i: its key is fold_in(key(seed), i), its condition cycle[i mod len(cycle)].
    The last batch is padded, so that every call has the compiled shapes.

    update: called with the last index of each batch after it.
    """
    parts, root = [], jax.random.key(seed)
    for at in range(0, len(index), batch_size):
        part = index[at : at + batch_size]
        filled = np.resize(part, batch_size)
        condition = jax.tree.map(lambda values, rows=filled: jnp.asarray(values[rows % len(values)]), cycle)
        parts.append(np.asarray(generate(params, random.keys_at(root, filled), condition))[: len(part)])
        update(int(part[-1]))
    return np.concatenate(parts)
