"""Time derivatives of a schedule, and the transition between two of its levels."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffax._pytrees import as_float, concrete, safe_sqrt
from diffax.typing import Schedule, Times


def rates(schedule: Schedule, t: Times) -> tuple[Any, Any]:
    """(d alpha / dt, d sigma / dt) at t, by one jvp; any shape.

    >>> import diffax
    >>> [round(float(v), 6) for v in rates(diffax.Flow(), 0.3)]
    [-1.0, 1.0]
    """
    t = as_float(t)
    _, tangent = jax.jvp(schedule, (t,), (jnp.ones_like(t),))
    return tangent.alpha, tangent.sigma


def transition(schedule: Schedule, t: Times, s: Times) -> tuple[Any, Any]:
    """(scale, std) of q(x_t | x_s) = N(scale x_s, std^2 I), for s <= t; any shape.

        scale = alpha_t / alpha_s
        std^2 = sigma_t^2 - scale^2 sigma_s^2 = -sigma_t^2 expm1(lambda_t - lambda_s)

    Source: Kingma et al. 2021, eq. 2 and 3 of appendix A.

    Raises:
      ValueError: if t < s. Traced times are not checked.

    >>> import diffax
    >>> [round(float(v), 4) for v in transition(diffax.Flow(), 0.5, 0.2)]  # 0.5 / 0.8, sqrt(0.25 - (0.625 0.2)^2)
    [0.625, 0.4841]
    """
    t_value, s_value = concrete(t), concrete(s)
    if t_value is not None and s_value is not None and np.any(t_value < s_value):
        raise ValueError(f"s must be <= t = {t}, got {s}")
    level_t, level_s = schedule(t), schedule(s)
    std = level_t.sigma * safe_sqrt(-jnp.expm1(level_t.log_snr - level_s.log_snr))
    return level_t.alpha / level_s.alpha, std
