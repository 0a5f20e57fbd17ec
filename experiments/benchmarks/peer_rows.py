"""The samplers of k-diffusion and diffusers that are rows of the tables, and our row for each."""

from typing import Any, NamedTuple

from experiments.benchmarks.problems import ENDS
from experiments.benchmarks.rows import ENDINGS

K_DIFFUSION_GRIDS = ("uniform", "quadratic", "log_snr", "karras")
DIFFUSERS_GRIDS: dict[str, dict[str, Any]] = {
    "trailing": {"timestep_spacing": "trailing"},
    "linspace": {"timestep_spacing": "linspace"},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
}


class Peer(NamedTuple):
    """A sampler of another library.

    ours: our row to compare with. cost: calls per step. grids: the grids of diffusers that it supports.
    """

    library: str
    name: str
    ours: str
    stochastic: bool
    cost: int
    settings: dict[str, Any]
    grids: tuple[str, ...] = ()


def _k(name: str, ours: str, *, stochastic: bool = False, cost: int = 1, **settings: Any) -> Peer:
    return Peer("k-diffusion", name, ours, stochastic, cost, settings)


def _d(name: str, ours: str, *, stochastic: bool = False, cost: int = 1, plain: bool = False, **settings: Any) -> Peer:
    grids = tuple(DIFFUSERS_GRIDS)[: 2 if plain else None]
    return Peer("diffusers", name, ours, stochastic, cost, settings, grids)


PEERS = {
    "k-diffusion euler": _k("euler", "ddim"),
    "k-diffusion heun": _k("heun", "heun", cost=2),
    "k-diffusion dpm_2": _k("dpm_2", "dpm2", cost=2),
    "k-diffusion lms": _k("lms", "lms-4"),
    "k-diffusion dpm_fast": _k("dpm_fast", "dpm_solver-3"),
    "k-diffusion dpmpp_2s": _k("dpmpp_2s_ancestral", "dpmpp_2s", cost=2, eta=0.0),
    "k-diffusion dpmpp_2m": _k("dpmpp_2m", "dpmpp_2m"),
    "k-diffusion dpmpp_3m": _k("dpmpp_3m_sde", "dpmpp_3m", eta=0.0),
    "k-diffusion euler_ancestral": _k("euler_ancestral", "ddim-eta1", stochastic=True),
    "k-diffusion dpm_2_ancestral": _k("dpm_2_ancestral", "dpm2_ancestral", stochastic=True, cost=2),
    "k-diffusion dpmpp_2s_ancestral": _k("dpmpp_2s_ancestral", "dpmpp_2s_ancestral", stochastic=True, cost=2),
    "k-diffusion dpmpp_sde": _k("dpmpp_sde", "dpmpp_sde", stochastic=True, cost=2),
    "k-diffusion dpmpp_2m_sde": _k("dpmpp_2m_sde", "dpmpp_2m_sde", stochastic=True),
    "k-diffusion dpmpp_3m_sde": _k("dpmpp_3m_sde", "dpmpp_3m_sde", stochastic=True),
    "diffusers DDIM": _d("DDIM", "ddim", plain=True, clip_sample=False),
    "diffusers Euler": _d("EulerDiscrete", "ddim"),
    "diffusers Heun": _d("HeunDiscrete", "heun", cost=2),
    "diffusers KDPM2": _d("KDPM2Discrete", "dpm2", cost=2),
    "diffusers LMS": _d("LMSDiscrete", "lms-4"),
    "diffusers DPM++2M": _d("DPMSolverMultistep", "dpmpp_2m"),
    "diffusers DPM++3M": _d("DPMSolverMultistep", "dpmpp_3m", solver_order=3),
    "diffusers DPM++2S": _d("DPMSolverSinglestep", "dpmpp_2s"),
    "diffusers DEIS-2": _d("DEISMultistep", "deis-2"),
    "diffusers DEIS-3": _d("DEISMultistep", "deis-3", solver_order=3),
    "diffusers UniPC-2": _d("UniPCMultistep", "unipc-2-x0-final"),
    "diffusers UniPC-3": _d(
        "UniPCMultistep", "unipc-3-final", solver_order=3, predict_x0=False, final_sigmas_type="sigma_min"
    ),
    "diffusers PNDM": _d("PNDM", "pndm", plain=True, skip_prk_steps=True),
    "diffusers IPNDM": _d("IPNDM", "ipndm"),
    "diffusers DDPM": _d("DDPM", "ddpm", stochastic=True, plain=True, clip_sample=False),
    "diffusers DDPM-large": _d(
        "DDPM", "ddpm-large", stochastic=True, plain=True, clip_sample=False, variance_type="fixed_large"
    ),
    "diffusers EulerAncestral": _d("EulerAncestralDiscrete", "ddim-eta1", stochastic=True, plain=True),
    "diffusers KDPM2Ancestral": _d("KDPM2AncestralDiscrete", "dpm2_ancestral", stochastic=True, cost=2),
    "diffusers DPM++2M-SDE": _d(
        "DPMSolverMultistep", "dpmpp_2m_sde", stochastic=True, algorithm_type="sde-dpmsolver++"
    ),
    "diffusers DPMSolverSDE": _d("DPMSolverSDE", "dpmpp_sde", stochastic=True, cost=2),
    "diffusers SASolver": _d("SASolver", "sa_solver", stochastic=True),
}
LEVELS_OF_ITS_OWN = ("IPNDM",)  # has a sine table of levels, not the schedule's: timed, but not accurate here
ABSENT = {("DPMSolverSinglestep", "trailing")}


def settings(peer: Peer) -> list[tuple[str, float, str]]:
    """(grid, end, ending) of each run of a peer; diffusers has its own ends, and its runs end at sigma = 0."""
    if peer.library == "diffusers":
        return [(grid, 0.0, "sample") for grid in peer.grids if (peer.name, grid) not in ABSENT]
    if peer.name == "dpm_fast":
        return [("log_snr", end, "integrate") for end in ENDS]
    return [(grid, end, ending) for grid in K_DIFFUSION_GRIDS for end in ENDS for ending in ENDINGS]
