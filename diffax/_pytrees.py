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
    """A dataclass field that belongs to the structure of the tree and is never traced, such as a string or an int."""
    return dataclasses.field(default=default, metadata={"static": True})


@dataclass_transform(frozen_default=True, field_specifiers=(static,))
def pytree(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass that is a pytree; fields marked `static()` belong to its structure.

    Unflattening does not run `__post_init__`. Transformations put tracers, axis numbers or None into the leaves, and
    the validation of user input would reject these.

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
    """`value` as a NumPy array, or None if it is traced or not numeric."""
    if value is None or isinstance(value, jax.core.Tracer):
        return None
    try:
        array = np.asarray(value)
    except Exception:  # e.g. a shape descriptor
        return None
    return array if np.issubdtype(array.dtype, np.number) or array.dtype.kind == "V" else None


def is_zero(value: object) -> bool:
    """Whether a hyperparameter is the Python number 0. Code may then skip work at trace time.

    >>> is_zero(0.0), is_zero(jnp.zeros(())), is_zero(0.5)
    (True, False, False)
    """
    return isinstance(value, (int, float)) and bool(value == 0)


def promoted(*values: object) -> Any:
    """The common dtype of arrays or dtypes by JAX's standard promotion, also where strict promotion is set.

    >>> promoted(jnp.bfloat16, jnp.float32), promoted(jnp.ones(1, jnp.bfloat16), 2.0)
    (dtype('float32'), dtype(bfloat16))
    """
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*values)


def floating(value: Any) -> Any:
    """Convert integers and booleans to floats and lists to arrays; return other values unchanged.

    >>> floating(3), floating([1, 2]).tolist(), floating(0.5)
    (3.0, [1.0, 2.0], 0.5)
    """
    if isinstance(value, int):
        return float(value)
    if isinstance(value, (list, tuple)):
        array = concrete(value)
        value = jnp.asarray(value) if array is None else array
    dtype = getattr(value, "dtype", None)
    whole = dtype is not None and (jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.bool_))
    return value.astype(float) if whole else value


def float_fields(node: Any) -> None:
    """Convert the integer leaves of a frozen dataclass to floats. Call it in `__post_init__`.

    Integers cannot be differentiated, and a float that is cast to an integer dtype would be truncated.
    """
    for field in dataclasses.fields(node):
        if not field.metadata.get("static"):
            object.__setattr__(node, field.name, floating(getattr(node, field.name)))


def as_float(value: object) -> Array:
    """`value` as an array of float32 or wider: times and noise levels are never in half precision."""
    array = jnp.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return array.astype(float)
    return array.astype(promoted(array.dtype, jnp.float32))


def widen(x: X) -> X:
    """Cast leaves of half precision (below 32 bits) to float32; return the other leaves unchanged.

    The states of samplers are widened, because a step smaller than 1 / 512 of x is rounded away in bfloat16.

    >>> widen({"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2, int)})["a"].dtype
    dtype('float32')
    """
    result: X = jax.tree.map(lambda v: v.astype(jnp.float32) if _is_half(v) else v, x)
    return result


def narrow(x: Tree, like: X) -> X:
    """Undo `widen`: cast each leaf of x to the dtype of the leaf in `like` where that is of half precision."""
    result: X = jax.tree.map(lambda v, other: v.astype(other.dtype) if _is_half(other) else v, x, like)
    return result


def _is_half(leaf: Leaf) -> bool:
    dtype = jnp.result_type(leaf)
    return jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4


def expand(value: PerExample, x: Tree) -> Array:
    """Add trailing axes to a coefficient of shape () or (B,), so that it multiplies x of shape (B, ...).

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


def select(condition: PerExample, yes: X, no: X) -> X:
    """The tree `yes` where the condition, () or (B,), holds for an example, else the tree `no`.

    >>> select(jnp.array([True, False]), jnp.ones((2, 2)), jnp.zeros((2, 2))).tolist()
    [[1.0, 1.0], [0.0, 0.0]]
    """
    selected: X = jax.tree.map(lambda u, v: jnp.where(expand(condition, u), u, v), yes, no)
    return selected


def combine(*terms: tuple[PerExample, X]) -> X:
    """The linear combination sum_i c_i x_i of trees x_i with coefficients c_i of shape () or (B,).

    The sum is computed in the common dtype of coefficients and leaves, and returned in the dtype of the leaves of the
    first tree (float32 for integers).

    Raises:
      ValueError: for a coefficient of another shape, or trees of different shapes: trees are not broadcast.

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
    """u + v of two arrays in their common dtype, also where strict promotion is set."""
    dtype = promoted(u, v)
    return u.astype(dtype) + v.astype(dtype)


def times(u: Leaf, v: Leaf) -> Array:
    """u v of two arrays in their common dtype, also where strict promotion is set."""
    dtype = promoted(u, v)
    return u.astype(dtype) * v.astype(dtype)


def of_rank(v: Scalar, x: Tree) -> Array:
    """Add leading axes to v until it has the rank of x, so that v broadcasts against the last axes of x."""
    v = jnp.asarray(v)
    return v.reshape((1,) * (jnp.ndim(x) - v.ndim) + v.shape)


def safe_sqrt(v: Scalar) -> Array:
    """sqrt(max(v, 0)) with derivative 0 where v <= 0; the derivative of sqrt is infinite at 0.

    >>> float(jax.grad(safe_sqrt)(0.0))
    0.0
    """
    positive = v > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, v, 1.0)), 0.0)


def batch_size(x: Tree) -> int:
    """The length of the leading axis that all leaves of x share.

    Raises:
      ValueError: if the leaves do not share a leading axis.
    """
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(x)}
    if len(sizes) != 1 or sizes == {()}:
        raise ValueError(f"x must have one leading batch axis, got shapes {jax.tree.map(jnp.shape, x)}")
    return math.prod(sizes.pop())
