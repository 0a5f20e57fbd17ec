"""Results of the scheduler tests of Hugging Face diffusers, in float32, from reference/diffusers.json.

The file describes their loops, dummy model and injected noise. Some cases repeat peculiarities of diffusers on purpose:

    k loops              the scaled sample x / sqrt(1 + sigma^2) overwrites x before each stage: `rescaled`
    DDIMInverse          the network gets the timestep of the level that the step goes to: `ahead`
    IPNDM                the loop runs twice and keeps its history: `with_history`
    DPMSolverSinglestep  two steps of the grid are one step of order 2 whose middle is the grid point between: `on_grid`

Cases of diffusers that are not here:

    DDPM, EulerAncestral, KDPM2Ancestral, SASolver /no_noise    use torch's noise; the first three are here /injected
    UniPCMultistep/o2_bh1_x0True                                NaN in diffusers: B(h) = h, and h = inf in the last step
    LCM, TCD, CMStochasticIterative                             in test_consistency.py
"""

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_reference import ScheduleFromFunctions, inject_noise, variance_exploding

import diffax
from diffax import samplers, times
from diffax.samplers.engines import adams as engine
from diffax.samplers.engines import stages
from diffax.typing import Level

pytestmark = pytest.mark.newest
FACTS = json.loads((Path(__file__).parents[1] / "samplers" / "reference" / "diffusers.json").read_text())
CASES = {case["id"]: case for case in FACTS["cases"]}
KEY = jax.random.key(0)


class Case(NamedTuple):
    """A case: a sequence of (sampler, times), and a denoiser call at the last time if `denoised`."""

    denoise: Any
    segments: list
    denoised: bool = False
    keeps_history: bool = False
    start: Any = 1.0


class Unclipped(NamedTuple):
    """A table with log-SNR beyond 20: sigma = 1e-12 at t = 0, and alpha = 1e-12 at t = 1 if its terminal SNR is 0."""

    table: Any

    def log_snr(self, t):
        at_noise = -55.0 if self.table.zero_terminal_snr else self.table.log_snr(1.0)
        return jnp.where(t == 0, 55.0, jnp.where(t == 1, at_noise, self.table.log_snr(t)))

    def inverse(self, log_snr):
        return self.table.inverse(log_snr)

    def __call__(self, t):
        log_snr = self.log_snr(jnp.asarray(t))
        return Level(jnp.sqrt(jax.nn.sigmoid(log_snr)), jnp.sqrt(jax.nn.sigmoid(-log_snr)), log_snr)


def model(x, timestep):
    return x * (timestep / (timestep + 1))


def betas(config):
    start, end, n = config["beta_start"], config["beta_end"], config["num_train_timesteps"]
    if config["beta_schedule"] == "squaredcos_cap_v2":
        return diffax.schedules.cosine_betas(n)
    if config["beta_schedule"] == "linear":
        return diffax.schedules.linear_betas(n, beta_start=start, beta_end=end)
    scaled = np.linspace(start**0.5, end**0.5, n) ** 2
    return diffax.schedules.zero_terminal_snr(scaled) if config.get("rescale_betas_zero_snr") else scaled


# Discrete time, scaling vp: (sampler, grid, kind of end).

GRIDS = {
    "leading": lambda n: times.leading(diffax.Cosine(), n),
    "leading, t = 0": lambda n: jnp.append(times.leading(diffax.Cosine(), n), 0.0),
    "trailing": lambda n: times.trailing(diffax.Cosine(), n),
    "linspace": lambda n: times.linspace(diffax.Cosine(), n + 1)[:-1],
    "to level 0": lambda n: times.linspace(diffax.Cosine(), n + 1),
}


def with_settings(make, **settings):
    return lambda schedule: make(schedule, **settings)


