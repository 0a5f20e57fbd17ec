"""PNDM."""

from typing import Any

from diffax._checks import choose
from diffax._pytrees import combine
from diffax.samplers._base import Sampler
from diffax.samplers.engines.pseudo import Start, eps_after, pseudo_multistep
from diffax.typing import Denoiser, Schedule, Times, Tree


def pndm(schedule: Schedule, *, start: str = "plms") -> Sampler:
    """PNDM (Liu et al. 2022), order 2, one call a step but for the start.

    Args:
      schedule: noise schedule.
      start: "plms": the first step is repeated with the mean of eps at both ends, one call more in all (the setting of
        Stable Diffusion). "prk": the first three steps are pseudo Runge-Kutta of order 4, three calls more each
        (F-PNDM, algorithm 2); its midpoints are in t.

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
    return combine((0.5, e), (0.5, eps_after(schedule, denoise, x, e, t, s)))


def _runge_kutta(schedule: Schedule, denoise: Denoiser, x: Tree, e: Tree, t: Times, s: Times) -> Any:
    middle = (t + s) / 2
    e_2 = eps_after(schedule, denoise, x, e, t, middle)
    e_3 = eps_after(schedule, denoise, x, e_2, t, middle)
    e_4 = eps_after(schedule, denoise, x, e_3, t, s)
    return combine((1 / 6, e), (1 / 3, e_2), (1 / 3, e_3), (1 / 6, e_4))
