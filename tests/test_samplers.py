"""The samplers' exam on laws with a known answer."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exam import BETAS, ORACLES, SAMPLERS, SCHEDULES, START, affine, check_order, gaussian, measured_order

import diffax
from diffax import analytic
from diffax.predictions import KINDS
from diffax.samplers.base import State

pytestmark = [pytest.mark.usefixtures("x64")]

KEY = jax.random.key(0)
every_sampler = pytest.mark.parametrize("name", SAMPLERS)
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def build(name, schedule, **changes):
    make, values, _ = SAMPLERS[name]
    return make(schedule, **{**values, **changes})


# Convergence order


@pytest.mark.newest
@every_schedule
@pytest.mark.parametrize("oracle", ORACLES)
def test_deterministic_samplers_have_the_order_they_claim(schedule, oracle):
    for make, values, deterministic in SAMPLERS.values():
        if deterministic:
            check_order(make(schedule, **values), schedule, ORACLES[oracle]())


@every_sampler
@pytest.mark.parametrize("schedule", ["linear", "cosine", "flow", "log_linear", "linear-sub_vp"])
def test_stochastic_samplers_converge_in_law(name, schedule, monkeypatch):
    """Mean and covariance at the end approach the exact marginal with the claimed order, from the exact start."""
    schedule, oracle = SCHEDULES[schedule], gaussian()
    t_max, t_min, errors = 0.95, 0.1, []
    start, end = schedule(t_max), schedule(t_min)
    covariance = oracle.basis @ np.diag(oracle.variances) @ oracle.basis.T
    root = np.linalg.cholesky(start.alpha**2 * covariance + start.sigma**2 * np.eye(2))
    for n in (100, 200):
        times = diffax.times.uniform_log_snr(schedule, n + 1, t_max=t_max, t_min=t_min)
        run = lambda x: affine(build(name, schedule), oracle.denoiser(schedule), x[None], times, monkeypatch)  # noqa: B023
        mean, noise = run(start.alpha * jnp.asarray(oracle.mean))
        spread = jax.jacobian(lambda x, run=run: run(x)[0])(start.alpha * jnp.asarray(oracle.mean)) @ root
        mean_error = jnp.abs(mean - end.alpha * oracle.mean).max()
        exact = end.alpha**2 * covariance + end.sigma**2 * np.eye(2)
        errors.append(max(mean_error, jnp.abs(noise + spread @ spread.T - exact).max()))
    assert errors[-1] < 0.03
    assert abs(np.log2(errors[0] / errors[1]) - build(name, schedule).order) < 0.15, errors


# Exact results


@pytest.mark.parametrize("schedule", ["log_linear", "linear"])
def test_ddim_s_step_on_a_gaussian_is_known_in_closed_form(schedule):
    """In u = x / alpha: u' = m + (s^2 + rho rho') / (s^2 + rho^2) (u - m), rho = sigma / alpha."""
    schedule, (m, s) = SCHEDULES[schedule], (0.7, 0.5)
    oracle = analytic.Gaussian.from_covariance(np.array([m]), s**2)
    x = jnp.linspace(-2, 2, 7)[:, None]
    t, t_next = schedule(0.8), schedule(0.3)
    rho, rho_next = t.sigma / t.alpha, t_next.sigma / t_next.alpha
    state = diffax.integrate(KEY, diffax.ddim(schedule), oracle.denoiser(schedule), x, jnp.array([0.8, 0.3]))
    factor = (s**2 + rho * rho_next) / (s**2 + rho**2)
    np.testing.assert_allclose(state.x / t_next.alpha, m + factor * (x / t.alpha - m), rtol=1e-12)


@every_schedule
def test_ddim_is_exact_in_one_step_for_data_at_a_point(schedule):
    point, x = jnp.array([0.3, -0.8]), jnp.asarray(START)
    state = diffax.integrate(KEY, diffax.ddim(schedule), lambda x, t: 0 * x + point, x, jnp.array([0.9, 0.2]))
    t, s = schedule(0.9), schedule(0.2)
    np.testing.assert_allclose(state.x, s.alpha * point + s.sigma * (x - t.alpha * point) / t.sigma, rtol=1e-12)


def test_large_variance_is_exact_for_standard_normal_data(monkeypatch):
    schedule, x = diffax.Cosine(), jnp.zeros((1, 1))
    oracle = analytic.Gaussian.from_covariance(np.zeros(1), 1.0)
    sampler = diffax.ddpm(schedule, variance="large")
    times = jnp.array([0.9, 0.6, 0.2])
    run = lambda x: affine(sampler, oracle.denoiser(schedule), x, times, monkeypatch)
    slope = jax.jacobian(lambda x: run(x[None])[0])(x[0])
    np.testing.assert_allclose(run(x)[1] + slope @ slope.T, 1.0, rtol=1e-12)


# Laws of the paper


@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm_is_the_paper_s_recursion(variance, monkeypatch):
    """Ho et al. 2020, eq. 7 and 11, in betas: through 20 steps on Gaussian data N(0.7, 0.5^2)."""
    betas = np.linspace(0.01, 0.3, 20)
    schedule = diffax.from_betas(betas)
    times = (np.arange(20)[::-1] + 1) / 20
    oracle = analytic.Gaussian.from_covariance(np.array([0.7]), 0.25)
    sampler = diffax.ddpm(schedule, variance=variance)
    mean, covariance = affine(sampler, oracle.denoiser(schedule), jnp.array([[1.3]]), times, monkeypatch)

    alphas, bars = 1 - betas, np.cumprod(1 - betas)
    m, v = 1.3, 0.0
    for i in range(19, 0, -1):
        gain = np.sqrt(bars[i]) * 0.25 / (bars[i] * 0.25 + 1 - bars[i])
        x0_of_x, x0_const = gain, 0.7 - gain * np.sqrt(bars[i]) * 0.7
        of_x0 = np.sqrt(bars[i - 1]) * betas[i] / (1 - bars[i])
        of_x = np.sqrt(alphas[i]) * (1 - bars[i - 1]) / (1 - bars[i])
        beta_tilde = (1 - bars[i - 1]) / (1 - bars[i]) * betas[i]
        slope = of_x0 * x0_of_x + of_x
        m = slope * m + of_x0 * x0_const
        v = slope**2 * v + (beta_tilde if variance == "small" else betas[i])
    np.testing.assert_allclose(mean, [m], rtol=1e-9)
    np.testing.assert_allclose(covariance, [[v]], rtol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.35, 1.0])
def test_ddim_is_the_paper_s_equation_12(eta, monkeypatch):
    """Song, Meng & Ermon 2021, eq. 12 and 16, in alpha bar, over a strided grid of DDPM's table."""
    bars, steps = np.cumprod(1 - BETAS), [999, 700, 350, 40]
    oracle = analytic.Gaussian.from_covariance(np.array([0.7]), 0.25)
    schedule = diffax.from_betas(BETAS)
    times = (np.array(steps) + 1) / 1000
    mean, covariance = affine(
        diffax.ddim(schedule, eta=eta), oracle.denoiser(schedule), jnp.array([[1.3]]), times, monkeypatch
    )
    m, v = 1.3, 0.0
    for i, j in itertools.pairwise(steps):
        std = eta * np.sqrt((1 - bars[j]) / (1 - bars[i])) * np.sqrt(1 - bars[i] / bars[j])
        gain = np.sqrt(bars[i]) * 0.25 / (bars[i] * 0.25 + 1 - bars[i])

        def move(x):
            x0 = 0.7 + gain * (x - np.sqrt(bars[i]) * 0.7)  # noqa: B023
            eps = (x - np.sqrt(bars[i]) * x0) / np.sqrt(1 - bars[i])  # noqa: B023
            return np.sqrt(bars[j]) * x0 + np.sqrt(1 - bars[j] - std**2) * eps  # noqa: B023

        v = (move(1.0) - move(0.0)) ** 2 * v + std**2
        m = move(m)
    np.testing.assert_allclose(mean, [m], rtol=1e-9)
    np.testing.assert_allclose(covariance, [[v]], rtol=1e-8, atol=1e-15)


