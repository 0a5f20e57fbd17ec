"""Low-rank adapters (LoRA, Hu et al. 2022): W changes by a product of two thin matrices; only these are trained.

    W' = W + (alpha / r) A B,    A (in, r), B (r, out)

The functions work on parameter trees, so that any network can be adapted:

    adapters = init(key, params, ["*kernel"], rank=4)
    merged = merge(params, adapters, alpha=4.0)       the parameters to call the network with

For training, write a loss that takes the adapters as its parameters, closes over `params` and calls `merge`. Optimiser,
moving average, checkpoints and sharding then work unchanged. The gradient of W is still computed, so that a step takes
as long as in full training. Adapters save memory (optimiser, moving average) and make checkpoints smaller.

A convolution (*window, in, out) is treated as the matrix (prod(window) in, out); its A has the shape (*window, in, r).
A is initialised as Gaussian noise of variance 1 / (prod(window) in), and B as zeros. For an embedding table, a leaf
named `embedding`, A is initialised as zeros and B as standard normal noise, as in the authors' code, so that training
changes only the rows that occur in the data.
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

TABLE = "embedding"  # Flax's parameter name of an embedding table


def init(key: Key, params: Params, patterns: Sequence[str], *, rank: int) -> dict[str, Any]:
    """Initial adapters, with A B = 0: nested dicts that have {"a", "b"} in the place of each adapted matrix.

    Args:
      key: (), consumed. The noise of an adapter depends only on the key, its path and its shape.
      params: a tree of arrays or of their shapes. Leaves with two or more axes can be adapted.
      patterns: globs for paths like "label/embedding"; * matches any characters, including slashes.
      rank: r of all adapters, >= 1.

    Raises:
      ValueError: if rank < 1, patterns is empty, or a pattern matches no leaf with two or more axes.

    >>> params = {"dense": {"kernel": jnp.ones((5, 3)), "bias": jnp.ones(3)}}
    >>> jax.tree.map(jnp.shape, init(jax.random.key(0), params, ["dense/*"], rank=2))
    {'dense': {'kernel': {'a': (5, 2), 'b': (2, 3)}}}
    """
    check_count("rank", rank)
    matrices = {path: leaf for path, leaf in _paths(params).items() if len(leaf.shape) >= 2}
    matches = {pattern: [path for path in matrices if fnmatch.fnmatchcase(path, pattern)] for pattern in patterns}
    if not matches:
        raise ValueError("patterns must name the matrices to adapt, got none")
    for pattern, paths in matches.items():
        if not paths:
            examples = ", ".join([*matrices][:3])
            raise ValueError(f"patterns must each match a matrix of params, like {examples}, got {pattern!r}")
    adapters: dict[str, Any] = {}
    for path in sorted({path for paths in matches.values() for path in paths}):
        *groups, name = path.split("/")
        parent = adapters
        for group in groups:
            parent = parent.setdefault(group, {})
        parent[name] = _adapter(random.fold_in(key, zlib.crc32(path.encode())), matrices[path], name == TABLE, rank)
    return adapters


def merge(params: Params, adapters: Params, *, alpha: Scalar) -> Any:
    """The parameters with W + (alpha / r) A B in the place of each adapted W, in the dtype of W.

    The product A B has full precision, so that merging once gives the same parameters as merging in each step. Merging
    again with -alpha removes the adapters, up to rounding.

    Args:
      params: the tree that was passed to `init`, or one with the same shapes.
      adapters: the result of `init`, or trained adapters.
      alpha: the scale; may be traced. 0 changes nothing.

    Raises:
      ValueError: if an adapter has no matrix in params, or its shape does not match the matrix.

    >>> params = {"kernel": jnp.zeros((2, 2))}
    >>> adapters = {"kernel": {"a": jnp.ones((2, 1)), "b": jnp.array([[1.0, 2.0]])}}
    >>> merge(params, adapters, alpha=0.5)["kernel"].tolist()
    [[0.5, 1.0], [0.5, 1.0]]
    """
    factors = _paths(adapters)
    unused = set(factors)

    def leaf(path: tuple[Any, ...], w: Array) -> Any:
        name = _name(path)
        a, b = factors.get(f"{name}/a"), factors.get(f"{name}/b")
        if a is None or b is None:
            return w
        unused.difference_update({f"{name}/a", f"{name}/b"})
        if a.shape[:-1] != w.shape[:-1] or b.shape != (a.shape[-1], w.shape[-1]):
            raise ValueError(f"adapters must fit params: {name} has {w.shape}, got a {a.shape} and b {b.shape}")
        change = jnp.matmul(a, b, precision="highest") * (alpha / a.shape[-1])
        return (w + change).astype(w.dtype)

    merged = jax.tree_util.tree_map_with_path(leaf, params)
    if unused:
        raise ValueError(f"adapters must have (a, b) pairs for matrices of params only, got {min(unused)}")
    return merged


def count(tree: Tree) -> int:
    """The number of parameters of a tree."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _adapter(key: Key, leaf: Leaf, table: bool, rank: int) -> dict[str, Any]:
    """The initial {"a", "b"} of a matrix; one of them is zero."""
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
