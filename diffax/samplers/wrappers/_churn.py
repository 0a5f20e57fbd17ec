"""Churn: noise before each step, the stochastic sampler of EDM.

With rho = sigma / alpha, u = x / alpha and z standard normal:

    rho^ = (1 + gamma) rho_t
    u^   = u_t + s_noise sqrt(rho^^2 - rho_t^2) z
    u_s  = the sampler's step from rho^ to rho_s
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from diffax import random
from diffax._checks import at_least, check, check_per_example, check_schedule, non_negative, number
from diffax._pytrees import as_float, combine, concrete, is_zero, safe_sqrt, widen
from diffax.samplers._base import Sampler, check_single_step
from diffax.samplers.engines.forms import log_step
from diffax.typing import Denoiser, Grid, Keys, PerExample, SamplerState, Schedule, Times, Tree


class Churned(NamedTuple):
    """x: (B, ...). inner: the state of the wrapped sampler without x. gamma: the relative increase of rho."""

    x: Any
    inner: Any
    gamma: Any


def churn(
    sampler: Sampler,
    schedule: Schedule,
    s_churn: PerExample,
    *,
    s_tmin: PerExample = 0.0,
    s_tmax: PerExample = jnp.inf,
    s_noise: PerExample = 1.0,
) -> Sampler:
    """Add noise before each step, as in EDM's stochastic sampler (Karras et al. 2022, algorithm 2).

        gamma = min(s_churn / n, sqrt(2) - 1)   if s_tmin <= rho_t <= s_tmax, else 0

    n is the number of distinct entries of the grid. It is the number of steps in the paper, where the denoiser call at
    the end of `sample` counts as a step. No step can start above the last level of the schedule, so no noise is added
    at t = 1. None is added in a step of length zero or towards noise (inversion). Order and calls do not change.

    Args:
      sampler: a single-step sampler.
      schedule: its schedule.
      s_churn: () or (B,), >= 0; 0 is the sampler itself.
      s_tmin: lowest rho that is churned.
      s_tmax: highest rho that is churned.
      s_noise: factor of the noise, >= 0.

    Raises:
      ValueError: if s_churn or s_noise is negative, if s_tmax < s_tmin, or for a multistep sampler.
    """
    check_schedule(schedule)
    check_churn(s_churn, s_tmin, s_tmax, s_noise)
    check_single_step(sampler)

    def init(x: Tree, times: Grid) -> SamplerState:
        check_per_example(x, s_churn=s_churn, s_tmin=s_tmin, s_tmax=s_tmax, s_noise=s_noise)
        x = widen(x)
        n = 1 + jnp.sum(jnp.diff(jnp.asarray(times), axis=0) != 0, axis=0)
        total = as_float(s_churn)
        gamma = jnp.minimum(total / n.astype(total.dtype), jnp.sqrt(2.0) - 1)
        return Churned(x, sampler.init(x, times)._replace(x=None), gamma)

    def step(key: Keys, denoise: Denoiser, state: SamplerState, t: Times, s: Times) -> SamplerState:
        level_t = schedule(t)
        rho = jnp.exp(-level_t.log_snr / 2)
        gamma = jnp.where((rho >= s_tmin) & (rho <= s_tmax) & (s < t), state.gamma, 0.0)
        t_hat = schedule.inverse(level_t.log_snr - 2 * jnp.log1p(gamma))
        t_hat = jnp.where(gamma > 0, jnp.maximum(t_hat, t), t)
        level_hat = schedule(t_hat)
        std = jnp.where(gamma > 0, level_hat.sigma * safe_sqrt(-jnp.expm1(2 * log_step(level_t, level_hat))), 0.0)
        z = random.noise(random.fold_in(key, 0), state.x)
        x_hat = combine((level_hat.alpha / level_t.alpha, state.x), (s_noise * std, z))
        inner = sampler.step(random.fold_in(key, 1), denoise, state.inner._replace(x=x_hat), t_hat, s)
        return Churned(inner.x, inner._replace(x=None), state.gamma)

    def finish(key: Keys, denoise: Denoiser, state: SamplerState, t: Times) -> Tree:
        return sampler.finish(key, denoise, state.inner._replace(x=state.x), t)

    return sampler._replace(init=init, step=step, finish=finish, noisy=sampler.noisy or not is_zero(s_churn))


def check_churn(s_churn: PerExample, s_tmin: PerExample, s_tmax: PerExample, s_noise: PerExample) -> None:
    """Raise `ValueError` for settings of `churn` that are known to be outside their range."""
    check("s_churn", s_churn, non_negative)
    check("s_noise", s_noise, non_negative)
    check("s_tmin", s_tmin, number)
    lowest = concrete(s_tmin)
    if lowest is not None:
        check("s_tmax", s_tmax, at_least(lowest, "s_tmin"))


def with_churn(
    base: Sampler, schedule: Schedule, s_churn: PerExample, s_tmin: PerExample, s_tmax: PerExample, s_noise: PerExample
) -> Sampler:
    """The sampler with `churn`, or without a wrapper if s_churn is the number 0."""
    check_churn(s_churn, s_tmin, s_tmax, s_noise)
    if is_zero(s_churn):
        return base
    return churn(base, schedule, s_churn, s_tmin=s_tmin, s_tmax=s_tmax, s_noise=s_noise)
