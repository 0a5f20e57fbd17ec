"""Guidance against the equations of the papers in numpy, and on distributions whose guided score is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exam import START, mixture

import diffax
from diffax import analytic

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.newest]
SCHEDULE = diffax.Cosine()
W = 3.5
PAIR = np.random.default_rng(1).normal(size=(2, 5, 3, 2)) * np.array([2.0, 1.0])[:, None, None, None]  # c, u
constant = lambda value: lambda x, t: jnp.asarray(value)


# Rescaling


def rescaled(strength, **kwargs):
    c, u = (constant(v) for v in PAIR)
    return diffax.guidance_rescale(diffax.classifier_free_guidance(c, u, W), c, strength, **kwargs)(
        jnp.zeros((5, 3, 2)), 0.4
    )


def test_rescaling_is_that_of_lin_et_al():
    """Equations 15 and 16 in numpy, per example. phi = 0 changes nothing; phi = 1 gives the standard deviation of c."""
    c, u = PAIR
    cfg = u + W * (c - u)
    for phi in (0.0, 0.7, 1.0):
        for i, x0 in enumerate(rescaled(phi)):
            expected = phi * cfg[i] * np.std(c[i]) / np.std(cfg[i]) + (1 - phi) * cfg[i]
            np.testing.assert_allclose(x0, expected, rtol=1e-12)
    np.testing.assert_allclose(rescaled(0.0), cfg, rtol=1e-13)
    np.testing.assert_allclose(np.std(rescaled(1.0), (1, 2)), np.std(c, (1, 2)), rtol=1e-12)
    strengths = np.linspace(0, 1, 5)
    np.testing.assert_allclose(rescaled(strengths)[1], rescaled(0.25)[1], rtol=1e-12)


def test_rescaling_may_act_on_the_prediction_of_the_network():
    """A v-prediction is rescaled as v, as in the paper, and then converted to x0."""
    x, t, phi = np.random.default_rng(2).normal(size=(5, 3, 2)), 0.4, 0.7
    alpha, sigma = np.cos(np.pi * t / 2), np.sin(np.pi * t / 2)
    pos, neg = PAIR
    cfg = neg + W * (pos - neg)
    ratio = (np.std(pos, (1, 2)) / np.std(cfg, (1, 2)))[:, None, None]
    c, u = (diffax.denoiser(constant(v), SCHEDULE, "v") for v in PAIR)
    result = diffax.guidance_rescale(diffax.classifier_free_guidance(c, u, W), c, phi, kind="v", schedule=SCHEDULE)(
        jnp.asarray(x), t
    )
    np.testing.assert_allclose(result, alpha * x - sigma * cfg * (phi * ratio + 1 - phi), rtol=1e-10)


def test_the_check_rejects_rescaling_by_the_batch(monkeypatch):
    """Negative control: the standard deviation is taken over the batch."""

    def wrong(guided, conditional, phi):
        def denoise(x, t):
            g, c = guided(x, t), conditional(x, t)
            return g * (phi * jnp.std(c) / jnp.std(g) + 1 - phi)

        return denoise

    monkeypatch.setattr(diffax, "guidance_rescale", wrong)
    with pytest.raises(AssertionError):
        test_rescaling_is_that_of_lin_et_al()


# Adaptive projected guidance


def projected(weight, **kwargs):
    return diffax.adaptive_projected_guidance(*(constant(v) for v in PAIR), weight, **kwargs)(jnp.zeros((5, 3, 2)), 0.4)


def test_projected_guidance_is_that_of_sadat_et_al():
    """The steps of the paper in numpy: limit the norm to r, split along c, scale the parallel part by eta, add.

    eta = 1 and r = inf is classifier-free guidance.
    """
    c, u = PAIR
    np.testing.assert_allclose(projected(W, eta=1.0), u + W * (c - u), rtol=1e-12)
    for eta, r in ((0.0, np.inf), (0.3, 5.0), (0.0, 0.5)):
        for i, x0 in enumerate(projected(W, eta=eta, threshold=r)):
            d = (c - u)[i] * min(1, r / np.linalg.norm((c - u)[i]))
            unit = c[i] / np.linalg.norm(c[i])
            parallel = (d * unit).sum() * unit
            np.testing.assert_allclose(x0, c[i] + (W - 1) * (d - parallel + eta * parallel), rtol=1e-10)
            if eta == 0:
                push = np.asarray(x0) - c[i]
                assert abs((push * c[i]).sum()) < 1e-10
                assert np.linalg.norm(push) <= (W - 1) * r * (1 + 1e-12)


def test_the_check_rejects_a_projection_on_the_unconditional_branch(monkeypatch):
    """Negative control: the parallel part is taken along u."""
    original = diffax.adaptive_projected_guidance
    monkeypatch.setattr(
        diffax, "adaptive_projected_guidance", lambda c, u, w, **kwargs: original(u, c, 1 - w, **kwargs)
    )
    with pytest.raises(AssertionError):
        test_projected_guidance_is_that_of_sadat_et_al()


# Autoguidance and classifier guidance


def test_autoguidance_of_gaussians_mixes_the_precisions():
    """A model guided by one of larger variance: the precision is w / c_good + (1 - w) / c_bad."""
    alpha, sigma, _ = SCHEDULE(0.5)
    good, bad = (diffax.analytic.Gaussian.from_covariance([0.7, -0.4], v) for v in (0.2, 0.9))
    guided = diffax.classifier_free_guidance(good.denoiser(SCHEDULE), bad.denoiser(SCHEDULE), 2.0)(START, 0.5)
    precision = 2 / (alpha**2 * 0.2 + sigma**2) - 1 / (alpha**2 * 0.9 + sigma**2)
    score = -precision * (START - alpha * np.array([0.7, -0.4]))
    np.testing.assert_allclose(guided, (START + sigma**2 * score) / alpha, rtol=1e-10)
    same = diffax.classifier_free_guidance(good.denoiser(SCHEDULE), good.denoiser(SCHEDULE), 7.0)
    np.testing.assert_allclose(same(START, 0.5), good.denoise(START, SCHEDULE(0.5)), rtol=1e-12)


CLASS = np.array([0, 1, 0])  # class of each component of the mixture


def log_prob(schedule, labels):
    """log p(y | x_t) by Bayes: the responsibilities of the components of class y."""
    oracle = mixture()

    def log_prob_y(x, t):
        alpha, sigma, _ = (jnp.broadcast_to(v, x.shape[:1])[:, None] for v in schedule(t))
        square = ((x[:, None] - alpha[..., None] * oracle.means) ** 2).sum(-1)
        log_joint = jnp.log(oracle.weights) - square / (2 * (alpha**2 * oracle.std**2 + sigma**2))
        log_joint_y = jnp.where(labels[:, None] == CLASS, log_joint, -jnp.inf)
        return jax.nn.logsumexp(log_joint_y, 1) - jax.nn.logsumexp(log_joint, 1)

    return log_prob_y


@pytest.mark.slow_cases(but=["flow"])
@pytest.mark.parametrize(
    "schedule", [diffax.Linear(), diffax.LogLinear(0.01, 20.0), diffax.Flow()], ids=["vp", "ve", "flow"]
)
def test_an_exact_classifier_gives_the_conditional_distribution(schedule):
    """With scale 1 and the exact p(y | x_t), the result is the denoiser of the components of class y."""
    oracle, labels, t = mixture(), np.array([0, 1, 0, 1, 1]), np.linspace(0.1, 0.95, 5)
    guided = diffax.classifier_guidance(oracle.denoiser(schedule), log_prob(schedule, labels), schedule, 1.0)
    result = jax.jit(guided)(jnp.asarray(START), t)
    weights = np.where(np.arange(2)[:, None] == CLASS, oracle.weights, 0)
    weights = weights / weights.sum(1, keepdims=True)
    for i, y in enumerate(labels):
        conditional = analytic.Mixture(weights[y], oracle.means, oracle.std)
        np.testing.assert_allclose(result[i], conditional.denoise(START[i], schedule(t[i])), rtol=1e-8)
    assert (
        diffax.classifier_guidance(oracle.denoiser(schedule), log_prob(schedule, labels), schedule, 0)(START, 0.5)
        is not None
    )


def test_the_check_rejects_a_classifier_with_a_wrong_factor(monkeypatch):
    """Negative control: sigma / alpha in place of sigma^2 / alpha."""
    original = diffax.classifier_guidance
    wrong = lambda f, p, schedule, w: original(f, p, schedule, lambda t: w / schedule(t).sigma)
    monkeypatch.setattr(diffax, "classifier_guidance", wrong)
    with pytest.raises(AssertionError):
        test_an_exact_classifier_gives_the_conditional_distribution(diffax.Flow())


def test_a_classifier_of_another_schedule_can_be_rescheduled():
    oracle, ve, labels = mixture(), diffax.LogLinear(0.01, 50.0), np.array([0, 1, 0, 1, 1])
    rescheduled = diffax.denoisers.reschedule(log_prob(ve, labels), ve, SCHEDULE)
    guided = [
        diffax.classifier_guidance(oracle.denoiser(SCHEDULE), p, SCHEDULE, 2.0)
        for p in (rescheduled, log_prob(SCHEDULE, labels))
    ]
    np.testing.assert_allclose(*(f(jnp.asarray(START), 0.4) for f in guided), rtol=1e-9)


# Denoisers that are not affine in x: moments of 4,000 samples against exact moments. The tests print the Monte Carlo
# floor, that is the standard error of each moment.


def draws(denoise, start, times, n=4000, dimension=2):
    """Samples of x at the last time, for x ~ N(mean, std^2 I) at the first."""
    mean, std = start
    x = mean + std * jax.random.normal(jax.random.key(5), (n, dimension))
    return np.asarray(jax.jit(lambda x: diffax.integrate(KEY, diffax.heun(SCHEDULE), denoise, x, times).x)(x))


def distance_in_floors(samples, mean, variance):
    """Largest distance of mean and variance from the expected ones over the coordinates, in Monte Carlo floors."""
    n = len(samples)
    floors = samples.std(0) / np.sqrt(n), np.var(np.square(samples - samples.mean(0)), axis=0) ** 0.5 / np.sqrt(n)
    distances = np.abs(samples.mean(0) - mean) / floors[0], np.abs(samples.var(0) - variance) / floors[1]
    print(f"floors of mean and variance {floors[0].max():.1e}, {floors[1].max():.1e}; distance {np.max(distances):.1f}")
    return np.max(distances)


def affine_flow(factor, shift, first, last, steps=20000):
    """(a, b) of u_last = a u_first + b, where u = x / alpha and x0 = factor(rho) u + shift(rho).

    Solved by the implicit midpoint rule in log rho.
    """
    w = np.linspace(*(float(-SCHEDULE.log_snr(t) / 2) for t in (first, last)), steps + 1)
    h, rho = w[1] - w[0], np.exp((w[1:] + w[:-1]) / 2)
    a, b = 1.0, 0.0
    for f, s in zip(factor(rho), shift(rho), strict=True):  # du / dw = (1 - f) u - s
        gain = (1 + h / 2 * (1 - f)) / (1 - h / 2 * (1 - f))
        a, b = gain * a, gain * b - h * s / (1 - h / 2 * (1 - f))
    return a, b


GRID = np.linspace(0.98, 0.02, 60)
KEY = jax.random.key(0)


@pytest.mark.slow_cases("<lambda>0")
@pytest.mark.parametrize("clip", [
    lambda d: diffax.denoisers.clip_static(d, -1.2, 1.2),
    lambda d: diffax.denoisers.clip_dynamic(d, quantile=0.9, limit=1.2),
])  # fmt: skip
def test_clipping_changes_only_data_outside_its_range(clip):
    """Data near -0.9 and 0.9 are in the range, but not data near -1.8 and 1.8, whose distribution must change."""
    distances = []
    for size in (0.9, 1.8):
        oracle = analytic.Mixture(np.array([0.3, 0.7]), size * np.array([[-1.0, -1.0], [1.0, 1.0]]), 0.05)
        end = SCHEDULE(GRID[-1])
        mean_start = float(SCHEDULE(GRID[0]).alpha) * oracle.weights @ oracle.means
        x = draws(clip(oracle.denoiser(SCHEDULE)), (mean_start, 1.0), GRID)
        unclipped = draws(oracle.denoiser(SCHEDULE), (mean_start, 1.0), GRID)
        distances.append(distance_in_floors(x, unclipped.mean(0), unclipped.var(0)))
        if size == 0.9:  # approximate: the start is a Gaussian in place of the mixture at this level
            mean = float(end.alpha) * oracle.weights @ oracle.means
            variance = float(end.alpha) ** 2 * (0.05**2 + 0.81 - (0.4 * 0.9) ** 2) + float(end.sigma) ** 2
            assert distance_in_floors(x, mean, variance) < 4
    assert distances[0] < 1e-6
    assert distances[1] > 10


def test_guidance_with_a_norm_threshold_has_the_exact_moments():
    """APG with eta = 1 for two Gaussians of one covariance: c - u depends only on rho, and its norm is limited to r."""
    means, v, w, r = np.array([[0.6, 0.3], [-0.5, 0.1]]), 0.25, 3.0, 0.4
    c, u = (analytic.Gaussian.from_covariance(m, v).denoiser(SCHEDULE) for m in means)
    difference, gain = means[0] - means[1], lambda rho: v / (v + rho**2)

    def limited(rho):
        norm = np.linalg.norm(difference) * (1 - gain(rho))
        return (1 - gain(rho)) * np.minimum(1, r / norm)

    parts = []
    for i in range(2):
        shift = lambda rho, i=i: (1 - gain(rho)) * means[0][i] + (w - 1) * limited(rho) * difference[i]
        parts.append(affine_flow(gain, shift, GRID[0], GRID[-1]))
    a, b = np.array(parts).T
    first, last = SCHEDULE(GRID[0]), SCHEDULE(GRID[-1])
    start = np.array([0.1, -0.2])
    mean = float(last.alpha) * (a * start / float(first.alpha) + b)
    variance = (float(last.alpha) * a / float(first.alpha)) ** 2
    assert (
        distance_in_floors(
            draws(diffax.adaptive_projected_guidance(c, u, w, eta=1.0, threshold=r), (start, 1.0), GRID), mean, variance
        )
        < 4
    )
    assert (
        distance_in_floors(
            draws(diffax.adaptive_projected_guidance(c, u, w, eta=1.0), (start, 1.0), GRID), mean, variance
        )
        > 10
    )


def test_rescaled_guidance_has_the_exact_moments():
    """Rescaling g = 2 c gives (phi + 2 (1 - phi)) c for every example, which is linear for data N(0, v)."""
    v, phi = 0.25, 0.5
    c = analytic.Gaussian.from_covariance(np.zeros(64), v).denoiser(SCHEDULE)
    doubled = lambda x, t: 2 * c(x, t)
    a, _ = affine_flow(lambda rho: 1.5 * v / (v + rho**2), np.zeros_like, GRID[0], GRID[-1])
    variance = (float(SCHEDULE(GRID[-1]).alpha) * a / float(SCHEDULE(GRID[0]).alpha)) ** 2
    for strength, is_exact in ((phi, True), (0.4, False)):
        samples = draws(diffax.guidance_rescale(doubled, c, strength), (np.zeros(64), 1.0), GRID, 1000, 64).reshape(
            -1, 1
        )
        assert (distance_in_floors(samples, 0.0, variance) < 4) == is_exact
