"""Noise schedules: a decreasing log-SNR curve times a scaling.

    x_t = alpha x0 + sigma eps,   eps ~ N(0, I),   t in [0, 1]: 0 is data, 1 is noise
    lambda(t) = log(alpha^2 / sigma^2) = -2 log r,   r = sigma / alpha

A schedule is a frozen dataclass pytree, so its parameters may be traced, vmapped and differentiated.
The scaling turns r into (alpha, sigma); any curve combines with any scaling:

    vp      alpha^2 + sigma^2 = 1       alpha = 1 / sqrt(1 + r^2)
    ve      alpha = 1                   sigma = r
    sub_vp  sigma = 1 - alpha^2         alpha = 2 / (r + sqrt(r^2 + 4))
    flow    alpha + sigma = 1           alpha = 1 / (1 + r)

|lambda| is clipped to 20, so alpha and sigma are never 0 and t = 0 and t = 1 are ordinary points. The
derivatives at and beyond the clip are the one-sided ones from inside.

    curve        r(t)                                            scaling   where from
    Linear       sqrt(exp(B) - 1), beta linear in t              vp        Song et al. 2021; DDPM's betas
    Quadratic    the same, sqrt(beta) linear in t                vp        Stable Diffusion, "scaled_linear"
    SubVP        2 sinh(B / 2), beta linear in t                 sub_vp    Song et al. 2021
    Cosine       tan(pi t / 2)                                   vp        Nichol & Dhariwal 2021
    Sigmoid      alpha^2 a falling sigmoid                       vp        Jabri et al. 2022, Chen 2023
    Laplace      lambda the quantile of a Laplace law            vp        Hang et al. 2024
    Flow         t / (1 - t)                                     flow      rectified flow, Liu et al. 2023
    LogLinear    sigma_min (sigma_max / sigma_min)^t             ve        Song & Ermon 2019
    EDM          r^(1 / rho) linear in t                         ve        Karras et al. 2022
    Tabulated    a table, as `from_betas` makes one              vp        discrete time (schedules.tables)
    Learned      a monotone network, trained                     vp        Kingma et al. 2021 (schedules.learned)
    shifted(.)   shift times another's                           its       for resolution (schedules.shift)

with B(t) the integral of beta from 0 to t.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffax._pytrees import as_float, concrete, safe_sqrt
from diffax.schedules.betas import cosine_betas, linear_betas, quadratic_betas, sigmoid_betas, zero_terminal_snr
from diffax.schedules.by_beta import Linear, Quadratic, SubVP
from diffax.schedules.by_sigma import EDM, LogLinear
from diffax.schedules.by_snr import Cosine, Flow, Laplace, Sigmoid
from diffax.schedules.learned import Learned
from diffax.schedules.shift import shifted
from diffax.schedules.tables import Tabulated, from_betas
from diffax.typing import Level, Schedule

__all__ = [
    "EDM",
    "Cosine",
    "Flow",
    "Laplace",
    "Learned",
    "Linear",
    "LogLinear",
    "Quadratic",
    "Sigmoid",
    "SubVP",
    "Tabulated",
    "cosine_betas",
    "from_betas",
    "levels",
    "linear_betas",
    "quadratic_betas",
    "rates",
    "shifted",
    "sigmoid_betas",
    "transition",
    "zero_terminal_snr",
]


def levels(schedule: Callable[[Any], Level], *times: Any) -> tuple[Level, ...]:
    """The levels at several times, each () or (B,), by one evaluation: what a step from t to s wants.

    Evaluated apart, in float32, sigma(s) of one step and sigma(t) of the next may differ in their last bit, as the
    compiler fuses each into what surrounds it. In one evaluation they are the same number, so that products over
    steps, such as sigma_s / sigma_t, telescope: after 1,000 steps that is worth a factor of four in the error.

    >>> [round(float(level.sigma), 4) for level in levels(Flow(), 0.5, 0.25)]
    [0.5, 0.25]
    """
    stacked = jnp.stack(jnp.broadcast_arrays(*(as_float(t) for t in times)))
    together = jax.tree.map(lambda v: jnp.broadcast_to(v, stacked.shape), schedule(stacked))
    return tuple(jax.tree.map(lambda v, i=i: v[i], together) for i in range(len(times)))


def rates(schedule: Schedule, t: Any) -> tuple[Any, Any]:
    """(d alpha / dt, d sigma / dt) at t, by one jvp; any shape.

    >>> [round(float(v), 6) for v in rates(Flow(), 0.3)]
    [-1.0, 1.0]
    """
    t = as_float(t)
    _, tangent = jax.jvp(schedule, (t,), (jnp.ones_like(t),))
    return tangent.alpha, tangent.sigma


def transition(schedule: Schedule, t: Any, s: Any) -> tuple[Any, Any]:
    """(scale, std) of q(x_t | x_s) = N(scale x_s, std^2 I), for s <= t; any shape.

        scale = alpha_t / alpha_s
        std^2 = sigma_t^2 - scale^2 sigma_s^2 = -sigma_t^2 expm1(lambda_t - lambda_s)

    Source: Kingma et al. 2021, eq. 2 and 3 of appendix A.

    Raises:
      ValueError: if t < s is known.

    >>> [round(float(v), 4) for v in transition(Flow(), 0.5, 0.2)]  # 0.5 / 0.8, sqrt(0.25 - (0.625 0.2)^2)
    [0.625, 0.4841]
    """
    known = concrete(t), concrete(s)
    if known[0] is not None and known[1] is not None and np.any(known[0] < known[1]):
        raise ValueError(f"transition goes from s to a later t, got t = {t}, s = {s}")
    level_t, level_s = schedule(t), schedule(s)
    std = level_t.sigma * safe_sqrt(-jnp.expm1(level_t.log_snr - level_s.log_snr))
    return level_t.alpha / level_s.alpha, std
