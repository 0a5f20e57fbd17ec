"""Linear measurements y = A x0 + std n: an operator A is a pytree with three linear functions and a check of y.

    forward(x0)    A x0
    adjoint(y)     A^T y
    solve(y, a, b) (a A A^T + b I)^-1 y      for b = 0 the inverse is restricted to the range of A
    check(y)       raises `ValueError` if y does not have the shape of a measurement

The algorithms of `diffax.inverse` need only these (`replacement` and `repaint` need a `Mask`). With b = 0 they give the
pseudo-inverse A^+ = A^T (A A^T)^-1, and for Gaussians

    argmin_x |y - A x|^2 + b |x - x0|^2 = x0 + A^T (A A^T + b I)^-1 (y - A x0)

The singular values c of each operator:

    Mask            A A^T = I on the known entries          c^2 = 1
    BoxDownsample   A A^T = I / factor^len(axes)            c^2 = factor^-len(axes)
    Blur            diagonal in the Fourier basis           c = |transfer|
    LinearMap       not known; `solve` runs conjugate residuals for each example

x0: (B, ...). y: (B, ...), or (1, ...) if all examples share one measurement. a, b: () or (B,), may be traced.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from diffax._checks import Condition, check, check_count, described, non_negative, positive
from diffax._pytrees import combine, expand, float_fields, floating, promoted, pytree, static
from diffax.typing import DType, Leaf, PerExample, Scalar, Tree


@runtime_checkable
class Operator(Protocol):
    """The interface of a measurement operator."""

    def forward(self, x0: Tree) -> Any:
        """A x0: (B, ...) to (B, ...)."""
        ...

    def adjoint(self, y: Tree) -> Any:
        """A^T y."""
        ...

    def solve(self, y: Tree, a: Scalar, b: Scalar) -> Any:
        """(a A A^T + b I)^-1 y; a, b: () or (B,), >= 0; b may be infinite."""
        ...

    def check(self, y: Tree) -> None:
        """Raise `ValueError` if y does not have the shape of this operator's measurements."""
        ...


@pytree
class Mask:
    """Inpainting: the known entries of x0, and 0 elsewhere. A A^T = I on the known entries.

    Args:
      known: bool or 0 / 1, broadcasts to x0 of shape (B, ...), for example (H, W, 1) or (B, H, W, 1); a tree if x0 is
        one.

    Raises:
      ValueError: if a value of `known` is neither 0 nor 1.

    >>> Mask(jnp.array([True, False])).forward(jnp.array([[2.0, 3.0]])).tolist()
    [[2.0, 0.0]]
    """

    known: Any

    def __post_init__(self) -> None:
        for leaf in jax.tree.leaves(self.known):
            check("known", leaf, Condition("0 or 1", lambda v: (v == 0) | (v == 1)))

    gain = 1.0  # the nonzero squared singular values

    def select(self, inside: Tree, x: Tree) -> Any:
        """`inside` in the known entries, x elsewhere; with the shapes and dtypes of x.

        Raises:
          ValueError: if `known` or `inside` does not broadcast to x.
        """

        def leaf(known: Scalar, a: Scalar, v: Leaf) -> Any:
            for name, shape in (("known", jnp.shape(known)), ("inside", jnp.shape(a))):
                if _broadcast(shape, v.shape) != v.shape:
                    raise ValueError(f"{name} must broadcast to x of shape {v.shape}, got {shape}")
            return jnp.where(jnp.asarray(known).astype(bool), jnp.asarray(a, v.dtype), v)

        return jax.tree.map(leaf, self.known, inside, jax.tree.map(jnp.asarray, x))

    def forward(self, x0: Tree) -> Any:
        """A x0, the shape of x0."""
        return self.select(x0, jax.tree.map(jnp.zeros_like, x0))

    def adjoint(self, y: Tree) -> Any:
        """A^T y = A y."""
        return self.forward(y)

    def solve(self, y: Tree, a: Scalar, b: Scalar) -> Any:
        """y / (a + b) in the known entries, 0 elsewhere."""
        return self.forward(_divide(y, a, b, 1.0))

    def check(self, y: Tree) -> None:
        """Raise `ValueError` if `known` does not broadcast to y."""

        def leaf(known: Scalar, v: Leaf) -> None:
            known_shape, shape = np.shape(known), np.shape(v)
            full = _broadcast(known_shape, shape) or ()
            if not shape or full[1:] != shape[1:] or len(full) != len(shape) or shape[0] not in (1, full[0]):
                raise ValueError(
                    f"y must have the shape (B, ...) of x, and known {known_shape} must broadcast to it, got {shape}"
                )

        _same_structure(self.known, y)
        jax.tree.map(leaf, self.known, y)


