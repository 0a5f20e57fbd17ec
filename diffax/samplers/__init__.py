"""Samplers: pairs of pure functions (init, step). One family a file.

ddpm   ancestral sampling                              order 1 in law   1 call
ddim   between the probability-flow ODE and ancestral  order 1          1 call
"""

from diffax.samplers.base import Sampler, State
from diffax.samplers.ddim import ddim
from diffax.samplers.ddpm import ddpm

__all__ = ["Sampler", "State", "ddim", "ddpm"]
