r"""The stochastic differential equations (SDEs) of a schedule.

    forward     dx = f(t) x dt + g(t) dw                    f = d log alpha / dt,   g^2 = -sigma^2 dlambda / dt
    backward    dx = (f x - (1 + eta^2) / 2 g^2 score) dt + eta g dw       t falls
    upward      dx = (f x - (1 - eta^2) / 2 g^2 score) dt + eta g dw       t rises

with lambda = log(alpha^2 / sigma^2), so that g^2 = d sigma^2 / dt - 2 f sigma^2. For every eta, these equations have
the marginals p_t. With eta = 0 they are the probability-flow ODE. With eta = 1, `backward` is the reverse SDE, and
`upward` is the forward SDE, which needs no score. `diffax.samplers.euler_maruyama` and `stochastic_heun` solve them.

    schedule                     f                        g^2
    VP, `Linear`                 -beta / 2                beta                              Song et al. 2021, eq. 32
    sub-VP, `SubVP`              -beta / 2                beta (1 - exp(-2 B))              Song et al. 2021, eq. 28
    VE, `LogLinear`              0                        2 log(sigma_max / sigma_min) sigma^2       Song et al., eq. 30
    rectified flow, `Flow`       -1 / (1 - t)             2 t / (1 - t)                     Lipman et al. 2023

Source: Anderson 1982; Song et al. 2021, eq. 5, 6 and 13; for eta, Huang, Lim & Courville 2021, eq. 8.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffax._checks import check_per_example, check_schedule
from diffax._pytrees import as_float, combine
from diffax.typing import Denoiser, Schedule, Times, X


class Coefficients(NamedTuple):
    """drift: f, and diffusion2: g^2 at t. Both have the shape of t."""

    drift: Any
    diffusion2: Any


def coefficients(schedule: Schedule, t: Times) -> Coefficients:
    """(f, g^2) of the schedule's SDE at t, by one jvp; any shape.

    At and beyond the clip of log-SNR they are the one-sided values from inside.

    >>> from diffax.schedules import Linear
    >>> [round(float(v), 4) for v in coefficients(Linear(), 0.5)]  # beta = 10.05
    [-5.025, 10.05]
    """
    t = as_float(t)
    level, slope = jax.jvp(schedule, (t,), (jnp.ones_like(t),))
    return Coefficients(slope.alpha / level.alpha, -jnp.square(level.sigma) * slope.log_snr)


def score(denoise: Denoiser, schedule: Schedule, x: X, t: Times) -> X:
    """grad log p_t(x) = (alpha x0 - x) / sigma^2 (Tweedie). x and the result: (B, ...); t: () or (B,).

    >>> from diffax.schedules import Flow
    >>> score(lambda x, t: 0 * x, Flow(), jnp.ones((1, 2)), 0.5).tolist()
    [[-4.0, -4.0]]
    """
    check_schedule(schedule)
    check_per_example(x, t=t)
    alpha, sigma, _ = schedule(t)
    x0: X = denoise(x, t)
    return combine((-1 / jnp.square(sigma), x), (alpha / jnp.square(sigma), x0))
