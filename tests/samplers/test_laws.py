"""Stochastic samplers on Gaussian data: the papers' recursions by hand, and the exact marginals as the limit.

A quantity that is affine in the start and in every draw is a vector (constant, start, draw 1, draw 2 ..); the
recursions below are the papers' update equations on such vectors, in u = x / alpha and rho = sigma / alpha.
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


class Hand:
    """Affine numbers over a run: `draw()` is the next independent one, `data(u, rho)` the posterior mean."""

    def __init__(self, count):
        self.count, self.drawn = count + 2, 0
        self.one, self.start = np.eye(self.count)[:2]

    def draw(self):
        self.drawn += 1
        return np.eye(self.count)[self.drawn + 1]

    def data(self, u, rho):
        gain = VARIANCE / (VARIANCE + rho**2)
        return MEAN * (1 - gain) * self.one + gain * u


def split(high, low, eta):
    """k-diffusion's sigma_down and sigma_up."""
    up = min(low, eta * np.sqrt(low**2 * (high**2 - low**2) / high**2))
    return np.sqrt(low**2 - up**2), up


def euler_ancestral(hand, rho, eta):
    u = hand.start
    for high, low in itertools.pairwise(rho):
        down, up = split(high, low, eta)
        u = u + (u - hand.data(u, high)) / high * (down - high) + up * hand.draw()
    return u


def dpm2_ancestral(hand, rho, eta, noise_scale):
    u = hand.start
    for high, low in itertools.pairwise(rho):
        down, up = split(high, low, eta)
        middle = np.sqrt(high * down)
        v = u + (u - hand.data(u, high)) / high * (middle - high)
        u = u + (v - hand.data(v, middle)) / middle * (down - high) + noise_scale * up * hand.draw()
    return u


def dpmpp_2s_ancestral(hand, rho, eta, noise_scale):
    u = hand.start
    for high, low in itertools.pairwise(rho):
        down, up = split(high, low, eta)
        middle = np.sqrt(high * down)
        v = middle / high * u + (1 - middle / high) * hand.data(u, high)
        u = down / high * u + (1 - down / high) * hand.data(v, middle) + noise_scale * up * hand.draw()
    return u


def dpmpp_sde(hand, rho, eta, noise_scale, r):
    u = hand.start
    for high, low in itertools.pairwise(rho):
        middle = high ** (1 - r) * low**r
        data = hand.data(u, high)
        down, up = split(high, middle, eta)
        v = down / high * u + (1 - down / high) * data + noise_scale * up * hand.draw()
        mixed = (1 - 1 / (2 * r)) * data + hand.data(v, middle) / (2 * r)
        down, up = split(high, low, eta)
        u = down / high * u + (1 - down / high) * mixed + noise_scale * up * hand.draw()
    return u


def dpmpp_2m_sde(hand, rho, eta, noise_scale):
    u, last, h_last = hand.start, None, None
    for high, low in itertools.pairwise(rho):
        h, data = np.log(high / low), hand.data(u, high)
        decay = 1 - np.exp(-(1 + eta) * h)
        mean = low / high * np.exp(-eta * h) * u + decay * data
        if last is not None:
            mean = mean + 0.5 * decay * h / h_last * (data - last)
        u = mean + noise_scale * low * np.sqrt(1 - np.exp(-2 * eta * h)) * hand.draw()
        last, h_last = data, h
    return u


