"""The variational bound on Gaussian data, where every term is known; the identities of Ho et al.; learned variance."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exam import BETAS, FEW_SCHEDULES, SCHEDULES, mixture, spread

import diffax
from diffax import analytic
from diffax.denoisers import Moments
from diffax.likelihood import Lattice, _bound

pytestmark = pytest.mark.usefixtures("x64")
KEY = jax.random.key(0)
M, V = 0.4, 0.3  # mean and variance of the one-dimensional data
ORACLE = analytic.Gaussian.from_covariance(np.array([M]), V)


# Identities of Ho et al.


def test_the_forward_posterior_is_that_of_ho_et_al():
    """Equations 6 and 7 in betas, between neighbouring levels of a table; the variance is beta-tilde."""
    schedule, alpha_bars = diffax.from_betas(BETAS), np.cumprod(1 - BETAS)
    for i in (1, 10, 500, 999):
        mean, std = diffax.likelihood.forward_posterior(
            schedule, jnp.array([[0.7]]), jnp.array([[-1.1]]), (i + 1) / 1000, i / 1000
        )
        c_x0 = np.sqrt(alpha_bars[i - 1]) * BETAS[i] / (1 - alpha_bars[i])
        c_x = np.sqrt(1 - BETAS[i]) * (1 - alpha_bars[i - 1]) / (1 - alpha_bars[i])
        np.testing.assert_allclose(mean[0, 0], c_x0 * 0.7 + c_x * -1.1, rtol=1e-9)
        np.testing.assert_allclose(std**2, (1 - alpha_bars[i - 1]) / (1 - alpha_bars[i]) * BETAS[i], rtol=1e-9)


@pytest.mark.slow_cases("linear")
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_forward_posterior_satisfies_bayes_rule(name):
    """q(x_s | x_t, x0) q(x_t | x0) = q(x_t | x_s) q(x_s | x0), at any points."""
    schedule, t, s = SCHEDULES[name], 0.7, 0.4
    x0, x_t, x_s = (jnp.full((1, 1), v) for v in (0.3, -0.8, 0.5))

    def log_normal(x, mean, std):
        return float((-0.5 * ((x - mean) / std) ** 2 - jnp.log(std)).sum())

    level_t, level_s = schedule(t), schedule(s)
    scale, std = diffax.schedules.transition(schedule, t, s)
    left = log_normal(x_s, *diffax.likelihood.forward_posterior(schedule, x0, x_t, t, s)) + log_normal(
        x_t, level_t.alpha * x0, level_t.sigma
    )
    right = log_normal(x_t, scale * x_s, std) + log_normal(x_s, level_s.alpha * x0, level_s.sigma)
    np.testing.assert_allclose(left, right, rtol=1e-9)


@pytest.mark.parametrize("v", [0.0, 0.3, 1.0])
def test_a_step_term_is_the_kl_divergence_of_its_gaussians(v):
    """The term against `gaussian_kl` of means and stds by their definitions; `gaussian_kl` against quadrature."""
    schedule, t, s = diffax.Cosine(), 0.6, 0.5
    x0, x, x0_hat = (jnp.asarray(np.random.default_rng(i).normal(size=(4, 3))) for i in range(3))
    mean, std = diffax.likelihood.forward_posterior(schedule, x0, x, t, s)
    mean_model, _ = diffax.likelihood.forward_posterior(schedule, x0_hat, x, t, s)
    std_large = schedule(t).sigma * jnp.sqrt(-jnp.expm1(schedule(t).log_snr - schedule(s).log_snr))
    kl = _bound.gaussian_kl(mean, std, mean_model, std ** (1 - v) * std_large**v)
    result = _bound.step_term(schedule, lambda x, t: Moments(x0_hat, 0 * x + v), x0, x, t, s, "learned")
    np.testing.assert_allclose(result, kl.sum(1), rtol=1e-9)
    z = np.linspace(-12, 12, 20001)
    density = lambda mean, std: np.exp(-0.5 * ((z - mean) / std) ** 2) / std / np.sqrt(2 * np.pi)
    p, q = density(0.2, 0.7), density(-0.1, 0.9)
    np.testing.assert_allclose(_bound.gaussian_kl(0.2, 0.7, -0.1, 0.9), np.trapezoid(p * np.log(p / q), z), rtol=1e-8)


# The bound of the exact denoiser


def closed_form(schedule, times, v):
    """(prior, steps, decoder) in nats, expected over noise and data N(M, V), for the exact denoiser."""
    alpha, sigma, log_snr = (np.asarray(u) for u in schedule(jnp.asarray(times)))
    snr, error = np.exp(log_snr), V * sigma**2 / (alpha**2 * V + sigma**2)  # E (x0 - x0_hat)^2
    prior = snr[0] * (M**2 + V) / 2
    log_r = -v * np.log(sigma[:-1] / sigma[1:])
    steps = -log_r + np.expm1(2 * log_r) / 2 + np.exp(2 * log_r) * (snr[1:] - snr[:-1]) * error[:-1] / 2
    std_large = sigma[-1] / alpha[-1]
    std = std_large * np.sqrt(-np.expm1(log_snr[-2] - log_snr[-1])) ** (1 - v)
    return prior, steps, error[-1] / (2 * std**2) + np.log(std) + 0.5 * np.log(2 * np.pi)


def quadrature(monkeypatch, count=12):
    """(x0 (B, 1), weights (B,)): Gauss-Hermite quadrature over data and noise; its nodes replace each draw of noise."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    z, eps = (u.ravel() for u in np.meshgrid(nodes, nodes, indexing="ij"))
    monkeypatch.setattr(diffax.random, "noise", lambda key, like: jnp.asarray(eps)[:, None])
    return jnp.asarray(M + np.sqrt(V) * z)[:, None], np.outer(weights, weights).ravel() / weights.sum() ** 2


