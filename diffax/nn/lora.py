"""Low-rank adapters: a matrix W is changed by a product of two thin ones, and only these are trained (Hu et al. 2022).

    W' = W + (alpha / r) A B,    A (in, r), B (r, out)

Functions of parameter trees, whatever the network:

    adapters = init(key, params, ["*kernel"], rank=4)
    merged = merge(params, adapters, alpha=4.0)       the parameters that the network is called with

A loss that closes over `params` and merges takes the adapters as its parameters: optimisers, moving averages,
checkpoints and shardings need to know nothing of it. The gradient goes through that of W, so a step takes the time of
training everything; what is saved is memory (optimiser, averages) and the size of a checkpoint.

A convolution (*window, in, out) counts as the matrix (prod(window) in, out), and A keeps its axes, (*window, in, r). It
starts as Gaussian noise of variance 1 / (prod(window) in), B as zeros. Of a table of rows, named `embedding`, A starts
as zeros and B as standard normal noise, as in the authors' code: so only the rows that are used move.
"""

import fnmatch
import math
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from diffax import random
from diffax._checks import check_count
from diffax._pytrees import promoted
from diffax.typing import Array, Key, Leaf, Params, Scalar, Tree

TABLE = "embedding"


def init(key: Key, params: Params, patterns: Sequence[str], *, rank: int) -> dict[str, Any]:
    """Adapters that change nothing yet: nested dicts, with {"a", "b"} in the place of each adapted matrix.

    Args:
      key: (), consumed; an adapter's noise depends on its path alone.
      params: a tree of arrays, or of their shapes; leaves of two or more axes can be adapted.
      patterns: globs on paths like "label/embedding", where * stands for anything, slashes too.
      rank: r, of all of them.

    Raises:
      ValueError: if rank < 1, there are no patterns, or one matches no leaf of two or more axes.

    >>> params = {"dense": {"kernel": jnp.ones((5, 3)), "bias": jnp.ones(3)}}
    >>> jax.tree.map(jnp.shape, init(jax.random.key(0), params, ["dense/*"], rank=2))
    {'dense': {'kernel': {'a': (5, 2), 'b': (2, 3)}}}
    """
    check_count("rank", rank)
    matrices = {path: leaf for path, leaf in _paths(params).items() if len(leaf.shape) >= 2}
    found = {pattern: [path for path in matrices if fnmatch.fnmatchcase(path, pattern)] for pattern in patterns}
    if not found:
        raise ValueError("patterns must name the matrices to adapt, got none")
    for pattern, matched in found.items():
        if not matched:
            known = ", ".join([*matrices][:3])
            raise ValueError(f"patterns must each match a matrix of params, like {known}, got {pattern!r}")
    adapters: dict[str, Any] = {}
    for path in sorted({path for matched in found.values() for path in matched}):
        *groups, name = path.split("/")
        place = adapters
        for group in groups:
            place = place.setdefault(group, {})
        place[name] = _pair(random.fold_in(key, zlib.crc32(path.encode())), matrices[path], name == TABLE, rank)
    return adapters


def merge(params: Params, adapters: Params, *, alpha: Scalar) -> Any:
    """The parameters with W + (alpha / r) A B in the place of each adapted W, in its dtype.

    The product is taken in full precision, so that merged once and merged in each step are the same. Merging with
    -alpha takes the adapters off again, but for round-off.

    Args:
      params: the tree that `init` was given, or one with the same shapes.
      adapters: of `init`.
      alpha: the scale; may be traced. Of 0 nothing changes.

    Raises:
      ValueError: if an adapter has no matrix in params, or does not fit its shape.

    >>> params = {"kernel": jnp.zeros((2, 2))}
    >>> adapters = {"kernel": {"a": jnp.ones((2, 1)), "b": jnp.array([[1.0, 2.0]])}}
    >>> merge(params, adapters, alpha=0.5)["kernel"].tolist()
    [[0.5, 1.0], [0.5, 1.0]]
    """
    thin, left = _paths(adapters), set(_paths(adapters))

    def leaf(path: tuple[Any, ...], w: Array) -> Any:
        name = _name(path)
        a, b = thin.get(f"{name}/a"), thin.get(f"{name}/b")
        if a is None or b is None:
            return w
        left.difference_update({f"{name}/a", f"{name}/b"})
        if a.shape[:-1] != w.shape[:-1] or b.shape != (a.shape[-1], w.shape[-1]):
            raise ValueError(f"adapters must fit params: {name} has {w.shape}, got a {a.shape} and b {b.shape}")
        change = jnp.matmul(a, b, precision="highest") * (alpha / a.shape[-1])
        return (w + change).astype(w.dtype)

    merged = jax.tree_util.tree_map_with_path(leaf, params)
    if left:
        raise ValueError(f"adapters must fit params, which have no matrix for {min(left)}")
    return merged


def count(tree: Tree) -> int:
    """How many parameters a tree has: of the adapters and of all, the share that is trained."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _pair(key: Key, leaf: Leaf, table: bool, rank: int) -> dict[str, Any]:
    """{"a", "b"} of a matrix: one of them zero."""
    shapes = {"a": (*leaf.shape[:-1], rank), "b": (rank, leaf.shape[-1])}
    dtype = promoted(leaf.dtype, jnp.float32)
    if table:
        return {"a": jnp.zeros(shapes["a"], dtype), "b": jax.random.normal(key, shapes["b"], dtype)}
    std = 1 / math.sqrt(math.prod(leaf.shape[:-1]))
    return {"a": std * jax.random.normal(key, shapes["a"], dtype), "b": jnp.zeros(shapes["b"], dtype)}


def _paths(tree: Tree) -> dict[str, Any]:
    """{"a/b/kernel": leaf} of a tree."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
