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
    """Exponential Adams-Bashforth of order p with exact weights; with the corrector, Adams-Bashforth-Moulton, p + 1.

        x_s = carry x_t + gain_s int f dy,   f the polynomial in y through the last p integrands

    The forms "x0" and "eps" interpolate x0 and eps in lambda, "rho" interpolates eps in sigma / alpha, "flow" the
    velocity eps - x0 in sigma / (alpha + sigma), "time" dx / dt in t; `diffax.samplers.engines.forms` has their carry
    and gain. One call a step.

    Args:
      schedule: noise schedule.
      form: "x0", "eps", "rho", "flow" or "time".
      order: p, 1 to 4.
      corrected: whether each step is corrected when the next call is made.
      lower_order_final: whether the last moves have order .. 2, 1.

    Raises:
      ValueError: for another form or order.

    Source: Hochbruck & Ostermann 2010, section 2.5; azula's zEAB, xEAB, zAB and vAB.
    """
    return adams(schedule, form=form, order=order, corrected=corrected, lower_order_final=lower_order_final)
