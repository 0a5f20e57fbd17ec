"""Stochastic samplers on Gaussian data: the recursions of the papers, and the exact marginals as the limit.

A quantity that is affine in the start and in every draw is a vector of coefficients (constant, start, draw 1, ..).
The recursions below are the update equations of the papers on such vectors, in u = x / alpha and rho = sigma / alpha.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exam import SAMPLERS, SCHEDULES, EndDistribution, end_distribution

import diffax
from diffax import analytic, samplers

pytestmark = pytest.mark.usefixtures("x64")
MEAN, VARIANCE = 0.7, 0.25
DRAWS = {"dpmpp_sde": 2}
STOCHASTIC = [name for name, row in SAMPLERS.items() if not row[2]]


def oracle():
    return analytic.Gaussian.from_covariance(np.array([MEAN]), VARIANCE)


def build(name, schedule):
    make, values, _ = SAMPLERS[name]
    return make(schedule, **values)


# The recursions


class AffineRun:
    """Affine quantities of a run: `draw()` is the next independent noise draw, `x0(u, rho)` the posterior mean."""

    def __init__(self, count):
        self.count, self.drawn = count + 2, 0
        self.one, self.start = np.eye(self.count)[:2]

    def draw(self):
        self.drawn += 1
        return np.eye(self.count)[self.drawn + 1]

    def x0(self, u, rho):
        gain = VARIANCE / (VARIANCE + rho**2)
        return MEAN * (1 - gain) * self.one + gain * u


def split(high, low, eta):
    """sigma_down and sigma_up of k-diffusion."""
    up = min(low, eta * np.sqrt(low**2 * (high**2 - low**2) / high**2))
    return np.sqrt(low**2 - up**2), up


def euler_ancestral(run, rho, eta):
    u = run.start
    for high, low in itertools.pairwise(rho):
        down, up = split(high, low, eta)
        u = u + (u - run.x0(u, high)) / high * (down - high) + up * run.draw()
    return u


def dpm2_ancestral(run, rho, eta, noise_scale):
    u = run.start
    for high, low in itertools.pairwise(rho):
        down, up = split(high, low, eta)
        middle = np.sqrt(high * down)
        v = u + (u - run.x0(u, high)) / high * (middle - high)
        u = u + (v - run.x0(v, middle)) / middle * (down - high) + noise_scale * up * run.draw()
    return u


def dpmpp_2s_ancestral(run, rho, eta, noise_scale):
    u = run.start
    for high, low in itertools.pairwise(rho):
        down, up = split(high, low, eta)
        middle = np.sqrt(high * down)
        v = middle / high * u + (1 - middle / high) * run.x0(u, high)
        u = down / high * u + (1 - down / high) * run.x0(v, middle) + noise_scale * up * run.draw()
    return u


def dpmpp_sde(run, rho, eta, noise_scale, r):
    u = run.start
    for high, low in itertools.pairwise(rho):
        middle = high ** (1 - r) * low**r
        x0 = run.x0(u, high)
        down, up = split(high, middle, eta)
        v = down / high * u + (1 - down / high) * x0 + noise_scale * up * run.draw()
        mixed = (1 - 1 / (2 * r)) * x0 + run.x0(v, middle) / (2 * r)
        down, up = split(high, low, eta)
        u = down / high * u + (1 - down / high) * mixed + noise_scale * up * run.draw()
    return u


def dpmpp_2m_sde(run, rho, eta, noise_scale):
    u, x0_before, h_before = run.start, None, None
    for high, low in itertools.pairwise(rho):
        h, x0 = np.log(high / low), run.x0(u, high)
        decay = 1 - np.exp(-(1 + eta) * h)
        mean = low / high * np.exp(-eta * h) * u + decay * x0
        if x0_before is not None:
            mean = mean + 0.5 * decay * h / h_before * (x0 - x0_before)
        u = mean + noise_scale * low * np.sqrt(1 - np.exp(-2 * eta * h)) * run.draw()
        x0_before, h_before = x0, h
    return u


def interpolated(points, a, start, end):
    """int a e^(-a (end - y)) p(y) dy from start to end, where p interpolates the points (y, value)."""
    nodes, weights = np.polynomial.legendre.leggauss(20)
    y = start + (end - start) * (nodes + 1) / 2
    kernel = weights * (end - start) / 2 * a * np.exp(-a * (end - y))
    total = 0.0
    for i, (node, value) in enumerate(points):
        others = [p[0] for j, p in enumerate(points) if j != i]
        total = total + value * np.sum(kernel * np.prod([(y - other) / (node - other) for other in others], axis=0))
    return total


def stochastic_adams(run, rho, order, a, corrected, noise_scale=1.0):
    """Xue et al. 2023, algorithm 1: predict, then repeat the step with the x0 at its end."""
    u, history, repeat_step = run.start, [], None
    for high, low in itertools.pairwise(rho):
        y, end = -np.log(high), -np.log(low)
        history = [*history, (y, run.x0(u, high))][-order - 1 :]
        if repeat_step is not None and corrected(len(history) - 1):
            u = repeat_step(history)
        predictor_points = history[-order:]
        linear_part = low / high * np.exp(-(a - 1) * (end - y)) * u
        noise = noise_scale * low * np.sqrt(1 - np.exp(-2 * (a - 1) * (end - y))) * run.draw()
        u = linear_part + interpolated(predictor_points, a, y, end) + noise
        repeat_step = partial(
            lambda points, linear_part, noise, count, a, y, end: (
                linear_part + interpolated(points[-count - 1 :], a, y, end) + noise
            ),
            linear_part=linear_part, noise=noise, count=len(predictor_points), a=a, y=y, end=end,
        )  # fmt: skip
    return u


def heun_churn(run, rho, s_churn, s_tmin, s_tmax, s_noise):
    u = run.start
    for high, low in itertools.pairwise(rho):
        gamma = min(s_churn / len(rho), np.sqrt(2) - 1) if s_tmin <= high <= s_tmax else 0.0
        higher = (1 + gamma) * high
        u = u + s_noise * np.sqrt(higher**2 - high**2) * run.draw()
        slope = (u - run.x0(u, higher)) / higher
        v = u + (low - higher) * slope
        u = u + (low - higher) / 2 * (slope + (v - run.x0(v, low)) / low)
    return u


RECURSIONS = {
    "ddim-eta": euler_ancestral,
    "dpm2_ancestral": dpm2_ancestral,
    "dpmpp_2s_ancestral": dpmpp_2s_ancestral,
    "dpmpp_sde": dpmpp_sde,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_3m_sde": lambda run, rho, eta, noise_scale: stochastic_adams(
        run, rho, 3, 1 + eta, lambda points: points < 3, noise_scale
    ),
    "sa_solver": lambda run, rho, tau: stochastic_adams(run, rho, 3, 1 + tau**2, lambda points: True),
    "heun-churn": heun_churn,
}


# The rows of the exam set these to 1. Other values are used here, because a factor 1 would hide a wrong place in the
# formula.
OTHER_VALUES = {"noise_scale": 1.1, "r": 0.3}
# More settings of sa_solver: (arguments of the sampler, arguments of the recursion).
SA_SOLVERS = {
    "order-1": ({"order": 1, "tau": 0.8}, (1, 1.64, lambda points: True)),
    "order-2": ({"order": 2, "tau": 0.8}, (2, 1.64, lambda points: True)),
    "uncorrected": ({"corrected": False, "tau": 0.8}, (3, 1.64, lambda points: False)),
    "function": ({"tau": lambda t: 0.7}, (3, 1.49, lambda points: True)),
}


def check_recursion(sampler, recursion, schedule, draws=1):
    times = np.array([0.9, 0.75, 0.6, 0.5, 0.4, 0.3, 0.2])
    result = end_distribution(sampler, oracle().denoiser(schedule), times, draws=draws)
    levels = schedule(jnp.asarray(times))
    u = recursion(AffineRun(2 * len(times)), np.asarray(levels.sigma / levels.alpha))
    end = u * float(levels.alpha[-1])
    expected = EndDistribution(end[0], end[1] / float(levels.alpha[0]), np.sum(end[2:] ** 2))
    np.testing.assert_allclose(result, expected, rtol=1e-9)


@pytest.mark.slow_cases(but=["dpmpp_sde-edm", "heun-churn-linear", "heun-churn-edm"])
@pytest.mark.newest
@pytest.mark.parametrize("schedule", ["linear", "edm"])
@pytest.mark.parametrize("name", RECURSIONS)
def test_samplers_follow_the_recursion_of_their_paper(name, schedule):
    make, values, _ = SAMPLERS[name]
    values = {k: OTHER_VALUES.get(k, v) for k, v in values.items()}
    schedule = SCHEDULES[schedule]
    check_recursion(make(schedule, **values), partial(RECURSIONS[name], **values), schedule, DRAWS.get(name, 1))


@pytest.mark.slow_cases(but=["order-1"])
@pytest.mark.parametrize("name", SA_SOLVERS)
def test_sa_solver_follows_its_recursion_at_other_settings(name):
    values, (order, a, corrected) = SA_SOLVERS[name]
    recursion = partial(stochastic_adams, order=order, a=a, corrected=corrected)
    check_recursion(samplers.sa_solver(SCHEDULES["linear"], **values), recursion, SCHEDULES["linear"])


def test_every_stochastic_sampler_has_a_recursion():
    """Those of ddpm are in test_samplers.py, in terms of betas; those of the SDE solvers in test_sde.py."""
    assert set(STOCHASTIC) - set(RECURSIONS) == {"ddpm", "ddpm-large", "euler_maruyama", "stochastic_heun"}


# The limit


def moment_errors(sampler, schedule, *, draws=1, t_max=0.95, t_min=0.1, steps=(50, 100), padded=True):
    """(K,) larger error of mean and variance at the end, for the exact marginal at the start."""
    grids = [diffax.times.uniform_log_snr(schedule, n + 1, t_max=t_max, t_min=t_min) for n in steps]
    denoise = oracle().denoiser(schedule)
    if padded:
        times = jnp.stack([jnp.pad(g, (0, max(steps) + 1 - len(g)), mode="edge") for g in grids])
        end = end_distribution(sampler, denoise, times, draws=draws)
    else:
        end = jax.tree.map(
            lambda *v: jnp.stack(v), *(end_distribution(sampler, denoise, g, draws=draws) for g in grids)
        )
    level_start, level_end = schedule(t_max), schedule(t_min)
    mean = end.offset + end.slope * level_start.alpha * MEAN
    variance = end.variance + end.slope**2 * (level_start.alpha**2 * VARIANCE + level_start.sigma**2)
    exact_variance = level_end.alpha**2 * VARIANCE + level_end.sigma**2
    return np.maximum(np.abs(mean - level_end.alpha * MEAN), np.abs(variance - exact_variance))


def check_limit(sampler, schedule, draws=1, **settings):
    errors = moment_errors(sampler, schedule, draws=draws, **settings)
    order = np.log2(errors[0] / errors[1])
    assert order > sampler.order - 0.2, f"claims order {sampler.order} in distribution, measured {order:.2f}: {errors}"
    assert errors[-1] < 0.05, errors


@pytest.mark.slow_cases(
    "ddpm-linear",
    "dpm2_ancestral-linear",
    "dpmpp_2s_ancestral-linear",
    "dpmpp_2m_sde-linear",
    "dpmpp_3m_sde-linear",
    "sa_solver-linear",
    "stochastic_heun-linear",
    "ddim-eta-linear",
)
@pytest.mark.parametrize("schedule", ["linear", pytest.param("edm", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [n for n in STOCHASTIC if n not in ("heun-churn", "euler_maruyama")])
def test_marginals_converge_at_the_claimed_order(name, schedule):
    check_limit(build(name, SCHEDULES[schedule]), SCHEDULES[schedule], DRAWS.get(name, 1))


def test_marginals_converge_with_churn_at_the_order_of_the_inner_sampler():
    """The noise of churn is that of the forward process, so that the order of the inner sampler remains."""
    schedule = SCHEDULES["edm"]
    sampler = samplers.heun(schedule, s_churn=10.0)
    assert sampler.order == 2
    check_limit(sampler, schedule, padded=False)  # the noise of a step depends on the length of the grid


def test_an_ancestral_sampler_has_the_order_of_its_base():
    """Adding noise takes the marginal at the lower level to the one at s exactly, so only the base has an error."""
    schedule = SCHEDULES["linear"]
    sampler = samplers.ancestral(samplers.dpm_solver(schedule), schedule, eta=0.7)
    assert sampler.order == 3
    check_limit(sampler, schedule)


def test_a_wrong_distribution_is_detected():
    """Negative controls: noise, or S_noise of churn, that is 3 % too large."""
    schedule = SCHEDULES["linear"]
    for sampler in (
        samplers.dpmpp_2m_sde(schedule, noise_scale=1.03),
        samplers.ancestral(samplers.dpm2(schedule), schedule, noise_scale=1.03),
        samplers.heun(schedule, s_churn=20.0, s_noise=1.03),
    ):
        with pytest.raises(AssertionError, match="in distribution, measured"):
            check_limit(sampler, schedule)
