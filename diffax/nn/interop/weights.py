"""Conversion between a PyTorch state dict and Flax parameters, module by module, by a table of links.

| module | theirs (PyTorch) | ours (Flax) |
| --- | --- | --- |
| dense | `weight` (out, in) | `kernel` (in, out) |
| convolution | `weight` (out, in, *window) | `kernel` (*window, in, out) |
| convolution of window 1, a `Dense` here | `weight` (out, in, 1, ..) | `kernel` (in, out) |
| norm | `weight` | `scale` |
| embedding table | `weight` | `embedding` |

`bias` has the same name in both. All files are safetensors, so nothing is unpickled. Parameters are float32: float16
and bfloat16 tensors are converted when they are read, and files are written in float32. So only a float32 file is
restored bit for bit.
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
# Old -> current names of attention layers. Files from before 2023 have the old names, such as those of ddpm-cifar10-32
# and of Stable Diffusion 1's autoencoder.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
NAMES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}


class Link(NamedTuple):
    """One module in PyTorch and in Flax.

    theirs: its name in PyTorch, the prefix of the names of its tensors. ours: its path in the Flax parameters. places:
    the number of spatial axes if a `Dense` in Flax is a convolution of window 1 in PyTorch, else 0.
    """

    theirs: str
    ours: tuple[str, ...]
    places: int = 0


def from_torch(tensors: dict[str, np.ndarray], links: Iterable[Link], like: Any) -> Any:
    """Convert a state dict to parameters with the structure, shapes and dtypes of `like`.

    like: parameters, or their shapes from `jax.eval_shape`.

    Raises:
      ValueError: if tensors are missing, unknown or of another shape; the error lists all of them.
    """
    flat, expected, problems = {}, _leaves(like), []
    names = _names(links, expected)
    for path, (name, places) in names.items():
        if name not in tensors:
            problems.append(f"{name} is missing")
            continue
        value, leaf = _to_flax(tensors[name], path, places), expected[path]
        if value.shape != leaf.shape:
            problems.append(f"{name} must have shape {_torch_shape(leaf, path, places)}, got {tensors[name].shape}")
        else:
            flat[path] = value.astype(leaf.dtype)
    known = {name for name, _ in names.values()}
    problems += [f"{name} is unknown" for name in tensors if name not in known]
    if problems:
        raise ValueError(f"weights must fit the network, got {_listed(problems)}")
    treedef = jax.tree.structure(like)
    return jax.tree.unflatten(treedef, [flat[path] for path in expected])


def to_torch(params: Any, links: Iterable[Link]) -> dict[str, np.ndarray]:
    """Convert parameters to a state dict, from which `from_torch` restores them exactly."""
    leaves = _leaves(params)
    result = {}
    for path, (name, places) in _names(links, leaves).items():
        value = np.asarray(leaves[path])
        if path[-1] == "kernel":
            value = np.moveaxis(value, (-1, -2), (0, 1))
            value = value.reshape(*value.shape, *(1,) * places)
        result[name] = np.ascontiguousarray(value)
    return result


def check_like(params: Any, like: Any) -> None:
    """Raise `ValueError` unless `params` has the names and shapes of `like`; the error lists all differences."""
    leaves, expected = _leaves(params), _leaves(like)
    problems = [f"{'.'.join(path)} is missing" for path in expected if path not in leaves]
    problems += [f"{'.'.join(path)} is unknown" for path in leaves if path not in expected]
    for path in expected.keys() & leaves.keys():
        shape, expected_shape = np.shape(leaves[path]), expected[path].shape
        if shape != expected_shape:
            problems.append(f"{'.'.join(path)} must have shape {expected_shape}, got {shape}")
    if problems:
        raise ValueError(f"params must fit the network, got {_listed(problems)}")


def _listed(problems: list[str]) -> str:
    return f"{len(problems)} problem{'s' if len(problems) > 1 else ''}: {'; '.join(sorted(problems))}"


def load_folder(folder: str | os.PathLike[str], variant: str | None = None) -> dict[str, np.ndarray]:
    """Load the tensors of a folder that diffusers saved, from one file or several with an index, with current names.

    variant: part of the file's name, such as "fp16" in diffusion_pytorch_model.fp16.safetensors.

    Raises:
      ValueError: if the index is invalid or one of its files does not exist; and as in `load_file`.
    """
    folder, infix = Path(folder), f".{variant}" if variant else ""
    path, index = folder / f"{NAME}{infix}.safetensors", folder / f"{NAME}.safetensors.index{infix}.json"
    if path.exists() or not index.exists():
        return load_file(path)
    result: dict[str, np.ndarray] = {}
    shards = _shards(index)
    if missing := [shard for shard in shards if not (folder / shard).exists()]:
        raise ValueError(f"weights must have all files of {index}, got no {', no '.join(missing)}")
    for shard in shards:
        result |= load_file(folder / shard)
    return result


def _shards(index: Path) -> list[str]:
    """The file names in an index. A name that leads out of the folder raises `ValueError`."""
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name]
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ValueError(f"weights must have a valid index of files, got {index} ({error!r})") from error
    if outside:
        raise ValueError(f"weights must have an index of files in its own folder, got {outside[0]!r} in {index}")
    return names


def load_file(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Load the tensors of a safetensors file, with current names.

    Raises:
      ValueError: if the file does not exist or is not a safetensors file. The error names other weights in the folder:
        other safetensors files, or a pickle file, which is never read because it could run code.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(_missing(path))
    from safetensors import SafetensorError, numpy

    try:
        return renamed(numpy.load_file(path))
    except SafetensorError as error:
        raise ValueError(f"weights must be a safetensors file, got {path} ({error})") from error


def _missing(path: Path) -> str:
    """The error text for a file that does not exist."""
    others = sorted(file.name for file in path.parent.glob("*.safetensors*")) if path.parent.is_dir() else []
    if not others and (other := next(path.parent.glob("*.bin"), None)):
        return f"weights must be safetensors, got {other.name}: save them with safe_serialization=True"
    hint = f"; the folder has {', '.join(others)}: pass variant='fp16' for .fp16.safetensors" if others else ""
    return f"weights must be a safetensors file, got {path}, which does not exist{hint}"


def renamed(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state dict with current names."""
    result = {}
    for name, value in tensors.items():
        module, _, last = name.rpartition(".")
        parent, _, layer = module.rpartition(".")
        is_old = layer in OLD_NAMES and ".attentions." in name
        result[f"{parent}.{OLD_NAMES[layer]}.{last}" if is_old else name] = value
    return result