UNIPC, LOWER = {"form": "x0", "variant": "bh2", "order": 2}, {"lower_order_final": True}
DISCRETE = {
    "DDIMScheduler/no_noise": (samplers.ddim, "leading", "denoised"),
    "DDIMScheduler/set_alpha_to_one": (samplers.ddim, "leading", "denoised"),
    "DDIMScheduler/spacing_leading_noclip": (samplers.ddim, "leading", "denoised"),
    "DDIMScheduler/beta_squaredcos_cap_v2_noclip_trailing": (samplers.ddim, "trailing", "denoised"),
    "DDIMScheduler/zero_snr_v_trailing": (samplers.ddim, "trailing", "denoised"),
    "DDPMScheduler/no_noise_injected": (samplers.ddpm, "leading", "denoised"),
    "DDIMInverseScheduler/no_noise": (samplers.ddim, "leading", "reversed"),
    "DDIMInverseScheduler/set_alpha_to_one": (samplers.ddim, "leading", "reversed"),
    "DPMSolverMultistepScheduler/no_noise": (samplers.dpmpp_2m, "to level 0", "last"),
    "DPMSolverMultistepScheduler/o1_midpoint_zero_lof": (samplers.ddim, "linspace", "denoised"),
    "DPMSolverMultistepScheduler/o2_midpoint_zero_lof": (samplers.dpmpp_2m, "linspace", "denoised"),
    "DPMSolverMultistepInverseScheduler/no_noise": (samplers.dpmpp_2m, "to level 0", "reversed"),
    "DPMSolverSinglestepScheduler/no_noise": (None, "to level 0", "pairs"),
    "DPMSolverSinglestepScheduler/o2_sigma_min": (None, "to level 0", "pairs, then order 1"),
    "UniPCMultistepScheduler/no_noise": (with_settings(samplers.unipc, **UNIPC, **LOWER), "to level 0", "last"),
    "UniPCMultistepScheduler/o1_bh2_x0True": (
        with_settings(samplers.unipc, **UNIPC | {"order": 1}),
        "linspace",
        "denoised",
    ),
    "UniPCMultistepScheduler/o2_bh2_x0True": (with_settings(samplers.unipc, **UNIPC), "linspace", "denoised"),
    "DEISMultistepScheduler/no_noise": (with_settings(samplers.deis, order=2, **LOWER), "to level 0", "last"),
    "DEISMultistepScheduler/o1": (with_settings(samplers.deis, order=1), "to level 0", "last"),
    "DEISMultistepScheduler/o2": (with_settings(samplers.deis, order=2, **LOWER), "to level 0", "last"),
    "PNDMScheduler/no_noise": (with_settings(samplers.pndm, start="prk"), "leading", "last"),
    "PNDMScheduler/set_alpha_to_one": (with_settings(samplers.pndm, start="prk"), "leading, t = 0", "last"),
    "PNDMScheduler/plms_only": (samplers.pndm, "leading", "last"),
}


def on_grid(grid):
    """DPM-Solver++ of order 2 whose intermediate point is the grid entry between the ends."""

    def place(schedule, t, level_t, s, level_s, fraction):
        return grid[jnp.argmin(jnp.abs(grid - (t + s) / 2))]

    return lambda schedule: stages.two_stage(schedule, "x0", 0.5, place=place)


def discrete(case, clipped=False):
    config, (make, entries, end) = case["config"], DISCRETE[case["id"]]
    schedule, grid = diffax.from_betas(betas(config)), GRIDS[entries](case["num_inference_steps"])
    if case["loop"] == "plain":  # our grid has all timesteps of diffusers, and at most one more at the end
        steps = set(np.round(1000 * grid - 1).astype(int).tolist())
        assert steps >= set(case["timesteps"])
        assert len(steps) <= len(set(case["timesteps"])) + 1
    if not clipped and (grid[-1] == 0 or schedule.zero_terminal_snr):
        schedule = Unclipped(schedule)
    grid = grid[::-1] if end == "reversed" else grid
    ahead = 100 if case["id"].startswith("DDIMInverse") else 0

    def timestep_of_network(t):
        return jnp.round(t * config["num_train_timesteps"] - 1) + ahead

    kind = "v" if config.get("prediction_type") == "v_prediction" else "eps"
    denoise = diffax.denoiser(lambda x, t: model(x, timestep_of_network(t)), schedule, kind)
    denoise = diffax.denoisers.clip_static(denoise) if config.get("clip_sample") else denoise
    if end == "pairs":
        segments = [(on_grid(grid)(schedule), grid[::2])]
    elif end == "pairs, then order 1":
        segments = [(on_grid(grid)(schedule), grid[:-2:2]), (samplers.ddim(schedule), grid[-3:])]
    else:
        segments = [(make(schedule), grid)]
    # diffusers goes from alpha = 1 to level 0 with timestep 0, where the dummy model is 0.
    start = schedule(grid[0]).alpha if ahead else 1.0
    return Case(denoise, segments, denoised=end == "denoised", start=start)