@pytest.mark.slow_cases("linear-small", "linear-large", "zero_terminal_snr-small", "zero_terminal_snr-large")
@pytest.mark.parametrize("variance", ["small", "large"])
@spread(SCHEDULES, FEW_SCHEDULES)
def test_every_term_equals_its_closed_form(name, variance, monkeypatch):
    schedule, times = SCHEDULES[name], np.linspace(0.95, 0.1, 12)
    x0, weights = quadrature(monkeypatch)
    bound = jax.jit(
        lambda x0: diffax.likelihood.variational_bound(
            KEY, schedule, ORACLE.denoiser(schedule), x0, times, variance=variance
        )
    )(x0)
    prior, steps, decoder = closed_form(schedule, times, {"small": 0.0, "large": 1.0}[variance])
    np.testing.assert_allclose(bound.prior @ weights, prior, rtol=1e-8)
    np.testing.assert_allclose(bound.steps @ weights, steps, rtol=1e-7)
    np.testing.assert_allclose(bound.decoder @ weights, decoder, rtol=1e-8)
    np.testing.assert_allclose(bound.total, bound.prior + bound.steps.sum(0) + bound.decoder, rtol=1e-12)


def test_a_wrong_denoiser_does_not_give_the_closed_form(monkeypatch):
    """Negative control: x0 is 5 % too large."""
    x0, weights = quadrature(monkeypatch)
    schedule, times = diffax.Cosine(), np.linspace(0.95, 0.1, 12)
    wrong = diffax.likelihood.variational_bound(
        KEY, schedule, lambda x, t: 1.05 * ORACLE.denoise(x, schedule(t)), x0, times
    )
    assert np.abs(np.asarray(wrong.steps @ weights) / closed_form(schedule, times, 0.0)[1] - 1).min() > 1e-3


@pytest.mark.slow_cases(but=["edm"])
@pytest.mark.parametrize("name", ["linear", "cosine", "flow", "edm"])
def test_the_bound_falls_to_continuous_time_and_stays_above_the_entropy(name, monkeypatch):
    """It converges at order 1 from above, and no bound is below the entropy of the data distribution."""
    schedule, (t_max, t_min) = SCHEDULES[name], (0.95, 0.1)
    entropy = 0.5 * math.log(2 * math.pi * math.e * V)
    totals = []
    for n in (20, 40, 80, 160):
        prior, steps, decoder = closed_form(schedule, np.linspace(t_max, t_min, n + 1), 1.0)
        totals.append(prior + steps.sum() + decoder)
        assert totals[-1] > entropy
    x0, weights = quadrature(monkeypatch)
    t, dt = np.polynomial.legendre.leggauss(40)
    t = t_min + (t_max - t_min) * (t + 1) / 2
    run = jax.jit(jax.vmap(lambda t: diffax.likelihood.continuous_bound(
        KEY, schedule, ORACLE.denoiser(schedule), x0, jnp.full(len(x0), t), t_max=t_max, t_min=t_min
    )))  # fmt: skip
    terms = run(jnp.asarray(t))
    limit = np.asarray(terms.total @ weights) @ dt / 2
    # The steps of the large variance also add the divergence of the two variances, so compare those of the small one.
    small = []
    for n in (20, 40, 80, 160):
        prior, steps, _ = closed_form(schedule, np.linspace(t_max, t_min, n + 1), 0.0)
        small.append(prior + steps.sum() + float(np.asarray(terms.decoder @ weights)[0]))
    gaps = np.array(small) - limit
    assert (gaps > 0).all()
    np.testing.assert_allclose(np.log2(gaps[-2] / gaps[-1]), 1, atol=0.1)
    assert limit > entropy


