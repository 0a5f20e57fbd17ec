"""LMS: the linear multistep method in sigma / alpha."""

from diffax.samplers._base import Sampler
from diffax.samplers.engines.adams import adams
from diffax.samplers.engines.forms import check_order
from diffax.typing import Schedule


def lms(schedule: Schedule, *, order: int = 4) -> Sampler:
    """Linear multistep method in rho = sigma / alpha, order p: k-diffusion's LMS, the rho AB of Zhang & Chen 2023.

        x_s = alpha_s / alpha_t x_t + alpha_s sum_j eps_j int l_j(rho) drho,   l_j Lagrange's polynomials

    One call a step. order=1 is `ddim`.

    Args:
      schedule: noise schedule.
      order: p, 1 to 4.

    Raises:
      ValueError: if order is not 1, 2, 3 or 4.
    """
    return adams(schedule, form="rho", order=check_order(order, 4))