def save_file(path: str | os.PathLike[str], tensors: dict[str, np.ndarray]) -> None:
    """Write a safetensors file atomically, with the metadata that PyTorch's tools expect."""
    from safetensors import numpy

    fields.write(Path(path), lambda temporary: numpy.save_file(tensors, temporary, metadata={"format": "pt"}))


def _leaves(tree: Any) -> dict[tuple[str, ...], Any]:
    """{path: leaf}, where a path is a tuple of names."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {tuple(str(getattr(key, "key", key)) for key in path): leaf for path, leaf in leaves}


def _names(links: Iterable[Link], leaves: dict[tuple[str, ...], Any]) -> dict[tuple[str, ...], tuple[str, int]]:
    """{path of a leaf: (its name in PyTorch, places)}; a leaf without a link raises `ValueError`."""
    links_by_module = {link.ours: link for link in links}
    result = {}
    for path in leaves:
        link = links_by_module.get(path[:-1])
        if link is None:
            raise ValueError(f"links must contain the module of each parameter, got none for {'.'.join(path)}")
        result[path] = f"{link.theirs}.{NAMES[path[-1]]}", link.places if path[-1] == "kernel" else 0
    return result


def _to_flax(value: np.ndarray, path: tuple[str, ...], places: int) -> np.ndarray:
    if path[-1] != "kernel":
        return value
    if places and value.shape[2:] == (1,) * places:
        value = value.reshape(value.shape[:2])
    return np.moveaxis(value, (0, 1), (-1, -2)) if value.ndim >= 2 else value


def _torch_shape(leaf: Any, path: tuple[str, ...], places: int) -> tuple[int, ...]:
    shape = leaf.shape
    return (*shape[-1:-3:-1], *shape[:-2], *(1,) * places) if path[-1] == "kernel" else shape
