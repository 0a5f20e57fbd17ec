r"""Adams methods that are exact for data N(mean, std^2 I).

With rho = sigma / alpha and theta = atan(rho / std), z = (x - alpha mean) / c, c^2 = alpha^2 std^2 + sigma^2, the
probability-flow ODE is

    dz / dtheta = cos(theta) eps - sin(theta) (x0 - mean) / std                          (form `trig`)

and the right-hand side is 0 for data N(mean, std^2 I): nothing is left to integrate, however long the step.
`gaussian_adams` is the Adams-Bashforth-Moulton method in theta, which ends at sigma = 0 as at any other point.
`diffax.times.arctan` is a grid for it.
"""

from typing import Any

import jax
import jax.numpy as jnp

from diffax._checks import check, check_per_example, choose, interval, positive
from diffax._pytrees import as_float, combine, expand, of_rank, plus, times, widen
from diffax.samplers._base import Sampler
from diffax.samplers.engines.adams import RULES, Method, adams, corrector
from diffax.samplers.engines.forms import trig
from diffax.typing import Denoiser, Grid, Keys, Leaf, PerExample, SamplerState, Scalar, Schedule, Times, Tree


def gaussian_adams(
    schedule: Schedule,
    *,
    mean: Tree = 0.0,
    std: PerExample = 1.0,
    order: int = 3,
    end: str = "open",
    start: Times | None = None,
) -> Sampler:
    """Adams-Bashforth-Moulton of order p (p + 1 with its corrector) in theta, exact for data N(mean, std^2 I).

        x_s = alpha_s mean + c_s / c_t (x_t - alpha_t mean) + c_s int f dtheta,   f the polynomial through the history

    One call a step; the corrector, `adams`'s, costs none. Two things are known without a call and may be used:
    data with a smooth density have f = 0 at sigma = 0, so that the last step can be interpolated instead of
    extrapolated (end="smooth"), and far above the data's scale f = 0, so that the first move, from `start` to times[0],
    needs no call. Stops at t = 0 with `integrate`; over n + 1 times that costs n calls, like `sample` over n.

    Args:
      schedule: noise schedule, with any scaling.
      mean: of the data, a number, like one example, or one for each example: what broadcasts to x.
      std: of the data, the root-mean-square over its coordinates; > 0, may be traced. From order 2 on any value
        converges; std = 1 and mean = 0 is right for normalised data.
      order: p, an int in 1 .. 4.
      end: "open", or "smooth" to use f = 0 at t = 0 in a step that ends there: for data with a density, when the last
        step is no longer than the data's finest scale, and not under `noise_floor`.
      start: the time at which x is given, None for times[0]. With start = 1 the grid begins where the first call is
        to be made, at sigma / alpha of two or three times std.

    Raises:
      ValueError: for an order out of range, another end, a std that is not positive, a start outside [0, 1]; on
        starting, for a mean of another shape.

    >>> import diffax
    >>> law = diffax.analytic.Gaussian.from_covariance([0.7, -0.4], 0.3**2)
    >>> schedule, x = diffax.Cosine(), jnp.array([[0.5, -1.0]])
    >>> sampler = gaussian_adams(schedule, mean=law.mean, std=0.3)
    >>> state = diffax.integrate(jax.random.key(0), sampler, law.denoiser(schedule), x, jnp.array([0.9, 0.0]))
    >>> bool(jnp.allclose(state.x, law.flow(x, schedule(0.9), schedule(0.0)), rtol=1e-5))
    True
    """
    check("std", std, positive)
    if start is not None:
        check("start", start, interval("[0, 1]"))
    smooth = choose("end", end, ENDS)
    form = trig(std)
    inner = adams(schedule, form=form, order=order, corrected=True)
    method = Method(form, order, RULES["exact"], True)

    def init(x: Tree, times: Grid) -> SamplerState:
        x = widen(x)
        _check_mean(mean, x)
        check_per_example(x, std=std)
        if start is not None:
            level, first = schedule(as_float(start)), schedule(times[0])
            centred = _shifted(x, -level.alpha, mean)
            x = _shifted(combine((form.carry(level, first), centred)), first.alpha, mean)
        return inner.init(x, times)

    def step(key: Keys, denoise: Denoiser, state: SamplerState, t: Times, s: Times) -> SamplerState:
        level_t, level_s = schedule(t), schedule(s)

        def of_centred(x: Tree, t: Times) -> Any:
            return _shifted(denoise(_shifted(x, level_t.alpha, mean), t), -1.0, mean)

        new = inner.step(key, of_centred, state._replace(x=_shifted(state.x, -level_t.alpha, mean)), t, s)
        if smooth:
            new = _interpolated(method, form.node(s, level_s), form.gain(level_s), new, jnp.asarray((s == 0) & (t > 0)))
        x = _shifted(new.x, level_s.alpha, mean)
        still = s == t  # and then exactly so
        return new._replace(x=jax.tree.map(lambda u, v: jnp.where(expand(still, v), u, v), state.x, x))

    return inner._replace(init=init, step=step)


def _interpolated(method: Method, y: Tree, gain: PerExample, state: SamplerState, at_end: Scalar) -> Any:
    """The state corrected with f = 0 at its own end y, where `at_end`; no later corrector does it again."""
    weights = [jnp.where(at_end, gain * w, 0.0) for w in corrector(method, y, state)[1:]]
    x = combine((1.0, state.x), *zip(weights, state.values, strict=True))
    return state._replace(x=x, used=jnp.where(at_end, 0, state.used))


def _shifted(x: Tree, scale: PerExample, mean: Tree) -> Any:
    """X + scale mean, mean a number or a tree of what broadcasts to x."""
    if isinstance(mean, (int, float)) and mean == 0:
        return x

    def leaf(v: Leaf, m: Scalar) -> Any:
        return plus(v, times(expand(scale, v), of_rank(m, v))).astype(v.dtype)

    return jax.tree.map(leaf, x, _means(mean, x))


def _means(mean: Tree, x: Tree) -> Any:
    """A mean for each leaf of x."""
    return jax.tree.map(lambda _: mean, x) if jax.tree_util.all_leaves([mean]) else mean


def _check_mean(mean: Tree, x: Tree) -> None:
    def leaf(m: Scalar, v: Leaf) -> None:
        if jnp.broadcast_shapes(jnp.shape(m), jnp.shape(v)) != jnp.shape(v):
            raise ValueError

    try:
        jax.tree.map(leaf, _means(mean, x), x)
    except ValueError:
        shapes = tuple(jax.tree.map(jnp.shape, v) for v in (mean, x))
        raise ValueError(f"mean must broadcast to x, {shapes[1]}, got {shapes[0]}") from None


ENDS = {"open": False, "smooth": True}
