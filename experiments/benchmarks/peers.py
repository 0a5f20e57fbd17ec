r"""The samplers of k-diffusion and diffusers on the linear schedule, as rows of the same tables.

Both call the exact denoiser, in float64 where they keep it. In u = x / alpha and rho = sigma / alpha, the variables of
k-diffusion, a denoiser is (u, rho) -> x0; a peer's run is

    run(denoise, u, budget, grid, noise) -> (u at its end, denoiser calls)

grid: the name of a step grid of the library (diffusers) or (rhos, ending) (k-diffusion). noise: x -> a draw. diffusers
gets the betas that make its table the linear schedule at t = (i + 1) / 1000, so that both solve one problem; its
denoiser is called at the scheduler's exact level, not at the rounded timestep. The denoiser counts its calls.
"""

import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np

import diffax
from experiments.benchmarks.accuracy import rounded
from experiments.benchmarks.peer_rows import DIFFUSERS_GRIDS, Peer
from experiments.benchmarks.problems import step_grid
from experiments.benchmarks.rows import ENDINGS


@functools.cache
def libraries() -> dict[str, str]:
    """Versions of the installed libraries."""
    versions = {}
    for library, load in (("k-diffusion", k_sampling), ("diffusers", quiet_diffusers)):
        try:
            load()
            versions[library] = importlib.metadata.version(library)
        except Exception:  # absent or broken: the library has no rows
            continue
    return versions


def quiet_diffusers() -> Any:
    """The package, without its warnings about settings that it corrects."""
    module = importlib.import_module("diffusers")
    module.utils.logging.set_verbosity_error()
    return module


@functools.cache
def k_sampling() -> Any:
    """`k_diffusion.sampling`, also where the packages for k-diffusion's training are not installed."""
    try:
        return importlib.import_module("k_diffusion.sampling")
    except ImportError:
        spec = importlib.util.find_spec("k_diffusion")
        if spec is None:
            raise
        package = types.ModuleType("k_diffusion")
        package.__path__ = list(spec.submodule_search_locations or ())
        absent = [name for name in ("torchvision", "torchvision.transforms") if name not in sys.modules]
        sys.modules.update({"k_diffusion": package}, **{name: mock.MagicMock() for name in absent})
        try:
            return importlib.import_module("k_diffusion.sampling")
        finally:
            for name in absent:
                del sys.modules[name]


def torch_law(law: Any) -> Callable[[Any, Any], Any]:
    """(u, rho) -> E[x0 | u] in torch, float64, for a mixture or a Gaussian of independent coordinates."""
    import torch

    def tensor(v):
        return torch.as_tensor(np.array(v, np.float64))

    if hasattr(law, "variances"):
        mean, variances = tensor(law.mean), tensor(law.variances)
        return lambda u, rho: mean + variances / (variances + rho**2) * (u - mean)
    weights, means, variance = tensor(law.weights), tensor(law.means), float(law.std) ** 2

    def denoise(u, rho):
        c = variance + rho**2
        square = (u**2).sum(-1, keepdim=True) - 2 * u @ means.T + (means**2).sum(-1)
        centre = torch.softmax(weights.log() - 0.5 * square / c, -1) @ means
        return centre + variance / c * (u - centre)

    return denoise


class Counted:
    """A denoiser that counts its calls."""

    def __init__(self, denoise):
        self.denoise, self.calls = denoise, 0

    def __call__(self, u, rho):
        """x0."""
        self.calls += 1
        return self.denoise(u, rho)


# k-diffusion


def run_k_diffusion(peer: Peer, denoise: Any, u: Any, rhos: np.ndarray, ending: str, noise: Any) -> tuple[Any, int]:
    """(u at the end, calls). rhos: decreasing, without the 0 at the end of `sample`."""
    import torch

    def model(x, sigma):
        return counted(x, sigma[:1].reshape(1, 1) if x.ndim == 2 else sigma[0])

    counted, sample = Counted(denoise), getattr(k_sampling(), f"sample_{peer.name}")
    settings = dict(peer.settings)
    with torch.no_grad(), mock.patch("torch.randn_like", noise):
        if (peer.stochastic and "dpmpp" in peer.name) or peer.name == "dpmpp_3m_sde":
            settings["noise_sampler"] = lambda sigma, sigma_next: noise(u)
        if peer.name == "dpm_fast":  # the grid is uniform in log-SNR; the argument is the number of calls
            end = sample(model, u, float(rhos[-1]), float(rhos[0]), len(rhos) - 1, disable=True)
        else:
            sigmas = torch.as_tensor(np.append(rhos, 0.0) if ending == "sample" else np.array(rhos))
            end = sample(model, u, sigmas, disable=True, **settings)
    return end, counted.calls


# diffusers


@functools.cache
def linear_betas() -> np.ndarray:
    """The table whose alpha bar is that of `Linear` at t = (i + 1) / 1000."""
    schedule = diffax.Linear()
    t = np.arange(1001) / 1000
    integral = schedule.beta_min * t + (schedule.beta_max - schedule.beta_min) * t**2 / 2
    return -np.expm1(-np.diff(integral))


