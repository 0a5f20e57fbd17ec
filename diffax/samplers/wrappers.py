r"""Wrappers, sampler -> sampler, that add noise around a step.

With rho = sigma / alpha, u = x / alpha and z standard normal:

churn       rho^ = (1 + gamma) rho_t,   u^ = u + sqrt(rho^^2 - rho_t^2) z,   then the step from rho^ to rho_s
ancestral   rho_u = eta rho_s sqrt(1 - rho_s^2 / rho_t^2),   rho_d^2 = rho_s^2 - rho_u^2
            the step from rho_t to rho_d,   then u_s = u_d + rho_u z
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from diffax import random
from diffax._pytrees import as_float, check, check_per_example, combine, concrete, safe_sqrt, widen
from diffax.samplers.base import Sampler, check_sampler
from diffax.samplers.forms import log_step
from diffax.typing import Schedule, check_schedule


def _forgetful(sampler):
    """Refuses multistep samplers: what they remember is of another path, and is divided by the length of a step."""
    check_sampler(sampler)
    if sampler.memory:
        raise ValueError(
            "sampler must be without memory, which new noise would make another path's, got one of order "
            f"{sampler.order} with it; stochastic multistep samplers are dpmpp_2m_sde, dpmpp_3m_sde and sa_solver"
        )


class Churned(NamedTuple):
    """x: (B, ...). inner: the wrapped sampler's state without its x. gamma: what churn adds to rho, relative."""

    x: Any
    inner: Any
    gamma: Any


def churn(
    sampler: Sampler,
    schedule: Schedule,
    s_churn: Any,
    *,
    s_tmin: Any = 0.0,
    s_tmax: Any = jnp.inf,
    s_noise: Any = 1.0,
) -> Sampler:
    """Adds noise before each step, as EDM's stochastic sampler does (Karras et al. 2022, algorithm 2).

    gamma = min(s_churn / n, sqrt(2) - 1) where s_tmin <= rho_t <= s_tmax, else 0; n is the number of entries of the
    grid, repeats counted once, which is their number of steps, the last of which is the denoiser call that ends
    `sample`. A step cannot start above the schedule's own end: at t = 1 nothing is added. Nor is anything where a step
    does not move, or leads towards noise (inversion).

    Args:
      sampler: what to wrap, without memory; order and calls stay.
      schedule: its schedule.
      s_churn: >= 0; 0 is the bare sampler.
      s_tmin: lowest rho that is churned.
      s_tmax: highest rho that is churned.
      s_noise: factor of the noise.

    Raises:
      ValueError: if s_churn or s_noise is negative, s_tmax < s_tmin, or the sampler has a memory.
    """
    check_schedule(schedule)
    check_churn(s_churn, s_tmin, s_tmax, s_noise)
    _forgetful(sampler)

    def init(x, times):
        check_per_example(x, s_churn=s_churn, s_tmin=s_tmin, s_tmax=s_tmax, s_noise=s_noise)
        x = widen(x)
        n = 1 + jnp.sum(jnp.diff(jnp.asarray(times), axis=0) != 0, axis=0)
        churned = as_float(s_churn)
        gamma = jnp.minimum(churned / n.astype(churned.dtype), jnp.sqrt(2.0) - 1)
        return Churned(x, sampler.init(x, times)._replace(x=None), gamma)

    def step(key, denoise, state, t, s):
        level = schedule(t)
        rho = jnp.exp(-level.log_snr / 2)
        gamma = jnp.where((rho >= s_tmin) & (rho <= s_tmax) & (s < t), state.gamma, 0.0)
        churned = schedule.inverse(level.log_snr - 2 * jnp.log1p(gamma))
        churned = jnp.where(gamma > 0, jnp.maximum(churned, t), t)
        higher = schedule(churned)
        added = jnp.where(gamma > 0, higher.sigma * safe_sqrt(-jnp.expm1(2 * log_step(level, higher))), 0.0)
        x = combine(
            (higher.alpha / level.alpha, state.x), (s_noise * added, random.noise(random.fold_in(key, 0), state.x))
        )
        inner = sampler.step(random.fold_in(key, 1), denoise, state.inner._replace(x=x), churned, s)
        return Churned(inner.x, inner._replace(x=None), state.gamma)

    return sampler._replace(init=init, step=step)


def check_churn(s_churn: Any, s_tmin: Any, s_tmax: Any, s_noise: Any) -> None:
    """Raises `ValueError` for settings of `churn` that are known to lie outside their range."""
    check("s_churn", s_churn, ">= 0", lambda v: v >= 0)
    check("s_noise", s_noise, ">= 0", lambda v: v >= 0)
    check("s_tmin", s_tmin, "a number", lambda v: v == v)
    lowest = concrete(s_tmin)
    if lowest is not None:
        check("s_tmax", s_tmax, f">= s_tmin = {lowest.tolist()}", lambda v: v >= lowest)


def ancestral_levels(level_t: Any, level_s: Any, eta: Any) -> tuple[Any, Any]:
    """(rho_d, rho_u): how far down to step and how much noise to add back. Towards noise no noise is added."""
    h = jnp.minimum(-2 * log_step(level_t, level_s), 0.0)
    rho, eta2 = level_s.sigma / level_s.alpha, jnp.where(h < 0, jnp.square(eta), 0.0)
    # Not 1 less the share of noise: at eta = 1 a long step leaves exp(h), however small.
    return rho * safe_sqrt(1 - eta2 + eta2 * jnp.exp(h)), rho * safe_sqrt(-eta2 * jnp.expm1(h))


def ancestral(sampler: Sampler, schedule: Schedule, *, eta: Any = 1.0, noise_scale: Any = 1.0) -> Sampler:
    """Steps below s and adds noise back to s, the ancestral form of any single-step sampler (k-diffusion).

    eta = 0 is the bare sampler; around `ddim` it is `ddim(eta=eta)`. The order in law is that of the wrapped sampler:
    where its step is exact, noise takes the exact marginal at rho_d to that at rho_s.

    Args:
      sampler: what to wrap, without memory.
      schedule: its schedule.
      eta: in [0, 1], () or (B,), may be traced.
      noise_scale: factor of the noise (k-diffusion's s_noise).

    Raises:
      ValueError: if eta is known to lie outside [0, 1] or noise_scale to be negative, or the sampler has a memory.
    """
    check_schedule(schedule)
    check("eta", eta, "in [0, 1]", lambda v: (v >= 0) & (v <= 1))
    check("noise_scale", noise_scale, ">= 0", lambda v: v >= 0)
    _forgetful(sampler)
    if isinstance(eta, (int, float)) and eta == 0:
        return sampler

    def step(key, denoise, state, t, s):
        check_per_example(state.x, eta=eta, noise_scale=noise_scale)
        level_t, level_s = schedule(t), schedule(s)
        down, up = ancestral_levels(level_t, level_s, eta)
        lower = schedule.inverse(-2 * jnp.log(down))
        lower = jnp.where(up > 0, lower, s)
        below = schedule(lower)
        state = sampler.step(random.fold_in(key, 0), denoise, state, t, lower)
        # What was really stepped to, whatever the inverse rounded, is completed to rho_s.
        added = level_s.sigma * safe_sqrt(-jnp.expm1(2 * log_step(below, level_s)))
        added = jnp.where(up > 0, added, 0.0)
        drawn = random.noise(random.fold_in(key, 1), state.x)
        return state._replace(x=combine((level_s.alpha / below.alpha, state.x), (noise_scale * added, drawn)))

    return sampler._replace(step=step)
