"""Log-likelihood by the probability-flow ODE against exact densities."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exam import SCHEDULES, gaussian, mixture, spread

import diffax
from diffax import analytic, likelihood
from diffax.likelihood import adaptive
from diffax.likelihood._flow import PROBES
from diffax.schedules._scalings import SCALINGS

pytestmark = pytest.mark.usefixtures("x64")
KEY = jax.random.key(0)
FIRST, LAST = 0.05, 0.9


def gaussian_and_mixture(dimension):
    """(Gaussian with a full covariance, mixture of three Gaussians) of this dimension."""
    rng = np.random.default_rng(dimension)
    basis, _ = np.linalg.qr(rng.normal(size=(dimension, dimension)))
    normal = analytic.Gaussian(rng.normal(size=dimension), basis, np.linspace(0.05, 1.5, dimension))
    return normal, analytic.Mixture(
        np.array([0.2, 0.5, 0.3]), rng.normal(size=(3, dimension)), np.array([0.3, 0.2, 0.5])
    )


def data_at(data, schedule, t, n=6):
    """Draws of x_t, the data noised to time t."""
    x0 = data.sample(jax.random.key(1), n)
    return diffax.diffuse(schedule, x0, jax.random.normal(jax.random.key(2), x0.shape), t)


def log_likelihood(data, schedule, x, steps=400, key=KEY, **options):
    """`diffax.log_likelihood` with the exact denoiser and the exact density at the noise end."""
    times = diffax.times.uniform_log_snr(schedule, steps + 1, t_max=LAST, t_min=FIRST)[::-1]
    options = {"prior_log_prob": lambda x: data.log_prob(x, schedule(LAST)), "divergence": "exact", **options}
    return diffax.log_likelihood(key, schedule, data.denoiser(schedule), x, times, **options)


@pytest.mark.slow_cases("linear")
@spread(SCHEDULES, ("linear", "flow"))
def test_the_likelihood_is_the_exact_density(name):
    """To 1e-4 nats a dimension on a grid, at order 2; to 1e-5 with the adaptive solver."""
    schedule = SCHEDULES[name]
    for data in (gaussian(), mixture()):
        x = data_at(data, schedule, FIRST)
        exact = data.log_prob(x, schedule(FIRST))

        @jax.jit
        def both(x, data=data):
            on_grids = [log_likelihood(data, schedule, x, n).log_prob for n in (400, 800)]
            return on_grids, log_likelihood(data, schedule, x, solve=adaptive.solver(rtol=1e-7, atol=1e-7))

        (coarse, fine), solved = both(x)
        errors = [np.abs(v - exact).max() / 2 for v in (coarse, fine, solved.log_prob)]
        assert errors[1] < 1e-4
        assert errors[2] < 1e-5
        assert 1.8 < np.log2(errors[0] / errors[1]) < 2.2
        assert solved.converged.all()
        assert 2 < int(solved.steps) < 200


EASY = [("cosine", d) for d in (1, 64)]
REST = [(n, d) for n in [*SCHEDULES, *(f"learned-{v}" for v in SCALINGS)] for d in (1, 2, 16, 64) if (n, d) not in EASY]


def schedule_of(name):
    """The schedule of this name in the exam, or a learned one in the scaling after `learned-`."""
    if not name.startswith("learned-"):
        return SCHEDULES[name]
    scaling = name.removeprefix("learned-")
    learned = diffax.Learned.init(KEY, log_snr_max=9.0, log_snr_min=-7.0, units=8, scaling=scaling)
    return jax.tree.map(lambda v: v.astype(jnp.float64), learned)


@pytest.mark.slow_cases("cosine-64")
@pytest.mark.parametrize(
    ("name", "dimension"), [*EASY, *(pytest.param(*case, marks=pytest.mark.slow) for case in REST)]
)
def test_the_likelihood_is_exact_in_any_dimension_on_any_schedule(name, dimension):
    """To 1e-4 nats a dimension on a grid, to 1e-5 with the adaptive solver."""
    schedule = schedule_of(name)
    for data in gaussian_and_mixture(dimension):
        x = data_at(data, schedule, FIRST, 3)
        exact = data.log_prob(x, schedule(FIRST))
        solve = adaptive.solver(rtol=1e-7, atol=1e-7)

        @jax.jit
        def both(x, data=data, solve=solve):
            return log_likelihood(data, schedule, x, 800), log_likelihood(data, schedule, x, solve=solve)

        for result, tolerance in zip(both(x), (1e-4, 1e-5), strict=True):
            assert np.abs(result.log_prob - exact).max() / dimension < tolerance
            np.testing.assert_array_equal(result.stderr, 0)


@pytest.mark.slow_cases("rademacher")
@pytest.mark.parametrize("probe_distribution", PROBES)
def test_hutchinson_is_exact_within_its_standard_error(probe_distribution):
    """In 16 dimensions, for both distributions of probes; the reported standard error is that of the estimates."""
    schedule, data = SCHEDULES["linear"], gaussian_and_mixture(16)[1]
    x = data_at(data, schedule, FIRST, 4)
    exact = np.asarray(jax.jit(lambda x: log_likelihood(data, schedule, x).log_prob)(x))

    @jax.jit
    @jax.vmap
    def estimates(key):
        result = log_likelihood(
            data, schedule, x, key=key, divergence="hutchinson", probes=32, probe_distribution=probe_distribution
        )
        return result.log_prob, result.stderr

    values, stderrs = (np.asarray(v) for v in estimates(jax.random.split(KEY, 24)))
    assert np.abs(values.mean(0) - exact).max() < 3 * values.std(0).max() / np.sqrt(24)
    np.testing.assert_allclose(np.sqrt((stderrs**2).mean(0)), values.std(0), rtol=0.5)
    assert (np.abs(values - exact) < 3 * stderrs).mean() > 0.95


def test_one_probe_has_no_standard_error():
    schedule, data = SCHEDULES["linear"], mixture()
    result = log_likelihood(data, schedule, data_at(data, schedule, FIRST), 10, divergence="hutchinson")
    assert np.isnan(result.stderr).all()
    assert np.isfinite(result.log_prob).all()


def test_a_trace_that_is_a_tenth_too_small_fails_the_check(monkeypatch):
    """Negative control."""
    schedule, data = SCHEDULES["linear"], mixture()
    x = data_at(data, schedule, FIRST)
    exact_trace = diffax.likelihood._flow._exact_trace
    monkeypatch.setattr(diffax.likelihood._flow, "_exact_trace", lambda product, x: 0.9 * exact_trace(product, x))
    wrong = jax.jit(lambda x: log_likelihood(data, schedule, x).log_prob)(x)
    assert np.abs(wrong - data.log_prob(x, schedule(FIRST))).max() / 2 > 1e-2


@pytest.mark.slow
def test_a_denoiser_may_also_return_a_variance():
    schedule, data, x = SCHEDULES["linear"], gaussian(), jnp.ones((2, 2))
    with_variance = lambda x, t: diffax.Moments(data.denoise(x, schedule(t)), 0 * x)
    times = np.linspace(FIRST, LAST, 5)
    run = lambda denoise: diffax.log_likelihood(KEY, schedule, denoise, x, times).log_prob
    np.testing.assert_array_equal(run(with_variance), run(data.denoiser(schedule)))
    flow = lambda denoise: adaptive.solve_and_denoise(schedule, denoise, x, (LAST, FIRST)).x
    np.testing.assert_array_equal(flow(with_variance), flow(data.denoiser(schedule)))


def test_a_tree_has_the_joint_density_of_its_leaves():
    schedule, data = SCHEDULES["flow"], gaussian_and_mixture(16)[0]
    x = data_at(data, schedule, FIRST, 3)
    split = lambda x: {"a": x[:, :6].reshape(-1, 2, 3), "b": x[:, 6:]}
    join = lambda tree: jnp.concatenate([tree["a"].reshape(-1, 6), tree["b"]], 1)
    denoise = lambda tree, t: split(data.denoise(join(tree), schedule(t)))
    times = diffax.times.uniform_log_snr(schedule, 21, t_max=LAST, t_min=FIRST)[::-1]
    run = lambda denoise, x: diffax.log_likelihood(KEY, schedule, denoise, x, times, divergence="exact").log_prob
    np.testing.assert_allclose(run(denoise, split(x)), run(data.denoiser(schedule), x), rtol=1e-10)


def test_the_default_prior_errs_by_its_kl_divergence():
    """Averaged over data, log_prob is too small by KL(p_T || N(0, sigma^2 I)), at most SNR E|x0|^2 / 2."""
    schedule, end = diffax.Linear(), 0.5
    mean = np.array([1.5, -1.0])
    data = analytic.Gaussian.from_covariance(mean, 0.5)
    x = data_at(data, schedule, FIRST, 4000)
    times = diffax.times.uniform_log_snr(schedule, 61, t_max=end, t_min=FIRST)[::-1]

    @jax.jit
    def run(x):
        options = {"divergence": "exact"}
        exact = lambda x: data.log_prob(x, schedule(end))
        results = [
            diffax.log_likelihood(KEY, schedule, data.denoiser(schedule), x, times, prior_log_prob=prior, **options)
            for prior in (exact, None)
        ]
        return results[0].log_prob - results[1].log_prob

    gap, (alpha, sigma, log_snr) = np.asarray(run(x)), schedule(end)
    ratio = float(0.5 * alpha**2 / sigma**2 + 1)
    divergence = float((2 * (ratio - 1 - np.log(ratio)) + np.sum((alpha * mean / sigma) ** 2)) / 2)
    standard_error = gap.std() / np.sqrt(len(gap))
    assert divergence > 10 * standard_error
    assert abs(gap.mean() - divergence) < 4 * standard_error
    assert divergence < float(jnp.exp(log_snr)) * float(np.sum(mean**2) + 1.0) / 2


@pytest.mark.slow
def test_the_likelihood_is_traced_and_differentiated():
    """One compilation serves all schedules and grids; gradients equal differences, and with a solver the exact ones."""
    data, traces = mixture(), []
    x = data_at(data, diffax.Linear(), FIRST, 3)

    def total(beta_max, x, last, solve=None):
        traces.append(1)
        schedule = diffax.Linear(beta_max=beta_max)
        times = jnp.linspace(FIRST, last, 20)
        prior = lambda x: data.log_prob(x, schedule(last))
        result = diffax.log_likelihood(
            KEY, schedule, data.denoiser(schedule), x, times, prior_log_prob=prior, divergence="exact", solve=solve
        )
        return result.log_prob.sum()

    grads = jax.jit(jax.vmap(jax.value_and_grad(total, (0, 1, 2)), (0, None, 0)))
    values, slopes = grads(jnp.array([15.0, 20.0, 20.0 + 1e-4, 20.0 - 1e-4]), x, jnp.linspace(0.8, 0.8, 4))
    assert all(np.isfinite(v).all() for v in jax.tree.leaves((values, slopes)))
    np.testing.assert_allclose(slopes[0][1], (values[2] - values[3]) / 2e-4, rtol=1e-5)
    grads(jnp.linspace(10.0, 25.0, 4), x + 1, jnp.linspace(0.7, 0.95, 4))
    assert len(traces) == 1
    exact = jax.grad(lambda x: data.log_prob(x, diffax.Linear()(FIRST)).sum())(x)
    for adjoint in (diffrax.RecursiveCheckpointAdjoint(), diffrax.BacksolveAdjoint()):
        solve = adaptive.solver(rtol=1e-8, atol=1e-8, adjoint=adjoint, max_steps=256)
        np.testing.assert_allclose(jax.jit(jax.grad(lambda x: total(20.0, x, 0.8, solve)))(x), exact, rtol=1e-4)  # noqa: B023


# The adaptive flow


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in SCHEDULES if name != "cosine-ve"]


@pytest.mark.parametrize("name", ["cosine-ve", *SLOW])
def test_the_adaptive_flow_is_exact_in_both_directions(name):
    schedule, data = SCHEDULES[name], gaussian()
    x = data_at(data, schedule, LAST)
    down = adaptive.solve(schedule, data.denoiser(schedule), x, (LAST, FIRST), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(down.x, data.flow(x, schedule(LAST), schedule(FIRST)), rtol=1e-6, atol=1e-7)
    up = adaptive.solve(schedule, data.denoiser(schedule), down.x, (FIRST, LAST), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(up.x, x, rtol=1e-6, atol=1e-6)
    assert down.converged
    x0 = adaptive.solve_and_denoise(schedule, data.denoiser(schedule), x, (LAST, FIRST)).x
    np.testing.assert_allclose(x0, data.denoise(down.x, schedule(FIRST)), atol=1e-3)


@pytest.mark.slow
def test_parameters_get_the_same_gradient_by_both_adjoints():
    """The denoiser closes over its parameters, as the `predict` of a network does."""
    schedule, data, x = diffax.Cosine(), gaussian(), jnp.ones((2, 2))

    def total(scale, adjoint):
        denoise = lambda x, t: scale * data.denoise(x, schedule(t))
        options = {"rtol": 1e-9, "atol": 1e-9, "adjoint": adjoint}
        return jnp.sum(adaptive.solve(schedule, denoise, x, (0.9, 0.1), **options).x ** 2)

    slope = (total(0.9 + 1e-5, None) - total(0.9 - 1e-5, None)) / 2e-5
    for adjoint in (None, diffrax.BacksolveAdjoint()):
        np.testing.assert_allclose(jax.grad(total)(0.9, adjoint), slope, rtol=1e-5)


@pytest.mark.slow
def test_a_solve_without_convergence_raises_or_returns_nan():
    schedule, data = diffax.Cosine(), mixture()
    x = data_at(data, schedule, FIRST)
    with pytest.raises(Exception, match="maximum number of solver steps"):
        jax.block_until_ready(adaptive.solve(schedule, data.denoiser(schedule), x, (0.9, 0.1), max_steps=3).x)
    solved = adaptive.solve(schedule, data.denoiser(schedule), x, (0.9, 0.1), max_steps=3, throw=False)
    assert not solved.converged
    assert np.isnan(solved.x).all()
    result = log_likelihood(data, schedule, x, solve=adaptive.solver(max_steps=3, throw=False))
    assert not result.converged.any()
    assert np.isnan(result.log_prob).all()
    # On a grid a NaN of one example does not reach the others.
    broken = lambda x, t: data.denoise(x, schedule(t)) / jnp.where(jnp.arange(len(x)) == 1, 0.0, 1.0)[:, None]
    result = diffax.log_likelihood(KEY, schedule, broken, x, np.linspace(0.1, 0.9, 4), probes=2)
    assert result.converged.tolist() == [i != 1 for i in range(len(x))]
    np.testing.assert_array_equal(np.isnan(result.log_prob), ~result.converged)


@pytest.mark.slow
def test_the_error_of_an_example_does_not_depend_on_its_neighbours():
    """The solver controls the error of the worst example, so easy neighbours do not hide it."""
    schedule, data = diffax.Cosine(), mixture()
    hard = data_at(data, schedule, LAST, 1)
    crowd = jnp.concatenate([hard, jnp.zeros((63, 2))])
    run = lambda x: adaptive.solve(schedule, data.denoiser(schedule), x, (LAST, FIRST), rtol=1e-6, atol=1e-6).x[0]
    np.testing.assert_allclose(run(crowd), run(hard), atol=1e-5)
    hard = data_at(data, schedule, FIRST, 1)
    crowd = jnp.concatenate([hard, jnp.zeros((1023, 2))])
    solve = adaptive.solver(rtol=1e-5, atol=1e-5)
    errors = [
        abs(float(log_likelihood(data, schedule, x, solve=solve).log_prob[0] - data.log_prob(hard, schedule(FIRST))[0]))
        for x in (hard, crowd)
    ]
    assert max(errors) < 1e-4
    error = likelihood.Flow(jnp.array([[3.0, 4.0]]), jnp.array([[6.0]]))
    padded = jax.tree.map(lambda v: jnp.concatenate([v, jnp.zeros((1023, v.shape[1]))]), error)
    assert float(adaptive._worst(padded)) == float(adaptive._worst(error)) == 6


# Units


def test_bits_per_dimension_of_a_known_distribution():
    """Uniform on 4 of 17 levels: 2 bits in any units, since the dequantized density is 1 / (4 bin_width)."""
    for bin_width in (2 / 16, 1.0):
        log_density = -3 * np.log(4 * bin_width)
        np.testing.assert_allclose(diffax.likelihood.bits_per_dim(log_density, 3, bin_width=bin_width), 2.0, rtol=1e-12)
    x = diffax.likelihood.dequantize(KEY, jnp.zeros((1, 20000)), diffax.likelihood.Lattice(0.5))
    assert float(jnp.abs(x).max()) <= 0.25
    np.testing.assert_allclose([float(x.mean()), float(x.var())], [0, 0.25 / 12], atol=3e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"divergence": "trace"}, "divergence must be one of exact, hutchinson, got 'trace'"),
        ({"probe_distribution": "uniform"}, "probe_distribution must be one of rademacher, gaussian, got 'uniform'"),
        ({"probes": 0}, "probes must be an int >= 1, got 0"),
        ({"probes": 1.5}, "probes must be an int >= 1, got 1.5"),
        (
            {"times": np.array([0.9, 0.1])},
            r"times must have n >= 2 entries and increase from data to noise, got \[0.9, 0.1\]",
        ),
        ({"times": np.array([-0.1, 0.9])}, r"times must be in \[0, 1\], got -0.1"),
        (
            {"divergence": "exact", "x": jnp.zeros((1, 5000))},
            "x must have at most 4096 dimensions for divergence 'exact', got 5000",
        ),
    ],
)
def test_bad_input_is_refused(options, message):
    arguments = {"x": jnp.zeros((1, 2)), "times": np.array([0.1, 0.9]), **options}
    x, times = arguments.pop("x"), arguments.pop("times")
    with pytest.raises(ValueError, match=message):
        diffax.log_likelihood(KEY, diffax.Cosine(), lambda x, t: x, x, times, **arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rtol": 0.0}, "rtol must be > 0, got 0.0"),
        ({"atol": -1.0}, "atol must be > 0, got -1.0"),
        ({"max_steps": 0}, "max_steps must be an int >= 1, got 0"),
    ],
)
def test_bad_tolerances_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        adaptive.solver(**options)
    with pytest.raises(ValueError, match="times must have at least two entries, got 1"):
        adaptive.solve(diffax.Cosine(), lambda x, t: x, jnp.zeros((1, 2)), (0.5,))
    with pytest.raises(ValueError, match=r"times must be in \[0, 1\], got 1.9"):
        adaptive.solve(diffax.Cosine(), lambda x, t: x, jnp.zeros((1, 2)), (1.9, 0.1))
    for wrong in (0.0, -1.0):
        with pytest.raises(ValueError, match="bin_width must be > 0"):
            diffax.likelihood.Lattice(wrong)
