"""Weights between a state dict of torch and Flax parameters, module by module, by a table of links.

| module | theirs | ours |
| --- | --- | --- |
| dense | `weight` (out, in) | `kernel` (in, out) |
| convolution | `weight` (out, in, *window) | `kernel` (*window, in, out) |
| convolution of window 1, a `Dense` here | `weight` (out, in, 1, ..) | `kernel` (in, out) |
| norm | `weight` | `scale` |
| table | `weight` | `embedding` |

and `bias` is `bias`. Files are safetensors; nothing is ever unpickled. Those of float16 or bfloat16 are read as what
the parameters are, float32, and what is written is float32: a file of float32 comes back bit for bit, no other does.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from diffax.nn.interop import fields

NAME = "diffusion_pytorch_model"
# Of attention in files of before 2023, as those of ddpm-cifar10-32 and of Stable Diffusion 1's autoencoder.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
NAMES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}


class Link(NamedTuple):
    """One module, there and here.

    theirs: its name, the front of the names of its tensors. ours: its path in the parameters. places: of a `Dense`
    that is a convolution of window 1 there, over how many axes.
    """

    theirs: str
    ours: tuple[str, ...]
    places: int = 0


def from_torch(tensors: dict[str, np.ndarray], links: Iterable[Link], like: Any) -> Any:
    """Parameters with the structure, shapes and dtypes of `like` from a state dict.

    like: parameters, or their shapes by `jax.eval_shape`.

    Raises:
      ValueError: if tensors are missing, unknown or of another shape; lists them all. Nothing is loaded half.
    """
    flat, wanted, problems = {}, _leaves(like), []
    names = _names(links, wanted)
    for path, (name, places) in names.items():
        if name not in tensors:
            problems.append(f"{name} is missing")
            continue
        value, leaf = _to_ours(tensors[name], path, places), wanted[path]
        if value.shape != leaf.shape:
            problems.append(f"{name} must be {_theirs(leaf, path, places)}, got {tensors[name].shape}")
        else:
            flat[path] = value.astype(leaf.dtype)
    known = {name for name, _ in names.values()}
    problems += [f"{name} is unknown" for name in tensors if name not in known]
    if problems:
        raise ValueError(f"the weights do not fit the network, {len(problems)} do not: {'; '.join(sorted(problems))}")
    treedef = jax.tree.structure(like)
    return jax.tree.unflatten(treedef, [flat[path] for path in wanted])


def to_torch(params: Any, links: Iterable[Link]) -> dict[str, np.ndarray]:
    """The state dict of parameters: `from_torch` of it gives them back exactly."""
    leaves = _leaves(params)
    found = {}
    for path, (name, places) in _names(links, leaves).items():
        value = np.asarray(leaves[path])
        if path[-1] == "kernel":
            value = np.moveaxis(value, (-1, -2), (0, 1))
            value = value.reshape(*value.shape, *(1,) * places)
        found[name] = np.ascontiguousarray(value)
    return found


def check_like(params: Any, like: Any) -> None:
    """Raises `ValueError` unless `params` has the names and shapes of `like`; lists all that differ."""
    leaves, wanted = _leaves(params), _leaves(like)
    problems = [f"{'.'.join(path)} is missing" for path in wanted if path not in leaves]
    problems += [f"{'.'.join(path)} is unknown" for path in leaves if path not in wanted]
    for path in wanted.keys() & leaves.keys():
        ours, theirs = np.shape(leaves[path]), wanted[path].shape
        if ours != theirs:
            problems.append(f"{'.'.join(path)} must be {theirs}, got {ours}")
    if problems:
        raise ValueError(f"params do not fit the network, {len(problems)} do not: {'; '.join(sorted(problems))}")


def load_folder(folder: str | os.PathLike, variant: str | None = None) -> dict[str, np.ndarray]:
    """The tensors of a folder of diffusers, of one file or of several with an index, under today's names.

    variant: of the file's name, such as "fp16" of diffusion_pytorch_model.fp16.safetensors.

    Raises:
      ValueError: if there is none, and which others there are; or as `load_file`.
    """
    folder, middle = Path(folder), f".{variant}" if variant else ""
    path, index = folder / f"{NAME}{middle}.safetensors", folder / f"{NAME}.safetensors.index{middle}.json"
    if path.exists() or not index.exists():
        return load_file(path)
    found: dict[str, np.ndarray] = {}
    shards = _shards(index)
    if missing := [shard for shard in shards if not (folder / shard).exists()]:
        raise ValueError(f"weights must have all files of {index}, got none named {', '.join(missing)}")
    for shard in shards:
        found |= load_file(folder / shard)
    return found


def _shards(index):
    """The files of an index; none leads out of its folder."""
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        bad = [name for name in names if Path(name).name != name]
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ValueError(f"weights must have an index of files, got {index} ({error!r})") from error
    if bad:
        raise ValueError(f"weights must have an index of files beside it, got {bad[0]!r} in {index}")
    return names


def load_file(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file, under today's names.

    Raises:
      ValueError: if it is none; of a file that can run code when it is read, where only such a one is there.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(_missing(path))
    try:
        from safetensors import SafetensorError, numpy
    except ImportError as error:
        raise ValueError("reading weights needs safetensors: pip install '.[interop]'") from error
    try:
        return renamed(numpy.load_file(path))
    except SafetensorError as error:
        raise ValueError(f"weights must be a safetensors file, got {path} ({error})") from error


def _missing(path):
    """What is wrong where a file is not there."""
    others = sorted(one.name for one in path.parent.glob("*.safetensors*")) if path.parent.is_dir() else []
    if not others and (other := next(path.parent.glob("*.bin"), None)):
        return f"weights must be safetensors, got {other.name}: save them with safe_serialization=True"
    hint = f"; there are {', '.join(others)}: give variant= what their names have before .safetensors" if others else ""
    return f"weights must be a safetensors file, got {path}, which is not there{hint}"


def renamed(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state dict under today's names."""
    found = {}
    for name, value in tensors.items():
        module, _, last = name.rpartition(".")
        front, _, old = module.rpartition(".")
        known = old in OLD_NAMES and ".attentions." in name
        found[f"{front}.{OLD_NAMES[old]}.{last}" if known else name] = value
    return found


def save_file(path: str | os.PathLike, tensors: dict[str, np.ndarray]) -> None:
    """Writes a safetensors file at once, as torch's tools expect it."""
    from safetensors import numpy

    fields.write(Path(path), lambda part: numpy.save_file(tensors, part, metadata={"format": "pt"}))


def _leaves(tree):
    """{path of names: leaf}."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {tuple(str(getattr(key, "key", key)) for key in path): leaf for path, leaf in leaves}


def _names(links, leaves):
    """{path of a leaf: (its name there, places)}; each leaf must have a link."""
    of_module = {link.ours: link for link in links}
    found = {}
    for path in leaves:
        link = of_module.get(path[:-1])
        if link is None:
            raise ValueError(f"no link leads to {'.'.join(path)}")
        found[path] = f"{link.theirs}.{NAMES[path[-1]]}", link.places if path[-1] == "kernel" else 0
    return found


def _to_ours(value, path, places):
    if path[-1] != "kernel":
        return value
    if places and value.shape[2:] == (1,) * places:
        value = value.reshape(value.shape[:2])
    return np.moveaxis(value, (0, 1), (-1, -2)) if value.ndim >= 2 else value


def _theirs(leaf, path, places):
    shape = leaf.shape
    return (*shape[-1:-3:-1], *shape[:-2], *(1,) * places) if path[-1] == "kernel" else shape
