"""Improved PNDM."""

from diffax.samplers._base import Sampler
from diffax.samplers.engines.forms import check_order
from diffax.samplers.engines.pseudo import pseudo_multistep
from diffax.typing import Schedule


def ipndm(schedule: Schedule, *, order: int = 4) -> Sampler:
    """Improved PNDM (Zhang & Chen 2023, section 4), order 2, one call a step.

        x_s = alpha_s / alpha_t x_t + (sigma_s - sigma_t alpha_s / alpha_t) e'
        e'  = (55 e_t - 59 e_1 + 37 e_2 - 9 e_3) / 24           p = 4

    The first steps use the weights of order 1, 2 .. p - 1 instead of PNDM's extra calls. order=1 is `ddim`.

    Args:
      schedule: noise schedule.
      order: p, the order of the weights, 1 to 4.

    Raises:
      ValueError: for another order.
    """
    return pseudo_multistep(schedule, check_order(order, 4), None)
