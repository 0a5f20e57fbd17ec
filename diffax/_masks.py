"""Masks of padded examples: entries outside a mask are set to 0 and counted nowhere.

A mask has the shape of the leading axes of x, such as (B, N) for sets of N points (B, N, d): true for entries that
belong to the example. None stands for a mask that is true everywhere. For a pytree x, a mask is one array for all
leaves, or a tree of masks.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from diffax.typing import Array, Leaf, Tree

X = TypeVar("X")


def check_mask(x: Tree, mask: Tree | None, name: str = "x0") -> None:
    """Raise `ValueError` unless the mask fits x.

    >>> check_mask(jnp.ones((2, 5, 3)), jnp.ones((2, 4)))
    Traceback (most recent call last):
    ...
    ValueError: mask must have the shape of the leading axes of x0, (2, 5, 3), got (2, 4)
    """
    if mask is None:
        return
    for leaf, own in zip(jax.tree.leaves(x), _masks(x, mask), strict=True):
        shape, own_shape = jnp.shape(leaf), jnp.shape(own)
        if not own_shape or own_shape != shape[: len(own_shape)]:
            raise ValueError(f"mask must have the shape of the leading axes of {name}, {shape}, got {own_shape}")


def inside(x: X, mask: Tree | None) -> X:
    """x inside the mask and 0 outside, whatever x is there.

    >>> inside(jnp.array([[1.0, jnp.nan]]), jnp.array([[True, False]])).tolist()
    [[1.0, 0.0]]
    """
    if mask is None:
        return x
    result: X = _map(lambda leaf, own: jnp.where(own, leaf, jnp.zeros_like(leaf)), x, mask)
    return result


def confined(function: Callable[..., Any], mask: Tree | None) -> Callable[..., Any]:
    """The function of x and times, with x and its result 0 outside the mask."""
    if mask is None:
        return function
    return lambda x, *times: inside(function(inside(x, mask), *times), mask)


def total(terms: Tree, mask: Tree | None = None) -> Any:
    """(B,) sums over all leaves and over all axes except the batch axis, inside the mask."""
    return sum(jnp.sum(v.reshape(len(v), -1), 1) for v in jax.tree.leaves(inside(terms, mask)))


def dimensions(x: Tree, mask: Tree | None = None) -> Any:
    """The number of dimensions of one example: an int, or (B,) inside the mask.

    >>> dimensions(jnp.ones((2, 3, 2))), dimensions(jnp.ones((2, 3, 2)), jnp.array([[1, 0, 0], [1, 1, 0]])).tolist()
    (6, [2.0, 4.0])
    """
    if mask is None:
        return sum(leaf[0].size for leaf in jax.tree.leaves(x))
    return total(_map(lambda leaf, own: jnp.broadcast_to(own, leaf.shape).astype(jnp.float32), x, mask))


def mean(terms: Tree, mask: Tree | None = None) -> Any:
    """(B,) means over all axes except the batch axis, inside the mask; 0 for an example without entries."""
    count = dimensions(terms, mask)
    return total(terms, mask) / (count if mask is None else jnp.maximum(count, 1))


def _masks(x: Tree, mask: Tree) -> list[Any]:
    """A mask for each leaf of x."""
    is_tree: bool = jax.tree.structure(mask) == jax.tree.structure(x)  # type: ignore[operator]
    return jax.tree.leaves(mask) if is_tree else [mask] * len(jax.tree.leaves(x))


def _map(function: Callable[[Array, Array], Array], x: Tree, mask: Tree) -> Any:
    """function(leaf, bool mask with as many axes) for each leaf."""
    leaves, structure = jax.tree.flatten(x)

    def apply(leaf: Leaf, own: Leaf) -> Array:
        own = jnp.asarray(own).astype(bool)
        return function(jnp.asarray(leaf), own.reshape(own.shape + (1,) * (jnp.ndim(leaf) - own.ndim)))

    return jax.tree.unflatten(structure, [apply(leaf, own) for leaf, own in zip(leaves, _masks(x, mask), strict=True)])