def interpolated(points, a, start, end):
    """int a e^(-a (end - y)) p(y) dy from start to end, p through the points (y, value): Lagrange and quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(20)
    y = start + (end - start) * (nodes + 1) / 2
    kernel = weights * (end - start) / 2 * a * np.exp(-a * (end - y))
    total = 0.0
    for i, (at, value) in enumerate(points):
        others = [p[0] for j, p in enumerate(points) if j != i]
        total = total + value * np.sum(kernel * np.prod([(y - o) / (at - o) for o in others], axis=0))
    return total


def stochastic_adams(hand, rho, order, a, corrected, noise_scale=1.0):
    """Xue et al. 2023, algorithm 1: predict, and once the new data is known take the step again with it."""
    u, past, again = hand.start, [], None
    for high, low in itertools.pairwise(rho):
        y, end = -np.log(high), -np.log(low)
        past = [*past, (y, hand.data(u, high))][-order - 1 :]
        if again is not None and corrected(len(past) - 1):
            u = again(past)
        used = past[-order:]
        carried = low / high * np.exp(-(a - 1) * (end - y)) * u
        noise = noise_scale * low * np.sqrt(1 - np.exp(-2 * (a - 1) * (end - y))) * hand.draw()
        u = carried + interpolated(used, a, y, end) + noise
        again = partial(
            lambda points, carried, noise, count, a, y, end: (
                carried + interpolated(points[-count - 1 :], a, y, end) + noise
            ),
            carried=carried, noise=noise, count=len(used), a=a, y=y, end=end,
        )  # fmt: skip
    return u


def heun_churn(hand, rho, s_churn, s_tmin, s_tmax, s_noise):
    u = hand.start
    for high, low in itertools.pairwise(rho):
        gamma = min(s_churn / len(rho), np.sqrt(2) - 1) if s_tmin <= high <= s_tmax else 0.0
        higher = (1 + gamma) * high
        u = u + s_noise * np.sqrt(higher**2 - high**2) * hand.draw()
        slope = (u - hand.data(u, higher)) / higher
        v = u + (low - higher) * slope
        u = u + (low - higher) / 2 * (slope + (v - hand.data(v, low)) / low)
    return u


RECURSIONS = {
    "ddim-eta": euler_ancestral,
    "dpm2_ancestral": dpm2_ancestral,
    "dpmpp_2s_ancestral": dpmpp_2s_ancestral,
    "dpmpp_sde": dpmpp_sde,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_3m_sde": lambda hand, rho, eta, noise_scale: stochastic_adams(
        hand, rho, 3, 1 + eta, lambda known: known < 3, noise_scale
    ),
    "sa_solver": lambda hand, rho, tau: stochastic_adams(hand, rho, 3, 1 + tau**2, lambda known: True),
    "heun-churn": heun_churn,
}


# What a row of the exam sets to 1, where its place in the formula would not show.
OTHERWISE = {"noise_scale": 1.1, "r": 0.3}
# More settings of the solver: (its arguments, the recursion's).
SA_SOLVERS = {
    "order-1": ({"order": 1, "tau": 0.8}, (1, 1.64, lambda known: True)),
    "order-2": ({"order": 2, "tau": 0.8}, (2, 1.64, lambda known: True)),
    "uncorrected": ({"corrected": False, "tau": 0.8}, (3, 1.64, lambda known: False)),
    "function": ({"tau": lambda t: 0.7}, (3, 1.49, lambda known: True)),
}


def check_recursion(sampler, recursion, schedule, draws=1):
    times = np.array([0.9, 0.75, 0.6, 0.5, 0.4, 0.3, 0.2])
    found = end_distribution(sampler, oracle().denoiser(schedule), times, draws=draws)
    levels = schedule(jnp.asarray(times))
    u = recursion(Hand(2 * len(times)), np.asarray(levels.sigma / levels.alpha))
    end = u * float(levels.alpha[-1])
    by_hand = EndDistribution(end[0], end[1] / float(levels.alpha[0]), np.sum(end[2:] ** 2))
    np.testing.assert_allclose(found, by_hand, rtol=1e-9)


@pytest.mark.slow_cases(but=["dpmpp_sde-edm", "heun-churn-linear", "heun-churn-edm"])
@pytest.mark.newest
@pytest.mark.parametrize("schedule", ["linear", "edm"])
@pytest.mark.parametrize("name", RECURSIONS)
def test_the_paper_s_recursion(name, schedule):
    make, values, _ = SAMPLERS[name]
    values = {k: OTHERWISE.get(k, v) for k, v in values.items()}
    schedule = SCHEDULES[schedule]
    check_recursion(make(schedule, **values), partial(RECURSIONS[name], **values), schedule, DRAWS.get(name, 1))


@pytest.mark.slow_cases(but=["order-1"])
@pytest.mark.parametrize("name", SA_SOLVERS)
def test_sa_solver_s_recursion_at_other_settings(name):
    values, (order, a, corrected) = SA_SOLVERS[name]
    recursion = partial(stochastic_adams, order=order, a=a, corrected=corrected)
    check_recursion(samplers.sa_solver(SCHEDULES["linear"], **values), recursion, SCHEDULES["linear"])


def test_every_stochastic_sampler_has_its_recursion():
    """ddpm's are in test_samplers, in betas; those in t and x in test_sde."""
    assert set(STOCHASTIC) - set(RECURSIONS) == {"ddpm", "ddpm-large", "euler_maruyama", "stochastic_heun"}


