"""Euler's method."""

from typing import Any

import jax.numpy as jnp

from diffax._checks import check_schedule, choose
from diffax._pytrees import combine
from diffax.samplers._base import Sampler, State, init
from diffax.samplers._ddim import ddim
from diffax.samplers.engines.forms import FORMS, evaluate
from diffax.samplers.engines.stages import SPACES
from diffax.samplers.wrappers._churn import with_churn
from diffax.typing import Denoiser, Keys, PerExample, SamplerState, Schedule, Space, Times


def euler(
    schedule: Schedule,
    *,
    space: Space = "rho",
    s_churn: PerExample = 0.0,
    s_tmin: PerExample = 0.0,
    s_tmax: PerExample = jnp.inf,
    s_noise: PerExample = 1.0,
) -> Sampler:
    """Euler's method, order 1, one call a step (Karras et al. 2022).

        rho    x_s / alpha_s = x_t / alpha_t + (rho_s - rho_t) eps,   rho = sigma / alpha
        time   x_s = x_t + (s - t) (alpha' x0 + sigma' eps)

    In rho it is `ddim`. For a flow schedule both spaces give the same step.

    Args:
      schedule: noise schedule.
      space: "rho", or "time" for Euler's method in t on dx / dt = alpha' x0 + sigma' eps.
      s_churn: with s_tmin, s_tmax and s_noise, see `diffax.samplers.churn`.
      s_tmin: lowest rho that is churned.
      s_tmax: highest rho that is churned.
      s_noise: factor of the noise.

    Raises:
      ValueError: for another space.
    """
    choose("space", space, SPACES)
    check_schedule(schedule)
    base = ddim(schedule) if space == "rho" else _euler_in_time(schedule)
    return with_churn(base, schedule, s_churn, s_tmin, s_tmax, s_noise)


def _euler_in_time(schedule: Schedule) -> Any:
    form = FORMS["time"]

    def step(key: Keys, denoise: Denoiser, state: SamplerState, t: Times, s: Times) -> SamplerState:
        f = evaluate(form, schedule, denoise, state.x, t, schedule(t))
        return State(combine((1.0, state.x), (s - t, f)))

    return Sampler(init, step, order=1, calls=1, schedule=schedule)
