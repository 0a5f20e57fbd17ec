"""Multistep samplers: the settings of `diffax.samplers.exponential` that have names.

All make one denoiser call a step and keep their history in the state. `order` is that from exact history; a cold start
(orders 1, 2 .. p in the first p steps) limits it to 2, or to 3 where a corrector mends the start at no extra call.
"""

from typing import Any

import jax.numpy as jnp

from diffax._pytrees import check, choose
from diffax.samplers.base import Sampler
from diffax.samplers.exponential import adams
from diffax.samplers.forms import check_order
from diffax.typing import Schedule

SOLVERS = {"midpoint": "bh2", "heun": "exact"}


def dpmpp_2m(schedule: Schedule, *, solver: str = "midpoint", lower_order_final: bool = False) -> Sampler:
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2), order 2.

        x_s = sigma_s / sigma_t x_t - alpha_s expm1(-h) (x0 + h / (2 h_prev) (x0 - x0_prev))        midpoint

    h = lambda_s - lambda_t. "heun" takes the weight of the slope exactly (dpm-solver's `taylor`). The first step is
    that of `ddim`.

    Args:
      schedule: noise schedule.
      solver: "midpoint" or "heun".
      lower_order_final: whether the last move is of order 1.

    Raises:
      ValueError: for another solver.

    >>> import diffax
    >>> dpmpp_2m(diffax.Cosine()).order
    2
    """
    rule = choose("solver", solver, SOLVERS)
    return adams(schedule, form="x0", order=2, rule=rule, lower_order_final=lower_order_final)


def dpmpp_3m(schedule: Schedule, *, start: str = "corrected", lower_order_final: bool = False) -> Sampler:
    """DPM-Solver++ multistep of order 3 (Lu et al. 2022b, appendix B.5), the quadratic through x0 integrated exactly.

        x_s = sigma_s / sigma_t x_t + alpha_s (M_0 x0 + M_1 f[t, 1] + (M_2 - d_1 M_1) f[t, 1, 2])

    Released codes lack a factor 2 in the last term and converge at order 2. A cold start would do the same; by default
    the first two steps are corrected once the next x0 is known, which keeps order 3 and costs no call.

    Args:
      schedule: noise schedule.
      start: "corrected" or "cold".
      lower_order_final: whether the last moves are of order 2 and 1.

    Raises:
      ValueError: for another start.
    """
    mended = choose("start", start, {"corrected": "start", "cold": False})
    return adams(schedule, form="x0", order=3, corrected=mended, lower_order_final=lower_order_final)


def dpmpp_2m_sde(schedule: Schedule, *, eta: Any = 1.0, noise_scale: Any = 1.0, solver: str = "midpoint") -> Sampler:
    """DPM-Solver++(2M) SDE (Lu et al. 2022b, algorithm 4; k-diffusion), eta = 0 being `dpmpp_2m`.

        x_s = e^(-eta h) sigma_s / sigma_t x_t - alpha_s expm1(-(1 + eta) h) (x0 + h / (2 h_prev) (x0 - x0_prev))
              + sigma_s sqrt(1 - e^(-2 eta h)) z

    Order 2, in law where eta > 0.

    Args:
      schedule: noise schedule.
      eta: >= 0, may be traced; () or (B,).
      noise_scale: factor of the noise (k-diffusion's s_noise).
      solver: "midpoint" or "heun".

    Raises:
      ValueError: for another solver or a negative eta.
    """
    rule = choose("solver", solver, SOLVERS)
    return adams(schedule, form="x0", order=2, rule=rule, eta=eta, noise_scale=noise_scale)


def dpmpp_3m_sde(schedule: Schedule, *, eta: Any = 1.0, noise_scale: Any = 1.0) -> Sampler:
    """DPM-Solver++(3M) SDE (k-diffusion, with the phi_3 term in full); eta = 0 is `dpmpp_3m`. As `dpmpp_2m_sde`."""
    return adams(schedule, form="x0", order=3, corrected="start", eta=eta, noise_scale=noise_scale)


def deis(schedule: Schedule, *, order: int = 3, lower_order_final: bool = False) -> Sampler:
    """DEIS, log-rho Adams-Bashforth (Zhang & Chen 2023, eq. 15): eps as a polynomial in log(sigma / alpha), order p.

        x_s = alpha_s / alpha_t x_t + alpha_s int eps(rho) drho,   rho = sigma / alpha

    Their rho AB is `lms`. order=1 is `ddim`.

    Args:
      schedule: noise schedule.
      order: 1, 2 or 3.
      lower_order_final: whether the last moves are of order .. 2, 1.

    Raises:
      ValueError: for another order.
    """
    return adams(schedule, form="eps", order=check_order(order, 3), lower_order_final=lower_order_final)


def lms(schedule: Schedule, *, order: int = 4) -> Sampler:
    """Linear multistep in rho = sigma / alpha, order p: k-diffusion's LMS, the rho AB of Zhang & Chen 2023.

        x_s = alpha_s / alpha_t x_t + alpha_s sum_j eps_j int l_j(rho) drho,   l_j Lagrange's polynomials

    order=1 is `ddim`.

    Raises:
      ValueError: if order is not 1, 2, 3 or 4.
    """
    return adams(schedule, form="rho", order=check_order(order, 4))


def exponential_adams(
    schedule: Schedule,
    *,
    form: str = "x0",
    order: int = 2,
    corrected: bool = False,
    lower_order_final: bool = False,
) -> Sampler:
    """Exponential Adams-Bashforth of order p with exact weights, or Adams-Bashforth-Moulton of order p + 1.

    form "eps" and "x0" interpolate in lambda, "rho" eps in sigma / alpha, "flow" the velocity eps - x0 in
    sigma / (alpha + sigma), "time" dx / dt in t: see `diffax.samplers.forms`. Hochbruck & Ostermann 2010, section 2.5;
    azula's zEAB, xEAB, zAB and vAB.

    Args:
      schedule: noise schedule.
      form: "x0", "eps", "rho", "flow" or "time".
      order: p, 1 to 4.
      corrected: whether each step is corrected when the next call is made.
      lower_order_final: whether the last moves are of order .. 2, 1.

    Raises:
      ValueError: for another form or order.
    """
    return adams(schedule, form=form, order=order, corrected=corrected, lower_order_final=lower_order_final)


def unipc(
    schedule: Schedule,
    *,
    order: int = 3,
    variant: str = "bh2",
    form: str = "eps",
    corrected: bool = True,
    lower_order_final: bool = False,
) -> Sampler:
    """UniPC (Zhao et al. 2023, algorithms 1 and 2), order p + 1, or UniP of order p without the corrector.

    The predictor is the exponential Adams-Bashforth step of order p, the corrector the Adams-Moulton step through
    one point more, applied when the next call makes that point known. The variants differ only where one slope stands
    alone (p = 2 in the predictor, p = 1 in the corrector); order=1 without the corrector is `ddim`.

    Args:
      schedule: noise schedule.
      order: p, 1, 2 or 3.
      variant: "bh1" or "bh2". The released "vary_coeff" converges at order 1 and is left out.
      form: "eps" (noise prediction) or "x0" (data prediction).
      corrected: whether the corrector is used.
      lower_order_final: whether the last moves are of order .. 2, 1.

    Raises:
      ValueError: for another order, variant or form.
    """
    choose("variant", variant, ("bh1", "bh2"))
    choose("form", form, ("eps", "x0"))
    order = check_order(order, 3)
    return adams(
        schedule, form=form, order=order, rule=variant, corrected=corrected, lower_order_final=lower_order_final
    )


def sa_solver(schedule: Schedule, *, order: int = 3, tau: Any = 1.0, corrected: bool = True) -> Sampler:
    """SA-Solver (Xue et al. 2023, algorithm 1): stochastic Adams predictor and corrector in x0.

        x_s = e^(-tau^2 h) sigma_s / sigma_t x_t + alpha_s sum_j b_j x0_j + sigma_s sqrt(1 - e^(-2 tau^2 h)) z

    tau = 0 is a predictor-corrector for the ODE, of order p + 1; tau = 1 solves the reverse SDE.

    Args:
      schedule: noise schedule.
      order: p, 1, 2 or 3.
      tau: >= 0, a number, () or (B,), or a function of t (the paper's tau is 1 in an interval, 0 outside).
      corrected: whether the corrector is used.

    Raises:
      ValueError: for another order or a negative tau.
    """
    if callable(tau):
        return adams(
            schedule, form="x0", order=check_order(order, 3), corrected=corrected, eta=lambda t: jnp.square(tau(t))
        )
    check("tau", tau, ">= 0", lambda v: v >= 0)
    eta = tau**2 if isinstance(tau, (int, float)) else jnp.square(tau)
    return adams(schedule, form="x0", order=check_order(order, 3), corrected=corrected, eta=eta)
