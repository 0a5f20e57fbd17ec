r"""Adams methods that are exact for data N(mean, std^2 I).

With rho = sigma / alpha and theta = atan(rho / std), z = (x - alpha mean) / c, c^2 = alpha^2 std^2 + sigma^2, the
probability-flow ODE is

    dz / dtheta = cos(theta) eps - sin(theta) (x0 - mean) / std                          (form `trig`)

For data N(mean, std^2 I) the right-hand side is 0, so a step of any length is exact. `gaussian_adams` is the
Adams-Bashforth-Moulton method in theta; sigma = 0 is not a special point, so a step may end there.
`diffax.times.arctan` is a grid for this method.
"""

from typing import Any

import jax
import jax.numpy as jnp

from diffax._checks import check, check_per_example, choose, interval, positive
from diffax._pytrees import as_float, combine, expand, of_rank, plus, times, widen
from diffax.samplers._base import Sampler, unless_still
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

    One call a step, and none for the corrector. Two values of f are known without a call. For data with a smooth
    density f = 0 at sigma = 0, so the last step can interpolate instead of extrapolate (end="smooth"). Far above the
    scale of the data f = 0 too, so the first move, from `start` to times[0], needs no call. Use `integrate` down to
    t = 0: over n + 1 times it costs n calls, like `sample` over n times.

    Args:
      schedule: noise schedule, with any scaling.
      mean: mean of the data: a number, an array or a tree like x, which broadcasts to x. Default 0.
      std: standard deviation of the data, the root mean square over its coordinates; > 0, () or (B,), may be traced.
        The method converges for any value if the order is at least 2; mean = 0 and std = 1 suit normalised data.
      order: p, an int in 1 .. 4.
      end: "open", or "smooth" to use f = 0 at t = 0 in a step that ends there. Use "smooth" for data with a density,
        if the last step is not longer than the finest scale of the data, and not inside `noise_floor`.
      start: the time of the initial x, in [0, 1]; None for times[0]. With start = 1 the grid begins at the first call,
        for which two or three times std is a good sigma / alpha.

    Raises:
      ValueError: if order, std or start is out of range, or for another end; in `init`, for a mean that does not
        broadcast to x.

    >>> import diffax
    >>> data = diffax.analytic.Gaussian.from_covariance([0.7, -0.4], 0.3**2)
    >>> schedule, x = diffax.Cosine(), jnp.array([[0.5, -1.0]])
    >>> sampler = gaussian_adams(schedule, mean=data.mean, std=0.3)
    >>> state = diffax.integrate(jax.random.key(0), sampler, data.denoiser(schedule), x, jnp.array([0.9, 0.0]))
    >>> bool(jnp.allclose(state.x, data.flow(x, schedule(0.9), schedule(0.0)), rtol=1e-5))
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
            level_start, level_0 = schedule(as_float(start)), schedule(times[0])
            centred = _shifted(x, -level_start.alpha, mean)
            x = _shifted(combine((form.carry(level_start, level_0), centred)), level_0.alpha, mean)
        return inner.init(x, times)

    def step(key: Keys, denoise: Denoiser, state: SamplerState, t: Times, s: Times) -> SamplerState:
        level_t, level_s = schedule(t), schedule(s)

        def denoise_centred(x: Tree, t: Times) -> Any:
            return _shifted(denoise(_shifted(x, level_t.alpha, mean), t), -1.0, mean)

        new = inner.step(key, denoise_centred, state._replace(x=_shifted(state.x, -level_t.alpha, mean)), t, s)
        if smooth:
            new = _smooth_end(method, form.node(s, level_s), form.gain(level_s), new, jnp.asarray((s == 0) & (t > 0)))
        x = _shifted(new.x, level_s.alpha, mean)
        # Subtracting and adding the mean rounds; a step of length zero must return x unchanged.
        return new._replace(x=unless_still(t, s, x, state.x))

    return inner._replace(init=init, step=step)


def _smooth_end(method: Method, y: Tree, gain: PerExample, state: SamplerState, at_end: Scalar) -> Any:
    """Correct the state with f = 0 at the end y of its last step, where `at_end`.

    used = 0 prevents a second correction of the same step.
    """
    weights = [jnp.where(at_end, gain * w, 0.0) for w in corrector(method, y, state)[1:]]
    x = combine((1.0, state.x), *zip(weights, state.values, strict=True))
    return state._replace(x=x, used=jnp.where(at_end, 0, state.used))


def _shifted(x: Tree, scale: PerExample, mean: Tree) -> Any:
    """The tree x + scale mean, for a mean that is a number or a tree whose leaves broadcast to those of x."""
    if isinstance(mean, (int, float)) and mean == 0:
        return x

    def leaf(v: Leaf, m: Scalar) -> Any:
        return plus(v, times(expand(scale, v), of_rank(m, v))).astype(v.dtype)

    return jax.tree.map(leaf, x, _means(mean, x))


def _means(mean: Tree, x: Tree) -> Any:
    """A tree with a mean for each leaf of x."""
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
