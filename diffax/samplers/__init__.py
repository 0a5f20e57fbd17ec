"""Samplers: pairs of pure functions (init, step). Each algorithm or family has a file of its name: `_heun.py`.

    here                order   calls  k-diffusion         diffusers              source
    ddpm                1 weak  1                          DDPM                   Ho et al. 2020
    ddim                1       1      euler_ancestral     DDIM, EulerAncestral   Song, Meng & Ermon 2021
    euler               1       1      euler               Euler, FlowMatchEuler  Karras et al. 2022
    heun                2       2      heun                Heun, FlowMatchHeun    Karras et al. 2022
    dpm2                2       2      dpm_2               KDPM2                  Karras et al. 2022
    dpm2_ancestral      2 weak  2      dpm_2_ancestral     KDPM2Ancestral         Crowson 2022
    dpm_solver          3       3      dpm_fast            DPMSolverSinglestep    Lu et al. 2022
    dpmpp_2s            2       2                          DPMSolverSinglestep    Lu et al. 2022b
    dpmpp_2s_ancestral  2 weak  2      dpmpp_2s_ancestral                         Crowson 2022
    dpmpp_sde           1 weak  2      dpmpp_sde           DPMSolverSDE           Crowson 2022
    dpmpp_2m            2       1      dpmpp_2m            DPMSolverMultistep     Lu et al. 2022b
    dpmpp_3m            3       1                          DPMSolverMultistep     Lu et al. 2022b
    dpmpp_2m_sde        2 weak  1      dpmpp_2m_sde        DPMSolverMultistep     Lu et al. 2022b
    dpmpp_3m_sde        2 weak  1      dpmpp_3m_sde                               Crowson 2022
    deis                3       1                          DEISMultistep          Zhang & Chen 2023
    lms                 4       1      lms                 LMS                    Zhang & Chen 2023
    exponential_adams   2       1                                                 Hochbruck & Ostermann 2010
    unipc               4       1                          UniPCMultistep         Zhao et al. 2023
    sa_solver           2 weak  1                          SASolver               Xue et al. 2023
    pndm                2       1                          PNDM                   Liu et al. 2022
    ipndm               2       1                          IPNDM                  Zhang & Chen 2023
    gaussian_adams      4       1                                                 trig of Lu & Song 2025
    euler_maruyama      1 weak  1                                                 Song et al. 2021
    stochastic_heun     2 weak  2                                                 Kloeden & Platen 1992
    consistency         0       1                          CMStochasticIterative  Song et al. 2023
    lcm                 0       1                          LCM                    Luo et al. 2023
    tcd                 0       1                          TCD                    Zheng et al. 2024
    annealed_langevin   0       1                                                 Song & Ermon 2019

Order is the order of convergence, in distribution ("weak") for the SDE. It is 0 for Langevin dynamics and for samplers
of consistency functions, which are exact at any number of steps if the function is exact. Names of k-diffusion are
`sample_*`, those of diffusers `*Scheduler` or `*DiscreteScheduler`; euler_ancestral is ddim with eta=1.

Wrappers, sampler -> sampler, of single-step samplers:

churn                 adds noise before each step: EDM's stochastic sampler (s_churn)
ancestral             steps below the next level and adds noise: the ancestral form

of any sampler:

noise_floor           (schedule -> sampler) solves for the centres of data with a noise floor, down to t = 0
restart               jumps back to noise where the grid of `times.restart` turns
corrected             Langevin steps after each step: `corrected(sampler, langevin(schedule, snr=0.16))`
cfg_plus_plus         classifier-free guidance of x0 only, renoised with the unconditional eps
guidance_momentum     guidance of two branches, with momentum in their difference
"""

from diffax.samplers._base import Sampler, State
from diffax.samplers._catalogue import CATALOGUE, NAMED, by_name, names, suggestion
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
    "CATALOGUE",
    "NAMED",
    "Corrector",
    "Sampler",
    "State",
    "ancestral",
    "annealed_langevin",
    "by_name",
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
    "names",
    "noise_floor",
    "pndm",
    "restart",
    "sa_solver",
    "stochastic_heun",
    "suggestion",
    "tcd",
    "unipc",
]
