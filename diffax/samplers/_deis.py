"""DEIS: Adams-Bashforth in log rho."""

from diffax.samplers._base import Sampler
from diffax.samplers.engines.adams import adams
from diffax.samplers.engines.forms import check_order
from diffax.typing import Schedule


def deis(schedule: Schedule, *, order: int = 3, lower_order_final: bool = False) -> Sampler:
    """DEIS, log-rho Adams-Bashforth (Zhang & Chen 2023, eq. 15): eps as a polynomial in log(sigma / alpha), order p.

        x_s = alpha_s / alpha_t x_t + alpha_s int_(rho_t)^(rho_s) eps(rho) drho,   rho = sigma / alpha
        eps(rho) = the polynomial in log rho through the last p eps

    One call a step. `lms` is the rho AB of the same paper. order=1 is `ddim`.

    Args:
      schedule: noise schedule.
      order: p, 1, 2 or 3.
      lower_order_final: whether the last moves have order .. 2, 1.

    Raises:
      ValueError: for another order.
    """
    return adams(schedule, form="eps", order=check_order(order, 3), lower_order_final=lower_order_final)
