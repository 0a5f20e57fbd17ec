"""The samplers and step grids that a config names, and the grid entries that a number of denoiser calls pays for.

`sample` over n entries makes n - 1 moves and one call at the end. Where the network is guided it evaluates both
branches in one call, which costs twice as much.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import diffax
from diffax._pytrees import check_count


def _fixed(make: Callable, **settings: Any) -> Callable:
    """(schedule, eta) -> sampler, for a sampler without eta."""
    return lambda schedule, eta: make(schedule, **settings)


def _noisy(make: Callable, name: str = "eta") -> Callable:
    """(schedule, eta) -> sampler; eta = None is the sampler's own default."""
    return lambda schedule, eta: make(schedule) if eta is None else make(schedule, **{name: eta})


# UniPC as its authors recommend it under guidance: data prediction, order 2, lower orders in the last steps (their
# README; Zhao et al. 2023, section 4). The library's default, noise prediction at order 3, is for unguided sampling.
_unipc = functools.partial(diffax.unipc, form="x0", order=2, lower_order_final=True)


def _dpm2_ancestral(schedule: Any, eta: float | None) -> diffax.Sampler:
    """eta = None is 0.5 here: k-diffusion's 1 multiplies a change of x0 by 8 where 10 calls take 4 steps from 80."""
    return diffax.dpm2_ancestral(schedule, eta=0.5 if eta is None else eta)


def _restart(schedule: Any) -> diffax.Sampler:
    """A multistep sampler at one call a step: with Heun's method few calls leave too few steps outside the interval."""
    return diffax.restart(diffax.dpmpp_2m(schedule), schedule)


def _noise_floor(schedule: Any) -> diffax.Sampler:
    return diffax.noise_floor(_unipc, schedule, diffax.times.SIGMA_MIN)


WITH_ETA = {
    "ddim": _noisy(diffax.ddim),
    "euler_maruyama": _noisy(diffax.euler_maruyama),
    "stochastic_heun": _noisy(diffax.stochastic_heun),
    "dpm2_ancestral": _dpm2_ancestral,
    "dpmpp_2s_ancestral": _noisy(diffax.dpmpp_2s_ancestral),
    "dpmpp_sde": _noisy(diffax.dpmpp_sde),
    "dpmpp_2m_sde": _noisy(diffax.dpmpp_2m_sde),
    "dpmpp_3m_sde": _noisy(diffax.dpmpp_3m_sde),
    "sa_solver": _noisy(diffax.sa_solver, "tau"),
    "tcd": _noisy(diffax.tcd, "gamma"),
}
NOISY = {  # without an eta, but with noise
    "ddpm": _fixed(diffax.ddpm),
    "ddpm_large": _fixed(diffax.ddpm, variance="large"),
    "ddpm_learned": _fixed(diffax.ddpm, variance="learned"),
    # The noise for CIFAR-10, VP, of Karras et al. 2022, table 5.
    "heun_churn": _fixed(diffax.heun, s_churn=30.0, s_tmin=0.01, s_tmax=1.0, s_noise=1.007),
    "predictor_corrector": _fixed(
        lambda schedule: diffax.corrected(diffax.ddpm(schedule), diffax.langevin(schedule, snr=0.16))
    ),
    "annealed_langevin": _fixed(diffax.annealed_langevin, snr=0.16),
    "restart": _fixed(_restart),
    "consistency": _fixed(diffax.consistency),
    "lcm": _fixed(diffax.lcm),
}
DETERMINISTIC = {
    "euler": _fixed(diffax.euler),
    "heun": _fixed(diffax.heun),
    "dpm2": _fixed(diffax.dpm2),
    "dpmpp_2s": _fixed(diffax.dpmpp_2s),
    "dpmpp_2m": _fixed(diffax.dpmpp_2m),
    "dpmpp_3m": _fixed(diffax.dpmpp_3m),
    "dpm_solver": _fixed(diffax.dpm_solver),
    "deis": _fixed(diffax.deis),
    "lms": _fixed(diffax.lms),
    "pndm": _fixed(diffax.pndm),
    "ipndm": _fixed(diffax.ipndm),
    "exponential_adams": _fixed(diffax.exponential_adams),
    "unipc": _fixed(_unipc),
    "gaussian_adams": _fixed(diffax.gaussian_adams, std=0.5),  # EDM's sigma_data, for data in [-1, 1]
    "noise_floor": _fixed(_noise_floor),  # unipc for data with a noise floor of the grids' last sigma / alpha
}
SAMPLERS = {**WITH_ETA, **NOISY, **DETERMINISTIC}

