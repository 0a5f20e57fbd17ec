"""One-line errors for bad input: NAME must be CONDITION, got VALUE."""

import difflib
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, TypeVar, overload

import jax
import jax.numpy as jnp
import numpy as np

from diffax._pytrees import batch_size, concrete
from diffax.typing import Scalar, Schedule, Tree, Weight

V = TypeVar("V")


def described(value: object) -> str:
    """Text for a value in a one-line error: the repr of numbers and strings, the kind and shape of other values."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, (jax.Array, np.ndarray, np.generic)):
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    if callable(value) and hasattr(value, "__name__"):
        return f"the function {value.__name__}"
    if isinstance(value, tuple):
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 80 and "\n" not in text else f"a {type(value).__name__}"


def check_schedule(schedule: object, name: str = "schedule") -> None:
    """Raise `ValueError` for a value without the methods of a schedule, or for a schedule class instead of an instance.

    >>> check_schedule("cosine")
    Traceback (most recent call last):
    ...
    ValueError: schedule must be a noise schedule, such as diffax.Cosine(), got 'cosine'
    """
    if isinstance(schedule, type) or not (callable(schedule) and hasattr(schedule, "log_snr")):
        raise ValueError(f"{name} must be a noise schedule, such as diffax.Cosine(), got {described(schedule)}")


def check_function(name: str, value: object, kind: str = "a function (x, t) -> x0") -> None:
    """Raise `ValueError` for a value that is not callable, or for a schedule instead of a function.

    >>> check_function("denoise", 3)
    Traceback (most recent call last):
    ...
    ValueError: denoise must be a function (x, t) -> x0, got 3
    """
    if not callable(value) or isinstance(value, Schedule):
        raise ValueError(f"{name} must be {kind}, got {described(value)}")


class Condition(NamedTuple):
    """A condition on a value.

    text: the condition in words, as it follows "must be" in an error.
    holds: NumPy array -> bool array.
    """

    text: str
    holds: Callable[[np.ndarray], Any]


positive = Condition("> 0", lambda v: v > 0)
non_negative = Condition(">= 0", lambda v: v >= 0)
number = Condition("a number", lambda v: v == v)
finite = Condition("finite", np.isfinite)
whole = Condition("a whole number", lambda v: v == np.round(v))


def interval(text: str) -> Condition:
    """The condition that a value is in an interval: "[0, 1)" includes 0 and excludes 1.

    >>> interval("[0, 1)").holds(np.array([0.0, 1.0])).tolist()
    [True, False]
    """
    low, high = (float(bound) for bound in text[1:-1].split(","))

    def holds(v: np.ndarray) -> Any:
        return (v >= low if text[0] == "[" else v > low) & (v <= high if text[-1] == "]" else v < high)

    return Condition(f"in {text}", holds)


def _rounded(bound: Scalar) -> Any:
    """A bound rounded to six digits, for an error."""
    value = np.asarray(bound).tolist()
    return float(f"{value:.6g}") if isinstance(value, float) else value


def above(bound: Scalar, name: str) -> Condition:
    """The condition `> bound`, where the bound is another argument; `name` is its name in the error.

    >>> check("t_max", 0.1, above(0.2, "t_min"))
    Traceback (most recent call last):
    ...
    ValueError: t_max must be > t_min = 0.2, got 0.1
    """
    return Condition(f"> {name} = {_rounded(bound)}", lambda v: v > bound)


def at_least(bound: Scalar, name: str) -> Condition:
    """The condition `>= bound`, where the bound is the argument `name`."""
    return Condition(f">= {name} = {_rounded(bound)}", lambda v: v >= bound)


def below(bound: Scalar, name: str) -> Condition:
    """The condition `< bound`, where the bound is the argument `name`."""
    return Condition(f"< {name} = {_rounded(bound)}", lambda v: v < bound)


def check(name: str, value: object, condition: Condition) -> None:
    """Raise `ValueError` if the condition is false for some entry of the value; a traced value passes.

    >>> check("beta_min", -1.0, positive)
    Traceback (most recent call last):
    ...
    ValueError: beta_min must be > 0, got -1.0
    """
    array = concrete(value)
    if value is None or isinstance(value, str):
        raise ValueError(f"{name} must be {condition.text}, got {value!r}")
    if array is not None and not np.all(condition.holds(array)):
        raise ValueError(f"{name} must be {condition.text}, got {array.tolist()}")


def check_count(name: str, value: object, least: int = 1) -> None:
    """Raise `ValueError` unless `value` is a Python or NumPy int >= `least`.

    >>> check_count("probes", 2.5)
    Traceback (most recent call last):
    ...
    ValueError: probes must be an int >= 1, got 2.5
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name} must be an int >= {least}, got {value!r}")


