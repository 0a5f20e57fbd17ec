"""Random draws by example: every function that draws takes one key, or one key for each example.

The noise of example i depends only on its own key, not on the batch size or the number of devices. A single key of
shape () stands for the keys fold_in(key, i), i = 0 .. B - 1.

Public functions draw from `stream(key, NAME)`, where NAME is their own name. So two functions draw independent numbers
from the same key; for example, one key may be used for the times and the noise of a loss. Samplers and `noise`, which
draws for them, use the key without a stream: give each of them its own key by `jax.random.split`.

All draws use threefry, for keys of every implementation. Under `vmap`, `rbg` and `unsafe_rbg` take the random bits of
all examples from the first key, so `threefry` first converts their keys.
"""

import functools
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffax._pytrees import batch_size
from diffax.typing import Array, DType, Float, Key, Leaf, Tree

IMPLEMENTATION = "threefry2x32"


def per_example(key: Key, size: int) -> Key:
    """Keys of shape (size,): `key` itself if it has that shape, fold_in(key, i) for a single key.

    Raises:
      ValueError: if the shape of key is neither () nor (size,), or the key is not typed.
    """
    key = threefry(key)
    if jnp.ndim(key) == 0:
        return keys_at(key, jnp.arange(size))
    if jnp.shape(key) != (size,):
        raise ValueError(f"key must have shape () or ({size},), got {jnp.shape(key)}")
    return key


def keys_at(key: Key, index: Array | np.ndarray) -> Key:
    """Keys of shape (B,): fold_in(key, index_i), the keys of the examples with these indices in a batch. key: ()."""
    return jax.vmap(jax.random.fold_in, (None, 0))(threefry(key), jnp.asarray(index))


def threefry(key: Key) -> Key:
    """The key itself if its implementation is threefry, else a threefry key seeded by its data; shape () or (B,).

    Raises:
      ValueError: if the key is not typed, or has more than one axis.

    >>> jax.random.key_impl(threefry(jax.random.key(0, impl="rbg")))
    'threefry2x32'
    """
    dtype = getattr(key, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key):
        value = repr(key) if dtype is None else f"an array of {dtype}"
        raise ValueError(f"key must be typed, from jax.random.key, got {value}")
    if jnp.ndim(key) > 1:
        raise ValueError(f"key must have shape () or (B,), got {jnp.shape(key)}")
    if jax.random.key_impl(key) == IMPLEMENTATION:
        return key

    def seeded(words: Leaf) -> Key:
        return functools.reduce(jax.random.fold_in, words.ravel(), jax.random.key(0, impl=IMPLEMENTATION))

    words = jax.random.key_data(key)
    return seeded(words) if jnp.ndim(key) == 0 else jax.vmap(seeded)(words)


def fold_in(key: Key, data: int | Array | np.integer[Any]) -> Key:
    """`jax.random.fold_in` for a key of shape () or (B,); data: one integer, may be traced."""
    key = threefry(key)
    if jnp.ndim(key) == 0:
        return jax.random.fold_in(key, data)
    return jax.vmap(jax.random.fold_in, (0, None))(key, data)


def stream(key: Key, name: str) -> Key:
    """The key, () or (B,), that the function `name` draws from: fold_in(key, crc32(name)).

    >>> key = jax.random.key(0)
    >>> bool(stream(key, "draw") == stream(key, "denoising_loss"))
    False
    """
    return fold_in(key, np.uint32(zlib.crc32(name.encode())))


def noise(key: Key, like: Tree) -> Any:
    """Standard normal noise with the shapes and dtypes of `like`, leaves (B, ...). The key is consumed.

    All noise of samplers and losses comes from this function. It uses the key without a `stream`.

    >>> key = jax.random.key(0)
    >>> bool((noise(key, jnp.ones((4, 2)))[:2] == noise(key, jnp.ones((2, 2)))).all())
    True
    """
    keys = per_example(key, batch_size(like))
    leaves, treedef = jax.tree.flatten(like)

    def draw(index: int, leaf: Leaf) -> Any:
        leaf_keys = keys if len(leaves) == 1 else fold_in(keys, index)
        return jax.vmap(lambda k: jax.random.normal(k, leaf.shape[1:], leaf.dtype))(leaf_keys)

    return jax.tree.unflatten(treedef, [draw(i, leaf) for i, leaf in enumerate(leaves)])


def unit_interval(key: Key, size: int, dtype: DType = jnp.float32) -> Float[Array, " {size}"]:
    """Uniform draws on [0, 1), one for each example: shape (size,). The key is consumed."""
    keys = per_example(stream(key, "uniform"), size)
    return jax.vmap(lambda k: jax.random.uniform(k, (), dtype))(keys)