GRIDS: dict[str, Callable[[Any, int], Any]] = {
    "uniform_log_snr": diffax.times.uniform_log_snr,
    "polyexponential": functools.partial(diffax.times.polyexponential, rho=2.0),
    "karras": diffax.times.karras,
    "karras_80": functools.partial(diffax.times.karras, sigma_max=80.0, sigma_min=0.002),  # the paper's ends
    "arctan": diffax.times.arctan,
    "uniform": diffax.times.uniform,
    "quadratic": diffax.times.quadratic,
    "beta": diffax.times.beta,
    "leading": diffax.times.leading,
    "trailing": diffax.times.trailing,
    "linspace": diffax.times.linspace,
    "lcm": diffax.times.lcm,
}

# The sampler `restart` goes back once, from sigma / alpha = 0.06 to 0.3, and down again in two steps (Xu et al. 2023,
# their first interval for CIFAR-10).
RESTART = {"sigma_min": 0.06, "sigma_max": 0.3, "num_restarts": 1, "num_steps": 2}


def check_eta(name: str, of: str, eta: Any) -> None:
    """Raises `ValueError` unless eta is a noise level that this sampler has, or None for its own."""
    if eta is None:
        return
    if not 0 <= eta < math.inf:
        raise ValueError(f"{name} must be >= 0, got {eta}")
    if eta and of not in WITH_ETA:
        raise ValueError(f"{name} must be 0 for {of}, which has none, got {eta}")


def draws_noise(name: str, eta: float | None) -> bool:
    """Whether a sampler draws noise at this eta; ddim does not at its default, 0."""
    if name in WITH_ETA:
        return name != "ddim" if eta is None else eta > 0
    return name in NOISY


def spent(name: str, schedule: Any, entries: int) -> int:
    """Denoiser calls of `sample` over a grid of so many entries, the moves after a restart included."""
    sampler = SAMPLERS[name](schedule, None)
    if entries < 2:
        return entries
    moves = entries - 1 + (RESTART["num_restarts"] * RESTART["num_steps"] if sampler.renoises else 0)
    return int(sampler.calls * moves + sampler.start_calls + 1)


def entries(name: str, schedule: Any, calls: int) -> int:
    """The most entries of a grid that `calls` denoiser calls pay for; at least 1, the call at the end.

    >>> [entries(name, diffax.Linear(), 8) for name in ("ddim", "heun", "dpm_solver")]
    [8, 4, 3]
    """
    check_count("num_steps", calls)
    return max(n for n in range(1, calls + 1) if spent(name, schedule, n) <= calls)


def moves(name: str, schedule: Any, calls: int) -> int:
    """The most moves that `calls` denoiser calls pay for where `integrate` ends without another.

    Raises:
      ValueError: if they pay for none.

    >>> moves("ddim", diffax.Linear(), 8), moves("heun", diffax.Linear(), 9)
    (8, 4)
    """
    sampler = SAMPLERS[name](schedule, None)
    count = (calls - sampler.start_calls) // sampler.calls
    if count < 1:
        raise ValueError(f"num_steps must be >= {sampler.calls + sampler.start_calls} for {name}, got {calls}")
    return count


def step_grid(name: str, grid: str, schedule: Any, count: int) -> Any:
    """The times of a named grid of `count` entries, with the turns of the sampler `restart`."""
    times = GRIDS[grid](schedule, count)
    if name != "restart" or count < 2:
        return times
    low, high = (schedule.inverse(-2 * math.log(RESTART[key])) for key in ("sigma_min", "sigma_max"))
    counts = {key: int(RESTART[key]) for key in ("num_restarts", "num_steps")}
    return diffax.times.restart(schedule, times, low, high, **counts)


def report_rounding(name: str, schedule: Any, calls: int, made: int | None = None) -> None:
    """Prints a line if fewer calls are made than num_steps; made: None for what `entries` pays for."""
    made = spent(name, schedule, entries(name, schedule, calls)) if made is None else made
    if made < calls:
        print(f"num_steps = {calls} is rounded down to {made}, the denoiser calls of whole steps of {name}")
