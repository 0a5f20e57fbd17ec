"""The oracles against autodiff, quadrature and quantiles; other tests take their exact answers from the oracles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exam import ORACLES, START, gaussian, mixture

import diffax
from diffax import analytic

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.newest]
SCHEDULE = diffax.Linear()


@pytest.mark.slow_cases("None-mixture", "0.05-mixture")
@pytest.mark.parametrize("oracle", ORACLES)
@pytest.mark.parametrize("t", [None, 0.05, 0.4, 0.9])
def test_score_is_the_gradient_of_log_prob(oracle, t):
    oracle, level = ORACLES[oracle](), analytic.CLEAN if t is None else SCHEDULE(t)
    slope = jax.vmap(jax.grad(lambda x: oracle.log_prob(x, level)))(jnp.asarray(START))
    np.testing.assert_allclose(oracle.score(START, level), slope, rtol=1e-9)


@pytest.mark.parametrize("oracle", ORACLES)
@pytest.mark.parametrize("t", [0.02, 0.3, 0.9])
def test_denoise_follows_from_the_score_by_tweedie(oracle, t):
    oracle, level = ORACLES[oracle](), SCHEDULE(t)
    tweedie = (START + level.sigma**2 * oracle.score(START, level)) / level.alpha
    np.testing.assert_allclose(oracle.denoise(START, level), tweedie, rtol=1e-9, atol=1e-12)


@pytest.mark.slow_cases("mixture")
@pytest.mark.parametrize("oracle", ORACLES)
def test_posterior_mean_and_density_by_quadrature(oracle):
    """p_t(x) and E[x0 | x] as sums over a fine grid of x0."""
    oracle, level = ORACLES[oracle](), SCHEDULE(0.3)
    line = np.linspace(-5, 5, 401)
    x0 = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    prior = np.exp(oracle.log_prob(x0))
    cell = (line[1] - line[0]) ** 2
    np.testing.assert_allclose(prior.sum() * cell, 1, rtol=1e-9)
    for x in START:
        square = ((x - level.alpha * x0) ** 2).sum(-1) / level.sigma**2
        joint = prior * np.exp(-square / 2) / (2 * np.pi * level.sigma**2)
        np.testing.assert_allclose(oracle.log_prob(x, level), np.log(joint.sum() * cell), rtol=1e-9)
        mean = (joint[:, None] * x0).sum(0) / joint.sum()
        np.testing.assert_allclose(oracle.denoise(x[None], level)[0], mean, rtol=1e-8)


def test_each_example_may_have_its_own_level():
    t = jnp.array([0.1, 0.3, 0.5, 0.7, 0.9])
    for make in ORACLES.values():
        oracle = make()
        together = oracle.denoiser(SCHEDULE)(jnp.asarray(START), t)
        for i in range(5):
            np.testing.assert_allclose(together[i], oracle.denoise(START[i : i + 1], SCHEDULE(t[i]))[0], rtol=1e-12)


def test_the_flow_of_a_gaussian_keeps_the_marginals_and_solves_the_ode():
    oracle, (t, s) = gaussian(), (0.8, 0.2)
    covariance = oracle.basis @ np.diag(oracle.variances) @ oracle.basis.T
    jacobian = jax.jacobian(lambda x: oracle.flow(x[None], SCHEDULE(t), SCHEDULE(s))[0])(jnp.zeros(2))
    covariance_t, covariance_s = (
        SCHEDULE(v).alpha ** 2 * covariance + SCHEDULE(v).sigma ** 2 * np.eye(2) for v in (t, s)
    )
    np.testing.assert_allclose(jacobian @ covariance_t @ jacobian.T, covariance_s, rtol=1e-10)
    # dx/dt = f x - g^2 score / 2, where f and g follow from the schedule
    x = jnp.asarray(START)
    path = lambda v: oracle.flow(x, SCHEDULE(t), SCHEDULE(v))
    velocity = jax.jacfwd(path)(s)
    level, (d_alpha, d_sigma) = SCHEDULE(s), diffax.schedules.rates(SCHEDULE, s)
    f = d_alpha / level.alpha
    g2 = 2 * level.sigma * d_sigma - 2 * f * level.sigma**2
    np.testing.assert_allclose(velocity, f * path(s) - g2 / 2 * oracle.score(path(s), level), rtol=1e-8)


def test_the_numerical_flow_of_a_mixture_matches_quantiles():
    """In one dimension the flow maps the quantiles of one marginal to those of the other."""
    oracle = analytic.Mixture(np.array([0.3, 0.7]), np.array([[-1.0], [0.8]]), 0.3)
    x = np.linspace(-1.5, 1.5, 7)[:, None]
    end = analytic.flow(SCHEDULE, oracle.denoiser(SCHEDULE), x, 0.9, 0.05)

    def cdf(x, level):
        std = np.sqrt(level.alpha**2 * 0.09 + level.sigma**2)
        return (oracle.weights * jax.scipy.stats.norm.cdf((x - level.alpha * oracle.means.T) / std)).sum(-1)

    np.testing.assert_allclose(cdf(end, SCHEDULE(0.05)), cdf(x, SCHEDULE(0.9)), atol=1e-8)


@pytest.mark.slow_cases("mixture")
@pytest.mark.parametrize("oracle", ORACLES)
def test_samples_satisfy_the_score_identities(oracle):
    oracle = ORACLES[oracle]()
    x = oracle.sample(jax.random.key(0), 100_000)
    # E[score] = 0 and E[x . score] = -D for samples of the distribution
    score = oracle.score(x)
    np.testing.assert_allclose(score.mean(0), 0, atol=0.05)
    np.testing.assert_allclose((x * score).sum(-1).mean(), -2, rtol=0.03)
    np.testing.assert_allclose(oracle.sample(jax.random.key(0), 7), x[:7], rtol=1e-14)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: analytic.Gaussian.from_covariance([0.0, 0.0], [[1.0, 0.5], [0.0, 1.0]]),
            "covariance must be symmetric",
        ),
        (
            lambda: analytic.Gaussian.from_covariance([0.0, 0.0], [[1.0, 0.0], [0.0, -1.0]]),
            "covariance must be",
        ),
        (lambda: analytic.Mixture([0.5, 0.4], [[0.0], [1.0]], 1.0), "weights must be >= 0 with sum 1"),
        (lambda: analytic.Mixture([0.5, 0.5], [[0.0], [1.0]], -1.0), "std must be > 0, got -1.0"),
        (lambda: analytic.Mixture([0.5, 0.5], [[0.0]], 1.0), r"means must have shape \(K, D\)"),
        (
            lambda: analytic.flow(SCHEDULE, mixture().denoiser(SCHEDULE), START, 0.9, 0.1, num_steps=0),
            "num_steps must be",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
