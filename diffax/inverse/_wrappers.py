"""Methods that wrap or replace the sampler, because they change x or the noise. Equations: package docstring."""

from typing import Any

import jax
import jax.numpy as jnp

from diffax import random
from diffax._checks import check, check_per_example, check_schedule, described, interval, non_negative
from diffax._pytrees import combine, safe_sqrt
from diffax.inverse._linear_map import squared_norm
from diffax.inverse._operators import Mask, Measurement, Operator, fit, measurement, project, pseudo_inverse, residual
from diffax.samplers._base import Sampler, State, check_of_data, check_sampler, init, unless_still
from diffax.samplers.wrappers._restart import restart
from diffax.typing import Denoiser, Keys, PerExample, SamplerState, Schedule, Times, Tree

# `replacement` folds SALT into the key of the step for its own noise; the wrapped sampler gets the unchanged key.
SALT = 0x4B4E4F57


def replacement(sampler: Sampler, schedule: Schedule, operator: Mask, y: Tree) -> Sampler:
    """Inpainting by replacement: after each step, the measurement at the noise level of s replaces the known entries.

        x_s <- alpha_s y + sigma_s z where known, z ~ N(0, I), new in each step

    For y without noise. Biased: the unknown entries depend on the known ones only through a noised y, whose noise is
    independent of theirs, and the known entries do not depend on the unknown ones. The initial x is not changed.
    Without known entries this is the wrapped sampler. `project` puts y itself into the result. Clipping and guidance
    act only on the unknown entries, as without a measurement.

    Args:
      sampler: the sampler that takes the steps; it determines order and calls.
      schedule: noise schedule.
      operator: the mask of the known entries.
      y: (B, ...) or (1, ...), in the shape of x; its unknown entries are ignored.

    Raises:
      ValueError: if the operator is not a `Mask`, or y does not have the shape of x.

    Source: Song et al. 2021, appendix I.2.

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
        return state._replace(x=unless_still(t, s, operator.select(known, state.x), state.x))

    return sampler._replace(step=step, noisy=True)


def repaint(sampler: Sampler, schedule: Schedule, operator: Mask, y: Tree) -> Sampler:
    """RePaint: `restart` of `replacement`, so that the grid may turn back towards noise.

        s <= t    a step of `replacement`
        s > t     x_s = alpha_s / alpha_t x_t + sqrt(sigma_s^2 - (alpha_s sigma_t / alpha_t)^2) z

    `times.jumps` makes the grid. After each jump the steps adapt the unknown entries to the known ones again, so more
    jumps give a smaller bias. A jump costs no denoiser call if all examples share the grid. Use a single-step sampler,
    such as `ddpm` as in the paper: a multistep sampler drops its history at each jump. On a monotone grid without known
    entries this is the wrapped sampler.

    Args:
      sampler: the sampler that takes the steps.
      schedule: noise schedule.
      operator: the mask of the known entries.
      y: (B, ...) or (1, ...), in the shape of x; its unknown entries are ignored.

    Raises:
      ValueError: as in `replacement`.

    Source: Lugmayr et al. 2022, eq. 8 and algorithm 1.

    >>> import diffax
    >>> schedule = diffax.Cosine()
    >>> sampler = repaint(diffax.ddpm(schedule), schedule, Mask(jnp.array([1, 0])), jnp.array([[3.0, 0.0]]))
    >>> times = diffax.times.jumps(diffax.times.uniform_log_snr(schedule, 5), length=2, repeats=3)
    >>> diffax.sample(jax.random.key(0), sampler, lambda x, t: 0 * x, jnp.ones((1, 2)), times).shape
    (1, 2)
    """
    return restart(replacement(sampler, schedule, operator, y), schedule)


def dps(sampler: Sampler, operator: Measurement, y: Tree, *, scale: PerExample = 1.0) -> Sampler:
    """DPS: each step also moves x down the gradient of |y - A x0|, where x0 is predicted before the step.

        x_s <- x_s - scale d/dx_t |y - A x0(x_t)|       the norm is computed for each example

    Biased: this correction is not the score of any posterior, and `scale` must be tuned for each problem. At scale = 0
    it is the wrapped sampler. The gradient costs one denoiser call and one vector-Jacobian product; under jit, XLA
    merges the call with that of the sampler if both are at x_t. The Jacobian of a clipped x0 is 0 at the clipped
    entries, so their residual has no effect.

    Args:
      sampler: the sampler that takes the steps; in the paper `ddpm`.
      operator: a measurement operator, or any differentiable x0 -> y, (B, ...) to (B, ...), linear or not.
      y: (B, ...) or (1, ...), the measurement.
      scale: () or (B,), >= 0, default 1, may be traced.

    Raises:
      ValueError: if y does not have the shape of the operator's measurements, or scale < 0.

    Source: Chung et al. 2023, eq. 16 and algorithm 1, in the form of their released code: the gradient of the norm,
    which is the gradient of the square times zeta_i = scale / (2 |y - A x0|).

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
        condition = "have the methods of `Operator`, such as Mask, or be a function x0 -> y"
        raise ValueError(f"operator must {condition}, got {described(operator)}")

    def step(key: Keys, denoise: Denoiser, state: SamplerState, t: Times, s: Times) -> SamplerState:
        def total_misfit(x: Tree) -> Any:
            return safe_sqrt(squared_norm(residual(operator, y, denoise(x, t)))).sum()

        check_of_data("dps", denoise)
        check_per_example(state.x, scale=scale)
        # Take the step first: a wrapper around this one uses the first denoiser call, which must not be inside `grad`.
        stepped = sampler.step(key, denoise, state, t, s)
        # The gradient of the sum is the gradient of each example, because examples do not interact.
        gradient = jax.grad(total_misfit)(state.x)
        moved = combine((1.0, stepped.x), (-jnp.asarray(scale), gradient))
        return stepped._replace(x=unless_still(t, s, moved, stepped.x))

    return sampler._replace(step=step, calls=sampler.calls + 1)