@pytree
class BoxDownsample:
    """Super-resolution by an integer factor: the means over boxes. A A^T = I / factor^len(axes).

    Args:
      factor: int >= 1, the side of a box.
      shape: of one example, for example (H, W, C).
      axes: the axes of the example along which the boxes extend; default (0, 1).

    Raises:
      ValueError: if the factor does not divide the shape along these axes.

    >>> BoxDownsample(2, (2, 4), axes=(1,)).forward(jnp.arange(8.0).reshape(1, 2, 4)).tolist()
    [[[0.5, 2.5], [4.5, 6.5]]]
    """

    factor: int = static()
    shape: tuple[int, ...] = static()
    axes: tuple[int, ...] = static(default=(0, 1))

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "axes", _check_axes(self.axes, self.shape))
        if isinstance(self.factor, bool) or not isinstance(self.factor, (int, np.integer)) or self.factor < 1:
            raise ValueError(f"factor must be an int >= 1, got {self.factor!r}")
        if any(self.shape[axis] % self.factor for axis in self.axes):
            raise ValueError(f"factor must divide shape {self.shape} along axes {self.axes}, got {self.factor}")

    @property
    def gain(self) -> float:
        """The squared singular values."""
        return float(self.factor) ** -len(self.axes)

    def forward(self, x0: Tree) -> Any:
        """A x0: (B, *shape) to a shape that is smaller by the factor along the axes."""
        x0 = check_shape("x", x0, self.shape)
        for axis in self.axes:
            split = (*x0.shape[: axis + 1], x0.shape[axis + 1] // self.factor, self.factor, *x0.shape[axis + 2 :])
            x0 = jnp.mean(x0.reshape(split), axis + 2)
        return x0

    def adjoint(self, y: Tree) -> Any:
        """A^T y: each entry is spread over its box."""
        self.check(y)
        for axis in self.axes:
            y = jnp.repeat(jnp.asarray(y), self.factor, axis + 1) / self.factor
        return y

    def solve(self, y: Tree, a: Scalar, b: Scalar) -> Any:
        """y / (a factor^-len(axes) + b)."""
        return _divide(y, a, b, self.gain)

    def check(self, y: Tree) -> None:
        """Raise `ValueError` if y does not have the shape of a measurement."""
        small = tuple(n // self.factor if axis in self.axes else n for axis, n in enumerate(self.shape))
        check_shape("y", y, small)


@pytree
class Blur:
    """Circular convolution with a kernel, by FFT: A A^T is diagonal in the Fourier basis.

    Args:
      kernel: one axis for each of `axes`; the entry at index size // 2 is the centre. May be traced.
      shape: of one example, for example (H, W, C).
      axes: 1 to 3 axes of the example; default (0, 1).
      cutoff: >= 0, default 1e-5: singular values below this fraction of the largest one count as 0, because their
        components cannot be recovered in floating point. Wang et al. 2022 use 3e-2 for deblurring.

    Raises:
      ValueError: if the kernel does not have one axis for each of `axes`, or is larger than the example.

    >>> blur = Blur(jnp.array([0.25, 0.5, 0.25]), (4,), axes=(0,))
    >>> blur.forward(jnp.array([[1.0, 0.0, 0.0, 0.0]])).round(3).tolist()
    [[0.5, 0.25, 0.0, 0.25]]
    """

    kernel: Any
    shape: tuple[int, ...] = static()
    axes: tuple[int, ...] = static(default=(0, 1))
    cutoff: Any = 1e-5

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "axes", _check_axes(self.axes, self.shape, max_axes=3))
        size, limits = np.shape(self.kernel), tuple(self.shape[axis] for axis in self.axes)
        if len(size) != len(limits) or any(k > n or k < 1 for k, n in zip(size, limits, strict=True)):
            raise ValueError(f"kernel must have {len(limits)} axes of lengths up to {limits}, got shape {size}")
        check("cutoff", self.cutoff, non_negative)
        float_fields(self)

    def _transfer(self, dtype: DType) -> Any:
        """The kernel's Fourier transform and its squared absolute value.

        Both are 0 below the cutoff, and have axes of length 1 so that they broadcast to the spectrum of (B, *shape).
        """
        kernel = jnp.asarray(self.kernel, dtype)
        size, lengths = kernel.shape, [self.shape[axis] for axis in self.axes]
        kernel = jnp.pad(kernel, [(0, n - k) for k, n in zip(size, lengths, strict=True)])
        kernel = jnp.roll(kernel, [-(k // 2) for k in size], range(len(size)))
        kernel = jnp.transpose(kernel, np.argsort(self.axes).tolist())
        wide = [1] + [n if axis in self.axes else 1 for axis, n in enumerate(self.shape)]
        transfer = jnp.fft.rfftn(kernel.reshape(wide), axes=self._fft_axes)
        power = jnp.square(transfer.real) + jnp.square(transfer.imag)
        nonzero = power > jnp.square(self.cutoff) * power.max()
        return jnp.where(nonzero, transfer, 0), jnp.where(nonzero, power, 0)

    @property
    def _fft_axes(self) -> Any:
        return tuple(sorted(axis + 1 for axis in self.axes))

    def _filter(self, x: Tree, multiply: Callable[..., Any]) -> Any:
        """x with its spectrum multiplied by multiply(transfer, power, spectrum), in float32 or better."""
        wide = x.astype(promoted(x.dtype, jnp.float32))
        spectrum = jnp.fft.rfftn(wide, axes=self._fft_axes)
        spectrum = spectrum * multiply(*self._transfer(wide.dtype), spectrum).astype(spectrum.dtype)
        sizes = [x.shape[axis] for axis in self._fft_axes]
        return jnp.fft.irfftn(spectrum, sizes, axes=self._fft_axes).astype(x.dtype)

    def forward(self, x0: Tree) -> Any:
        """A x0, the shape of x0."""
        return self._filter(check_shape("x", x0, self.shape), lambda transfer, power, like: transfer)

    def adjoint(self, y: Tree) -> Any:
        """A^T y: convolution with the reversed kernel."""
        return self._filter(check_shape("y", y, self.shape), lambda transfer, power, like: transfer.conj())

    def solve(self, y: Tree, a: Scalar, b: Scalar) -> Any:
        """(a A A^T + b I)^-1 y; 0 where a singular value and b are both 0."""

        def inverse(transfer: Leaf, power: Leaf, like: Leaf) -> Any:
            total = expand(a, like) * power + expand(b, like)
            return jnp.where(total > 0, 1 / jnp.where(total > 0, total, 1.0), 0.0)

        return self._filter(check_shape("y", y, self.shape), inverse)

    def check(self, y: Tree) -> None:
        """Raise `ValueError` if y does not have the shape of x."""
        check_shape("y", y, self.shape)


def gaussian_blur(
    std: PerExample, shape: tuple[int, ...], *, radius: int, axes: tuple[int, ...] = (0, 1), cutoff: Scalar = 1e-5
) -> Blur:
    """`Blur` with a Gaussian kernel of sum 1, truncated at `radius` pixels.

    Args:
      std: standard deviation in pixels, > 0.
      shape: of one example, for example (H, W, C).
      radius: int >= 0; the kernel has 2 radius + 1 entries along each axis.
      axes: as in `Blur`.
      cutoff: as in `Blur`.

    Raises:
      ValueError: if std <= 0 or radius is not an int >= 0.

    >>> gaussian_blur(1.0, (8, 8, 3), radius=2).kernel.shape
    (5, 5)
    """
    check("std", std, positive)
    check_count("radius", radius, 0)
    line = jnp.exp(-0.5 * jnp.square(jnp.arange(-radius, radius + 1) / jnp.asarray(std)))
    line = line / line.sum()
    kernel = line
    for _ in axes[1:]:
        kernel = kernel[..., None] * line
    return Blur(kernel, shape, axes, cutoff)


def measurement(operator: Operator, y: Tree) -> Any:
    """y as float arrays, checked against its operator.

    All examples share a y of batch size 1. Entries of y outside a mask are ignored: they are set to 0.

    Raises:
      ValueError: if y does not have the shape of the operator's measurements, or `operator` lacks a method.
    """
    if not isinstance(operator, Operator):
        methods = "forward, adjoint, solve and check"
        raise ValueError(f"operator must have the methods {methods}, such as Mask, got {described(operator)}")
    operator.check(y)
    y = jax.tree.map(float_array, y)
    return operator.forward(y) if isinstance(operator, Mask) else y


# A measurement operator, or any function of x0.
if TYPE_CHECKING:
    Measurement = Operator | Callable[[Any], Any]
else:
    Measurement = Any


def residual(operator: Measurement, y: Tree, x0: Tree) -> Any:
    """y - A x0, for y of shape (B, ...) or (1, ...); `operator` may be any function x0 -> y.

    Raises:
      ValueError: if y does not have the shape of A x0, apart from a batch size of 1.
    """
    measurements = operator.forward(x0) if isinstance(operator, Operator) else operator(x0)
    measurements = jax.tree.map(float_array, measurements)
    return jax.tree.map(lambda v, like: fit(jnp.asarray(v, like.dtype), like) - like, y, measurements)


def fit(y: Tree, like: Tree) -> Any:
    """y broadcast along its batch axis to the shape of `like`.

    Raises:
      ValueError: if y does not have the shape of `like`, apart from a batch size of 1.
    """
    if y.shape[1:] != like.shape[1:] or y.shape[0] not in (1, like.shape[0]):
        raise ValueError(f"y must have shape {like.shape}, or batch size 1, got {y.shape}")
    return jnp.broadcast_to(y, like.shape)


def pseudo_inverse(operator: Operator, y: Tree) -> Any:
    """A^+ y = A^T (A A^T)^-1 y."""
    return operator.adjoint(operator.solve(y, 1.0, 0.0))


def project(operator: Operator, y: Tree, x0: Tree) -> Any:
    """The nearest point to x0 with the measurement y: x0 + A^+ (y - A x0).

    Use it also to put the exact known pixels into a result of `replacement` or `repaint`.

    >>> project(Mask(jnp.array([1, 0])), jnp.array([[5.0, 0.0]]), jnp.array([[2.0, 3.0]])).tolist()
    [[5.0, 3.0]]
    """
    return combine((1.0, x0), (1.0, pseudo_inverse(operator, residual(operator, y, x0))))


def _divide(y: Tree, a: Scalar, b: Scalar, gain: PerExample) -> Any:
    """(a A A^T + b I)^-1 y if A A^T = gain I."""
    total = jnp.asarray(a) * gain + b
    return jax.tree.map(lambda v: (v / expand(total, v)).astype(v.dtype), jax.tree.map(float_array, y))


def _check_axes(axes: Iterable[int], shape: tuple[int, ...], max_axes: int | None = None) -> Any:
    """`axes` as a tuple. Raise `ValueError` unless they are up to `max_axes` different axes of an example."""
    axes = tuple(axes)
    valid = axes and len(set(axes)) == len(axes) and all(axis in range(len(shape)) for axis in axes)
    if not valid or (max_axes is not None and len(axes) > max_axes):
        limit = f" up to {max_axes}" if max_axes else ""
        raise ValueError(f"axes must be{limit} different axes of an example of shape {shape}, got {axes}")
    return axes


def check_shape(name: str, value: Scalar, shape: tuple[int, ...]) -> Any:
    """`value` as a float array of shape (B, *shape).

    Raises:
      ValueError: with `name`, if it has another shape.
    """
    if np.ndim(value) != len(shape) + 1 or np.shape(value)[1:] != shape:
        expected = ", ".join(map(str, ("B", *shape)))
        raise ValueError(f"{name} must have shape ({expected}), got {np.shape(value)}")
    return float_array(value)


def float_array(value: Scalar) -> Any:
    """`value` as a float array, because an integer array would truncate the result of a division."""
    return jnp.asarray(floating(value))


def _broadcast(*shapes: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape that these shapes broadcast to; None if they do not broadcast."""
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        return None


def _same_structure(known: Tree, y: Tree) -> None:
    """Raise `ValueError` if y does not have the tree structure of `known`."""
    trees: list[Any] = [jax.tree.structure(v) for v in (known, y)]
    if trees[0] != trees[1]:
        raise ValueError(f"y must be a tree like known {trees[0]}, got {trees[1]}")
