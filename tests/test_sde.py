"""The SDE of a schedule: textbook coefficients, and the exact distributions that its solvers produce."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exam import SCHEDULES, EndDistribution, end_distribution
from scipy.interpolate import CubicSpline
from test_laws import check_limit

import diffax
from diffax import analytic, samplers, sde

pytestmark = pytest.mark.usefixtures("x64")
KEY = jax.random.key(0)
T = np.linspace(0.05, 0.95, 19)
MEAN, VARIANCE = 0.7, 0.25


def oracle():
    return analytic.Gaussian.from_covariance(np.array([MEAN]), VARIANCE)


# Coefficients


def beta(t):
    return 0.1 + 19.9 * t


def integral(t):
    return 0.1 * t + 19.9 * t**2 / 2


TEXTBOOK = {  # name: (f, g^2)
    "linear": (lambda t: -beta(t) / 2, beta),
    "sub_vp": (lambda t: -beta(t) / 2, lambda t: beta(t) * -np.expm1(-2 * integral(t))),
    "log_linear": (lambda t: 0 * t, lambda t: 2 * np.log(80 / 0.002) * (0.002 * (80 / 0.002) ** t) ** 2),
    "flow": (lambda t: -1 / (1 - t), lambda t: 2 * t / (1 - t)),
    "cosine": (lambda t: -np.pi / 2 * np.tan(np.pi * t / 2), lambda t: np.pi * np.tan(np.pi * t / 2)),
}


@pytest.mark.slow_cases("linear")
@pytest.mark.parametrize("name", TEXTBOOK)
def test_coefficients_are_those_of_the_textbook(name):
    coefficients = sde.coefficients(SCHEDULES[name], T)
    for value, expected in zip(coefficients, TEXTBOOK[name], strict=True):
        np.testing.assert_allclose(value, expected(T), rtol=1e-9, atol=1e-12)


@pytest.mark.slow_cases("laplace-sub_vp", "linear_betas", "cosine_betas")
@pytest.mark.parametrize("name", SCHEDULES)
def test_coefficients_reproduce_the_slopes_of_alpha_and_sigma(name):
    """d alpha = f alpha dt and d sigma^2 = (2 f sigma^2 + g^2) dt, by central differences away from a table's nodes."""
    schedule, h = SCHEDULES[name], 1e-6
    t = T + 0.00031
    (f, g2), level = sde.coefficients(schedule, t), schedule(t)
    up, down = schedule(t + h), schedule(t - h)
    np.testing.assert_allclose((up.alpha - down.alpha) / (2 * h), f * level.alpha, rtol=1e-5, atol=1e-6)
    slope = (up.sigma**2 - down.sigma**2) / (2 * h)
    np.testing.assert_allclose(slope, 2 * f * level.sigma**2 + g2, rtol=1e-5, atol=1e-6)


def test_the_score_is_that_of_the_oracle():
    schedule, x = SCHEDULES["flow"], jnp.linspace(-2, 2, 5)[:, None]
    np.testing.assert_allclose(
        sde.score(oracle().denoiser(schedule), schedule, x, 0.4), oracle().score(x, schedule(0.4))
    )


# Distributions on Gaussian data


def affine_drift(schedule, t, eta, sign):
    """(slope, offset) of f x - (1 + sign eta^2) / 2 g^2 score(x) for N(MEAN, VARIANCE), and g^2."""
    (f, g2), level = sde.coefficients(schedule, t), schedule(t)
    c = level.alpha**2 * VARIANCE + level.sigma**2
    k = (1 + sign * eta**2) / 2 * g2 / c
    return f + k, -k * level.alpha * MEAN, g2


def by_hand(schedule, times, eta, heun):
    offset, slope, variance = 0.0, 1.0, 0.0
    for t, s in itertools.pairwise(times):
        h = s - t
        sign = 1 if h < 0 else -1
        a, b, g2 = affine_drift(schedule, t, eta, sign)
        if heun:
            a_s, b_s, g2_s = affine_drift(schedule, s, eta, sign)
            # x' = (1 + h a) x + h b + w;  x_s = x + h / 2 (a x + b + a_s x' + b_s) + w
            step = 1 + h / 2 * (a + a_s * (1 + h * a))
            shift = h / 2 * (b + b_s + a_s * h * b)
            added = (1 + h / 2 * a_s) ** 2 * eta**2 * abs(h) * (g2 + g2_s) / 2
        else:
            step, shift, added = 1 + h * a, h * b, eta**2 * abs(h) * g2
        offset, slope, variance = step * offset + shift, step * slope, step**2 * variance + added
    return EndDistribution(offset, slope, variance)


