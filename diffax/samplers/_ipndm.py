"""Improved PNDM."""

from diffax.samplers._base import Sampler
from diffax.samplers.engines.forms import check_order
from diffax.samplers.engines.pseudo import pseudo_multistep
from diffax.typing import Schedule


def ipndm(schedule: Schedule, *, order: int = 4) -> Sampler:
    """Improved PNDM: the weights of order 1, 2 .. p from the first step on (Zhang & Chen 2023, section 4), order 2.

    One call a step; order=1 is `ddim`.

    Args:
      schedule: noise schedule.
      order: of the weights, 1 to 4.

    Raises:
      ValueError: for another order.
    """
    return pseudo_multistep(schedule, check_order(order, 4), None)
