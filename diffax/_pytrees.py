"""Small tools for pytrees: frozen dataclasses, broadcasting over the batch, safe roots, linear combinations."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np

from diffax.typing import Array, Leaf, PerExample, Scalar, Tree, X

T = TypeVar("T")


def static(default: object = dataclasses.MISSING) -> Any:
    """A dataclass field that is part of the tree's structure (strings, ints), never traced."""
    return dataclasses.field(default=default, metadata={"static": True})


@dataclass_transform(frozen_default=True, field_specifiers=(static,))
def pytree(cls: type[T]) -> type[T]:
    """Makes a class a frozen dataclass whose fields are pytree leaves, but for those marked `static()`.

    Unflattening does not run `__post_init__`: what a transformation puts into the leaves (tracers,
    axis numbers, None) is not the user's input, so it is not validated.

    >>> @pytree
    ... class Point:
    ...     x: float
    >>> jax.tree.map(lambda v: 2 * v, Point(3.0))
    Point(x=6.0)
    """
    cls = dataclasses.dataclass(frozen=True)(cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    data = tuple(f.name for f in fields if not f.metadata.get("static"))
    meta = tuple(f.name for f in fields if f.metadata.get("static"))

    def flatten(node: object) -> Any:
        return tuple(getattr(node, n) for n in data), tuple(getattr(node, n) for n in meta)

    def flatten_with_keys(node: object) -> Any:
        keyed = tuple((jax.tree_util.GetAttrKey(n), getattr(node, n)) for n in data)
        return keyed, tuple(getattr(node, n) for n in meta)

    def unflatten(aux: tuple[Any, ...], children: Iterable[Any]) -> Any:
        node = object.__new__(cls)
        for name, value in zip(data + meta, tuple(children) + aux, strict=True):
            object.__setattr__(node, name, value)
        return node

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def concrete(value: object) -> Any:
    """`value` as a NumPy array where it is known now, None where it is traced or not a number."""
    if value is None or isinstance(value, jax.core.Tracer):
        return None
    try:
        array = np.asarray(value)
    except Exception:  # e.g. a shape descriptor
        return None
    return array if np.issubdtype(array.dtype, np.number) or array.dtype.kind == "V" else None


def is_zero(value: object) -> bool:
    """Whether a hyperparameter is a literal 0, so that work may be skipped while tracing.

    >>> is_zero(0.0), is_zero(jnp.zeros(())), is_zero(0.5)
    (True, False, False)
    """
    return isinstance(value, (int, float)) and bool(value == 0)


def promoted(*values: object) -> Any:
    """The dtype of the values together, arrays or dtypes: JAX's standard promotion, under strict promotion too.

    >>> promoted(jnp.bfloat16, jnp.float32), promoted(jnp.ones(1, jnp.bfloat16), 2.0)
    (dtype('float32'), dtype(bfloat16))
    """
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*values)


def floating(value: Any) -> Any:
    """Integers as floats, numbers, lists or arrays; everything else as it is, Python's floats too.

    >>> floating(3), floating([1, 2]).tolist(), floating(0.5)
    (3.0, [1.0, 2.0], 0.5)
    """
    if isinstance(value, int):
        return float(value)
    if isinstance(value, (list, tuple)):
        known = concrete(value)
        value = jnp.asarray(value) if known is None else known
    dtype = getattr(value, "dtype", None)
    whole = dtype is not None and (jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.bool_))
    return value.astype(float) if whole else value


def float_fields(node: Any) -> None:
    """Makes floats of the integers among the leaves of a frozen dataclass, in its `__post_init__`.

    An integer cannot be differentiated, and what is cast to its dtype is truncated.
    """
    for field in dataclasses.fields(node):
        if not field.metadata.get("static"):
            object.__setattr__(node, field.name, floating(getattr(node, field.name)))


def as_float(value: object) -> Array:
    """`value` as an array of a float type, at least float32: times and levels are never half precision."""
    array = jnp.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return array.astype(float)
    return array.astype(promoted(array.dtype, jnp.float32))