@pytest.mark.slow_cases(but=["edm-euler_maruyama"])
@pytest.mark.parametrize("make", [samplers.euler_maruyama, samplers.stochastic_heun])
@pytest.mark.parametrize("name", ["linear", "sub_vp", "flow", "edm"])
def test_solvers_follow_the_recursion_of_their_scheme(name, make):
    """On falling and on rising grids."""
    schedule = SCHEDULES[name]
    for times in (np.array([0.8, 0.7, 0.55, 0.4, 0.3]), np.array([0.2, 0.3, 0.5, 0.6])):
        result = end_distribution(make(schedule, eta=0.7), oracle().denoiser(schedule), times)
        np.testing.assert_allclose(result, by_hand(schedule, times, 0.7, make is samplers.stochastic_heun), rtol=1e-9)


@pytest.mark.slow_cases(
    "linear-euler_maruyama-0.6",
    "linear-stochastic_heun-0.6",
    "sub_vp-euler_maruyama-0.6",
    "sub_vp-stochastic_heun-0.6",
    "edm-euler_maruyama-0.6",
    "edm-stochastic_heun-0.6",
)
@pytest.mark.parametrize("eta", [0.6, *(pytest.param(eta, marks=pytest.mark.slow) for eta in (0.0, 1.0))])
@pytest.mark.parametrize("make", [samplers.euler_maruyama, samplers.stochastic_heun])
@pytest.mark.parametrize("name", ["linear", "sub_vp", "flow", "edm"])
def test_marginals_converge_at_the_claimed_order(name, make, eta):
    check_limit(make(SCHEDULES[name], eta=eta), SCHEDULES[name], t_max=0.8, steps=(200, 400))


def test_noise_that_is_5_percent_too_strong_is_detected(monkeypatch):
    """Negative control: g^2 is 5 % too large."""
    schedule = SCHEDULES["linear"]
    exact = diffax.samplers._sde.coefficients
    wrong = lambda schedule, t: exact(schedule, t)._replace(diffusion2=1.05 * exact(schedule, t).diffusion2)
    monkeypatch.setattr(diffax.samplers._sde, "coefficients", wrong)
    with pytest.raises(AssertionError, match="in distribution, measured"):
        check_limit(samplers.stochastic_heun(schedule), schedule, t_max=0.8, steps=(200, 400))


@pytest.mark.slow_cases(but=["log_linear"])
@pytest.mark.parametrize("name", ["linear", "sub_vp", "log_linear", "flow"])
def test_a_rising_grid_simulates_the_forward_sde(name):
    """Mean and variance converge to those of q(x_t | x_s) at order 1 and 2, for any denoiser."""
    schedule, s, t = SCHEDULES[name], 0.1, 0.7
    scale, std = diffax.schedules.transition(schedule, t, s)
    for make, order in ((samplers.euler_maruyama, 1), (samplers.stochastic_heun, 2)):
        errors = []
        for n in (100, 200):
            result = end_distribution(make(schedule), lambda x, t: 0 * x + 9.0, np.linspace(s, t, n + 1))
            assert abs(result.offset) < 1e-9
            errors.append(max(abs(result.slope / scale - 1), abs(result.variance / std**2 - 1)))
        assert abs(np.log2(errors[0] / errors[1]) - order) < 0.2


def test_eta_may_be_traced_and_bad_values_raise():
    schedule, x = SCHEDULES["linear"], jnp.ones((3, 1))

    def total(make, eta):
        sampler = make(schedule, eta=eta)
        return diffax.integrate(KEY, sampler, oracle().denoiser(schedule), x, jnp.linspace(0.8, 0.2, 5)).x.sum()

    for make in (samplers.euler_maruyama, samplers.stochastic_heun):
        slopes = jax.vmap(jax.grad(lambda eta, make=make: total(make, eta)))(jnp.array([0.0, 0.5, 1.0]))
        assert np.isfinite(slopes).all()
        with pytest.raises(ValueError, match=r"eta must be in \[0, 1\], got 1.5"):
            make(schedule, eta=1.5)


# Densities on a mixture in one dimension, propagated step by step. There is no Monte Carlo error, so the order of the
# bias can be measured.


def mixture_1d():
    return analytic.Mixture(np.array([0.25, 0.75]), np.array([[-1.2], [0.9]]), 0.25)


GRID = np.linspace(-4.5, 4.5, 601)


