r"""What the first two moments of the data, or their noise floor, are worth to a sampler of few steps.

With rho = sigma / alpha and theta = atan(rho / std), z = (x - alpha mean) / c, c^2 = alpha^2 std^2 + sigma^2, the
probability-flow ODE is

    dz / dtheta = cos(theta) eps - sin(theta) (x0 - mean) / std                          (form `trig`)

and the right-hand side is 0 for data N(mean, std^2 I): nothing is left to integrate, however long the step.
`gaussian_adams` is the Adams-Bashforth-Moulton method in theta, which ends at sigma = 0 as at any other point.

Data x0 = y + floor n, n ~ N(0, I), are diffused centres y: x_t = alpha y + sigma' n with sigma'^2 = sigma^2 + alpha^2
floor^2, and E[y | x_t] = x0 + alpha floor^2 score(x_t). `noise_floor` has any sampler solve for y instead, under the
schedule (alpha, sigma') whose log-SNR is finite at t = 0: it ends there, with neither a truncation nor a denoising
step, and is exact from order 1 on for N(m, floor^2 I) whatever m is. `diffax.times.arctan` is a grid for both.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffax._pytrees import as_float, check, check_per_example, choose, combine, expand, of_rank, plus, times, widen
from diffax.samplers.base import Sampler, check_sampler
from diffax.samplers.exponential import RULES, Method, adams, corrector
from diffax.samplers.forms import trig
from diffax.schedules._noise_floor import NoiseFloor
from diffax.typing import Denoiser, Schedule

ENDS = {"open": False, "smooth": True}


def gaussian_adams(
    schedule: Schedule,
    *,
    mean: Any = 0.0,
    std: Any = 1.0,
    order: int = 3,
    end: str = "open",
    start: Any = None,
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
    check("std", std, "> 0", lambda v: v > 0)
    if start is not None:
        check("start", start, "in [0, 1]", lambda v: (v >= 0) & (v <= 1))
    smooth = choose("end", end, ENDS)
    form = trig(std)
    inner = adams(schedule, form=form, order=order, corrected=True)
    method = Method(form, order, RULES["exact"], True)

    def init(x, times):
        x = widen(x)
        _check_mean(mean, x)
        check_per_example(x, std=std)
        if start is not None:
            level, first = schedule(as_float(start)), schedule(times[0])
            centred = _shifted(x, -level.alpha, mean)
            x = _shifted(combine((form.carry(level, first), centred)), first.alpha, mean)
        return inner.init(x, times)

    def step(key, denoise, state, t, s):
        level_t, level_s = schedule(t), schedule(s)

        def of_centred(x, t):
            return _shifted(denoise(_shifted(x, level_t.alpha, mean), t), -1.0, mean)

        new = inner.step(key, of_centred, state._replace(x=_shifted(state.x, -level_t.alpha, mean)), t, s)
        if smooth:
            new = _interpolated(method, form.node(s, level_s), form.gain(level_s), new, (s == 0) & (t > 0))
        x = _shifted(new.x, level_s.alpha, mean)
        still = s == t  # and then exactly so
        return new._replace(x=jax.tree.map(lambda u, v: jnp.where(expand(still, v), u, v), state.x, x))

    return inner._replace(init=init, step=step)


def _check_mean(mean: Any, x: Any) -> None:
    def leaf(m, v):
        if jnp.broadcast_shapes(jnp.shape(m), jnp.shape(v)) != jnp.shape(v):
            raise ValueError

    try:
        jax.tree.map(leaf, _means(mean, x), x)
    except ValueError:
        shapes = tuple(jax.tree.map(jnp.shape, v) for v in (mean, x))
        raise ValueError(f"mean must broadcast to x, {shapes[1]}, got {shapes[0]}") from None


def _interpolated(method: Method, y: Any, gain: Any, state: Any, at_end: Any) -> Any:
    """The state corrected with f = 0 at its own end y, where `at_end`; no later corrector does it again."""
    weights = [jnp.where(at_end, gain * w, 0.0) for w in corrector(method, y, state)[1:]]
    x = combine((1.0, state.x), *zip(weights, state.values, strict=True))
    return state._replace(x=x, used=jnp.where(at_end, 0, state.used))


def _shifted(x: Any, scale: Any, mean: Any) -> Any:
    """X + scale mean, mean a number or a tree of what broadcasts to x."""
    if isinstance(mean, (int, float)) and mean == 0:
        return x

    def leaf(v, m):
        return plus(v, times(expand(scale, v), of_rank(m, v))).astype(v.dtype)

    return jax.tree.map(leaf, x, _means(mean, x))


def _means(mean: Any, x: Any) -> Any:
    """A mean for each leaf of x."""
    return jax.tree.map(lambda _: mean, x) if jax.tree_util.all_leaves([mean]) else mean


def centres(denoise: Denoiser, schedule: Schedule, std: Any) -> Denoiser:
    """(x, t) -> E[y | x_t = x] = x0 + alpha std^2 / sigma^2 (alpha x0 - x), for data x0 = y + std n."""

    def of_y(x, t):
        level = schedule(t)
        weight = level.alpha * jnp.square(std / level.sigma)
        return combine((1 + weight * level.alpha, denoise(x, t)), (-weight, x))

    return of_y


def noise_floor(make: Callable[[Schedule], Sampler], schedule: Schedule, std: Any) -> Sampler:
    """Any sampler, made to diffuse the centres y of data x0 = y + std n: see the head of this module.

    The ODE that it solves is the same; so are order and calls, and x means what it did. What changes is what the
    sampler takes to be simple: under its linear part the noise of the data is noise. Made for `integrate` down to
    t = 0, where x is the sample. std = 0 is the sampler as it was.

    Args:
      make: schedule -> sampler, such as `functools.partial(unipc, order=2, form="x0")`.
      schedule: noise schedule; `make` is called with `NoiseFloor(schedule, std)`.
      std: standard deviation of the finest structure of the data, the smallest of a mixture's; >= 0, may be traced.
        Near t = 0 errors of the denoiser count (alpha std / sigma)^2 times, so that the last call wants sigma >= alpha
        std or so. Above the true value a stochastic sampler has no law to be right for; the ODE remains what it is.

    Wrappers that compare the denoiser's answer with an x0 (`cfg_plus_plus`, `guidance_momentum`, `inverse.dps`,
    `inverse.replacement`, `inverse.repaint`) go around it: `cfg_plus_plus(noise_floor(..), schedule, ..)`. Inside
    `make` they are refused, since there the answer is a centre.

    Raises:
      ValueError: if std is known to be negative, or `make` does not make a `Sampler`; while stepping, if the sampler
        compares centres with an x0.

    >>> import functools, diffax
    >>> schedule, point = diffax.Linear(), jnp.array([0.7, -0.4])
    >>> law = diffax.analytic.Gaussian.from_covariance(point, 0.3**2)
    >>> sampler = noise_floor(diffax.ddim, schedule, 0.3)  # exact in one step, whatever the mean
    >>> x = jnp.array([[0.5, -1.0]])
    >>> state = diffax.integrate(jax.random.key(0), sampler, law.denoiser(schedule), x, jnp.array([0.9, 0.0]))
    >>> bool(jnp.allclose(state.x, law.flow(x, schedule(0.9), schedule(0.0)), rtol=1e-5))
    True
    """
    check("std", std, ">= 0", lambda v: v >= 0)
    inner = make(NoiseFloor(schedule, std))
    check_sampler(inner)

    def step(key, denoise, state, t, s):
        of_y = centres(denoise, schedule, std)
        of_y.of_centres = True  # type: ignore[attr-defined]
        return inner.step(key, of_y, state, t, s)

    return inner._replace(step=step)