# The limit


def law_errors(sampler, schedule, *, draws=1, t_max=0.95, t_min=0.1, steps=(50, 100), padded=True):
    """(K,): the larger error of mean and variance at the end, from the exact marginal at the start."""
    grids = [diffax.times.uniform_log_snr(schedule, n + 1, t_max=t_max, t_min=t_min) for n in steps]
    denoise = oracle().denoiser(schedule)
    if padded:
        times = jnp.stack([jnp.pad(g, (0, max(steps) + 1 - len(g)), mode="edge") for g in grids])
        found = end_distribution(sampler, denoise, times, draws=draws)
    else:
        found = jax.tree.map(
            lambda *v: jnp.stack(v), *(end_distribution(sampler, denoise, g, draws=draws) for g in grids)
        )
    start, end = schedule(t_max), schedule(t_min)
    mean = found.offset + found.slope * start.alpha * MEAN
    variance = found.variance + found.slope**2 * (start.alpha**2 * VARIANCE + start.sigma**2)
    exact = end.alpha**2 * VARIANCE + end.sigma**2
    return np.maximum(np.abs(mean - end.alpha * MEAN), np.abs(variance - exact))


def check_limit(sampler, schedule, draws=1, **settings):
    found = law_errors(sampler, schedule, draws=draws, **settings)
    order = np.log2(found[0] / found[1])
    assert order > sampler.order - 0.2, f"claims order {sampler.order} in distribution, measured {order:.2f}: {found}"
    assert found[-1] < 0.05, found


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
def test_the_marginals_are_approached(name, schedule):
    check_limit(build(name, SCHEDULES[schedule]), SCHEDULES[schedule], DRAWS.get(name, 1))


def test_churn_is_right_at_any_rate():
    """The noise of churn is that of the forward process, so its law converges at the order of the sampler inside."""
    schedule = SCHEDULES["edm"]
    sampler = samplers.heun(schedule, s_churn=10.0)
    assert sampler.order == 2
    check_limit(sampler, schedule, padded=False)  # what is added in a step depends on the length of the grid


def test_an_ancestral_form_has_the_order_of_its_base():
    """With an exact flow it would be exact: p_d goes to p_s by adding noise."""
    schedule = SCHEDULES["linear"]
    sampler = samplers.ancestral(samplers.dpm_solver(schedule), schedule, eta=0.7)
    assert sampler.order == 3
    check_limit(sampler, schedule)


def test_a_wrong_law_is_noticed():
    """Negative controls: noise 3 % too strong, and churn with EDM's S_noise of 1.01."""
    schedule = SCHEDULES["linear"]
    for sampler in (
        samplers.dpmpp_2m_sde(schedule, noise_scale=1.03),
        samplers.ancestral(samplers.dpm2(schedule), schedule, noise_scale=1.03),
        samplers.heun(schedule, s_churn=20.0, s_noise=1.03),
    ):
        with pytest.raises(AssertionError, match="in distribution, measured"):
            check_limit(sampler, schedule)
