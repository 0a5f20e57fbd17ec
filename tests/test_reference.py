"""Numbers from other libraries' own samplers; reference/*.json name their sources."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffax
from diffax import analytic

pytestmark = pytest.mark.newest
FOLDER = Path(__file__).parent / "reference"
SAMPLERS = json.loads((FOLDER / "samplers.json").read_text())
DIFFUSERS = json.loads((FOLDER / "diffusers.json").read_text())


def injected(monkeypatch, shape):
    """Noise of step k: sqrt(2) sin(0.1 i + 1.7 k), i the flat index over `shape`."""
    i = np.arange(np.prod(shape)).reshape(shape)
    monkeypatch.setattr(diffax.random, "fold_in", lambda key, data: data)
    monkeypatch.setattr(
        diffax.random,
        "noise",
        lambda k, like: (jnp.sqrt(2.0) * jnp.sin(0.1 * i + 1.7 * k)).astype(like.dtype),
    )


def karras(n, low=0.02, high=10.0, rho=7):
    ramp = np.linspace(0, 1, n)
    return (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho


def setting(case):
    """(schedule, sampler, start, times, whether a denoising step ends it) of a case."""
    args, u = case["args"], np.array(SAMPLERS["U"])
    if case["library"] == "k-diffusion":
        schedule = diffax.LogLinear(0.02, 10.0)
        times = schedule.inverse(-2 * np.log(karras(args["n"])))
        return schedule, diffax.ddim(schedule, eta=args.get("eta", 0.0)), 10 * u, times, True
    if case["library"] == "azula":
        schedule = diffax.LogLinear(1e-3, 1e2)
        sampler = diffax.ddpm(schedule) if case["sampler"] == "DDPMSampler" else diffax.ddim(schedule, eta=args["eta"])
        return schedule, sampler, 100 * u, np.linspace(1, 0, args["steps"] + 1), False
    schedule = diffax.Linear(0.1, 20.0)
    grids = {
        "logSNR": diffax.times.uniform_log_snr(schedule, args["steps"] + 1),
        "time_uniform": diffax.times.uniform(args["steps"] + 1),
    }
    return schedule, diffax.ddim(schedule), u, grids[args["skip_type"]], False


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", SAMPLERS["cases"], ids=lambda c: f"{c['sampler']}-{c['args']}"[:90])
def test_k_diffusion_dpm_solver_and_azula(case, monkeypatch):
    """euler and euler_ancestral, DPM-Solver-1 in both forms, DDPM and DDIM: all are `ddim` or `ddpm`."""
    law = SAMPLERS["models"][case["model"]]
    oracle = analytic.Mixture(np.array(law["weights"]), np.array(law["means"]), law["std"])
    schedule, sampler, x, times, denoised = setting(case)
    injected(monkeypatch, x.shape)
    denoise = oracle.denoiser(schedule)
    if denoised:
        found = diffax.sample(jax.random.key(0), sampler, denoise, x, times)
    else:
        found = diffax.integrate(jax.random.key(0), sampler, denoise, x, times).x
    np.testing.assert_allclose(found, case["result"], rtol=1e-9)


def table(config):
    """The schedule of a diffusers config."""
    start, end, n = config["beta_start"], config["beta_end"], config["num_train_timesteps"]
    if config["beta_schedule"] == "squaredcos_cap_v2":
        return diffax.from_betas(diffax.cosine_betas(n))
    if config["beta_schedule"] == "linear":
        return diffax.from_betas(diffax.linear_betas(n, beta_start=start, beta_end=end))
    betas = np.linspace(start**0.5, end**0.5, n) ** 2
    if config.get("rescale_betas_zero_snr"):  # Lin et al. 2024, algorithm 1
        root = np.sqrt(np.cumprod(1 - betas))
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        betas = 1 - np.append(root[0] ** 2, (root[1:] / root[:-1]) ** 2)
    return diffax.from_betas(betas)


TOLERANCES = {
    # eps is divided by alpha = 5e-5 at the start: diffusers' float32 is 4e-5 from float64.
    "DDIMScheduler/beta_squaredcos_cap_v2_noclip_trailing": 1e-4,
    # alpha is exp(-10) at the start, not 0.
    "DDIMScheduler/zero_snr_v_trailing": 1e-4,
    # diffusers takes 1 - alpha_bar in float32, 6e-4 off where it is 1e-4: the same recursion written in NumPy gives
    # 3.009695 in float64, 1.2e-3 from diffusers and 2e-5 from ours.
    "DDPMScheduler/no_noise_injected": 2e-3,
}


@pytest.mark.parametrize("case", DIFFUSERS["cases"], ids=lambda c: c["id"])
def test_diffusers(case, monkeypatch):
    config, n = case["config"], case["num_inference_steps"]
    x = (np.arange(768).reshape(3, 8, 8, 4) / 768).transpose(3, 0, 1, 2).astype(np.float32)
    schedule = table(config)
    grid = diffax.times.trailing if config.get("timestep_spacing") == "trailing" else diffax.times.leading
    kind = "v" if config.get("prediction_type") == "v_prediction" else "eps"

    def model(x, t):
        step = jnp.round(t * 1000 - 1)
        return x * (step / (step + 1))

    denoise = diffax.denoiser(model, schedule, kind)
    if config["clip_sample"]:
        denoise = diffax.clip_static(denoise)
    injected(monkeypatch, x.shape)
    sampler = diffax.ddpm(schedule) if case["id"].startswith("DDPM") else diffax.ddim(schedule)
    found = np.asarray(diffax.sample(jax.random.key(0), sampler, denoise, x, grid(1000, n)))
    rtol = TOLERANCES.get(case["id"], 1e-5)
    np.testing.assert_allclose(np.abs(found).sum(dtype=np.float64), case["observed_sum"], rtol=rtol)
    np.testing.assert_allclose(found.ravel()[:4], case["observed_first4"], rtol=rtol, atol=1e-6)
    np.testing.assert_allclose(found.ravel()[-4:], case["observed_last4"], rtol=rtol)