# k loops: alpha = 1, the noise levels of a table and a last level of 0.

K = {
    "EulerDiscreteScheduler/no_noise": samplers.euler,
    "EulerDiscreteScheduler/spacing_leading": samplers.euler,
    "EulerAncestralDiscreteScheduler/no_noise_injected": functools.partial(samplers.ddim, eta=1.0),
    "LMSDiscreteScheduler/no_noise": samplers.lms,
    "HeunDiscreteScheduler/no_noise": samplers.heun,
    "KDPM2DiscreteScheduler/no_noise": samplers.dpm2,
    "KDPM2AncestralDiscreteScheduler/no_noise_injected": samplers.dpm2_ancestral,
}


def rescaled(sampler, schedule):
    """The sampler with x / sqrt(1 + sigma^2) in place of x before the step and as network input of the second stage."""

    def scale(t):
        return 1 / jnp.sqrt(1 + schedule(t).sigma ** 2)

    def step(key, denoise, state, t, s):
        def denoise_scaled(x, u):
            scaled = jnp.where(u == t, 1.0, scale(u)) * x
            return denoise(scaled, u) + (x - scaled)  # keeps the eps of the scaled x

        return sampler.step(key, denoise_scaled, state._replace(x=scale(t) * state.x), t, s)

    return sampler._replace(step=step)