def renoising(schedule: Schedule, *, zeta: PerExample) -> Sampler:
    """DiffPIR's sampler: DDIM in which new noise replaces a fraction zeta of the variance of the predicted noise.

        x_s = alpha_s x0 + sigma_s (sqrt(1 - zeta) eps + sqrt(zeta) z),   eps = (x_t - alpha_t x0) / sigma_t

    zeta = 0 is `ddim`, of order 1; zeta = 1 keeps only x0. Between them it has no order: the fraction does not shrink
    with the step, so that many steps reduce the spread of the distribution (`ddim(schedule, eta=...)` does not
    have this bias). One denoiser call a step. Steps towards noise use the same formula.

    Args:
      schedule: noise schedule.
      zeta: () or (B,) in [0, 1], may be traced.

    Raises:
      ValueError: if a concrete zeta is outside [0, 1].

    Source: Zhu et al. 2023, eq. 15 and algorithm 1.

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
        fraction = jnp.asarray(zeta)
        c_old, c_new = safe_sqrt(1 - fraction), safe_sqrt(fraction)
        half = (level_t.log_snr - level_s.log_snr) / 2
        # c_x0 = alpha_s - c_old sigma_s alpha_t / sigma_t, in a form that does not cancel at c_old = 1.
        c_x0 = -level_s.alpha * (jnp.expm1(half) - jnp.exp(half) * fraction / (1 + c_old))
        terms = ((c_old * level_s.sigma / level_t.sigma, state.x), (c_x0, denoise(state.x, t)))
        x = combine(*terms, (c_new * level_s.sigma, random.noise(key, state.x)))
        return State(unless_still(t, s, x, state.x))

    return Sampler(init, step, order=1, calls=1, noisy=True)


def ddnm_plus(schedule: Schedule, operator: Operator, y: Tree, *, std: PerExample) -> Sampler:
    """DDNM+: ancestral sampling in which the noise of y replaces the noise of the sampler, as far as possible.

        a = -alpha_s expm1(h),   tau^2 = -sigma_s^2 expm1(h),   h = lambda_t - lambda_s       (as in `ddpm`)
        l = min(1, tau c / (a std))                             c the operator's singular value
        x0 <- x0 + l A^+ (y - A x0)
        x_s = exp(h / 2) sigma_s / sigma_t x_t + a x0 + sqrt(tau^2 - (a l std / c)^2) z      in the range of A^T
                                                      + tau z                                outside it

    At std = 0 it is `ddpm(schedule)` with the denoiser `ddnm`, and it is biased like that. Order 1, one denoiser call a
    step. The measurement acts only in the steps: the last denoiser call of `sample` does not use it. Clipping and
    guidance act as in `ddnm`.

    Args:
      schedule: noise schedule.
      operator: `Mask` or `BoxDownsample`, whose nonzero singular values are all equal.
      y: (B, ...) or (1, ...), the measurement.
      std: standard deviation of the noise of y, () or (B,), >= 0, may be traced.

    Raises:
      ValueError: if the operator is another one, y does not have the shape of the operator's measurements, or std < 0.

    Source: Wang, Yu & Zhang 2022, eq. 17 to 19.

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
        c_x0, tau = -level_s.alpha * jnp.expm1(h), level_s.sigma * safe_sqrt(-jnp.expm1(h))
        infinite = jnp.isinf(std)
        # The standard deviation of the noise that y adds to x_s in the range of A^T, for l = 1.
        y_noise = c_x0 * jnp.where(infinite, 0.0, std) / gain**0.5
        exceeds = infinite | (y_noise > tau)
        fraction = jnp.where(exceeds, tau / jnp.where(exceeds & ~infinite, y_noise, 1.0), 1.0)
        fraction = jnp.where(infinite, 0.0, fraction)
        tau_range = jnp.where(exceeds, 0.0, safe_sqrt(tau**2 - jnp.where(exceeds, 0.0, y_noise) ** 2))
        x0 = denoise(state.x, t)
        x0 = combine((1 - fraction, x0), (fraction, project(operator, y, x0)))
        z = random.noise(key, state.x)
        z_range = pseudo_inverse(operator, operator.forward(z))
        c_x = jnp.exp(h / 2) * level_s.sigma / level_t.sigma
        return State(combine((c_x, state.x), (c_x0, x0), (tau, z), (tau_range - tau, z_range)))

    return Sampler(init, step, order=1, calls=1, noisy=True)