def propagate(sampler, schedule, times, density):
    """The density on GRID at the end of the grid. Each step is x -> F(x) + b z; F and b follow from z = 0 and z = 1."""
    denoise = mixture_1d().denoiser(schedule)
    x = jnp.asarray(GRID)[:, None]

    @jax.jit
    def move(t, s):
        parts = []
        for z in (0.0, 1.0):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(diffax.random, "noise", lambda key, like, z=z: z + 0 * like)
                parts.append(sampler.step(KEY, denoise, sampler.init(x, jnp.stack([t, s])), t, s).x[:, 0])
        return parts

    dx, kernels = GRID[1] - GRID[0], {}
    for pair in itertools.pairwise(times):
        if pair not in kernels:
            mean, shifted = (np.asarray(v) for v in move(*jnp.asarray(pair)))
            std = (shifted - mean)[0]
            kernel = np.exp(-0.5 * ((GRID[:, None] - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))
            kernels = {pair: kernel * dx}  # keep the last kernel only: repeated levels need it again
        density = kernels[pair] @ density
    return density / (density.sum() * dx)


def moments_and_weight(density):
    """Mean, variance and weight of the upper mode."""
    dx = GRID[1] - GRID[0]
    mean = (GRID * density).sum() * dx
    return np.array([mean, ((GRID - mean) ** 2 * density).sum() * dx, density[GRID > 0].sum() * dx])


def exact_density(schedule, t):
    return np.exp(np.asarray(mixture_1d().log_prob(GRID[:, None], schedule(t))))


@pytest.mark.slow
def test_the_reverse_sde_converges_to_the_mixture_at_order_1():
    """Bias of the mean, the variance and the weight of the upper mode."""
    schedule, (t, s) = SCHEDULES["linear"], (0.7, 0.12)
    exact_moments, errors = moments_and_weight(exact_density(schedule, s)), []
    for n in (100, 200, 400):
        times = diffax.times.uniform_log_snr(schedule, n + 1, t_max=t, t_min=s).tolist()
        moments = moments_and_weight(
            propagate(samplers.euler_maruyama(schedule), schedule, times, exact_density(schedule, t))
        )
        errors.append(np.abs(moments - exact_moments))
    print("bias of mean, variance, weight by number of steps:", *np.round(errors, 5))
    assert np.max(errors[-1]) < 0.01
    assert (np.abs(np.log2(np.max(errors[1]) / np.max(errors[2])) - 1) < 0.2).all()


def expectations(sampler, schedule, times, start):
    """E f(x) at the end for f = x, x^2 and a smooth step, by the backward recursion u_t(x) = sum_j w_j u_s(F(x, z_j)).

    This also covers steps in which the noise enters the drift. start: the density at times[0].
    """
    denoise, (nodes, weights) = mixture_1d().denoiser(schedule), np.polynomial.hermite_e.hermegauss(9)
    x, dx = jnp.asarray(GRID)[:, None], GRID[1] - GRID[0]

    @jax.jit
    def move(t, s, z):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(diffax.random, "noise", lambda key, like: z + 0 * like)
            return sampler.step(KEY, denoise, sampler.init(x, jnp.stack([t, s])), t, s).x[:, 0]

    values = CubicSpline(GRID, np.stack([GRID, GRID**2, np.tanh(2 * GRID)], 1))
    for t, s in reversed(list(itertools.pairwise(jnp.asarray(times)))):
        ends = (np.asarray(move(t, s, z)) for z in nodes)
        values = CubicSpline(GRID, sum(w * values(end) for w, end in zip(weights, ends, strict=True)) / weights.sum())
    return (values(GRID) * start[:, None]).sum(0) * dx


def test_stochastic_heun_converges_to_the_mixture_at_order_2():
    """The noise of a step enters a drift that is not affine."""
    schedule, (t, s) = SCHEDULES["linear"], (0.7, 0.2)
    exact = (np.stack([GRID, GRID**2, np.tanh(2 * GRID)]) * exact_density(schedule, s)).sum(1) * (GRID[1] - GRID[0])
    errors = []
    for n in (30, 60):
        times = diffax.times.uniform_log_snr(schedule, n + 1, t_max=t, t_min=s)
        result = expectations(samplers.stochastic_heun(schedule), schedule, times, exact_density(schedule, t))
        errors.append(np.abs(result - exact))
    print("bias of x, x^2 and a smooth step by number of steps:", *np.round(errors, 6))
    assert abs(np.log2(np.max(errors[0]) / np.max(errors[1])) - 2) < 0.3


@pytest.mark.slow
def test_covariance_and_weights_are_exact_in_two_dimensions():
    """Monte Carlo with 40,000 paths of 150 steps: mean, covariance and weight of a mode. Prints errors in floors."""
    target = analytic.Mixture(np.array([0.3, 0.7]), np.array([[-1.0, 0.5], [0.8, -0.4]]), 0.1)
    schedule, (t, s), n = SCHEDULES["linear"], (0.7, 0.1), 40000

    def features(x):
        second = x[:, :, None] * x[:, None, :]
        return jnp.concatenate([x, second.reshape(len(x), 4), (x[:, :1] > 0).astype(float)], 1)

    exact = features(draw_marginal(target, schedule, s, 400000))
    times = diffax.times.uniform_log_snr(schedule, 151, t_max=t, t_min=s)
    for make in (samplers.euler_maruyama, samplers.stochastic_heun):
        run = jax.jit(lambda x, make=make: diffax.integrate(KEY, make(schedule), target.denoiser(schedule), x, times).x)
        result = features(run(draw_marginal(target, schedule, t, n)))
        floor = result.std(0) / np.sqrt(n)
        print("errors in Monte Carlo floors:", np.round((result.mean(0) - exact.mean(0)) / floor, 1))
        bias = 0.01 if make is samplers.euler_maruyama else 0.002  # bias of 150 steps, measured in one dimension
        assert (np.abs(result.mean(0) - exact.mean(0)) < 4 * floor + bias).all()


def draw_marginal(target, schedule, t, n):
    """n draws from the marginal distribution at time t."""
    x0 = target.sample(jax.random.key(1), n)
    return diffax.diffuse(schedule, x0, jax.random.normal(jax.random.key(2), x0.shape), t)


def test_annealed_langevin_has_a_bias_of_the_squared_step_size():
    """With many steps at each level only the bias O(k^2) remains; the module docstring of `langevin` derives it."""
    schedule, end = diffax.LogLinear(0.1, 3.0), 0.25
    levels = np.linspace(0.75, end, 7)
    exact_moments, errors = moments_and_weight(exact_density(schedule, end)), []
    for k in (0.4, 0.2):
        times = np.repeat(levels, int(20 / k**2)).tolist()
        moments = moments_and_weight(
            propagate(
                samplers.annealed_langevin(schedule, step_size=k), schedule, times, exact_density(schedule, levels[0])
            )
        )
        errors.append(np.abs(moments - exact_moments))
    print("bias of mean, variance, weight for k = 0.4, 0.2:", *np.round(errors, 5))
    assert errors[1][1] < 0.02
    assert abs(np.log2(errors[0][1] / errors[1][1]) - 2) < 0.4
    assert errors[1][2] < 0.01


def test_annealed_langevin_at_one_level_is_unadjusted_langevin():
    """On a constant grid any start converges to the stationary distribution in the module docstring of `langevin`."""
    schedule, t, k = SCHEDULES["log_linear"], 0.6, 0.3
    c = VARIANCE + float(schedule(t).sigma) ** 2
    result = end_distribution(
        samplers.annealed_langevin(schedule, step_size=k), oracle().denoiser(schedule), np.full(400, t)
    )
    np.testing.assert_allclose(result.offset, MEAN, rtol=1e-9)
    np.testing.assert_allclose(result.slope, 0, atol=1e-9)
    np.testing.assert_allclose(result.variance, c / (1 - k**2 * float(schedule(t).sigma) ** 2 / c), rtol=1e-9)


def test_langevin_with_steps_by_signal_to_noise_ratio_has_the_exact_moment():
    """At one level in 64 dimensions E 1 / |x|^2 = 1 / (c (1 + r^2) (D + 2)), as test_correctors.py derives."""
    schedule, t, r, d = SCHEDULES["log_linear"], 0.6, 0.3, 64
    oracle = analytic.Gaussian.from_covariance(np.zeros(d), VARIANCE)
    c = VARIANCE + float(schedule(t).sigma) ** 2
    x = np.sqrt(c) * np.random.default_rng(0).normal(size=(2000, d))
    sampler = samplers.annealed_langevin(schedule, snr=r)
    end = jax.jit(lambda x: diffax.integrate(KEY, sampler, oracle.denoiser(schedule), x, jnp.full(120, t)).x)(x)
    inverse_squares, exact = 1 / np.sum(np.asarray(end) ** 2, 1), 1 / (c * (1 + r**2) * (d + 2))
    floor = inverse_squares.std() / np.sqrt(len(inverse_squares))
    print(f"E 1 / |x|^2: {inverse_squares.mean():.6f}, exactly {exact:.6f}, Monte Carlo floor {floor:.6f}")
    assert abs(inverse_squares.mean() - exact) < 4 * floor
    assert abs(exact * (1 + r**2) - exact) > 8 * floor  # the value without the factor 1 + r^2 would fail
    with pytest.raises(ValueError, match="exactly one of snr and step_size must be None"):
        samplers.annealed_langevin(schedule)