def scheduler(peer: Peer, grid: str, **more: Any) -> Any:
    """A new scheduler on the table of `linear_betas`."""
    import diffusers

    make = getattr(diffusers, f"{peer.name}Scheduler")
    if peer.name == "IPNDM":
        return make()
    chosen: dict[str, Any] = {
        "trained_betas": linear_betas().tolist(),
        **DIFFUSERS_GRIDS[grid],
        **peer.settings,
        **more,
    }
    if "timestep_spacing" not in inspect.signature(make.__init__).parameters:  # always linspace
        chosen.pop("timestep_spacing", None)
    return make(**chosen)


def unit_noise(u: Any) -> Callable[..., Any]:
    """As `distributions.unit_noise`: draw k is 1 in example 2 + k, and 0 elsewhere."""
    import torch

    drawn: list[int] = []

    def noise(*args: Any, **settings: Any) -> Any:
        z = torch.zeros_like(u)
        z[2 + len(drawn)] = 1.0
        drawn.append(1)
        return z

    return noise


def steps_of(peer: Peer, budget: int) -> int:
    """num_inference_steps for a budget of calls."""
    return (budget - 1) // 2 + 1 if peer.cost == 2 else budget - (peer.name == "PNDM")


def run_diffusers(peer: Peer, denoise: Any, u: Any, budget: int, grid: str, noise: Any) -> tuple[Any, int]:
    """(u at the end, calls) from u at the schedule's end."""
    import torch

    solver, counted = scheduler(peer, grid), Counted(denoise)
    solver.set_timesteps(steps_of(peer, budget))
    table = np.cumprod(1 - linear_betas())
    exploding = hasattr(solver, "sigmas") and solver.scale_model_input(torch.ones(1), solver.timesteps[0]).item() != 1
    x = u if exploding else u * float(np.sqrt(table[-1]))
    solver = scheduler(peer, grid)  # some schedulers count scale_model_input as a step
    solver.set_timesteps(steps_of(peer, budget))
    if peer.name == "DPMSolverSDE":
        solver.noise_sampler = lambda sigma, sigma_next: noise(u)
    module = sys.modules[type(solver).__module__]
    patched = mock.patch.object(module, "randn_tensor", noise) if hasattr(module, "randn_tensor") else mock.MagicMock()
    with torch.no_grad(), patched:
        for t in solver.timesteps:
            solver.scale_model_input(x, t)  # only to avoid its warning; u_t below undoes the scaling
            rho = _level(solver, t, table)
            u_t = x if exploding else x * np.sqrt(1 + rho**2)
            x = solver.step((u_t - counted(u_t, rho)) / rho, t, x, return_dict=False)[0]
    return x, counted.calls


def _level(solver: Any, t: Any, table: np.ndarray) -> float:
    """sigma / alpha of the scheduler's next denoiser call."""
    if not hasattr(solver, "sigmas") or not hasattr(solver, "step_index"):
        return float(np.sqrt(1 / table[int(t)] - 1))
    if solver.step_index is None:
        solver._init_step_index(t)
    if hasattr(solver, "sigmas_interpol") and not solver.state_in_first_order:
        return float(solver.sigmas_interpol[solver.step_index - ("Ancestral" in type(solver).__name__)])
    if hasattr(solver, "mid_point_sigma") and not solver.state_in_first_order:
        return float(solver.mid_point_sigma)
    return float(solver.sigmas[solver.step_index])


# Measurement


def run(peer: Peer, denoise: Any, u: Any, budget: int, setting: tuple[str, float, str], noise: Any) -> tuple[Any, int]:
    """(u at the end, calls) of a peer from u at the linear schedule's end."""
    grid, end, ending = setting
    if peer.library == "diffusers":
        return run_diffusers(peer, denoise, u, budget, grid, noise)
    times = step_grid("linear", grid, (budget - ENDINGS[ending]) // peer.cost + 1, end)
    rhos = np.exp(-np.asarray(diffax.Linear().log_snr(times)) / 2)
    return run_k_diffusion(peer, denoise, u, rhos, ending, noise)


def measure(
    peer: Peer, law: Any, u: np.ndarray, budgets: tuple[int, ...], error: Any, chosen: Any, noise: Any
) -> dict[str, Any]:
    """As `accuracy.tabulate`: error(u) of every setting and budget; noise: u -> a function that draws."""
    import torch

    calls: dict[str, list[int | None]] = {}
    table: dict[str, list[float | None]] = {}
    denoise = torch_law(law)
    start = torch.as_tensor(np.array(u, np.float64))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for setting in chosen:
            grid, end, ending = setting
            name = f"{grid} {end:g} {ending}"
            for column, budget in enumerate(budgets):
                if budget - ENDINGS[ending] < peer.cost:
                    continue
                result, spent = run(peer, denoise, start, budget, setting, noise(start))
                table.setdefault(name, [None] * len(budgets))[column] = rounded(error(result.numpy()))
                calls.setdefault(ending, [None] * len(budgets))[column] = spent
    return {"calls": calls, "errors": table}


def draws(u: Any) -> Callable[..., Any]:
    """Normal noise from a new generator with seed 0."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return lambda *args, **settings: torch.randn(u.shape, generator=generator, dtype=u.dtype)
