r"""The probability-flow ODE by an adaptive solver: Diffrax's, with error control in place of a step grid.

    dy / dw = r^2 y - r x0(c y, t),     y = x / c, c^2 = alpha^2 + sigma^2, r = alpha / c, w = log(sigma / alpha)

which is of order 1 at all levels and for every scaling. Needs `pip install '.[ode]'`; Kidger 2021.

The batch is one system. The error is the worst of the examples' root mean squares, so the tolerance holds for each of
them; the steps are those that the hardest one needs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffax._checks import check, check_count, check_float, check_function, check_schedule, positive
from diffax._pytrees import as_float, combine, narrow, widen
from diffax.denoisers import like_x, mean_only
from diffax.likelihood._flow import Field, size_of
from diffax.times import check_grid
from diffax.typing import Denoiser, Grid, Leaf, Scalar, Schedule, Times, Tree


class Solution(NamedTuple):
    """x: (B, ...) at the last time, NaN unless converged. steps: how many, accepted and rejected together.

    converged: whether the tolerance was kept to the end.
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
    """An adaptive `solve` for `diffax.log_likelihood`, and what `solve` and `solve_and_denoise` call.

    Args:
      method: a Diffrax solver with an error estimate; None is `diffrax.Tsit5()`.
      rtol: relative tolerance of a step, > 0, may be traced.
      atol: absolute tolerance, > 0, in y, which is of order 1.
      max_steps: beyond which it has not converged.
      adjoint: how to differentiate, one of Diffrax's; None is `RecursiveCheckpointAdjoint()`, the gradient of the steps
        that were taken. `BacksolveAdjoint()` takes memory for one step only and is exact up to the tolerance.
      throw: whether not to converge is an error, also inside jit; otherwise the values are NaN and `converged` False.

    Raises:
      ValueError: if a tolerance is not positive or max_steps is no int >= 1.
      ImportError: without Diffrax.
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

        # What the field closes over (parameters, labels) becomes its leaves, so that every adjoint sees it.
        slope = equinox.filter_closure_convert(slope, first, start, None)
        found = diffrax.diffeqsolve(
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
        converged = found.result == diffrax.RESULTS.successful
        end = jax.tree.map(lambda v: jnp.where(converged, v[-1], jnp.nan), found.ys)
        return end, found.stats["num_steps"], converged

    return solve


def solve(schedule: Schedule, denoise: Denoiser, x: Tree, times: Grid, **options: Any) -> Solution:
    """The probability-flow ODE from times[0] to times[-1], in either direction; what lies between is not looked at.

    Args:
      schedule: noise schedule, with any scaling.
      denoise: (x, t) -> x0, or `Moments`.
      x: (B, ...) at times[0]; of half precision it is carried in float32 and comes back in its own dtype.
      times: (n,), n >= 2.
      **options: those of `solver`.

    Returns:
      x, steps, converged; see `Solution`.

    Raises:
      ValueError: for fewer than two times, or times outside [0, 1], and as `solver`.

    >>> import diffax
    >>> data = diffax.analytic.Gaussian.from_covariance([0.5, -0.5], 0.25)
    >>> schedule, x = diffax.Cosine(), jnp.array([[0.2, 0.1]])
    >>> found = solve(schedule, data.denoiser(schedule), x, (0.9, 0.1))
    >>> bool(jnp.allclose(found.x, data.flow(x, schedule(0.9), schedule(0.1)), atol=1e-4))
    True
    """
    x = jax.tree.map(jnp.asarray, x)
    found = _solution(schedule, denoise, x, times, options)
    return found._replace(x=narrow(found.x, x))


def _solution(schedule: Schedule, denoise: Denoiser, x: Tree, times: Grid, options: dict[str, Any]) -> Solution:
    """`solve` with x as it is carried, at least in float32."""
    if len(times) < 2:
        raise ValueError(f"times must have at least two entries, got {len(times)}")
    check_schedule(schedule)
    check_function("denoise", denoise)
    check_float("x", x)
    times = as_float(times)
    check_grid(times)
    solve, x, denoise = solver(**options), widen(x), mean_only(like_x("denoise", denoise))

    def field(y: Tree, t: Times) -> Any:
        alpha, c = schedule(t).alpha, size_of(schedule, t)
        r = alpha / c
        return combine((jnp.square(r), y), (-r, denoise(combine((c, y)), t)))

    y, steps, converged = solve(schedule, field, combine((1 / size_of(schedule, times[0]), x)), times)
    return Solution(combine((size_of(schedule, times[-1]), y)), steps, converged)


def solve_and_denoise(schedule: Schedule, denoise: Denoiser, x: Tree, times: Grid, **options: Any) -> Solution:
    """`solve`, then one denoiser call at times[-1], as `diffax.sample` ends; arguments as there.

    >>> import diffax
    >>> found = solve_and_denoise(diffax.Cosine(), lambda x, t: 0 * x + 0.5, jnp.ones((1, 2)), (1.0, 0.0))
    >>> found.x.tolist(), bool(found.converged)
    ([[0.5, 0.5]], True)
    """
    x = jax.tree.map(jnp.asarray, x)
    found = _solution(schedule, denoise, x, times, options)
    x0 = narrow(mean_only(like_x("denoise", denoise))(found.x, as_float(times)[-1]), x)
    return found._replace(x=jax.tree.map(lambda v: jnp.where(found.converged, v, jnp.nan), x0))


def _worst(error: Tree) -> Any:
    """The largest root mean square of a row of a leaf: of an example, for what is (B, ...)."""
    rows = [leaf.reshape(len(leaf), -1) if leaf.ndim else leaf.reshape(1, 1) for leaf in jax.tree.leaves(error)]
    return jnp.sqrt(jnp.max(jnp.stack([jnp.max(jnp.mean(jnp.square(row), 1)) for row in rows])))


def _modules() -> Any:
    try:
        import diffrax
        import equinox
    except ImportError as error:
        raise ImportError("diffax.likelihood.adaptive needs Diffrax: pip install '.[ode]'") from error
    return diffrax, equinox
