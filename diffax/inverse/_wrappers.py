"""Samplers that know of a measurement: what also changes the renoising, or x itself. Equations head the package."""

from typing import Any

import jax
import jax.numpy as jnp

from diffax import random
from diffax._checks import check, check_per_example, check_schedule, described, interval, non_negative
from diffax._pytrees import combine, expand, safe_sqrt
from diffax.inverse._linear_map import squared_norm
from diffax.inverse._operators import Mask, Measurement, Operator, fit, measurement, project, pseudo_inverse, residual
from diffax.samplers._base import Sampler, State, check_of_data, check_sampler, init
from diffax.samplers.wrappers._restart import restart
from diffax.typing import Denoiser, Keys, PerExample, SamplerState, Schedule, Times, Tree

# What `replacement` folds into the step's key for its own noise; the wrapped sampler gets the key as it is.
SALT = 0x4B4E4F57


def replacement(sampler: Sampler, schedule: Schedule, operator: Mask, y: Tree) -> Sampler:
    """Inpainting by replacement: after each step the known entries become a noised measurement.

        x_s <- alpha_s y + sigma_s z where known, z ~ N(0, I) anew in each step

    For y without noise. Biased: the unknown entries see the known ones only through noise that they share nothing
    with, and never the other way round. The start is left as it is. Neutral where nothing is known. `project` puts y
    itself into the result. Clipping and guidance act on the unknown entries alone, as without a measurement.

    Source: Song et al. 2021, appendix I.2.

    Args:
      sampler: what to step with; order and calls are its own.
      schedule: noise schedule.
      operator: the known entries.
      y: (B, ...) or (1, ...), the shape of x; what it holds where nothing is known does not matter.

    Raises:
      ValueError: if the operator is no `Mask`, or y has another shape.

    >>> import diffax
    >>> schedule = diffax.Cosine()
    >>> sampler = replacement(diffax.ddim(schedule), schedule, Mask(jnp.array([1, 0])), jnp.array([[3.0, 0.0]]))
    >>> end = diffax.integrate(jax.random.key(0), sampler, lambda x, t: 0 * x, jnp.ones((1, 2)), jnp.array([0.5, 0.0]))
    >>> bool(abs(end.x[0, 0] - 3.0) < 1e-3)
    True
    """
    check_sampler(sampler)
    check_schedule(schedule)
    if not isinstance(operator, Mask):
        raise ValueError(f"operator must be a Mask, got {type(operator).__name__}")
    y = measurement(operator, y)

    def step(key: Keys, denoise: Denoiser, state: SamplerState, t: Times, s: Times) -> SamplerState:
        check_of_data("replacement", denoise)
        state = sampler.step(key, denoise, state, t, s)
        level = schedule(s)
        z = random.noise(random.fold_in(key, SALT), state.x)
        known = combine((level.sigma, z), (level.alpha, jax.tree.map(fit, y, z)))
        moves = jnp.asarray(t) != s
        replaced = operator.select(known, state.x)
        return state._replace(x=jax.tree.map(lambda a, b: jnp.where(expand(moves, a), a, b), replaced, state.x))

    return sampler._replace(step=step, noisy=True)


def repaint(sampler: Sampler, schedule: Schedule, operator: Mask, y: Tree) -> Sampler:
    """RePaint: `restart` of `replacement`, so that it walks grids which turn back.

        s <= t    a step of `replacement`
        s > t     x_s = alpha_s / alpha_t x_t + sqrt(sigma_s^2 - (alpha_s sigma_t / alpha_t)^2) z

    `times.jumps` makes the grid. Each jump lets the unknown entries answer to the known ones: the more, the smaller the
    bias. A jump costs no denoiser call where all examples share the grid. Meant for samplers without memory, such as
    `ddpm`, the paper's: a multistep sampler starts afresh behind each jump. Neutral on a monotone grid where nothing is
    known.

    Source: Lugmayr et al. 2022, eq. 8 and algorithm 1.

    Args:
      sampler: what to step with.
      schedule: noise schedule.
      operator: the known entries.
      y: (B, ...) or (1, ...), the shape of x.

    Raises:
      ValueError: as `replacement`.

    >>> import diffax
    >>> schedule = diffax.Cosine()
    >>> sampler = repaint(diffax.ddpm(schedule), schedule, Mask(jnp.array([1, 0])), jnp.array([[3.0, 0.0]]))
    >>> times = diffax.times.jumps(diffax.times.uniform_log_snr(schedule, 5), length=2, repeats=3)
    >>> diffax.sample(jax.random.key(0), sampler, lambda x, t: 0 * x, jnp.ones((1, 2)), times).shape
    (1, 2)
    """
    return restart(replacement(sampler, schedule, operator, y), schedule)


