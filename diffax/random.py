"""Randomness by example: every draw takes one key, or one key for each example.

The noise of example i depends on its own key alone: not on the batch size, nor on how many devices share
the batch. A key of shape () stands for the keys fold_in(key, i), i = 0 .. B - 1.
"""

from typing import Any

import jax
import jax.numpy as jnp

from diffax.pytrees import batch_size
from diffax.typing import Array, Float, Key


def per_example(key: Key, size: int) -> Key:
    """Keys of shape (size,): the given ones, or fold_in(key, i) for a single key.

    Raises:
      ValueError: if there is a key for each of a different number of examples, or the key is not typed.
    """
    _check_typed(key)
    if jnp.ndim(key) == 0:
        return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(size))
    if jnp.shape(key) != (size,):
        raise ValueError(f"key must have shape () or ({size},), got {jnp.shape(key)}")
    return key


def _check_typed(key: Any) -> None:
    if not jnp.issubdtype(jnp.asarray(key).dtype, jax.dtypes.prng_key):
        raise ValueError(f"key must be typed, from jax.random.key, got an array of {jnp.asarray(key).dtype}")


def fold_in(key: Key, data: Any) -> Key:
    """`jax.random.fold_in` for a key of shape () or (B,); data: one integer, traced or not."""
    _check_typed(key)
    if jnp.ndim(key) == 0:
        return jax.random.fold_in(key, data)
    return jax.vmap(jax.random.fold_in, (0, None))(key, data)


def noise(key: Key, like: Any) -> Any:
    """Standard normal noise with the shapes and dtypes of `like`, leaves (B, ...). The key is consumed.

    The one place where samplers and losses get their noise from.

    >>> key = jax.random.key(0)
    >>> bool((noise(key, jnp.ones((4, 2)))[:2] == noise(key, jnp.ones((2, 2)))).all())
    True
    """
    keys = per_example(key, batch_size(like))
    leaves, treedef = jax.tree.flatten(like)

    def draw(index, leaf):
        leaf_keys = keys if len(leaves) == 1 else fold_in(keys, index)
        return jax.vmap(lambda k: jax.random.normal(k, leaf.shape[1:], leaf.dtype))(leaf_keys)

    return jax.tree.unflatten(treedef, [draw(i, leaf) for i, leaf in enumerate(leaves)])


def uniform(key: Key, size: int, dtype: Any = jnp.float32) -> Float[Array, " {size}"]:
    """Uniform draws on [0, 1), one for each example: shape (size,). The key is consumed."""
    return jax.vmap(lambda k: jax.random.uniform(k, (), dtype))(per_example(key, size))
