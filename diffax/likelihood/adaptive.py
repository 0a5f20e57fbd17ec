r"""The probability-flow ODE by an adaptive solver of Diffrax, with error control in place of a step grid.

    dy / dw = r^2 y - r x0(c y, t),     y = x / c, c^2 = alpha^2 + sigma^2, r = alpha / c, w = log(sigma / alpha)

In these variables the ODE is of order 1 at all levels, for every scaling. The module needs `pip install '.[ode]'`.

The batch is solved as one system. Its error is the largest of the root mean squares of the examples, so the tolerance
holds for each example, and the hardest example determines the steps.

Source: Kidger 2021.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffax._checks import check, check_count, check_float, check_function, check_schedule, positive
from diffax._pytrees import as_float, combine, narrow, widen
from diffax.denoisers import like_x, mean_only
from diffax.likelihood._flow import Field, flow_scale
from diffax.times import check_grid
from diffax.typing import Denoiser, Grid, Leaf, Scalar, Schedule, Times, Tree


class Solution(NamedTuple):
    """Result of `solve`.

    x: (B, ...) at the last time, NaN unless converged.
    steps: number of steps, accepted and rejected.
    converged: whether the solver reached the last time within the tolerance.
    """

    x: Any
    steps: Any
    converged: Any


def solver(
    *,
    method: Any = None,
    rtol: Scalar = 1e-5,
    atol: Scalar = 1e-5,
    max_steps: int = 4096,
    adjoint: Any = None,
    throw: bool = True,
) -> Callable[..., Any]:
    """An adaptive `solve` for `diffax.log_likelihood`; `solve` and `solve_and_denoise` use it too.

    Args:
      method: a Diffrax solver with an error estimate; None (default) is `diffrax.Tsit5()`.
      rtol: relative tolerance of a step, > 0, default 1e-5, may be traced.
      atol: absolute tolerance in y, which is of order 1; > 0, default 1e-5, may be traced.
      max_steps: the largest number of steps, an int >= 1; default 4096.
      adjoint: one of Diffrax's adjoints, which differentiate the solution. None (default) is
        `RecursiveCheckpointAdjoint()`, the exact gradient of the steps taken. `BacksolveAdjoint()` needs the memory of
        one step only, and its gradient is exact up to the tolerance.
      throw: if True (default), raise an error when the solver does not converge, also inside jit; if False, return NaN
        with `converged` False.

    Returns:
      solve(schedule, field, start, times) -> (end, steps, converged).

    Raises:
      ValueError: if a tolerance is not positive or max_steps is not an int >= 1.
      ImportError: if Diffrax is not installed.
    """
    for name, value in (("rtol", rtol), ("atol", atol)):
        check(name, value, positive)
    check_count("max_steps", max_steps)
    diffrax, equinox = _modules()
    method = diffrax.Tsit5() if method is None else method
    controller = diffrax.PIDController(rtol=rtol, atol=atol, norm=_worst)
    adjoint = diffrax.RecursiveCheckpointAdjoint() if adjoint is None else adjoint

    def solve(schedule: Schedule, field: Field, start: Times, times: Grid) -> Any:
        first, last = (-schedule.log_snr(t) / 2 for t in (times[0], times[-1]))

        def slope(w: Leaf, state: Tree, args: None) -> Any:
            return field(state, schedule.inverse(-2 * w))

        # Turn the arrays in the closure of the field (parameters, labels) into leaves, so that every adjoint uses them.
        slope = equinox.filter_closure_convert(slope, first, start, None)
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(slope),
            method,
            first,
            last,
            None,
            start,
            stepsize_controller=controller,
            adjoint=adjoint,
            max_steps=max_steps,
            throw=throw,
        )
        converged = solution.result == diffrax.RESULTS.successful
        end = jax.tree.map(lambda v: jnp.where(converged, v[-1], jnp.nan), solution.ys)
        return end, solution.stats["num_steps"], converged

    return solve


def solve(schedule: Schedule, denoise: Denoiser, x: Tree, times: Grid, **options: Any) -> Solution:
    """Solve the probability-flow ODE from times[0] to times[-1], in either direction.

    Args:
      schedule: noise schedule, with any scaling.
      denoise: (x, t) -> x0, or `Moments`.
      x: (B, ...) at times[0]; half precision is converted to float32, and the result back to the dtype of x.
      times: (n,), n >= 2; only the first and the last time are used.
      **options: those of `solver`.

    Returns:
      x, steps, converged; see `Solution`.

    Raises:
      ValueError: if there are fewer than two times or a time is outside [0, 1], and as in `solver`.

    >>> import diffax
    >>> data = diffax.analytic.Gaussian.from_covariance([0.5, -0.5], 0.25)
    >>> schedule, x = diffax.Cosine(), jnp.array([[0.2, 0.1]])
    >>> result = solve(schedule, data.denoiser(schedule), x, (0.9, 0.1))
    >>> bool(jnp.allclose(result.x, data.flow(x, schedule(0.9), schedule(0.1)), atol=1e-4))
    True
    """
    x = jax.tree.map(jnp.asarray, x)
    solution = _solution(schedule, denoise, x, times, options)
    return solution._replace(x=narrow(solution.x, x))


def _solution(schedule: Schedule, denoise: Denoiser, x: Tree, times: Grid, options: dict[str, Any]) -> Solution:
    """`solve` with x in the precision of the computation, at least float32."""
    if len(times) < 2:
        raise ValueError(f"times must have at least two entries, got {len(times)}")
    check_schedule(schedule)
    check_function("denoise", denoise)
    check_float("x", x)
    times = as_float(times)
    check_grid(times)
    solve, x, denoise = solver(**options), widen(x), mean_only(like_x("denoise", denoise))

    def field(y: Tree, t: Times) -> Any:
        alpha, c = schedule(t).alpha, flow_scale(schedule, t)
        r = alpha / c
        return combine((jnp.square(r), y), (-r, denoise(combine((c, y)), t)))

    y, steps, converged = solve(schedule, field, combine((1 / flow_scale(schedule, times[0]), x)), times)
    return Solution(combine((flow_scale(schedule, times[-1]), y)), steps, converged)


def solve_and_denoise(schedule: Schedule, denoise: Denoiser, x: Tree, times: Grid, **options: Any) -> Solution:
    """`solve`, then one denoiser call at times[-1], as `diffax.sample` does; the arguments are those of `solve`.

    >>> import diffax
    >>> result = solve_and_denoise(diffax.Cosine(), lambda x, t: 0 * x + 0.5, jnp.ones((1, 2)), (1.0, 0.0))
    >>> result.x.tolist(), bool(result.converged)
    ([[0.5, 0.5]], True)
    """
    x = jax.tree.map(jnp.asarray, x)
    solution = _solution(schedule, denoise, x, times, options)
    x0 = narrow(mean_only(like_x("denoise", denoise))(solution.x, as_float(times)[-1]), x)
    return solution._replace(x=jax.tree.map(lambda v: jnp.where(solution.converged, v, jnp.nan), x0))


def _worst(error: Tree) -> Any:
    """The largest root mean square over the rows of all leaves; a row of a leaf (B, ...) is an example."""
    rows = [leaf.reshape(len(leaf), -1) if leaf.ndim else leaf.reshape(1, 1) for leaf in jax.tree.leaves(error)]
    return jnp.sqrt(jnp.max(jnp.stack([jnp.max(jnp.mean(jnp.square(row), 1)) for row in rows])))


def _modules() -> Any:
    """Import Diffrax and Equinox, which are optional."""
    try:
        import diffrax
        import equinox
    except ImportError as error:
        raise ImportError("diffax.likelihood.adaptive needs Diffrax: pip install '.[ode]'") from error
    return diffrax, equinox
