"""Aliases and protocols that every module shares.

`Array` is a `jax.Array`; the state `x` may also be a pytree of arrays (positions and features, say).
`Key` is a typed key of shape `()`, or one key for each example, shape `(B,)`.

    Predict   (x, t) -> y     a network with its parameters and conditioning bound
    Denoiser  (x, t) -> x0    the posterior mean E[x0 | x_t = x]
    Guide     (conditional, unconditional) -> guided denoiser

x: `(B, ...)`; t: `()` or `(B,)`, always a float in [0, 1] (0 is data, 1 is noise).
"""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import jax

Array = jax.Array
Key = jax.Array

# `check_function` raises a one-line error for a value that is not callable, so run-time type checks skip these.
if TYPE_CHECKING:
    Predict = Callable[[Any, Any], Any]
    Denoiser = Callable[[Any, Any], Any]
    Guide = Callable[[Denoiser, Denoiser], Denoiser]
else:
    Predict = Denoiser = Guide = Any

# Shapes in annotations are jaxtyping's, which is no dependency of the library: they are live where
# jaxtyping was imported first (under pytest, whose plugin checks them) and plain names elsewhere.
if TYPE_CHECKING or "jaxtyping" in sys.modules:
    from jaxtyping import Float, Num, Shaped
else:

    class Shaped:
        """Stands in for jaxtyping's annotations: `Float[Array, "n"]` is `Any`."""

        def __class_getitem__(cls, item: Any) -> Any:
            """The annotation without its meaning."""
            return Any

    Float = Num = Shaped

Grid = Num[Any, "n ..."]  # a step grid: (n,), or (n, B) with a grid for each example
Keys = Shaped[Array, "..."]  # () or (B,)


class Level(NamedTuple):
    """A noise level: x_t = alpha x0 + sigma eps, log_snr = log(alpha^2 / sigma^2). Shapes: that of t."""

    alpha: Any
    sigma: Any
    log_snr: Any


def described(value: Any) -> str:
    """A value as text for a one-line error: the repr of numbers and strings, the kind and shape of other values."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, jax.Array) or type(value).__module__ == "numpy":
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    if callable(value) and hasattr(value, "__name__"):
        return f"the function {value.__name__}"
    if isinstance(value, tuple):
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 80 and "\n" not in text else f"a {type(value).__name__}"


@runtime_checkable
class Schedule(Protocol):
    """What every noise schedule provides. `log_snr` decreases in t and `inverse` undoes it."""

    def log_snr(self, t: Any) -> Any:
        """log(alpha^2 / sigma^2) at time t; any shape."""
        ...

    def inverse(self, log_snr: Any) -> Any:
        """The time at which the schedule has this log-SNR; any shape."""
        ...

    def __call__(self, t: Any) -> Level:
        """The noise level at time t; any shape."""
        ...


def check_schedule(schedule: Any, name: str = "schedule") -> None:
    """Raises `ValueError` for a value without the methods of a schedule, or for a class of schedules.

    >>> check_schedule("cosine")
    Traceback (most recent call last):
    ...
    ValueError: schedule must be a noise schedule, such as diffax.Cosine(), got 'cosine'
    """
    if isinstance(schedule, type) or not (callable(schedule) and hasattr(schedule, "log_snr")):
        raise ValueError(f"{name} must be a noise schedule, such as diffax.Cosine(), got {described(schedule)}")


def check_function(name: str, value: Any, kind: str = "a function (x, t) -> x0") -> None:
    """Raises `ValueError` for a value that is not callable, or for a schedule in a function's place.

    >>> check_function("denoise", 3)
    Traceback (most recent call last):
    ...
    ValueError: denoise must be a function (x, t) -> x0, got 3
    """
    if not callable(value) or isinstance(value, Schedule):
        raise ValueError(f"{name} must be {kind}, got {described(value)}")
