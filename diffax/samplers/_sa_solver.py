"""SA-Solver: a stochastic Adams method."""

import jax.numpy as jnp

from diffax._checks import check, non_negative
from diffax.samplers._base import Sampler
from diffax.samplers.engines.adams import adams
from diffax.samplers.engines.forms import check_order
from diffax.typing import PerExample, Schedule


def sa_solver(schedule: Schedule, *, order: int = 3, tau: PerExample = 1.0, corrected: bool = True) -> Sampler:
    """SA-Solver (Xue et al. 2023, algorithm 1): stochastic Adams predictor and corrector in x0.

        x_s = e^(-tau^2 h) sigma_s / sigma_t x_t + alpha_s sum_j b_j x0_j + sigma_s sqrt(1 - e^(-2 tau^2 h)) z
        b_j = (1 + tau^2) int_0^h e^(-(1 + tau^2) (h - u)) l_j(u) du,   h = lambda_s - lambda_t

    lambda = log(alpha / sigma), l_j Lagrange's polynomials in lambda. One call a step. tau = 0 is a predictor-corrector
    method of order p + 1 for the ODE; tau = 1 solves the reverse SDE, with weak order 2 at most.

    Args:
      schedule: noise schedule.
      order: p, 1, 2 or 3.
      tau: noise level, >= 0: () or (B,), or a function of t (in the paper 1 in an interval, 0 outside). Default 1.
      corrected: whether the corrector is used.

    Raises:
      ValueError: for another order or a negative tau.
    """
    if callable(tau):
        return adams(
            schedule, form="x0", order=check_order(order, 3), corrected=corrected, eta=lambda t: jnp.square(tau(t))
        )
    check("tau", tau, non_negative)
    eta = tau**2 if isinstance(tau, (int, float)) else jnp.square(tau)
    return adams(schedule, form="x0", order=check_order(order, 3), corrected=corrected, eta=eta)