@every_schedule
def test_ddim_at_eta_1_is_ddpm(schedule):
    denoise, times = gaussian().denoiser(schedule), jnp.linspace(1.0, 0.0, 9)
    ends = [
        diffax.integrate(KEY, s, denoise, START, times).x
        for s in (diffax.ddpm(schedule), diffax.ddim(schedule, eta=1.0))
    ]
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-8)


def test_ddpm_towards_noise_is_the_forward_transition(monkeypatch):
    schedule, x = diffax.Linear(), jnp.array([[0.4]])
    mean, covariance = affine(
        diffax.ddpm(schedule), lambda x, t: 0 * x + 9.0, x, jnp.array([0.1, 0.3, 0.7]), monkeypatch
    )
    scale, std = diffax.transition(schedule, 0.7, 0.1)
    np.testing.assert_allclose(mean, scale * x[0], rtol=1e-12)
    np.testing.assert_allclose(covariance, [[std**2]], rtol=1e-12)


def test_ddim_inverts_over_the_reversed_grid():
    """There and back again: what is left shrinks with the order of the sampler, whatever eta says of noise."""
    schedule, oracle, x = diffax.Cosine(), gaussian(), jnp.asarray(START)
    errors = []
    for n in (50, 100):
        times = diffax.times.uniform_log_snr(schedule, n, t_max=0.9, t_min=0.05)
        for eta in (0.0, 0.7):
            up = diffax.integrate(KEY, diffax.ddim(schedule, eta=eta), oracle.denoiser(schedule), x, times[::-1]).x
            back = diffax.integrate(KEY, diffax.ddim(schedule), oracle.denoiser(schedule), up, times).x
            errors.append(float(jnp.abs(back - x).max()))
    assert errors[0] == errors[1]
    assert 0.8 < np.log2(errors[0] / errors[2]) < 1.3


