"""Samplers: pairs of pure functions (init, step). One family a file.

    here                order   calls  k-diffusion             diffusers                       source
    ddpm                1 law   1                              DDPM                            Ho et al. 2020
    ddim                1       1      euler, euler_ancestral  DDIM, EulerAncestralDiscrete    Song, Meng & Ermon 2021
    euler               1       1      euler                   EulerDiscrete, FlowMatchEuler   Karras et al. 2022
    heun                2       2      heun                    HeunDiscrete, FlowMatchHeun     Karras et al. 2022
    dpm2                2       2      dpm_2                   KDPM2Discrete                   Karras et al. 2022
    dpm2_ancestral      2 law   2      dpm_2_ancestral         KDPM2AncestralDiscrete
    dpm_solver          1-3     1-3    dpm_fast                DPMSolverSinglestep             Lu et al. 2022
    dpmpp_2s            2       2      dpmpp_2s_ancestral      DPMSolverSinglestep             Lu et al. 2022b
    dpmpp_2s_ancestral  2 law   2      dpmpp_2s_ancestral
    dpmpp_sde           1 law   2      dpmpp_sde               DPMSolverSDE
    dpmpp_2m            2       1      dpmpp_2m                DPMSolverMultistep              Lu et al. 2022b
    dpmpp_3m            3       1                              DPMSolverMultistep (order 2)    Lu et al. 2022b
    dpmpp_2m_sde        2 law   1      dpmpp_2m_sde            DPMSolverMultistep (sde-)       Lu et al. 2022b
    dpmpp_3m_sde        2 law   1      dpmpp_3m_sde
    deis                p       1                              DEISMultistep                   Zhang & Chen 2023
    lms                 p       1      lms                     LMSDiscrete                     Zhang & Chen 2023
    exponential_adams   p, p+1  1                                                              azula's zAB .. xEAB
    unipc               p+1     1                              UniPCMultistep                  Zhao et al. 2023
    sa_solver           2 law   1                              SASolver                        Xue et al. 2023
    pndm                2       1                              PNDM                            Liu et al. 2022
    ipndm               2       1                              IPNDM                           Zhang & Chen 2023
    gaussian_adams      p+1     1      exact for data N(mean, std^2 I)                         trig of Lu & Song 2025

with a consistency function in place of the denoiser, exact at any number of steps if it is (order 0), 1 call:
consistency   Song et al. 2023      lcm   Luo et al. 2023      tcd   Zheng et al. 2024

euler_maruyama      1 law   1                                                              Song et al. 2021
stochastic_heun     2 law   2      both in t and x, eta between ODE and SDE                Kloeden & Platen 1992

wrappers, sampler -> sampler, of single-step samplers:
churn                 noise before each step: EDM's stochastic sampler (s_churn)
ancestral             a step too far, and noise back: the ancestral form
of any of the above:
noise_floor           (schedule -> sampler) for the centres of data with a noise floor: ends at t = 0
restart               jumps back to noise where the grid of `times.restart` turns
corrected             Langevin steps behind each step: `corrected(sampler, langevin(schedule, snr=0.16))`
cfg_plus_plus         classifier-free guidance of x0 alone, renoised with the unconditional eps
guidance_momentum     any guidance of two branches, with a memory of their difference

annealed_langevin     Langevin's corrector alone, a sampler of order 0, 1 call
"""

from diffax.samplers._base import Sampler, State
from diffax.samplers._consistency import consistency, lcm, tcd
from diffax.samplers._ddim import ddim
from diffax.samplers._ddpm import ddpm
from diffax.samplers._deis import deis
from diffax.samplers._dpm2 import dpm2, dpm2_ancestral
from diffax.samplers._dpm_solver import dpm_solver
from diffax.samplers._dpmpp import (
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s,
    dpmpp_2s_ancestral,
    dpmpp_3m,
    dpmpp_3m_sde,
    dpmpp_sde,
)
from diffax.samplers._euler import euler
from diffax.samplers._exponential_adams import exponential_adams
from diffax.samplers._gaussian_adams import gaussian_adams
from diffax.samplers._heun import heun
from diffax.samplers._ipndm import ipndm
from diffax.samplers._langevin import Corrector, annealed_langevin, langevin
from diffax.samplers._lms import lms
from diffax.samplers._pndm import pndm
from diffax.samplers._sa_solver import sa_solver
from diffax.samplers._sde import euler_maruyama, stochastic_heun
from diffax.samplers._unipc import unipc
from diffax.samplers.wrappers._ancestral import ancestral
from diffax.samplers.wrappers._cfg_plus_plus import cfg_plus_plus
from diffax.samplers.wrappers._churn import churn
from diffax.samplers.wrappers._corrected import corrected
from diffax.samplers.wrappers._guidance_momentum import guidance_momentum
from diffax.samplers.wrappers._noise_floor import noise_floor
from diffax.samplers.wrappers._restart import restart

__all__ = [
    "Corrector",
    "Sampler",
    "State",
    "ancestral",
    "annealed_langevin",
    "cfg_plus_plus",
    "churn",
    "consistency",
    "corrected",
    "ddim",
    "ddpm",
    "deis",
    "dpm2",
    "dpm2_ancestral",
    "dpm_solver",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s",
    "dpmpp_2s_ancestral",
    "dpmpp_3m",
    "dpmpp_3m_sde",
    "dpmpp_sde",
    "euler",
    "euler_maruyama",
    "exponential_adams",
    "gaussian_adams",
    "guidance_momentum",
    "heun",
    "ipndm",
    "langevin",
    "lcm",
    "lms",
    "noise_floor",
    "pndm",
    "restart",
    "sa_solver",
    "stochastic_heun",
    "tcd",
    "unipc",
]
