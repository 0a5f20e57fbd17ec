"""How far the paths of the probability-flow ODE are from straight lines."""

from typing import Any

import jax
import jax.numpy as jnp

from diffax._masks import mean
from diffax._pytrees import as_float, expand
from diffax.typing import Array, Float, Grid, Tree


def curvature(path: Tree, times: Grid) -> Float[Array, " batch"]:
    """The average curvature of paths: mean |dx/dt - (x_1 - x_0) / (t_1 - t_0)|^2 over time and entries, (B,).

    It is 0 for straight lines at constant speed, along which one step of Euler's method is exact. On `Flow` it measures
    what reflow and couplings reduce. dx/dt is the difference quotient between neighbours of the path.

    Args:
      path: leaves (n, B, ...), x at each time: `unroll` records it.
      times: (n,), n >= 2.

    Source: Lee et al. 2023, eq. 4; Liu et al. 2023, the straightness S.

    >>> line = jnp.array([0.0, 1.0, 2.0]).reshape(3, 1, 1)
    >>> curvature(line, jnp.array([1.0, 0.5, 0.0])).tolist()
    [0.0]
    """
    times = as_float(times)
    steps = jnp.diff(times)

    def deviation(x: Any) -> Any:
        whole = (x[-1] - x[0]) / (times[-1] - times[0])
        difference = jnp.diff(x, axis=0) / expand(steps, x[1:]) - whole
        share = expand(steps / (times[-1] - times[0]), difference)
        return jnp.sum(share * jnp.square(difference), 0)

    result: Array = mean(jax.tree.map(deviation, path))
    return result
