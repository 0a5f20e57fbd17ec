"""Any linear function as a measurement: its transpose, and conjugate gradients for what it cannot invert."""

from typing import Any

import jax
import jax.numpy as jnp

from diffax.inverse.operators import check_shape, float_array
from diffax.pytrees import check, check_count, combine, promoted, pytree, static


@pytree
class LinearMap:
    """Any linear function of one example, made by `linear`; its adjoint is its transpose, `solve` is iterative."""

    f: Any
    inputs: Any = static()  # (structure, leaves) of the function's argument, and of its value
    outputs: Any = static()
    iterations: int = static(default=64)

    def forward(self, x0: Any) -> Any:
        """A x0: f, example by example."""
        return jax.vmap(self.f)(_check_tree("x", x0, self.inputs))

    def adjoint(self, y: Any) -> Any:
        """A^T y, in the dtype of the example that `linear` was given."""
        transpose = jax.linear_transpose(self.f, jax.tree.unflatten(*self.inputs))
        y = jax.tree.map(lambda v, like: jnp.asarray(v, like.dtype), y, jax.tree.unflatten(*self.outputs))
        return jax.vmap(lambda v: transpose(v)[0])(_check_tree("y", y, self.outputs))

    def solve(self, y: Any, a: Any, b: Any) -> Any:
        """(a A A^T + b I)^-1 y by conjugate gradients; with b = 0, y should lie in the range of A."""
        infinite = jnp.isinf(b)
        total = jnp.where(infinite, 1.0, a + jnp.where(infinite, 1.0, b))
        of_map = jnp.where(infinite, 0.0, a / total)
        of_one = jnp.where(infinite, 1.0, jnp.where(infinite, 1.0, b) / total)

        def apply(v):
            return combine((of_one, v), (of_map, self.forward(self.adjoint(v))))

        y = jax.tree.map(float_array, y)
        return combine((jnp.where(infinite, 0.0, 1 / total), conjugate_gradients(apply, y, self.iterations)))

    def check(self, y: Any) -> None:
        """Raises `ValueError` for a y of another shape than that of f's values."""
        _check_tree("y", y, self.outputs)


def linear(f: Any, example: Any, *, iterations: int = 64) -> LinearMap:
    """The operator of any linear function, by its transpose.

    Args:
      f: x0 -> y for one example, without the batch axis; arrays or trees. A `jax.tree_util.Partial` may hold arrays
        that are traced. Matrix products in it should ask for precision="highest".
      example: one x0, or its shapes and dtypes (`jax.ShapeDtypeStruct`).
      iterations: of conjugate gradients in `solve`; the rank of A is enough in exact arithmetic.

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
        check("f(0)", leaf, "0 for a linear f", lambda v: v == 0)
    return LinearMap(f, _structure(struct), _structure(out), iterations)


def conjugate_gradients(apply: Any, y: Any, iterations: int) -> Any:
    """z with apply(z) = y for a symmetric positive linear function, each example with its own step sizes.

    apply: (B, ...) -> (B, ...), mixes no examples; y: (B, ...), an array or a tree. Examples that have converged stand
    still. Hestenes & Stiefel 1952.

    >>> conjugate_gradients(lambda v: 4 * v, jnp.ones((1, 3)), 2).tolist()
    [[0.25, 0.25, 0.25]]
    """
    y = jax.tree.map(float_array, y)
    end = squared_norm(y)
    floor = end * jnp.finfo(end.dtype).eps ** 2

    def ratio(of, by, live):
        return jnp.where(live, of / jnp.where(live, by, 1.0), 0.0)

    def move(_, state):
        z, r, p, rr = state
        image = apply(p)
        curvature = _dot(p, image)
        live = (rr > floor) & (curvature > 0)
        step = ratio(rr, curvature, live)
        z, r = combine((1.0, z), (step, p)), combine((1.0, r), (-step, image))
        after = squared_norm(r)
        return z, r, combine((1.0, r), (ratio(after, rr, live), p)), after

    start = jax.tree.map(jnp.zeros_like, y), y, y, end
    return jax.lax.fori_loop(0, iterations, move, start)[0]


def _dot(u, v):
    def leaf(a, b):
        product = a.astype(promoted(a.dtype, jnp.float32)) * b
        return product.reshape(len(product), -1).sum(-1)

    return sum(jax.tree.leaves(jax.tree.map(leaf, u, v)))


def squared_norm(v: Any) -> Any:
    """|v|^2 of each example: (B, ...) to (B,), over all leaves."""
    return _dot(v, v)


def _structure(struct):
    leaves, treedef = jax.tree.flatten(struct)
    return treedef, tuple(leaves)


def _check_tree(name, value, structure):
    treedef, leaves = structure
    if jax.tree.structure(value) != treedef:
        raise ValueError(f"{name} must be a tree like {treedef}, got {jax.tree.structure(value)}")
    checked = [check_shape(name, v, like.shape) for v, like in zip(jax.tree.leaves(value), leaves, strict=True)]
    return jax.tree.unflatten(treedef, checked)
