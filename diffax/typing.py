"""Aliases and protocols that every module shares.

`Array` is a `jax.Array`; the state `x` may also be a pytree of arrays, for example of positions and features.
`Key` is a typed key of shape `()`, or one key for each example, shape `(B,)`.

    Predict   (x, t) -> y     a network with its parameters and conditioning bound
    Denoiser  (x, t) -> x0    the posterior mean E[x0 | x_t = x]
    Guide     (conditional, unconditional) -> guided denoiser

    Keys        a key of shape (), or one for each example, (B,)
    Scalar      a number or an array, of shape () unless stated otherwise; may be traced
    PerExample  a number or an array of shape () or (B,); may be traced
    Times       t, of shape () or (B,)
    Weight      a number, an array of shape () or (B,), or a function of t
    Tree        an array (B, ...), or a pytree of arrays with the same leading axis
    Leaf        an array, as a leaf of a Tree is; of NumPy where nothing is traced
    Params      the parameters of a network, a pytree
    Batch       the input of a training step, a pytree with leaves (B, ...)
    X, Y        type variables: a function X -> X returns the type of its argument
    Values      numbers along one axis, an array or a sequence
    Examples    an array (N, ...) of JAX or NumPy
    Conditioning  labels or embeddings, a pytree with leaves (B, ...)
    SamplerState  the state of a sampler, a NamedTuple whose first field is x
    DType       a dtype or the name of a dtype
    Kind        a kind of prediction

Strings with a fixed set of values (`Scaling`, `Variant` ...) are literals for type checkers and `str` at run time.

x: `(B, ...)`; t: `()` or `(B,)`, always a float in [0, 1] (0 is data, 1 is noise).
"""

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np

Array = jax.Array
Key = jax.Array

# These aliases are for type checkers. At run time they are `Any`: a run-time type checker accepts every value, and bad
# input raises the one-line errors of this library.
if TYPE_CHECKING:
    from jax.typing import DTypeLike

    Predict = Callable[[Any, Any], Any]
    """A network with its parameters and conditioning bound: (x, t) -> y."""
    Denoiser = Callable[..., Any]
    """The posterior mean: (x, t) -> x0 = E[x0 | x_t = x], or `Moments` with a learned variance; (x, t, s) -> x0 for a
    flow map."""
    Guide = Callable[[Denoiser, Denoiser], Denoiser]
    Scalar = float | Array | np.ndarray[Any, Any] | np.number[Any]
    PerExample = Scalar
    Times = Scalar
    Weight = PerExample | Callable[[Any], Any]
    Values = Sequence[float] | Array | np.ndarray[Any, Any]
    Examples = Array | np.ndarray[Any, Any]
    Leaf = Array
    X = TypeVar("X")
    Keys = Array
    Tree = Any
    Params = Any
    Batch = Any
    Conditioning = Any
    SamplerState = Any
    DType = DTypeLike
    Y = TypeVar("Y")
    Kind = Literal["x0", "eps", "score", "v", "velocity", "edm"]
    Scaling = Literal["vp", "sub_vp", "ve", "flow"]
    Integrand = Literal["x0", "eps"]
    Space = Literal["rho", "time"]
    Variant = Literal["bh1", "bh2"]
    Solver = Literal["midpoint", "heun"]
else:
    Predict = Denoiser = Guide = Scalar = PerExample = Times = Weight = Values = Examples = Leaf = X = Y = Any
    Keys = Tree = Params = Batch = Conditioning = SamplerState = DType = Kind = Any
    Scaling = Integrand = Space = Variant = Solver = str

# Shapes in annotations use jaxtyping, which is not a dependency of the library. They are active if jaxtyping was
# imported before diffax, as its pytest plugin does to check them. Otherwise the class below replaces them.
if TYPE_CHECKING or "jaxtyping" in sys.modules:
    from jaxtyping import Float as Float
    from jaxtyping import Num as Num
    from jaxtyping import Shaped as Shaped
else:

    class Shaped:
        """Replacement for the annotations of jaxtyping: `Float[Array, "n"]` is `Any`."""

        def __class_getitem__(cls, item: Any) -> Any:
            """Return `Any`: dtype and shape are not checked."""
            return Any

    Float = Num = Shaped

Grid = Num[Any, "n ..."]  # a step grid: (n,), or (n, B) with a grid for each example


class Level(NamedTuple):
    """A noise level: x_t = alpha x0 + sigma eps, log_snr = log(alpha^2 / sigma^2). Each field has the shape of t."""

    alpha: Any
    sigma: Any
    log_snr: Any


@runtime_checkable
class Schedule(Protocol):
    """The interface of noise schedules. `log_snr` decreases in t, and `inverse` is its inverse function."""

    def log_snr(self, t: Times) -> Array:
        """log(alpha^2 / sigma^2) at time t; any shape."""
        ...

    def inverse(self, log_snr: Scalar) -> Array:
        """The time at which the schedule has this log-SNR; any shape."""
        ...

    def __call__(self, t: Times) -> Level:
        """The noise level at time t; any shape."""
        ...