@pytest.mark.slow
@pytest.mark.parametrize("schedule", [diffax.Linear(), pytest.param(diffax.EDM(), marks=pytest.mark.slow),
                                      pytest.param(diffax.Flow(), marks=pytest.mark.slow)])  # fmt: skip
def test_the_bound_is_above_the_exact_negative_log_likelihood_of_a_mixture(schedule):
    """For each variance and grid the mean gap over 4,000 points is above three standard errors."""
    data = mixture()
    x0 = data.sample(KEY, 4000)
    exact = -np.asarray(data.log_prob(x0))
    moments = lambda x, t: diffax.Moments(data.denoise(x, schedule(t)), 0.5 + 0.3 * jnp.sin(x))

    for variance in ("small", "large", "learned"):
        for n in (5, 40):
            times = diffax.times.uniform_log_snr(schedule, n, t_max=1.0, t_min=0.01)
            bound = diffax.likelihood.variational_bound(KEY, schedule, moments, x0, times, variance=variance)
            gap = np.asarray(bound.total) - exact
            assert gap.mean() > 3 * gap.std() / np.sqrt(len(gap))


@pytest.mark.slow_cases("small")
@pytest.mark.parametrize("variance", ["small", "large"])
def test_a_repeated_last_time_adds_nothing(variance):
    """Bound and gradient stay finite. Times beyond the clip of the schedule share one level, so they repeat it too."""
    x0 = jnp.linspace(-1, 1, 6)[:, None]
    run = lambda scale, times: diffax.likelihood.variational_bound(
        KEY, COSINE, lambda x, t: scale * x, x0, np.array(times), variance=variance
    )
    plain, repeated = run(0.5, [0.9, 0.5, 0.1]), run(0.5, [0.9, 0.5, 0.1, 0.1])
    np.testing.assert_allclose(repeated.steps[:2], plain.steps, rtol=1e-12)
    np.testing.assert_array_equal(repeated.steps[2], 0)
    np.testing.assert_allclose(repeated.decoder, plain.decoder, rtol=1e-12)
    for times in ([0.9, 0.1, 0.1], [0.9, 0.5, 1e-5, 0.0]):
        assert np.isfinite(jax.grad(lambda scale, times=times: run(scale, times).total.mean())(0.5))


# The decoder


def test_the_probabilities_of_a_lattice_are_precise_and_sum_to_one():
    lattice = jnp.linspace(-1, 1, 17)
    for mean, std in ((0.0, 0.01), (0.93, 0.3), (-3.0, 0.2), (0.1, 5.0)):
        log_p = _bound.decoder_log_prob(lattice, mean, std, Lattice(2 / 16))
        assert np.isfinite(log_p).all()
        np.testing.assert_allclose(np.exp(log_p).sum(), 1, rtol=1e-9)
    log_p_centre = _bound.decoder_log_prob(lattice[8:9], 0.013, 0.02, Lattice(2 / 16))
    phi = lambda u: 0.5 * (1 + math.erf(u / math.sqrt(2)))
    np.testing.assert_allclose(
        np.exp(log_p_centre[0]), phi((0.0625 - 0.013) / 0.02) - phi((-0.0625 - 0.013) / 0.02), rtol=1e-9
    )
    slope = jax.grad(lambda m: _bound.decoder_log_prob(lattice, m, 1e-3, Lattice(2 / 16)).sum())(0.3)
    assert np.isfinite(slope)


def test_the_probabilities_of_a_fine_lattice_are_a_density():
    x0, bin_width = jnp.array([0.25, -0.5]), 1e-4
    log_p = _bound.decoder_log_prob(x0, 0.2, 0.3, Lattice(bin_width))
    np.testing.assert_allclose(log_p - np.log(bin_width), _bound.decoder_log_prob(x0, 0.2, 0.3), rtol=1e-5)


# Learned variance


