"""The catalogue of samplers, the only place that records the properties of each: one row for each name.

The tables of the documentation, the names in configs, and the rows of the benchmark and of the exam are made from it.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from diffax.samplers._base import Sampler
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
from diffax.samplers._langevin import annealed_langevin, langevin
from diffax.samplers._lms import lms
from diffax.samplers._pndm import pndm
from diffax.samplers._sa_solver import sa_solver
from diffax.samplers._sde import euler_maruyama, stochastic_heun
from diffax.samplers._unipc import unipc
from diffax.samplers.wrappers._corrected import corrected
from diffax.samplers.wrappers._noise_floor import noise_floor
from diffax.samplers.wrappers._restart import restart
from diffax.times import SIGMA_MIN
from diffax.typing import PerExample, Schedule


class Row(NamedTuple):
    """The properties of a sampler with its default settings.

    make: (schedule, **settings) -> sampler.
    order: the order with an exact history, claimed by its source and measured by the exam, weak for an SDE; 0 without
      convergence. From a cold start a multistep sampler may converge at a lower order, see `adams`.
    calls: denoiser calls in a step.
    source: authors and year.
    start_calls: extra calls in the first steps.
    noise: the keyword of its noise level; None if it has none.
    noisy: whether it draws noise by default.
    exam: the float hyperparameters that the exam traces, sweeps and differentiates, with a value for each.
    settings: settings that the commands pass, where the default does not suit a guided network.
    k_diffusion: its names in k-diffusion (`sample_*`).
    diffusers: its names in diffusers (`*Scheduler`).
    """

    make: Callable[..., Sampler]
    order: int
    calls: int
    source: str
    start_calls: int = 0
    noise: str | None = None
    noisy: bool = False
    exam: Mapping[str, float] = {}
    settings: Mapping[str, Any] = {}
    k_diffusion: tuple[str, ...] = ()
    diffusers: tuple[str, ...] = ()

    def build(self, schedule: Schedule, noise: PerExample | None = None) -> Sampler:
        """The sampler with its `settings` and a noise level; None for the level of the settings or the default."""
        noise_setting = {} if noise is None or self.noise is None else {self.noise: noise}
        return self.make(schedule, **{**self.settings, **noise_setting})


ETA = {"eta": 0.8, "noise_scale": 1.0}

CATALOGUE = {
    "ddpm": Row(ddpm, 1, 1, "Ho et al. 2020", noisy=True, diffusers=("DDPM",)),
    "ddim": Row(
        ddim,
        1,
        1,
        "Song, Meng & Ermon 2021",
        noise="eta",
        exam={"eta": 0.0},
        k_diffusion=("euler_ancestral",),
        diffusers=("DDIM", "EulerAncestralDiscrete"),
    ),
    "euler": Row(
        euler,
        1,
        1,
        "Karras et al. 2022",
        k_diffusion=("euler",),
        diffusers=("EulerDiscrete", "FlowMatchEulerDiscrete"),
    ),
    "heun": Row(
        heun,
        2,
        2,
        "Karras et al. 2022",
        k_diffusion=("heun",),
        diffusers=("HeunDiscrete", "FlowMatchHeunDiscrete"),
    ),
    "dpm2": Row(dpm2, 2, 2, "Karras et al. 2022", k_diffusion=("dpm_2",), diffusers=("KDPM2Discrete",)),
    "dpm2_ancestral": Row(
        dpm2_ancestral,
        2,
        2,
        "Crowson 2022",
        noise="eta",
        noisy=True,
        exam=ETA,
        # With eta = 1, ten calls make 4 steps from sigma = 80, and each step multiplies a change of x0 by 8.
        settings={"eta": 0.5},
        k_diffusion=("dpm_2_ancestral",),
        diffusers=("KDPM2AncestralDiscrete",),
    ),
    "dpm_solver": Row(
        dpm_solver, 3, 3, "Lu et al. 2022", k_diffusion=("dpm_fast",), diffusers=("DPMSolverSinglestep",)
    ),
    "dpmpp_2s": Row(dpmpp_2s, 2, 2, "Lu et al. 2022b", diffusers=("DPMSolverSinglestep",)),
    "dpmpp_2s_ancestral": Row(
        dpmpp_2s_ancestral,
        2,
        2,
        "Crowson 2022",
        noise="eta",
        noisy=True,
        exam=ETA,
        k_diffusion=("dpmpp_2s_ancestral",),
    ),
    "dpmpp_sde": Row(
        dpmpp_sde,
        1,
        2,
        "Crowson 2022",
        noise="eta",
        noisy=True,
        exam={**ETA, "r": 0.5},
        k_diffusion=("dpmpp_sde",),
        diffusers=("DPMSolverSDE",),
    ),
    "dpmpp_2m": Row(dpmpp_2m, 2, 1, "Lu et al. 2022b", k_diffusion=("dpmpp_2m",), diffusers=("DPMSolverMultistep",)),
    "dpmpp_3m": Row(dpmpp_3m, 3, 1, "Lu et al. 2022b", diffusers=("DPMSolverMultistep",)),
    "dpmpp_2m_sde": Row(
        dpmpp_2m_sde,
        2,
        1,
        "Lu et al. 2022b",
        noise="eta",
        noisy=True,
        exam=ETA,
        k_diffusion=("dpmpp_2m_sde",),
        diffusers=("DPMSolverMultistep",),
    ),
    "dpmpp_3m_sde": Row(
        dpmpp_3m_sde,
        2,
        1,
        "Crowson 2022",
        noise="eta",
        noisy=True,
        exam=ETA,
        k_diffusion=("dpmpp_3m_sde",),
    ),
    "deis": Row(deis, 3, 1, "Zhang & Chen 2023", diffusers=("DEISMultistep",)),
    "lms": Row(lms, 4, 1, "Zhang & Chen 2023", k_diffusion=("lms",), diffusers=("LMSDiscrete",)),
    "exponential_adams": Row(exponential_adams, 2, 1, "Hochbruck & Ostermann 2010"),
    # The authors' README recommends these settings with guidance. The default, noise prediction of order 3, is for
    # sampling without guidance (Zhao et al. 2023, section 4).
    "unipc": Row(
        unipc,
        4,
        1,
        "Zhao et al. 2023",
        settings={"form": "x0", "order": 2, "lower_order_final": True},
        diffusers=("UniPCMultistep",),
    ),
    "sa_solver": Row(
        sa_solver, 2, 1, "Xue et al. 2023", noise="tau", noisy=True, exam={"tau": 0.8}, diffusers=("SASolver",)
    ),
    "pndm": Row(pndm, 2, 1, "Liu et al. 2022", start_calls=1, diffusers=("PNDM",)),
    "ipndm": Row(ipndm, 2, 1, "Zhang & Chen 2023", diffusers=("IPNDM",)),
    # 0.5 is EDM's sigma_data, for data in [-1, 1].
    "gaussian_adams": Row(gaussian_adams, 4, 1, "trig of Lu & Song 2025", exam={"std": 1.3}, settings={"std": 0.5}),
    "euler_maruyama": Row(euler_maruyama, 1, 1, "Song et al. 2021", noise="eta", noisy=True, exam={"eta": 0.7}),
    "stochastic_heun": Row(stochastic_heun, 2, 2, "Kloeden & Platen 1992", noise="eta", noisy=True, exam={"eta": 0.7}),
    "consistency": Row(consistency, 0, 1, "Song et al. 2023", noisy=True, diffusers=("CMStochasticIterative",)),
    "lcm": Row(lcm, 0, 1, "Luo et al. 2023", noisy=True, diffusers=("LCM",)),
    "tcd": Row(tcd, 0, 1, "Zheng et al. 2024", noise="gamma", noisy=True, diffusers=("TCD",)),
    "annealed_langevin": Row(annealed_langevin, 0, 1, "Song & Ermon 2019", noisy=True, settings={"snr": 0.16}),
}
"""All samplers: name -> how it is made, its order, calls, source and names in other libraries."""


def _predictor_corrector(schedule: Schedule) -> Any:
    return corrected(ddpm(schedule), langevin(schedule, snr=0.16))


def _guided_unipc(schedule: Schedule) -> Any:
    return unipc(schedule, **CATALOGUE["unipc"].settings)


NAMED: dict[str, Callable[[Any], Sampler]] = {
    "ddpm_large": lambda schedule: ddpm(schedule, variance="large"),
    "ddpm_learned": lambda schedule: ddpm(schedule, variance="learned"),
    # Karras et al. 2022, table 5: the noise settings for CIFAR-10, VP.
    "heun_churn": lambda schedule: heun(schedule, s_churn=30.0, s_tmin=0.01, s_tmax=1.0, s_noise=1.007),
    # Song et al. 2021, algorithm 1, with the signal-to-noise ratio of the paper.
    "predictor_corrector": _predictor_corrector,
    # dpmpp_2m makes one call in a step. With the two of Heun's method a small budget of calls leaves too few steps
    # outside the restart interval.
    "restart": lambda schedule: restart(dpmpp_2m(schedule), schedule),
    # The noise floor is the last sigma / alpha of the grids.
    "noise_floor": lambda schedule: noise_floor(_guided_unipc, schedule, SIGMA_MIN),
}
"""Names of settings and compositions that configs and commands accept in addition to the catalogue."""


def by_name(name: str, schedule: Schedule, noise: PerExample | None = None) -> Sampler:
    """The sampler of a name in `CATALOGUE` or `NAMED`, at a noise level; None for the level of its row.

    >>> import diffax
    >>> by_name("heun", diffax.Cosine()).calls, by_name("restart", diffax.Cosine()).renoises
    (2, True)
    """
    return CATALOGUE[name].build(schedule, noise) if name in CATALOGUE else NAMED[name](schedule)


def names() -> tuple[str, ...]:
    """All names of samplers: those of the catalogue, then those of `NAMED`."""
    return (*CATALOGUE, *NAMED)


def suggestion(name: str) -> str | None:
    """The name in diffax of a sampler of k-diffusion or diffusers; None if there is none.

    >>> suggestion("euler_ancestral"), suggestion("DPMSolverMultistepScheduler"), suggestion("magic")
    ('ddim', 'dpmpp_2m', None)
    """
    stem = name.removeprefix("sample_").removesuffix("Scheduler")
    return next((ours for ours, row in CATALOGUE.items() if stem in (*row.k_diffusion, *row.diffusers)), None)


def table() -> str:
    """The table of samplers in the docstring of `diffax.samplers`."""
    lines = [("here", "order", "calls", "k-diffusion", "diffusers", "source")]
    for name, row in CATALOGUE.items():
        order = f"{row.order} weak" if row.noisy and row.order else str(row.order)
        other_names = ", ".join(row.k_diffusion), ", ".join(v.removesuffix("Discrete") for v in row.diffusers)
        lines.append((name, order, str(row.calls), *other_names, row.source))
    widths = [max(len(line[i]) for line in lines) for i in range(5)]
    return "\n".join(
        ("    " + "  ".join(cell.ljust(width) for cell, width in zip(line, [*widths, 0], strict=True))).rstrip()
        for line in lines
    )
