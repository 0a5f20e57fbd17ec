"""Aliases and protocols that every module shares.

`Array` is a `jax.Array`; the state `x` may also be a pytree of arrays (positions and features, say).
`Key` is a typed key of shape `()`, or one key for each example, shape `(B,)`.

    Predict   (x, t) -> y     a network with its parameters and conditioning bound
    Denoiser  (x, t) -> x0    the posterior mean E[x0 | x_t = x]
    Guide     (conditional, unconditional) -> guided denoiser

    Scalar      a number or an array, of shape () unless its argument says otherwise; may be traced
    PerExample  a number or an array of shape () or (B,); may be traced
    Times       t, of shape () or (B,)
    Weight      a number, an array of shape () or (B,), or a function of t
    Tree        an array (B, ...), or a pytree of arrays with the same leading axis
    Params      the parameters of a network, a pytree
    Kind        a kind of prediction

x: `(B, ...)`; t: `()` or `(B,)`, always a float in [0, 1] (0 is data, 1 is noise).
"""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

Array = jax.Array
Key = jax.Array

# For type checkers. At run time they are `Any`, so that bad input reaches the library's own one-line errors.
if TYPE_CHECKING:
    Predict = Callable[[Any, Any], Any]
    Denoiser = Callable[[Any, Any], Any]
    Guide = Callable[[Denoiser, Denoiser], Denoiser]
    Scalar = float | Array | np.ndarray[Any, Any]
    PerExample = float | Array | np.ndarray[Any, Any]
    Times = float | Array | np.ndarray[Any, Any]
    Weight = PerExample | Callable[[Any], Any]
    Tree = Any
    Params = Any
    Kind = Literal["x0", "eps", "score", "v", "velocity", "edm"]
else:
    Predict = Denoiser = Guide = Scalar = PerExample = Times = Weight = Tree = Params = Kind = Any

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