@pytest.mark.slow
def test_ddpm_with_learned_variance_is_between_the_fixed_ones():
    """On a strided grid v = 0 is the small variance and v = 1 the large one; each dimension has its own v."""
    schedule, times = diffax.from_betas(BETAS), diffax.times.leading(diffax.from_betas(BETAS), 7)
    x, denoise = jnp.ones((3, 2)), mixture().denoiser(schedule)
    run = lambda sampler, denoise: diffax.integrate(KEY, sampler, denoise, x, times).x
    learned = diffax.ddpm(schedule, variance="learned")
    for v, variance in ((0.0, "small"), (1.0, "large")):
        moments = lambda x, t, v=v: Moments(denoise(x, t), jnp.full_like(x, v))
        np.testing.assert_allclose(
            run(learned, moments), run(diffax.ddpm(schedule, variance=variance), denoise), rtol=1e-10
        )
    state = learned.init(x, times)
    half = learned.step(KEY, lambda x, t: Moments(0 * x, jnp.array([0.0, 1.0]) + 0 * x), state, times[2], times[3])
    fixed = [
        diffax.ddpm(schedule, variance=v).step(KEY, lambda x, t: 0 * x, state, times[2], times[3])
        for v in ("small", "large")
    ]
    np.testing.assert_allclose(half.x, jnp.stack([fixed[0].x[:, 0], fixed[1].x[:, 1]], 1), rtol=1e-10)


def test_the_variance_that_minimises_the_bound_is_the_exact_one():
    """At t with data N(M, V), p(x_s | x_t) is Gaussian: the best v gives its variance (Bao et al. 2022, theorem 1)."""
    schedule, t, s = diffax.Cosine(), 0.6, 0.4
    rng = np.random.default_rng(0)
    x0 = jnp.asarray(M + np.sqrt(V) * rng.normal(size=(200_000, 1)))
    x = diffax.diffuse(schedule, x0, jnp.asarray(rng.normal(size=x0.shape)), t)
    x0_hat = ORACLE.denoise(x, schedule(t))

    def bound(v):
        return _bound.step_term(schedule, lambda x, t: Moments(x0_hat, 0 * x + v), x0, x, t, s, "learned").mean()

    v = 0.5
    for _ in range(20):  # Newton's method
        v = v - jax.grad(bound)(v) / jax.grad(jax.grad(bound))(v)
    level_t, level_s = schedule(t), schedule(s)
    _, std = diffax.likelihood.forward_posterior(schedule, x0, x, t, s)
    h = level_t.log_snr - level_s.log_snr
    exact = std**2 + (level_s.alpha * jnp.expm1(h)) ** 2 * V * level_t.sigma**2 / (
        level_t.alpha**2 * V + level_t.sigma**2
    )
    np.testing.assert_allclose((std * (level_t.sigma / level_s.sigma) ** v) ** 2, exact, rtol=5e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("one_stream")
def test_the_hybrid_loss_is_simple_plus_vlb_and_vlb_trains_only_the_variance():
    """L_simple + 0.001 L_vlb (Nichol & Dhariwal 2021); the gradient of L_vlb does not reach the mean."""
    schedule, steps = diffax.from_betas(diffax.schedules.linear_betas(100, beta_end=0.2)), 100
    x0, t = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4))), jnp.array([1, 2, 10, 50, 99, 100]) / steps

    def loss(a, b, weight=0.001):
        predict = lambda x, t: Moments(a * x, jnp.sin(x) + b)
        return diffax.losses.hybrid_loss(KEY, predict, schedule, "eps", x0, t, num_steps=steps, weight=weight)

    simple = diffax.denoising_loss(KEY, lambda x, t: 0.3 * x, schedule, "eps", x0, t)
    np.testing.assert_allclose(loss(0.3, 0.1, 0.0), simple, rtol=1e-10)
    eps = diffax.random.noise(KEY, x0)
    x = diffax.diffuse(schedule, x0, eps, t)
    denoise = diffax.denoiser(lambda x, t: Moments(0.3 * x, jnp.sin(x) + 0.1), schedule, "eps")
    term = _bound.step_term(schedule, denoise, x0, x, t, t - 1 / steps, "learned")
    expected = simple + 0.001 * steps * term / (4 * np.log(2))
    np.testing.assert_allclose(loss(0.3, 0.1)[1:], expected[1:], rtol=1e-9)
    assert loss(0.3, 0.1)[0] != simple[0]  # the step to t = 0 is the decoder's term
    mean_slope, variance_slope = jax.jacobian(loss, (0, 1))(0.3, 0.1)
    np.testing.assert_allclose(mean_slope, jax.jacobian(lambda a: loss(a, 0.1, 0.0))(0.3), rtol=1e-9)
    assert (np.abs(variance_slope) > 0).all()