def dps(sampler: Sampler, operator: Measurement, y: Tree, *, scale: PerExample = 1.0) -> Sampler:
    """DPS: after each step x moves down the gradient of the misfit of the x0 that was predicted before it.

        x_s <- x_s - scale d/dx_t |y - A x0(x_t)|       the norm of each example by itself

    Biased: the step is not that of any posterior score; `scale` is tuned by problem. Neutral at scale = 0. The
    gradient takes a denoiser call of its own and its transpose; under jit XLA merges the call with the sampler's, where
    that one too is at x_t. A clipped x0 has slope 0 at the clipped entries, so their misfit has no effect.

    Source: Chung et al. 2023, eq. 16 and algorithm 1, in the form of their released code: the gradient of the norm,
    which is that of the square times zeta_i = scale / (2 |y - A x0|).

    Args:
      sampler: what to step with; the paper's is `ddpm`.
      operator: a measurement, or any differentiable x0 -> y, (B, ...) to (B, ...), linear or not.
      y: (B, ...) or (1, ...), its value.
      scale: () or (B,), >= 0, may be traced.

    Raises:
      ValueError: if y has another shape than the operator's measurements, or scale < 0.

    >>> import diffax
    >>> sampler = dps(diffax.ddim(diffax.Cosine()), Mask(jnp.array([1, 0])), jnp.array([[3.0, 0.0]]), scale=0.5)
    >>> bare = diffax.ddim(diffax.Cosine())
    >>> ends = [s.step(None, lambda x, t: x, State(jnp.ones((1, 2))), 0.5, 0.4).x for s in (sampler, bare)]
    >>> (ends[0] - ends[1]).round(4).tolist()
    [[0.5, 0.0]]
    """
    check_sampler(sampler)
    check("scale", scale, non_negative)
    if isinstance(operator, Operator):
        y = measurement(operator, y)
    elif not callable(operator):
        raise ValueError(f"operator must be a measurement or a function, got {described(operator)}")

    def step(key: Keys, denoise: Denoiser, state: SamplerState, t: Times, s: Times) -> SamplerState:
        def misfits(x: Tree) -> Any:
            return safe_sqrt(squared_norm(residual(operator, y, denoise(x, t)))).sum()

        check_of_data("dps", denoise)
        check_per_example(state.x, scale=scale)
        # The step first: a wrapper around this one listens to the first call, which must not be one inside `grad`.
        stepped = sampler.step(key, denoise, state, t, s)
        downhill = jax.grad(misfits)(state.x)  # of the sum: each example's own, since examples do not meet
        length = jnp.where(jnp.asarray(t) != s, scale, 0.0)
        return stepped._replace(x=combine((1.0, stepped.x), (-length, downhill)))

    return sampler._replace(step=step, calls=sampler.calls + 1)


def renoising(schedule: Schedule, *, zeta: PerExample) -> Sampler:
    """DiffPIR's sampler: DDIM in which a part zeta of the predicted noise's variance is drawn anew.

        x_s = alpha_s x0 + sigma_s (sqrt(1 - zeta) eps + sqrt(zeta) z),   eps = (x_t - alpha_t x0) / sigma_t

    zeta = 0 is `ddim`, of order 1; zeta = 1 keeps x0 alone. Between, no order: the part does not shrink with the
    step, so that many steps wear the spread of the law down (`ddim(schedule, eta=...)` does not). One denoiser call a
    step. Towards noise as towards data.

    Source: Zhu et al. 2023, eq. 15 and algorithm 1.

    Args:
      schedule: noise schedule.
      zeta: () or (B,) in [0, 1], may be traced.

    Raises:
      ValueError: if zeta is known to lie outside [0, 1].

    >>> import diffax
    >>> sampler = renoising(diffax.Cosine(), zeta=1.0)
    >>> sampler.step(jax.random.key(0), lambda x, t: 0 * x, State(jnp.ones((2, 3))), 1.0, 0.5).x.shape
    (2, 3)
    """
    check_schedule(schedule)
    check("zeta", zeta, interval("[0, 1]"))

    def step(key: Keys, denoise: Denoiser, state: SamplerState, t: Times, s: Times) -> SamplerState:
        check_per_example(state.x, zeta=zeta)
        level_t, level_s = schedule(t), schedule(s)
        anew = jnp.where(jnp.asarray(t) != s, zeta, 0.0)
        kept, fresh = safe_sqrt(1 - anew), safe_sqrt(anew)
        half = (level_t.log_snr - level_s.log_snr) / 2
        # alpha_s - kept sigma_s alpha_t / sigma_t, without the difference of equals at kept = 1.
        of_x0 = -level_s.alpha * (jnp.expm1(half) - jnp.exp(half) * anew / (1 + kept))
        terms = ((kept * level_s.sigma / level_t.sigma, state.x), (of_x0, denoise(state.x, t)))
        return State(combine(*terms, (fresh * level_s.sigma, random.noise(key, state.x))))

    return Sampler(init, step, order=1, calls=1, noisy=True)


