"""PNDM."""

from typing import Any

from diffax._checks import choose
from diffax._pytrees import combine
from diffax.samplers._base import Sampler
from diffax.samplers.engines.pseudo import Start, eps_after, pseudo_multistep
from diffax.typing import Denoiser, Schedule, Times, Tree


def pndm(schedule: Schedule, *, start: str = "plms") -> Sampler:
    """PNDM (Liu et al. 2022), order 2, one call a step and extra calls in the first steps.

        x_s = alpha_s / alpha_t x_t + (sigma_s - sigma_t alpha_s / alpha_t) e'
        e'  = (55 e_t - 59 e_1 + 37 e_2 - 9 e_3) / 24

    Args:
      schedule: noise schedule.
      start: "plms": the first step uses the mean of the eps at its two ends, with one extra call (the setting of
        Stable Diffusion). "prk": the first three steps are pseudo Runge-Kutta steps of order 4, with three extra calls
        each (F-PNDM, algorithm 2); their midpoints are midpoints in t.

    Raises:
      ValueError: for another start.

    >>> import diffax
    >>> pndm(diffax.Cosine()).order
    2
    """
    return pseudo_multistep(
        schedule, 4, choose("start", start, {"plms": Start(1, _improved_euler, 1), "prk": Start(3, _runge_kutta, 3)})
    )


def _improved_euler(schedule: Schedule, denoise: Denoiser, x: Tree, e: Tree, t: Times, s: Times) -> Any:
    """The mean of the eps at t and of the eps after a step to s."""
    return combine((0.5, e), (0.5, eps_after(schedule, denoise, x, e, t, s)))


def _runge_kutta(schedule: Schedule, denoise: Denoiser, x: Tree, e: Tree, t: Times, s: Times) -> Any:
    """The classical Runge-Kutta weights of order 4 for eps at t, twice at the midpoint, and at s."""
    middle = (t + s) / 2
    e_2 = eps_after(schedule, denoise, x, e, t, middle)
    e_3 = eps_after(schedule, denoise, x, e_2, t, middle)
    e_4 = eps_after(schedule, denoise, x, e_3, t, s)
    return combine((1 / 6, e), (1 / 3, e_2), (1 / 3, e_3), (1 / 6, e_4))