def test_guidance_changes_x0_only():
    moments = lambda scale: lambda x, t: Moments(scale * x, 0 * x + scale)
    guided = diffax.denoisers.on_x0(lambda c, u: diffax.classifier_free_guidance(c, u, 3.0), moments(2.0), moments(1.0))
    result = guided(jnp.ones((1, 2)), 0.5)
    np.testing.assert_allclose(result.x0, 4.0)
    np.testing.assert_allclose(result.v, 2.0)
    x = jnp.ones((2, 2))
    times = diffax.times.uniform(diffax.Cosine(), 4, t_max=1.0, t_min=1e-3)
    ends = [diffax.sample(KEY, diffax.ddim(diffax.Cosine()), d, x, times) for d in (
        diffax.denoisers.mean_only(moments(0.5)), lambda x, t: 0.5 * x,
    )]  # fmt: skip
    np.testing.assert_array_equal(*ends)


def plain(x, t):
    return 0.5 * x


X0, COSINE, HALF = jnp.ones((2, 1)), diffax.Cosine(), jnp.ones(2) / 2
FALLING = np.array([0.9, 0.1])


@pytest.mark.slow_cases("<lambda>-x0 must be in \\\\[-1.0, 1.0\\\\], got 200.0")
@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: diffax.likelihood.variational_bound(KEY, COSINE, plain, X0, FALLING, variance="beta"),
         "variance must be one of small, large, learned, got 'beta'"),
        (lambda: diffax.likelihood.variational_bound(KEY, COSINE, plain, X0, FALLING[::-1]),
         r"times must have shape \(n,\) with n >= 2 and must not increase, got \[0.1 0.9\]"),
        (lambda: diffax.likelihood.variational_bound(KEY, COSINE, plain, X0, FALLING, variance="learned"),
         r"denoise must return Moments\(x0, v\) for a learned variance, got"),
        (lambda: diffax.likelihood.variational_bound(KEY, COSINE, plain, X0, FALLING, lattice=Lattice(0.0)),
         "bin_width must be > 0, got 0.0"),
        (lambda: diffax.likelihood.variational_bound(KEY, COSINE, plain, 200 * X0, FALLING, lattice=Lattice(2 / 255)),
         r"x0 must be in \[-1.0, 1.0\], got 200.0"),
        (lambda: diffax.likelihood.dequantize(KEY, 1.5 * X0, Lattice(2 / 255)), r"x must be in \[-1.0, 1.0\], got 1.5"),
        (lambda: diffax.likelihood.dequantize(KEY, jnp.nan * X0, Lattice(1.0)), r"x must be in \[-1.0, 1.0\], got nan"),
        (lambda: Lattice(1.0, 3.0, 2.0), "high must be >= low = 3.0, got 2.0"),
        (lambda: diffax.likelihood.forward_posterior(COSINE, X0, X0, 0.2, 0.3), "s must be <= t = 0.2, got 0.3"),
        (lambda: _bound.step_term(COSINE, plain, X0, X0, 0.2, 0.3), "s must be <= t = 0.2, got 0.3"),
        (lambda: diffax.likelihood.continuous_bound(KEY, COSINE, plain, X0, HALF, t_max=0.4),
         r"t must be in \[t_min, t_max\] = \[0.001, 0.4\], got 0.5"),
        (lambda: diffax.integrate(KEY, diffax.ddpm(COSINE, variance="learned"), plain, X0, FALLING),
         r"denoise must return Moments\(x0, v\) for a learned variance, got"),
        (lambda: diffax.likelihood.continuous_bound(KEY, COSINE, plain, X0, HALF, t_max=0.1, t_min=0.2),
         "t_max must be > t_min = 0.2, got 0.1"),
        (lambda: diffax.losses.hybrid_loss(KEY, plain, COSINE, "eps", X0, HALF, num_steps=10),
         r"denoise must return Moments\(x0, v\) for a learned variance, got"),
        (lambda: diffax.losses.hybrid_loss(KEY, plain, COSINE, "eps", X0, HALF, num_steps=1),
         "num_steps must be an int >= 2, got 1"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(run, message):
    with pytest.raises(ValueError, match=message):
        run()
