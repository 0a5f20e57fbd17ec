"""Exponential Adams methods in any form."""

from diffax.samplers._base import Sampler
from diffax.samplers.engines.adams import adams
from diffax.typing import Schedule


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
    sigma / (alpha + sigma), "time" dx / dt in t: see `diffax.samplers.engines.forms`. Hochbruck & Ostermann 2010,
    section 2.5; azula's zEAB, xEAB, zAB and vAB.

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