def ddnm_plus(schedule: Schedule, operator: Operator, y: Tree, *, std: PerExample) -> Sampler:
    """DDNM+: ancestral sampling in which the measurement's noise takes the place of the sampler's, as far as it goes.

        a = -alpha_s expm1(h),   tau^2 = -sigma_s^2 expm1(h),   h = lambda_t - lambda_s       (as in `ddpm`)
        l = min(1, tau c / (a std))                             c the operator's singular value
        x0 <- x0 + l A^+ (y - A x0)
        x_s = exp(h / 2) sigma_s / sigma_t x_t + a x0 + sqrt(tau^2 - (a l std / c)^2) z      in the range of A^T
                                                      + tau z                                outside it

    At std = 0 it is `ddpm(schedule)` with the denoiser `ddnm`. Biased as that is. Order 1, one denoiser call a step.
    The denoiser is the bare one, in the last call of `sample` too: the measurement acts in the steps alone.
    Clipping and guidance act as in `ddnm`.

    Source: Wang, Yu & Zhang 2022, eq. 17 to 19.

    Args:
      schedule: noise schedule.
      operator: `Mask` or `BoxDownsample`, whose singular values are all the same.
      y: (B, ...) or (1, ...), its value.
      std: standard deviation of the measurement's noise, () or (B,), >= 0, may be traced.

    Raises:
      ValueError: for another operator, if y has another shape than its measurements, or std < 0.

    >>> import diffax
    >>> sampler = ddnm_plus(diffax.Cosine(), Mask(jnp.array([1, 0])), jnp.array([[3.0, 0.0]]), std=0.1)
    >>> sampler.step(jax.random.key(0), lambda x, t: 0 * x, State(jnp.ones((1, 2))), 0.5, 0.4).x.shape
    (1, 2)
    """
    check_schedule(schedule)
    gain = getattr(operator, "gain", None)
    if gain is None:
        raise ValueError(f"operator must be a Mask or BoxDownsample, got {type(operator).__name__}")
    check("std", std, non_negative)
    y = measurement(operator, y)

    def step(key: Keys, denoise: Denoiser, state: SamplerState, t: Times, s: Times) -> SamplerState:
        level_t, level_s = schedule(t), schedule(s)
        check_of_data("ddnm_plus", denoise)
        check_per_example(state.x, std=std)
        h = jnp.minimum(level_t.log_snr - level_s.log_snr, 0.0)
        of_x0, tau = -level_s.alpha * jnp.expm1(h), level_s.sigma * safe_sqrt(-jnp.expm1(h))
        infinite = jnp.isinf(std)
        brought = of_x0 * jnp.where(infinite, 0.0, std) / gain**0.5
        over = infinite | (brought > tau)
        part = jnp.where(over, tau / jnp.where(over & ~infinite, brought, 1.0), 1.0)
        part = jnp.where(infinite, 0.0, part)
        rest = jnp.where(over, 0.0, safe_sqrt(tau**2 - jnp.where(over, 0.0, brought) ** 2))
        x0 = denoise(state.x, t)
        x0 = combine((1 - part, x0), (part, project(operator, y, x0)))
        z = random.noise(key, state.x)
        z_range = pseudo_inverse(operator, operator.forward(z))
        of_x = jnp.exp(h / 2) * level_s.sigma / level_t.sigma
        return State(combine((of_x, state.x), (of_x0, x0), (tau, z), (rest - tau, z_range)))

    return Sampler(init, step, order=1, calls=1, noisy=True)