# Transformations


@pytest.fixture(scope="module")
def endings():
    """The end of a run as a function of sampler parameters and grid, compiled once for each sampler."""

    def make(name):
        schedule, oracle = diffax.Linear(), gaussian()

        def end(values, times, key=KEY, x=START):
            sampler = build(name, schedule, **values)
            return diffax.sample(key, sampler, oracle.denoiser(schedule), jnp.asarray(x), times)

        return end

    return make


@every_sampler
def test_jit_equals_no_jit_and_compiles_once(name, endings):
    end, values = endings(name), SAMPLERS[name][1]
    traces = []

    @jax.jit
    def jitted(values, times):
        traces.append(name)
        return end(values, times)

    for t_min in (0.05, 0.02, 0.0):
        times = jnp.linspace(1.0, t_min, 8)
        with jax.disable_jit():
            plain = end(values, times)
        np.testing.assert_allclose(jitted(values, times), plain, rtol=1e-10)
    assert len(traces) == 1


@every_sampler
def test_gradients_are_finite_and_right(name, endings):
    end, values = endings(name), SAMPLERS[name][1]
    times = jnp.linspace(1.0, 0.0, 6)
    total = jax.jit(lambda values, times: jnp.sum(end(values, times) ** 2))
    of_values, of_times = jax.grad(total, argnums=(0, 1))({k: jnp.asarray(v) for k, v in values.items()}, times)
    assert all(np.isfinite(g) for g in of_values.values())
    assert np.isfinite(of_times).all()
    h = 1e-5
    for i in range(1, 5):
        step = h * jnp.eye(6)[i]
        slope = (total(values, times + step) - total(values, times - step)) / (2 * h)
        np.testing.assert_allclose(of_times[i], slope, rtol=1e-4, atol=1e-8)
    for k, v in values.items():
        if v > 0:
            slope = (total({k: v + h}, times) - total({k: v - h}, times)) / (2 * h)
            np.testing.assert_allclose(of_values[k], slope, rtol=1e-4)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_gradient_in_eta_is_finite_at_its_ends(eta, endings):
    end, times = endings("ddim"), jnp.linspace(1.0, 0.0, 6)
    slope = jax.grad(lambda eta: jnp.sum(end({"eta": eta}, times)))(eta)
    assert np.isfinite(slope)


@every_sampler
def test_vmap_over_hyperparameters_and_grids(name, endings):
    end, values = endings(name), SAMPLERS[name][1]
    grids = jnp.stack([jnp.linspace(1.0, t_min, 6) for t_min in (0.0, 0.01, 0.1)])
    swept = {k: jnp.asarray([0.0, 0.5, 1.0]) for k in values}
    many = jax.jit(jax.vmap(end))(swept, grids)
    for i in range(3):
        one = end({k: v[i] for k, v in swept.items()}, grids[i])
        np.testing.assert_allclose(many[i], one, rtol=1e-9, atol=1e-12)