def k_loop(case):
    config, make, n = case["config"], K[case["id"]], case["num_inference_steps"]
    table = diffax.from_betas(betas(config), scaling="ve")
    count = config["num_train_timesteps"]
    levels = table((np.arange(count) + 1) / count).sigma
    steps = np.arange(n)[::-1] * (count // n) if "timestep_spacing" in config else np.linspace(count - 1, 0, n)
    sigmas = np.append(np.interp(steps, np.arange(count), levels), 0.0)  # diffusers interpolates sigma linearly
    # Two-stage samplers list each sigma twice.
    np.testing.assert_allclose(sigmas, np.unique(case["sigmas"])[::-1], rtol=1e-4)

    schedule, grid = variance_exploding(sigmas[0]), jnp.asarray(sigmas / sigmas[0], float)

    def predict(x, t):
        return model(x, jnp.interp(-schedule.log_snr(t), 2 * jnp.log(levels), jnp.arange(count, dtype=float)))

    sampler = rescaled(make(schedule), schedule)
    denoise = diffax.denoiser(predict, schedule, "eps")
    if sampler.calls == 1:
        return Case(denoise, [(sampler, grid)])
    last = rescaled(samplers.euler(schedule), schedule)  # the last step of diffusers has one stage
    return Case(denoise, [(sampler, grid[:-1]), (last, grid[-2:])])


# Continuous time.


def edm(case):
    n, schedule = case["num_inference_steps"], variance_exploding(80.0)
    sigmas = (80 ** (1 / 7) + np.linspace(0, 1, n) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(sigmas, case["sigmas"][:-1], rtol=1e-6)

    def predict(x, t):
        level = schedule(t)
        x = x / jnp.sqrt(level.sigma**2 + 0.25) if case["loop"] == "edm" else x
        return model(x, -level.log_snr / 8)

    make, denoised = {"edm": (samplers.euler, True), "plain": (samplers.dpmpp_2m, False)}[case["loop"]]
    denoise = diffax.denoiser(predict, schedule, "edm")
    return Case(denoise, [(make(schedule), sigmas / 80)], denoised)


def flow(case):
    schedule, grid = diffax.Flow(), jnp.linspace(1.0, 1e-3, case["num_inference_steps"])
    denoise = diffax.denoiser(lambda x, t: model(x, 1000 * t), schedule, "velocity")
    make = samplers.heun if "Heun" in case["id"] else samplers.euler
    return Case(denoise, [(make(schedule, space="time"), grid)], denoised=True)


def with_history(sampler, state):
    """The sampler with the history of `state`, on a grid that starts again."""
    return sampler._replace(init=lambda x, grid: state._replace(x=x, last=grid[0], arrived=grid[0]))


def ipndm(case):
    n = case["num_inference_steps"]
    schedule = ScheduleFromFunctions(
        lambda t: jnp.maximum(jnp.cos(jnp.pi / 2 * t), 1e-8), lambda t: jnp.maximum(jnp.sin(jnp.pi / 2 * t), 1e-12)
    )
    sigma = np.sin(np.pi / 2 * np.linspace(1, 0, n + 1)) ** 2
    grid = 2 / np.pi * np.arctan2(sigma, np.sqrt(1 - sigma**2))
    sampler = samplers.ipndm(schedule)
    twice = [(sampler, grid), (sampler, grid)]

    def predict(x, t):
        # At t = 1 alpha is 0 in diffusers, but 1e-8 where diffusers divides by alpha.
        return jnp.where(t == 1, 0.0, model(x, t))

    return Case(diffax.denoiser(predict, schedule, "v"), twice, keeps_history=True)


SETTINGS = {
    **dict.fromkeys(DISCRETE, discrete),
    **dict.fromkeys(K, k_loop),
    "EDMEulerScheduler/no_noise": edm,
    "EDMDPMSolverMultistepScheduler/no_noise": edm,
    "FlowMatchEulerDiscreteScheduler/shift1": flow,
    "FlowMatchHeunDiscreteScheduler/shift1": flow,
    "IPNDMScheduler/no_noise": ipndm,
}
TOLERANCES = {
    # At the start eps is divided by alpha = 5e-5, so that float32 in diffusers differs from float64 by 4e-5.
    "DDIMScheduler/beta_squaredcos_cap_v2_noclip_trailing": 1e-4,
    # At the start eps is divided by alpha = 2e-3. NumPy in float64 gives 230.036923; diffusers differs by 1.4e-5 and
    # diffax by 7e-6.
    "PNDMScheduler/set_alpha_to_one": 1e-4,
    # The dummy model is steep near log sigma = -4. NumPy in float64 gives 0.107609372; diffusers differs by 3e-5 and
    # diffax by 2e-6.
    "EDMDPMSolverMultistepScheduler/no_noise": 1e-4,
    # diffusers computes 1 - alpha_bar in float32, with an error of 6e-4 where it is 1e-4. The same recursion in NumPy
    # and float64 gives 3.009695; diffusers differs by 1.2e-3 and diffax by 2e-5.
    "DDPMScheduler/no_noise_injected": 2e-3,
}


def compute(case, monkeypatch, **settings):
    x = (np.arange(768).reshape(3, 8, 8, 4) / 768).transpose(3, 0, 1, 2).astype(np.float32).astype(np.float64)
    if case["loop"] in ("k", "edm"):
        x = x * case["init_noise_sigma"]
    inject_noise(monkeypatch, x.shape)
    run = SETTINGS[case["id"]](case, **settings)

    @jax.jit
    def final(x):
        state = None
        for sampler, grid in run.segments:
            if run.keeps_history and state is not None:
                sampler = with_history(sampler, state)
            state = diffax.integrate(KEY, sampler, run.denoise, x, grid)
            x = state.x
        return run.denoise(state.x, run.segments[-1][1][-1]) if run.denoised else state.x

    return np.asarray(final(jnp.asarray(run.start * x, float)))


def check_close(result, case, rtol):
    atol = rtol * case["observed_mean"]
    np.testing.assert_allclose(np.abs(result).sum(dtype=np.float64), case["observed_sum"], rtol=rtol)
    np.testing.assert_allclose(result.ravel()[:4], case["observed_first4"], rtol=rtol, atol=atol)
    np.testing.assert_allclose(result.ravel()[-4:], case["observed_last4"], rtol=rtol, atol=atol)


@pytest.mark.slow_cases(
    but=[
        "DDIMScheduler/set_alpha_to_one",
        "LMSDiscreteScheduler/no_noise",
        "IPNDMScheduler/no_noise",
        "EDMEulerScheduler/no_noise",
        "EDMDPMSolverMultistepScheduler/no_noise",
        "FlowMatchEulerDiscreteScheduler/shift1",
        "FlowMatchHeunDiscreteScheduler/shift1",
        "DPMSolverMultistepScheduler/o1_midpoint_zero_lof",
        "DDIMScheduler/zero_snr_v_trailing",
        "EulerAncestralDiscreteScheduler/no_noise_injected",
    ]
)
@pytest.mark.parametrize("name", CASES)
def test_results_are_those_of_diffusers(name, monkeypatch):
    # IPNDM divides by alpha = 1e-8 at its start, so it needs float64.
    with jax.enable_x64(name == "IPNDMScheduler/no_noise"):
        result = compute(CASES[name], monkeypatch)
    assert result.dtype == (np.float64 if name == "IPNDMScheduler/no_noise" else np.float32)
    check_close(result, CASES[name], TOLERANCES.get(name, 1e-5))


@pytest.mark.slow_cases("PNDMScheduler/set_alpha_to_one")
@pytest.mark.parametrize("name", ["DDIMScheduler/zero_snr_v_trailing", "PNDMScheduler/set_alpha_to_one"])
def test_clipped_levels_change_little(name, monkeypatch):
    """A log-SNR clipped at 20, that is alpha or sigma = 5e-5 in place of 0, changes the results by at most 1.1e-4."""
    check_close(compute(CASES[name], monkeypatch, clipped=True), CASES[name], 1.1e-4)


@pytest.mark.slow_cases(
    but=[
        "EDMEulerScheduler/no_noise",
        "EDMDPMSolverMultistepScheduler/no_noise",
        "FlowMatchEulerDiscreteScheduler/shift1",
    ]
)
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", [name for name in CASES if "float64_sum" in CASES[name]])
def test_results_in_float64(name, monkeypatch):
    """Against float64 results of the reference file, where it has them. Its k loop used timesteps in float32."""
    total = np.abs(compute(CASES[name], monkeypatch)).sum()
    np.testing.assert_allclose(total, CASES[name]["float64_sum"], rtol=2e-8 if CASES[name]["loop"] == "k" else 1e-10)


def test_the_number_of_cases_is_35():
    """45 cases, without four with torch's noise, five of consistency models and one that is NaN."""
    assert set(CASES) == set(SETTINGS)
    assert len(CASES) == 35


def test_a_wrong_weight_is_detected(monkeypatch):
    """Negative controls: a slope that is 1 % too large, and a missing corrector."""
    case = CASES["DPMSolverMultistepScheduler/o2_midpoint_zero_lof"]
    original = engine.RULES["bh2"]
    with monkeypatch.context() as patch:
        patch.setitem(engine.RULES, "bh2", lambda h, moments: 1.01 * original(h, moments))
        with pytest.raises(AssertionError):
            check_close(compute(case, patch), case, 1e-5)
    case = CASES["UniPCMultistepScheduler/o1_bh2_x0True"]
    with monkeypatch.context() as patch:
        patch.setitem(DISCRETE, case["id"], (samplers.ddim, "linspace", "denoised"))
        with pytest.raises(AssertionError):
            check_close(compute(case, patch), case, 1e-5)


@pytest.mark.parametrize(("steps", "variance"), FACTS["variances"])
def test_ancestral_variances_are_those_of_diffusers(steps, variance, monkeypatch):
    """The noise variance of DDIM with eta = 1 and of DDPM with variance "small"; diffusers asserts it to 1e-5."""
    monkeypatch.setattr(diffax.random, "noise", lambda key, like: jnp.ones_like(like))
    schedule, zero = diffax.from_betas(diffax.schedules.linear_betas(1000)), jnp.zeros((1, 1))
    grid = times.from_timesteps(1000, steps)
    for sampler in (samplers.ddim(schedule, eta=1.0), samplers.ddpm(schedule)):
        state = sampler.step(KEY, lambda x, t: 0 * x, sampler.init(zero, grid), *grid)
        np.testing.assert_allclose(state.x[0, 0] ** 2, variance, atol=1e-5)


def test_leading_offset_is_that_of_diffusers():
    np.testing.assert_allclose(
        1000 * times.leading(diffax.Cosine(), 5, offset=1) - 1, FACTS["leading_5_offset_1"], rtol=1e-6
    )
