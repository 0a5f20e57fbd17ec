"""Any linear function as a measurement: its transpose, and conjugate residuals to solve with it."""

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
    """Any linear function of one example, made by `linear`; its adjoint is its transpose, `solve` is iterative."""

    f: Any
    inputs: Any = static()  # (structure, leaves) of the function's argument, and of its value
    outputs: Any = static()
    iterations: int = static(default=64)

    def forward(self, x0: Tree) -> Any:
        """A x0: f, example by example."""
        return jax.vmap(self.f)(_check_tree("x", x0, self.inputs))

    def adjoint(self, y: Tree) -> Any:
        """A^T y, in the dtype of the example that `linear` was given."""
        transpose = jax.linear_transpose(self.f, jax.tree.unflatten(*self.inputs))
        y = jax.tree.map(lambda v, like: jnp.asarray(v, like.dtype), y, jax.tree.unflatten(*self.outputs))
        return jax.vmap(lambda v: transpose(v)[0])(_check_tree("y", y, self.outputs))

    def solve(self, y: Tree, a: Scalar, b: Scalar) -> Any:
        """(a A A^T + b I)^-1 y by conjugate residuals; with b = 0, least squares: y may leave the range of A."""
        infinite = jnp.isinf(b)
        total = jnp.where(infinite, 1.0, a + jnp.where(infinite, 1.0, b))
        of_map = jnp.where(infinite, 0.0, a / total)
        of_one = jnp.where(infinite, 1.0, jnp.where(infinite, 1.0, b) / total)

        def apply(v: Leaf) -> Any:
            return v, combine((of_one, v), (of_map, self.forward(self.adjoint(v))))

        z, _ = conjugate_residuals(apply, jax.tree.map(float_array, y), self.iterations)
        return combine((jnp.where(infinite, 0.0, 1 / total), z))

    def check(self, y: Tree) -> None:
        """Raises `ValueError` for a y of another shape than that of f's values."""
        _check_tree("y", y, self.outputs)


def linear(f: Callable[[Any], Any], example: Tree, *, iterations: int = 64) -> LinearMap:
    """The operator of any linear function, by its transpose.

    Args:
      f: x0 -> y for one example, without the batch axis; arrays or trees. A `jax.tree_util.Partial` may hold arrays
        that are traced. Matrix products in it should ask for precision="highest".
      example: one x0, or its shapes and dtypes (`jax.ShapeDtypeStruct`).
      iterations: of conjugate residuals in `solve`; the rank of A is enough in exact arithmetic.

    Raises:
      ValueError: if f is not linear, as far as JAX can tell, or iterations is no int >= 1.

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
    """(W z, y - M z) for z with M z = y: conjugate residuals, each example with its own step sizes.

        z <- z + a p,   r <- r - a M p,   a = <r, M p> / |M p|^2
        p = r + b p',   b = <r, M r> / <r', M r'>                 primes: of the iteration before

    Solves M z = y for a symmetric positive M, in as many iterations as M has different eigenvalues. Every step
    minimises |r| along its direction, so |r| never grows, whatever M is. An example stops at <r, M r> <= 0, which no
    positive M has, and keeps its z; z = 0 if that is the first iteration. An example also stops once it has converged:
    with a singular M that is where the rest of y lies outside the range of M.

    Args:
      apply: r -> (W r, M r), two linear functions that mix no examples, (B, ...) to (B, ...); (r, M r) gives z itself.
      y: (B, ...), an array or a tree.
      iterations: int >= 1, calls of `apply`.

    Source: Stiefel 1955; Saad, Iterative Methods for Sparse Linear Systems, algorithm 6.20.

    >>> conjugate_residuals(lambda r: (r, 4 * r), jnp.ones((1, 3)), 2)[0].tolist()
    [[0.25, 0.25, 0.25]]
    """
    y = jax.tree.map(float_array, y)
    norm = squared_norm(y)
    eps = jnp.finfo(norm.dtype).eps
    floor = norm * eps**2

    def ratio(above: Leaf, below: Leaf, live: Leaf) -> Any:
        return jnp.where(live, above / jnp.where(live, below, 1.0), 0.0)

    def move(_: Leaf, state: tuple[Any, ...]) -> Any:
        wz, r, wp, mp, before, most, live = state
        wr, mr = apply(r)
        curvature, rr = _dot(r, mr), squared_norm(r)
        live = live & (rr > floor) & (curvature > 0) & jnp.isfinite(curvature)
        gain = ratio(squared_norm(mr), rr, live)
        most = jnp.maximum(most, gain)
        live = live & (gain > (4 * eps) ** 2 * most)  # else M r is rounding: nothing is left of y that M reaches
        wr, mr = _where(live, wr), _where(live, mr)
        b = ratio(curvature, before, live)
        wp, mp = combine((1.0, wr), (b, wp)), combine((1.0, mr), (b, mp))
        length = squared_norm(mp)
        a = ratio(_dot(r, mp), length, live & (length > 0))
        wz, r = combine((1.0, wz), (a, wp)), combine((1.0, r), (-a, mp))
        return wz, r, wp, mp, jnp.where(live, curvature, before), most, live

    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(apply, y))
    # <r', M r'> = inf of no iteration before the first: b = 0.
    start = zeros[0], y, *zeros, jnp.full_like(norm, jnp.inf), jnp.zeros_like(norm), jnp.full(norm.shape, True)
    wz, rest, *_ = jax.lax.fori_loop(0, iterations, move, start)
    return wz, rest


def _where(live: Leaf, v: Leaf) -> Any:
    """v of the examples that are live, 0 of the others."""
    return jax.tree.map(lambda leaf: jnp.where(expand(live, leaf), leaf, 0), v)


def _dot(u: Times, v: Leaf) -> Any:
    def leaf(a: Leaf, b: Leaf) -> Any:
        product = a.astype(promoted(a.dtype, jnp.float32)) * b
        return product.reshape(len(product), -1).sum(-1)

    return sum(jax.tree.leaves(jax.tree.map(leaf, u, v)))


def squared_norm(v: Leaf) -> Any:
    """|v|^2 of each example: (B, ...) to (B,), over all leaves."""
    return _dot(v, v)


def _structure(struct: Tree) -> Any:
    leaves, treedef = jax.tree.flatten(struct)
    return treedef, tuple(leaves)


def _check_tree(name: str, value: Tree, structure: tuple[Any, ...]) -> Any:
    treedef, leaves = structure
    if jax.tree.structure(value) != treedef:
        raise ValueError(f"{name} must be a tree like {treedef}, got {jax.tree.structure(value)}")
    checked = [check_shape(name, v, like.shape) for v, like in zip(jax.tree.leaves(value), leaves, strict=True)]
    return jax.tree.unflatten(treedef, checked)