@every_sampler
def test_gradient_through_the_schedule(name):
    def total(beta_max):
        schedule = diffax.Linear(beta_max=beta_max)
        sampler = build(name, schedule)
        return jnp.sum(diffax.sample(KEY, sampler, gaussian().denoiser(schedule), START, jnp.linspace(1.0, 0.0, 5)))

    slope = (total(20.0 + 1e-4) - total(20.0 - 1e-4)) / 2e-4
    np.testing.assert_allclose(jax.grad(total)(20.0), slope, rtol=1e-5)


@pytest.mark.newest
@every_schedule
def test_finite_and_of_the_same_dtype_from_pure_noise_to_data(schedule):
    """float32 and bfloat16, on a grid that includes t = 1 and t = 0 and repeats both, with v-prediction."""
    denoise = diffax.denoiser(lambda x, t: 0.3 * x, schedule, "v")
    times = jnp.asarray([1.0, 1.0, 0.8, 0.5, 0.2, 1e-6, 0.0, 0.0], jnp.float32)

    @jax.jit
    def run(x):
        return {name: diffax.unroll(KEY, build(name, schedule), denoise, x, times) for name in SAMPLERS}

    for dtype in (jnp.float32, jnp.bfloat16):
        x = diffax.initial_noise(KEY, schedule, jax.ShapeDtypeStruct((16, 3), dtype))
        for name, (_, path) in run(x).items():
            assert path.dtype == dtype, name
            assert np.isfinite(np.asarray(path, np.float32)).all(), name
            if SAMPLERS[name][2]:  # a step of length zero changes nothing, but for a last bit
                np.testing.assert_allclose(*(np.asarray(v, np.float32) for v in (path[0], x)), rtol=2e-7)
                np.testing.assert_allclose(*(np.asarray(v, np.float32) for v in (path[-1], path[-2])), rtol=2e-7)


@pytest.mark.newest
@every_schedule
def test_every_kind_of_network_is_finite_in_float32(schedule):
    """eps, score, x0, velocity and edm networks from t = 1 to t = 0, both samplers, plain and clipped."""
    times = jnp.asarray([1.0, 0.999, 0.5, 1e-3, 0.0], jnp.float32)
    kinds = [k for k in KINDS if not (schedule is SCHEDULES["zero_terminal_snr"] and k in ("eps", "score"))]

    @jax.jit
    def run(x):
        denoisers = [diffax.denoiser(lambda x, t: 0.3 * x, schedule, kind) for kind in kinds]
        samplers = (diffax.ddim(schedule), diffax.ddpm(schedule))
        return [diffax.sample(KEY, s, d, x, times) for s in samplers for d in denoisers]

    for x0 in run(diffax.initial_noise(KEY, schedule, (4, 2))):
        assert x0.dtype == jnp.float32
        assert np.isfinite(x0).all()


@pytest.mark.newest
@every_schedule
def test_float32_follows_float64_over_the_whole_range(schedule):
    """200 float32 steps from t = 1 to t = 0 on an oracle, beside float64 with the same noise."""
    times = np.linspace(1.0, 0.0, 201)
    noise = np.asarray(jax.random.normal(KEY, (200, 1, 2)))
    start = np.asarray(diffax.initial_noise(KEY, schedule, jnp.zeros((1, 2))))

    @jax.jit
    def run(x, times, noise):
        oracle = jax.tree.map(lambda v: jnp.asarray(v, x.dtype), gaussian())

        def end(name):
            def move(state, inputs):
                z, t, s = inputs
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(diffax.random, "noise", lambda key, like: z)
                    return build(name, schedule).step(KEY, oracle.denoiser(schedule), state, t, s), None

            return jax.lax.scan(move, State(x), (noise, times[:-1], times[1:]))[0].x

        return jnp.stack([end(name) for name in SAMPLERS])

    exact, short = (run(*(jnp.asarray(v, d) for v in (start, times, noise))) for d in (jnp.float64, jnp.float32))
    assert short.dtype == jnp.float32
    np.testing.assert_allclose(short, exact, atol=2e-3)


# Contract