def check_weight(name: str, value: object) -> None:
    """Raise `ValueError` unless `value` is a number, an array or a function of t; a traced value passes.

    >>> check_weight("weight", "7.5")
    Traceback (most recent call last):
    ...
    ValueError: weight must be a number, an array or a function of t, got '7.5'
    """
    if value is None or isinstance(value, str):
        raise ValueError(f"{name} must be a number, an array or a function of t, got {value!r}")
    if not callable(value):
        check(name, value, number)


@overload
def choose(name: str, value: object, known: Mapping[str, V]) -> V: ...
@overload
def choose(name: str, value: object, known: tuple[str, ...]) -> str: ...
def choose(name: str, value: object, known: Collection[str]) -> Any:
    """Return `known[value]`, or the value itself if `known` is not a mapping.

    Raises:
      ValueError: for a value that is not in `known`, with the nearest name in `known`.

    >>> choose("scaling", "vpp", {"vp": 1, "ve": 2})
    Traceback (most recent call last):
    ...
    ValueError: scaling must be one of vp, ve, got 'vpp'; did you mean 'vp'?
    """
    if not isinstance(value, str) or value not in known:
        nearest = difflib.get_close_matches(value, known, 1) if isinstance(value, str) else []
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}{hint}")
    return known[value] if isinstance(known, Mapping) else value


def check_per_example(x: Tree, **values: Weight | None) -> None:
    """Raise `ValueError` for a value whose shape is neither () nor (B,), B the batch of x; None and functions pass.

    >>> check_per_example(jnp.ones((4, 2)), eta=jnp.ones(3))
    Traceback (most recent call last):
    ...
    ValueError: eta must have shape () or (4,), got (3,)
    """
    for name, value in values.items():
        if value is not None and not callable(value) and jnp.ndim(value) and jnp.shape(value) != (batch_size(x),):
            raise ValueError(f"{name} must have shape () or ({batch_size(x)},), got {jnp.shape(value)}")


def check_like(name: str, value: object, x: Tree) -> None:
    """Raise `ValueError` unless `value` is a tree like x with leaves of the same shapes.

    >>> check_like("denoise(x, t)", jnp.ones((4, 1)), jnp.ones((4, 2)))
    Traceback (most recent call last):
    ...
    ValueError: denoise(x, t) must have the shape of x, (4, 2), got (4, 1)
    """
    shapes = tuple(jax.tree.map(jnp.shape, v) for v in (x, value))
    if shapes[0] != shapes[1]:
        raise ValueError(f"{name} must have the shape of x, {shapes[0]}, got {shapes[1]}")


def check_float(name: str, x: Tree) -> None:
    """Raise `ValueError` if a leaf of x does not have a float dtype.

    >>> check_float("x", jnp.ones(2, int))
    Traceback (most recent call last):
    ...
    ValueError: x must be of a float type, got int32
    """
    for leaf in jax.tree.leaves(x):
        dtype = jnp.asarray(leaf).dtype
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise ValueError(f"{name} must be of a float type, got {dtype}")
