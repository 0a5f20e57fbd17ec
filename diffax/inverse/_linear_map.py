"""Any linear function as a measurement operator: its transpose, and a solver by conjugate residuals."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffax._checks import Condition, check, check_count
from diffax._pytrees import combine, expand, promoted, pytree, static
from diffax.inverse._operators import check_shape, float_array
from diffax.typing import Leaf, Scalar, Times, Tree


@pytree
class LinearMap:
    """A linear function of one example, made by `linear`; its adjoint is its transpose, and `solve` is iterative."""

    f: Any
    # (tree structure, leaves) of the argument of f and of its value.
    inputs: Any = static()
    outputs: Any = static()
    iterations: int = static(default=64)

    def forward(self, x0: Tree) -> Any:
        """A x0: f of each example."""
        return jax.vmap(self.f)(_check_tree("x", x0, self.inputs))

    def adjoint(self, y: Tree) -> Any:
        """A^T y, in the dtype of the example that was passed to `linear`."""
        transpose = jax.linear_transpose(self.f, jax.tree.unflatten(*self.inputs))
        y = jax.tree.map(lambda v, like: jnp.asarray(v, like.dtype), y, jax.tree.unflatten(*self.outputs))
        return jax.vmap(lambda v: transpose(v)[0])(_check_tree("y", y, self.outputs))

    def solve(self, y: Tree, a: Scalar, b: Scalar) -> Any:
        """(a A A^T + b I)^-1 y by conjugate residuals; least squares for b = 0, where y may leave the range of A."""
        infinite = jnp.isinf(b)
        total = jnp.where(infinite, 1.0, a + jnp.where(infinite, 1.0, b))
        c_map = jnp.where(infinite, 0.0, a / total)
        c_identity = jnp.where(infinite, 1.0, jnp.where(infinite, 1.0, b) / total)

        def apply(v: Leaf) -> Any:
            return v, combine((c_identity, v), (c_map, self.forward(self.adjoint(v))))

        z, _ = conjugate_residuals(apply, jax.tree.map(float_array, y), self.iterations)
        return combine((jnp.where(infinite, 0.0, 1 / total), z))

    def check(self, y: Tree) -> None:
        """Raise `ValueError` if y does not have the shape of the values of f."""
        _check_tree("y", y, self.outputs)


def linear(f: Callable[[Any], Any], example: Tree, *, iterations: int = 64) -> LinearMap:
    """The operator of any linear function; JAX transposes the function.

    Args:
      f: x0 -> y for one example, without the batch axis; arrays or trees. A `jax.tree_util.Partial` may hold traced
        arrays. Matrix products in f should use precision="highest".
      example: one x0, or its shapes and dtypes (`jax.ShapeDtypeStruct`).
      iterations: of conjugate residuals in `solve`, an int >= 1, default 64; the rank of A is enough in exact
        arithmetic.

    Returns:
      `LinearMap`.

    Raises:
      ValueError: if JAX cannot transpose f, f(0) is not 0, or iterations is not an int >= 1.

    >>> A = jnp.array([[1.0, 2.0]])
    >>> linear(lambda x: jnp.matmul(A, x, precision="highest"), jnp.zeros(2)).adjoint(jnp.ones((1, 1))).tolist()
    [[1.0, 2.0]]
    """
    check_count("iterations", iterations)
    f = jax.tree_util.Partial(f)
    struct = jax.eval_shape(lambda v: v, example)
    out = jax.eval_shape(f, struct)
    try:
        jax.eval_shape(jax.linear_transpose(f, struct), out)
    except Exception as error:
        raise ValueError(f"f must be linear, got {f.func}: {str(error).splitlines()[0]}") from error
    at_zero = f(jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), struct))
    for leaf in jax.tree.leaves(at_zero):
        check("f(0)", leaf, Condition("0 for a linear f", lambda v: v == 0))
    return LinearMap(f, _structure(struct), _structure(out), iterations)


def conjugate_residuals(apply: Callable[[Any], Any], y: Tree, iterations: int) -> tuple[Any, Any]:
    """(W z, y - M z) with M z = y, by conjugate residuals; each example has its own step sizes.

        z <- z + a p,   r <- r - a M p,   a = <r, M p> / |M p|^2
        p = r + b p',   b = <r, M r> / <r', M r'>                 primes: of the previous iteration

    The method solves M z = y for a symmetric positive M, in as many iterations as M has different eigenvalues. Every
    step minimises |r| along its direction, so |r| never grows, for any M. An example stops at <r, M r> <= 0, which is
    impossible for a positive M, and keeps its z; z = 0 if that is the first iteration. An example also stops when it
    has converged: for a singular M, when the remaining r is outside the range of M.

    Args:
      apply: r -> (W r, M r), two linear functions that do not mix examples, (B, ...) to (B, ...); (r, M r) gives z
        itself.
      y: (B, ...), an array or a tree.
      iterations: int >= 1, the number of calls of `apply`.

    Returns:
      (W z, y - M z).

    Source: Stiefel 1955; Saad, Iterative Methods for Sparse Linear Systems, algorithm 6.20.

    >>> conjugate_residuals(lambda r: (r, 4 * r), jnp.ones((1, 3)), 2)[0].tolist()
    [[0.25, 0.25, 0.25]]
    """
    y = jax.tree.map(float_array, y)
    norm = squared_norm(y)
    eps = jnp.finfo(norm.dtype).eps
    floor = norm * eps**2

    def ratio(numerator: Leaf, denominator: Leaf, active: Leaf) -> Any:
        return jnp.where(active, numerator / jnp.where(active, denominator, 1.0), 0.0)

    def iterate(_: Leaf, state: tuple[Any, ...]) -> Any:
        wz, r, wp, mp, previous_curvature, max_gain, active = state
        wr, mr = apply(r)
        curvature, rr = _dot(r, mr), squared_norm(r)
        active = active & (rr > floor) & (curvature > 0) & jnp.isfinite(curvature)
        gain = ratio(squared_norm(mr), rr, active)
        max_gain = jnp.maximum(max_gain, gain)
        # Below this gain M r is only rounding: the remaining r is outside the range of M.
        active = active & (gain > (4 * eps) ** 2 * max_gain)
        wr, mr = _where(active, wr), _where(active, mr)
        b = ratio(curvature, previous_curvature, active)
        wp, mp = combine((1.0, wr), (b, wp)), combine((1.0, mr), (b, mp))
        length = squared_norm(mp)
        a = ratio(_dot(r, mp), length, active & (length > 0))
        wz, r = combine((1.0, wz), (a, wp)), combine((1.0, r), (-a, mp))
        return wz, r, wp, mp, jnp.where(active, curvature, previous_curvature), max_gain, active

    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(apply, y))
    # The first iteration has no previous one: <r', M r'> = inf gives b = 0.
    start = zeros[0], y, *zeros, jnp.full_like(norm, jnp.inf), jnp.zeros_like(norm), jnp.full(norm.shape, True)
    wz, remainder, *_ = jax.lax.fori_loop(0, iterations, iterate, start)
    return wz, remainder


def _where(active: Leaf, v: Leaf) -> Any:
    """v for the active examples, 0 for the others."""
    return jax.tree.map(lambda leaf: jnp.where(expand(active, leaf), leaf, 0), v)


def _dot(u: Times, v: Leaf) -> Any:
    """(B,) inner products of two trees, for each example, in float32 or better."""

    def leaf(a: Leaf, b: Leaf) -> Any:
        product = a.astype(promoted(a.dtype, jnp.float32)) * b
        return product.reshape(len(product), -1).sum(-1)

    return sum(jax.tree.leaves(jax.tree.map(leaf, u, v)))


def squared_norm(v: Leaf) -> Any:
    """|v|^2 of each example: (B, ...) to (B,), over all leaves."""
    return _dot(v, v)


def _structure(struct: Tree) -> Any:
    """(tree structure, leaves) in hashable form, for a static field."""
    leaves, treedef = jax.tree.flatten(struct)
    return treedef, tuple(leaves)


def _check_tree(name: str, value: Tree, structure: tuple[Any, ...]) -> Any:
    """`value` as float arrays. Raise `ValueError` if its tree or the shape of a leaf, without the batch, differs."""
    treedef, leaves = structure
    if jax.tree.structure(value) != treedef:
        raise ValueError(f"{name} must be a tree like {treedef}, got {jax.tree.structure(value)}")
    checked = [check_shape(name, v, like.shape) for v, like in zip(jax.tree.leaves(value), leaves, strict=True)]
    return jax.tree.unflatten(treedef, checked)