@every_sampler
def test_the_contract(name):
    schedule = diffax.Cosine()
    sampler = build(name, schedule)
    calls = []

    def denoise(x, t):
        calls.append(t)
        return 0.5 * x

    state = sampler.init(jnp.asarray(START), jnp.array([1.0, 0.5]))
    assert isinstance(state, tuple)
    assert state._fields[0] == "x"
    new = sampler.step(KEY, denoise, state, 1.0, 0.5)
    assert type(new) is type(state)
    assert len(calls) == sampler.calls
    edited = sampler.step(KEY, denoise, state._replace(x=state.x + 1), 1.0, 0.5)
    assert float(jnp.abs(edited.x - new.x).min()) > 0  # the x in the state is the truth


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: diffax.ddim(diffax.Cosine(), eta=-0.1), r"eta must be in \[0, 1\], got -0.1"),
        (lambda: diffax.ddim(diffax.Cosine(), eta=1.5), r"eta must be in \[0, 1\], got 1.5"),
        (
            lambda: diffax.ddpm(diffax.Cosine(), variance="medium"),
            "variance must be one of small, large, got 'medium'",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Negative controls: each breaks one thing, and the exam must notice.


def broken_ddim(kind, schedule):
    def step(key, denoise, state, t, s):
        level_t, level_s = schedule(t), schedule(s)
        x0 = denoise(state.x, t)
        eps = (state.x - level_t.alpha * x0) / level_t.sigma
        alpha = {"alpha of now": level_t.alpha}.get(kind, level_s.alpha)
        sigma = {"sigma off by 1%": 1.01 * level_s.sigma}.get(kind, level_s.sigma)
        if kind == "score without the half":
            eps = 2 * eps - jax.lax.stop_gradient(eps) * 0.5
        return State(alpha * x0 + sigma * eps)

    return diffax.ddim(schedule)._replace(step=step)


@pytest.mark.parametrize("kind", ["alpha of now", "sigma off by 1%", "score without the half"])
def test_the_exam_fails_a_broken_sampler(kind):
    schedule = diffax.Linear()
    check_order(broken_ddim("none", schedule), schedule, gaussian())
    with pytest.raises(AssertionError):
        check_order(broken_ddim(kind, schedule), schedule, gaussian())


def test_the_exam_fails_a_wrong_law(monkeypatch):
    """Noise 5 % too strong: the paper's recursion and the limit in law must both notice."""
    right = diffax.ddpm

    def wrong(schedule, **kwargs):
        def step(key, denoise, state, t, s):
            noisy = right(schedule, **kwargs).step(key, denoise, state, t, s).x
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(diffax.random, "noise", lambda key, like: 0 * like)
                mean = right(schedule, **kwargs).step(key, denoise, state, t, s).x
            return State(mean + 1.05 * (noisy - mean))

        return right(schedule, **kwargs)._replace(step=step)

    test_ddpm_is_the_paper_s_recursion("small", monkeypatch)
    monkeypatch.setattr(diffax, "ddpm", wrong)
    monkeypatch.setitem(SAMPLERS, "ddpm", (wrong, {}, False))
    with pytest.raises(AssertionError):
        test_ddpm_is_the_paper_s_recursion("small", monkeypatch)
    with pytest.raises(AssertionError):
        test_stochastic_samplers_converge_in_law("ddpm", "cosine", monkeypatch)


def test_the_exam_fails_a_wrong_claim():
    schedule = diffax.Linear()
    with pytest.raises(AssertionError, match="claims order 2, measured"):
        check_order(diffax.ddim(schedule)._replace(order=2), schedule, gaussian())


def test_the_reference_solution_is_finer_than_what_it_judges():
    """The Runge-Kutta reference against the closed form: 1e-9, while DDIM's finest grid errs by 1e-3 or more."""
    for schedule in (diffax.Linear(), diffax.Flow(), diffax.LogLinear(0.002, 80.0)):
        oracle, x = gaussian(), schedule(0.95).sigma * START
        exact = oracle.flow(x, schedule(0.95), schedule(0.1))
        found = analytic.flow(schedule, oracle.denoiser(schedule), x, 0.95, 0.1, num_steps=1500)
        assert float(jnp.abs(found - exact).max()) < 1e-9
        assert measured_order(diffax.ddim(schedule), schedule, oracle)[1][-1] > 1e-3
