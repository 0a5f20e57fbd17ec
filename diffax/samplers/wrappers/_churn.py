"""Churn: noise before each step, the stochastic sampler of EDM.

With rho = sigma / alpha, u = x / alpha and z standard normal:

    rho^ = (1 + gamma) rho_t,   u^ = u + sqrt(rho^^2 - rho_t^2) z,   then the step from rho^ to rho_s
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
    """x: (B, ...). inner: the wrapped sampler's state without its x. gamma: what churn adds to rho, relative."""

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
    check_single_step(sampler)

    def init(x: Tree, times: Grid) -> SamplerState:
        check_per_example(x, s_churn=s_churn, s_tmin=s_tmin, s_tmax=s_tmax, s_noise=s_noise)
        x = widen(x)
        n = 1 + jnp.sum(jnp.diff(jnp.asarray(times), axis=0) != 0, axis=0)
        churned = as_float(s_churn)
        gamma = jnp.minimum(churned / n.astype(churned.dtype), jnp.sqrt(2.0) - 1)
        return Churned(x, sampler.init(x, times)._replace(x=None), gamma)

    def step(key: Keys, denoise: Denoiser, state: SamplerState, t: Times, s: Times) -> SamplerState:
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

    def finish(key: Keys, denoise: Denoiser, state: SamplerState, t: Times) -> Tree:
        return sampler.finish(key, denoise, state.inner._replace(x=state.x), t)

    return sampler._replace(init=init, step=step, finish=finish, noisy=sampler.noisy or not is_zero(s_churn))


def check_churn(s_churn: PerExample, s_tmin: PerExample, s_tmax: PerExample, s_noise: PerExample) -> None:
    """Raises `ValueError` for settings of `churn` that are known to lie outside their range."""
    check("s_churn", s_churn, non_negative)
    check("s_noise", s_noise, non_negative)
    check("s_tmin", s_tmin, number)
    lowest = concrete(s_tmin)
    if lowest is not None:
        check("s_tmax", s_tmax, at_least(lowest, "s_tmin"))


def with_churn(
    base: Sampler, schedule: Schedule, s_churn: PerExample, s_tmin: PerExample, s_tmax: PerExample, s_noise: PerExample
) -> Sampler:
    check_churn(s_churn, s_tmin, s_tmax, s_noise)
    if is_zero(s_churn):
        return base
    return churn(base, schedule, s_churn, s_tmin=s_tmin, s_tmax=s_tmax, s_noise=s_noise)