def widen(x: X) -> X:
    """The leaves of half precision (below 32 bits) as float32, all others, integers too, as they are.

    A state is carried like this: in bfloat16 a step of less than 1 / 512 of x would be rounded away.

    >>> widen({"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2, int)})["a"].dtype
    dtype('float32')
    """
    result: X = jax.tree.map(lambda v: v.astype(jnp.float32) if _is_half(v) else v, x)
    return result


def narrow(x: Tree, like: X) -> X:
    """x with the leaves that are of half precision in `like` in that precision: the end of what began with `widen`."""
    result: X = jax.tree.map(lambda v, given: v.astype(given.dtype) if _is_half(given) else v, x, like)
    return result


def _is_half(leaf: Leaf) -> bool:
    dtype = jnp.result_type(leaf)
    return jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4


def expand(value: PerExample, x: Tree) -> Array:
    """A coefficient of shape () or (B,) with trailing axes added, so that it multiplies x of shape (B, ...).

    Raises:
      ValueError: for a coefficient of another shape.

    >>> expand(jnp.ones(4), jnp.ones((4, 8, 8, 3))).shape
    (4, 1, 1, 1)
    """
    value = jnp.asarray(value)
    if value.ndim == 0:
        return value
    if value.shape != jnp.shape(x)[:1]:
        raise ValueError(f"coefficients must have shape () or {jnp.shape(x)[:1]}, got {value.shape}")
    return value.reshape(value.shape + (1,) * (jnp.ndim(x) - 1))


def combine(*terms: tuple[PerExample, X]) -> X:
    """The linear combination sum_i c_i x_i of trees x_i with coefficients c_i of shape () or (B,).

    Computed at the coefficients' precision, returned in the dtype of the first tree's leaves (float32 for integers).

    Raises:
      ValueError: for a coefficient of another shape, or trees of different shapes: nothing is broadcast.

    >>> combine((2.0, {"a": jnp.ones(2)}), (jnp.array([0.0, 1.0]), {"a": jnp.ones(2)}))["a"].tolist()
    [2.0, 3.0]
    """
    coefficients, trees = zip(*terms, strict=True)

    def leaf(*leaves: Leaf) -> Array:
        if len({v.shape for v in leaves}) > 1:
            raise ValueError(f"arrays to combine must have one shape, got {', '.join(str(v.shape) for v in leaves)}")
        total = jnp.asarray(0)
        for c, v in zip(coefficients, leaves, strict=True):
            total = plus(total, times(expand(c, v), v))
        dtype = leaves[0].dtype
        return total.astype(dtype if jnp.issubdtype(dtype, jnp.inexact) else jnp.float32)

    result: X = jax.tree.map(leaf, *(jax.tree.map(jnp.asarray, tree) for tree in trees))
    return result


def plus(u: Leaf, v: Leaf) -> Array:
    """u + v of two arrays, promoted explicitly."""
    dtype = promoted(u, v)
    return u.astype(dtype) + v.astype(dtype)


def times(u: Leaf, v: Leaf) -> Array:
    """u v of two arrays, promoted explicitly."""
    dtype = promoted(u, v)
    return u.astype(dtype) * v.astype(dtype)


def of_rank(v: Scalar, x: Tree) -> Array:
    """An array v that broadcasts to x by its last axes, with leading axes added, as many as x has."""
    v = jnp.asarray(v)
    return v.reshape((1,) * (jnp.ndim(x) - v.ndim) + v.shape)


def safe_sqrt(v: Scalar) -> Array:
    """sqrt(max(v, 0)) with slope 0 where v <= 0, in place of sqrt's infinite slope at 0.

    >>> float(jax.grad(safe_sqrt)(0.0))
    0.0
    """
    positive = v > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, v, 1.0)), 0.0)


def batch_size(x: Tree) -> int:
    """The length of the leading axis that all leaves of x share."""
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(x)}
    if len(sizes) != 1 or sizes == {()}:
        raise ValueError(f"x must have one leading batch axis, got shapes {jax.tree.map(jnp.shape, x)}")
    return math.prod(sizes.pop())
