"""Langevin correctors: exact moments on a Gaussian, algorithm 4 of Song et al. 2021, and properties of the wrapper."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exam import SCHEDULES, START, gaussian, mixture
from injected import LinearLogSNR, moments_from_gaussian_start, replace_noise_by_folds

import diffax
from diffax import analytic, samplers

pytestmark = pytest.mark.usefixtures("x64")

KEY = jax.random.key(0)
SCALINGS = {
    "vp": diffax.Linear(),
    "sub_vp": diffax.Linear(scaling="sub_vp"),
    "flow": diffax.Flow(),
    "ve": diffax.LogLinear(0.002, 80.0),
}
GRID = [0.9, 0.6, 0.35, 0.2]
C0 = np.array([[0.4, 0.15], [0.15, 0.2]])
M0 = np.array([0.7, -0.4])


def level(schedule, t):
    return (float(v) for v in schedule(t)[:2])


def wave_noise(key, like):
    """Deterministic values in place of noise, quick to compile."""
    return jnp.sin(1.0 + jnp.arange(like.size) + sum(key)).reshape(like.shape).astype(like.dtype)


def langevin_by_hand(schedule, t, k, mean, covariance, times=1):
    """x + e g + sqrt(2 e) z with e = 2 (k sigma)^2 and the score g = -C_t^-1 (x - alpha m), as a matrix recursion."""
    alpha, sigma = level(schedule, t)
    inverse = np.linalg.inv(alpha**2 * C0 + sigma**2 * np.eye(2))
    e = 2 * (k * sigma) ** 2
    a = np.eye(2) - e * inverse
    for _ in range(times):
        mean = mean - e * inverse @ (mean - alpha * M0)
        covariance = a @ covariance @ a.T + 2 * e * np.eye(2)
    return mean, covariance


def ddpm_by_hand(schedule, t, s, mean, covariance):
    """Moments of a draw from q(x_s | x_t, x0 = E[x0 | x_t]), by completing the square."""
    (alpha, sigma), (alpha_s, sigma_s) = level(schedule, t), level(schedule, s)
    gain = alpha * C0 @ np.linalg.inv(alpha**2 * C0 + sigma**2 * np.eye(2))
    forward = alpha / alpha_s
    variance = sigma**2 - forward**2 * sigma_s**2
    c_x, c_x0 = forward * sigma_s**2 / sigma**2, alpha_s * variance / sigma**2
    slope = c_x * np.eye(2) + c_x0 * gain
    mean = slope @ mean + c_x0 * (M0 - alpha * gain @ M0)
    return mean, slope @ covariance @ slope.T + sigma_s**2 * variance / sigma**2 * np.eye(2)


def assert_close(actual, expected, rtol=1e-9):
    for x, y in zip(actual, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-13)


# Exact moments


def check_langevin_chain(schedule, k, monkeypatch, corrector=None):
    oracle, t, mean, covariance = gaussian(), 0.5, np.array([0.3, -1.0]), np.array([[0.5, -0.2], [-0.2, 0.3]])
    corrector = corrector or diffax.langevin(schedule, step_size=k, num_steps=4)
    end = lambda x: corrector.move(KEY, oracle.denoiser(schedule), x, t)
    result = moments_from_gaussian_start(end, mean, covariance, 4, lambda key: key[0], monkeypatch)
    assert_close(result, langevin_by_hand(schedule, t, k, mean, covariance, times=4))
    # C / (1 - k^2 sigma^2 / C) is the stationary covariance.
    alpha, sigma = level(schedule, t)
    c, basis = np.linalg.eigh(alpha**2 * C0 + sigma**2 * np.eye(2))
    stationary = alpha * M0, basis @ np.diag(c / (1 - k**2 * sigma**2 / c)) @ basis.T
    assert_close(moments_from_gaussian_start(end, *stationary, 4, lambda key: key[0], monkeypatch), stationary)


@pytest.mark.slow_cases(but=["ve"])
@pytest.mark.parametrize("schedule", SCALINGS.values(), ids=SCALINGS)
def test_langevin_steps_at_one_level_follow_the_matrix_recursion(schedule, monkeypatch):
    """Mean and covariance of four unadjusted Langevin steps, and the stationary covariance in closed form."""
    check_langevin_chain(schedule, 0.4, monkeypatch)


def row_of_draw(key):
    """Row of a draw in the table: each step has 3 draws, one of the predictor and then two of the corrector."""
    return 3 * key[0] + (0 if len(key) == 1 else 1 + key[2])


def check_predictor_corrector(monkeypatch, wrap=diffax.corrected):
    schedule, oracle, k = diffax.Linear(), gaussian(), 0.3
    sampler = wrap(diffax.ddpm(schedule), diffax.langevin(schedule, step_size=k, num_steps=2))
    mean, covariance = np.array([0.3, -1.0]), np.diag([0.5, 0.3])
    end = lambda x: diffax.integrate(KEY, sampler, oracle.denoiser(schedule), x, jnp.array(GRID)).x
    result = moments_from_gaussian_start(end, mean, covariance, 9, row_of_draw, monkeypatch)
    for t, s in itertools.pairwise(GRID):
        mean, covariance = ddpm_by_hand(schedule, t, s, mean, covariance)
        mean, covariance = langevin_by_hand(schedule, s, k, mean, covariance, times=2)
    assert_close(result, (mean, covariance))


@pytest.mark.newest
def test_a_corrected_run_follows_the_matrix_recursion(monkeypatch):
    """ddpm with two Langevin steps after each of its steps, at the level that the step reaches."""
    check_predictor_corrector(monkeypatch)


def test_the_checks_reject_a_broken_corrector(monkeypatch):
    schedule = diffax.Linear()
    original = diffax.langevin(schedule, step_size=0.4, num_steps=4)

    def weak_noise(key, denoise, x, t):  # sqrt(epsilon) z in place of sqrt(2 epsilon) z
        draw = diffax.random.noise
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(diffax.random, "noise", lambda key, like: draw(key, like) / np.sqrt(2))
            return original.move(key, denoise, x, t)

    def without_edit(sampler, corrector):  # the state does not get the corrected x
        wrapped = diffax.corrected(sampler, corrector)
        return wrapped._replace(
            step=lambda *a: wrapped.step(*a)._replace(x=sampler.step(*a).x),
        )

    def correct_at_t(sampler, corrector):  # corrects at t, not at s
        def step(key, denoise, state, t, s):
            x = corrector.move(diffax.random.fold_in(key, 0), denoise, state.x, t)
            return sampler.step(key, denoise, state._replace(x=x), t, s)

        return sampler._replace(step=step)

    with pytest.raises(AssertionError):
        check_langevin_chain(schedule, 0.4, monkeypatch, original._replace(move=weak_noise))
    for wrap in (without_edit, correct_at_t):
        with pytest.raises(AssertionError):
            check_predictor_corrector(monkeypatch, wrap)


def test_a_corrector_reduces_the_error_of_a_coarse_predictor(monkeypatch):
    """After three steps of ddim the covariance is too small; small Langevin steps at each level correct it."""
    schedule, oracle = diffax.Linear(), gaussian()
    (alpha, sigma), (alpha_s, sigma_s) = level(schedule, GRID[0]), level(schedule, GRID[-1])
    exact = alpha_s**2 * C0 + sigma_s**2 * np.eye(2)
    errors = []
    for n in (0, 2, 6):
        sampler = diffax.corrected(diffax.ddim(schedule), diffax.langevin(schedule, step_size=0.3, num_steps=n))
        end = lambda x, sampler=sampler: diffax.integrate(KEY, sampler, oracle.denoiser(schedule), x, jnp.array(GRID)).x
        row = lambda key, n=n: n * key[0] + key[-1]
        start = alpha * M0, alpha**2 * C0 + sigma**2 * np.eye(2)
        errors.append(
            float(np.abs(moments_from_gaussian_start(end, *start, 3 * n + 1, row, monkeypatch)[1] - exact).max())
        )
    print("covariance error with 0, 2, 6 corrections a step:", errors)
    assert errors[1] < 0.6 * errors[0]
    assert errors[2] < 0.3 * errors[0]


# Steps scaled by the signal-to-noise ratio


def algorithm_4(x, score, z, r):
    """Song et al. 2021, algorithm 4, line by line, for one example."""
    epsilon = 2 * (r * np.linalg.norm(z) / np.linalg.norm(score)) ** 2
    return x + epsilon * score + np.sqrt(2 * epsilon) * z


@pytest.mark.parametrize("schedule", ["vp", "ve"])
def test_the_scaled_step_is_algorithm_4_for_each_example(schedule, monkeypatch):
    schedule, oracle, x = SCALINGS[schedule], mixture(), np.array(START)
    z = np.array(jax.random.normal(KEY, (2, *x.shape)))
    replace_noise_by_folds(monkeypatch, lambda key, like: jnp.asarray(z[key[0]]))
    result = diffax.langevin(schedule, snr=0.16, num_steps=2).move(KEY, oracle.denoiser(schedule), jnp.asarray(x), 0.4)
    for step in range(2):
        score = np.asarray(oracle.score(x, schedule(0.4)))
        x = np.stack([algorithm_4(*row, 0.16) for row in zip(x, score, z[step], strict=True)])
    np.testing.assert_allclose(result, x, rtol=1e-9)


def test_norms_include_all_leaves_of_an_example():
    schedule = diffax.Cosine()
    x = np.asarray(jax.random.normal(KEY, (3, 6)))
    tree = {"a": jnp.asarray(x[:, :2]), "b": jnp.asarray(x[:, 2:]).reshape(3, 2, 2)}
    z = np.asarray(jax.random.normal(jax.random.key(1), (3, 6)))
    parts = {"a": jnp.asarray(z[:, :2]), "b": jnp.asarray(z[:, 2:]).reshape(3, 2, 2)}
    corrector = diffax.langevin(schedule, snr=0.2)
    half = lambda x, t: jax.tree.map(lambda v: 0.5 * v, x)
    ends = []
    for start, draw in ((jnp.asarray(x), jnp.asarray(z)), (tree, parts)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(diffax.random, "noise", lambda key, like, draw=draw: draw)
            ends.append(corrector.move(KEY, half, start, 0.3))
    np.testing.assert_allclose(jnp.concatenate([ends[1]["a"], ends[1]["b"].reshape(3, 4)], 1), ends[0], rtol=1e-12)


def test_the_scaled_step_has_the_exact_moments():
    """For N(0, c I) in D dimensions, one step from |x| = R has exactly

        E |x'|^2 = R^2 - 4 r^2 c D + 4 r^4 c^2 D (D + 2) / R^2 + 4 r^2 c^2 D (D + 2) / R^2

    so the stationary distribution has E 1 / |x|^2 = 1 / (c (1 + r^2) (D + 2)): variance c (1 + r^2) up to O(1 / D).
    """
    schedule, d, r, n = diffax.LogLinear(0.01, 10.0), 64, 0.3, 4000
    oracle = analytic.Gaussian.from_covariance(np.zeros(d), 0.5)
    t = 0.6
    c = 0.5 + float(schedule(t).sigma) ** 2
    x = np.sqrt(1.3 * c) * np.ones((n, d))
    corrector = diffax.langevin(schedule, snr=r)
    square = d * 1.3 * c
    fourth = d * (d + 2)
    expected = square - 4 * r**2 * c * d + 4 * r**4 * c**2 * fourth / square + 4 * r**2 * c**2 * fourth / square

    @jax.jit
    def norms(key, x):
        x = corrector.move(key, oracle.denoiser(schedule), x, t)
        return x, jnp.sum(x**2, -1)

    chain, values = norms(KEY, jnp.asarray(x))
    floor = float(values.std()) / np.sqrt(n)
    print(f"E|x'|^2: {float(values.mean()):.4f}, exactly {expected:.4f}, Monte Carlo floor {floor:.4f}")
    assert abs(float(values.mean()) - expected) < 4 * floor
    assert abs(expected - square) > 15 * floor  # the floor is far below the effect
    for i in range(40):
        chain, values = norms(jax.random.fold_in(KEY, i), chain)
    values, expected = 1 / values, 1 / (c * (1 + r**2) * (d + 2))
    floor = float(values.std()) / np.sqrt(n)
    print(f"E 1/|x|^2 at the end: {float(values.mean()):.6f}, exactly {expected:.6f}, Monte Carlo floor {floor:.6f}")
    assert abs(float(values.mean()) - expected) < 4 * floor
    assert abs(expected * (1 + r**2) - expected) > 15 * floor  # the value without the factor 1 + r^2 would fail


def test_an_example_does_not_depend_on_its_batch():
    schedule, oracle = LinearLogSNR(), mixture()
    run = jax.jit(
        lambda key, x: diffax.sample(
            key,
            diffax.corrected(diffax.ddpm(schedule), diffax.langevin(schedule, snr=0.16)),
            oracle.denoiser(schedule),
            x,
            jnp.array(GRID),
        )
    )
    x = jax.random.normal(KEY, (7, 2))
    np.testing.assert_allclose(run(KEY, x)[:1], run(KEY, x[:1]), rtol=1e-9)


# Neutral settings and multistep samplers


class History(NamedTuple):
    """The state of `two_step`."""

    x: jax.Array
    x0: jax.Array
    t: jax.Array


def two_step(schedule):
    """A two-step method whose state holds the previous x0, which enters the next step."""

    def init(x, times):
        return History(x, jnp.zeros_like(x), jnp.full((), -1.0, x.dtype))

    def step(key, denoise, state, t, s):
        x0 = denoise(state.x, t)
        mixed = jnp.where(state.t < 0, x0, 1.5 * x0 - 0.5 * state.x0)
        (alpha, sigma, _), (alpha_s, sigma_s, _) = schedule(t), schedule(s)
        x = sigma_s / sigma * state.x + (alpha_s - alpha * sigma_s / sigma) * mixed
        return History(x, x0, jnp.asarray(t, state.t.dtype))

    return diffax.Sampler(init, step, order=1, calls=1)


BASES = {"ddim": diffax.ddim, "ddpm": diffax.ddpm, "two_step": two_step, "unipc": samplers.unipc}


@pytest.mark.slow_cases(but=["two_step"])
@pytest.mark.parametrize("name", BASES)
def test_corrections_of_size_zero_give_the_bare_sampler(name, monkeypatch):
    """Equal to the last bit, including the noise of the sampler. With num_steps = 0 the sampler object is the same."""
    replace_noise_by_folds(monkeypatch, lambda key, like: wave_noise((key[0], len(key)), like))
    schedule, oracle, sampler = LinearLogSNR(), mixture(), BASES[name](LinearLogSNR())
    assert diffax.corrected(sampler, diffax.langevin(schedule, snr=0.2, num_steps=0)) is sampler
    run = lambda s: diffax.integrate(KEY, s, oracle.denoiser(schedule), jnp.asarray(START), jnp.array(GRID)).x
    bare = run(sampler)
    run_corrected = lambda **k: run(diffax.corrected(sampler, diffax.langevin(schedule, **k)))
    np.testing.assert_array_equal(run_corrected(snr=0.0), bare)
    np.testing.assert_array_equal(run_corrected(step_size=lambda t: 0.0 * t), bare)
    assert float(jnp.abs(run_corrected(step_size=0.1) - bare).min()) > 1e-3


@pytest.mark.newest
def test_a_multistep_sampler_continues_from_the_corrected_x(monkeypatch):
    """Against the two-step method and algorithm 4 in NumPy with the same noise."""
    schedule, oracle, x = LinearLogSNR(), mixture(), np.array(START)
    z = np.array(jax.random.normal(KEY, (3, *x.shape)))
    replace_noise_by_folds(monkeypatch, lambda key, like: jnp.asarray(z)[key[0]])
    sampler = diffax.corrected(two_step(schedule), diffax.langevin(schedule, snr=0.2))
    result = diffax.integrate(KEY, sampler, oracle.denoiser(schedule), jnp.asarray(x), jnp.array(GRID)).x
    x0_before = None
    for i, (t, s) in enumerate(itertools.pairwise(GRID)):
        (alpha, sigma), (alpha_s, sigma_s) = level(schedule, t), level(schedule, s)
        x0 = np.asarray(oracle.denoise(x, schedule(t)))
        mixed = x0 if x0_before is None else 1.5 * x0 - 0.5 * x0_before
        x, x0_before = sigma_s / sigma * x + (alpha_s - alpha * sigma_s / sigma) * mixed, x0
        score = np.asarray(oracle.score(x, schedule(s)))
        x = np.stack([algorithm_4(*row, 0.2) for row in zip(x, score, z[i], strict=True)])
    np.testing.assert_allclose(result, x, rtol=1e-9)


def test_nested_correctors_draw_different_noise(monkeypatch):
    schedule, drawn = diffax.Linear(), []
    replace_noise_by_folds(monkeypatch, lambda key, like: drawn.append(key) or jnp.zeros_like(like))
    corrector = diffax.langevin(schedule, snr=0.2, num_steps=2)
    sampler = diffax.corrected(diffax.corrected(diffax.ddpm(schedule), corrector), corrector)
    sampler.step(KEY, lambda x, t: 0.5 * x, sampler.init(jnp.ones((1, 2)), None), 0.6, 0.5)
    assert len(drawn) == len({str(key) for key in drawn}) == sampler.calls == 5


@pytest.mark.newest
def test_a_corrected_sampler_satisfies_the_sampler_contract():
    schedule, calls = diffax.Cosine(), []
    denoise = lambda x, t: calls.append(t) or 0.5 * x
    sampler = diffax.corrected(diffax.ddim(schedule), diffax.langevin(schedule, snr=0.16, num_steps=3))
    state = sampler.init(jnp.asarray(START), jnp.array([1.0, 0.5]))
    assert type(sampler.step(KEY, denoise, state, 1.0, 0.5)) is type(state)
    assert calls == [1.0, 0.5, 0.5, 0.5]
    assert sampler.calls == 4
    # A step of length zero changes nothing.
    np.testing.assert_allclose(sampler.step(KEY, denoise, state, 0.5, 0.5).x, state.x, rtol=1e-15)
    times_by_example = jnp.array([0.5, 0.9, 0.5, 0.5, 0.5])  # a time for each example: only the second one moves
    moved = sampler.step(KEY, denoise, state, times_by_example, jnp.full(5, 0.5)).x
    np.testing.assert_allclose(np.delete(moved, 1, 0), np.delete(START, 1, 0), rtol=1e-15)
    assert float(jnp.abs(moved[1] - START[1]).min()) > 1e-3


# Transformations


def test_sizes_may_be_traced_swept_and_differentiated_with_one_compilation(monkeypatch):
    replace_noise_by_folds(monkeypatch, lambda key, like: wave_noise((key[0], *key[2:]), like))
    schedule, oracle, traces = LinearLogSNR(), mixture(), []

    def end(snr, k, times):
        sampler = diffax.corrected(diffax.ddim(schedule), diffax.langevin(schedule, snr=snr))
        sampler = diffax.corrected(sampler, diffax.langevin(schedule, step_size=k))
        return diffax.sample(KEY, sampler, oracle.denoiser(schedule), jnp.asarray(START), times)

    @jax.jit
    def many(snr, k, grids):
        traces.append(1)
        value = lambda *a: jnp.sum(end(*a) ** 2)
        return jax.vmap(jax.value_and_grad(value, (0, 1, 2)))(snr, k, grids)

    grids = jnp.stack([jnp.linspace(1.0, low, 4) for low in (0.0, 0.02, 0.1)])
    sizes = jnp.array([0.0, 0.1, 0.2]), jnp.array([0.0, 0.3, 0.0])
    totals, slopes = many(*sizes, grids)
    many(*(2 * v for v in sizes), grids * 0.9)
    assert len(traces) == 1
    assert all(np.isfinite(g).all() for g in slopes)
    np.testing.assert_allclose(totals[1], jnp.sum(end(0.1, 0.3, grids[1]) ** 2), rtol=1e-9)
    h = 1e-5
    for i in range(2):
        shift = lambda sign, i=i: sign * h * jnp.eye(3)[1]
        up, down = (many(*(v + shift(g) * (j == i) for j, v in enumerate(sizes)), grids)[0][1] for g in (1, -1))
        np.testing.assert_allclose(slopes[i][1], (up - down) / (2 * h), rtol=1e-4)


@pytest.mark.slow_cases(but=["log_linear"])
@pytest.mark.parametrize("schedule", ["linear", "flow", "log_linear", "zero_terminal_snr"])
def test_results_are_finite_and_keep_the_dtype_from_pure_noise_to_data(schedule, monkeypatch):
    replace_noise_by_folds(monkeypatch, lambda key, like: wave_noise((), like))
    schedule = SCHEDULES[schedule]
    times = jnp.asarray([1.0, 1.0, 0.5, 1e-6, 0.0, 0.0], jnp.float32)

    @jax.jit
    def run(x):
        denoise = diffax.denoiser(lambda x, t: 0.3 * x, schedule, "v")
        pc = diffax.corrected(diffax.ddpm(schedule), diffax.langevin(schedule, snr=0.16))
        samplers = pc, diffax.annealed_langevin(schedule, step_size=0.2)
        return [diffax.unroll(KEY, sampler, denoise, x, times)[1] for sampler in samplers]

    for dtype in (jnp.float32, jnp.bfloat16):
        for path in run(diffax.initial_noise(KEY, schedule, jax.ShapeDtypeStruct((8, 3), dtype))):
            assert path.dtype == dtype
            assert np.isfinite(np.asarray(path, np.float32)).all()


def test_the_scaled_step_is_finite_at_a_score_of_zero():
    schedule = diffax.LogLinear(0.01, 10.0)
    move = lambda r: diffax.langevin(schedule, snr=r).move(KEY, lambda x, t: x, jnp.ones((2, 3)), 0.5)
    assert np.isfinite(move(0.2)).all()
    assert np.isfinite(jax.grad(lambda r: jnp.sum(move(r)))(0.2))


# Annealed Langevin dynamics


@pytest.mark.parametrize("schedule", ["ve", "vp"])
def test_annealed_langevin_dynamics_is_that_of_the_paper(schedule, monkeypatch):
    """Song & Ermon 2019, algorithm 1, at three levels with two steps each, in u = x / alpha, for data N(m, C0)."""
    schedule, k = SCALINGS[schedule], 0.35
    times = np.repeat([0.6, 0.45, 0.3], 2)
    oracle, sampler = gaussian(), diffax.annealed_langevin(schedule, step_size=k)
    end = lambda x: diffax.integrate(KEY, sampler, oracle.denoiser(schedule), x, jnp.asarray(times)).x
    start = np.array([0.3, -1.0]), np.diag([0.5, 0.3])
    result = moments_from_gaussian_start(end, *start, 5, lambda key: key[0], monkeypatch)
    alpha = float(schedule(times[0]).alpha)
    mean, covariance = start[0] / alpha, start[1] / alpha**2
    sigma_last = float(schedule(0.3).sigma / schedule(0.3).alpha)
    epsilon = (2 * k * sigma_last) ** 2
    for t in times[1:]:
        sigma = float(schedule(t).sigma / schedule(t).alpha)
        size = epsilon * sigma**2 / sigma_last**2  # the paper's alpha_i
        inverse = np.linalg.inv(C0 + sigma**2 * np.eye(2))
        a = np.eye(2) - size / 2 * inverse
        mean = mean - size / 2 * inverse @ (mean - M0)
        covariance = a @ covariance @ a.T + size * np.eye(2)
    alpha = float(schedule(0.3).alpha)
    assert_close(result, (alpha * mean, alpha**2 * covariance))


def test_annealed_langevin_dynamics_ends_near_the_moments_of_the_mixture():
    """From pure noise through 20 levels with 10 steps each; the moments are estimated by Monte Carlo."""
    schedule, oracle, n = diffax.LogLinear(0.05, 20.0), mixture(), 4000

    @jax.jit
    def run(key):
        times = jnp.repeat(jnp.linspace(1.0, 0.0, 20), 10)
        x = diffax.initial_noise(key, schedule, jnp.zeros((n, 2)))
        sampler = diffax.annealed_langevin(schedule, step_size=0.3)
        return diffax.integrate(key, sampler, oracle.denoiser(schedule), x, times).x

    x = run(KEY)
    weights, means = np.asarray(oracle.weights), np.asarray(oracle.means)
    mean = weights @ means
    covariance = (means - mean).T @ np.diag(weights) @ (means - mean) + (0.3**2 + 0.05**2) * np.eye(2)
    floor = float(np.sqrt(np.trace(covariance) / n))
    mean_error = float(np.linalg.norm(x.mean(0) - mean))
    covariance_error = float(np.abs(np.cov(x.T) - covariance).max())
    print(
        f"errors: mean {mean_error:.3f}, covariance {covariance_error:.3f}; Monte Carlo floor of the mean {floor:.3f}"
    )
    assert mean_error < 0.1
    assert covariance_error < 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda s: diffax.langevin(s),
            "exactly one of snr and step_size must be None, got snr = None and step_size = None",
        ),
        (
            lambda s: diffax.langevin(s, snr=0.1, step_size=0.1),
            "exactly one of snr and step_size must be None, got snr = 0.1",
        ),
        (lambda s: diffax.langevin(s, snr=-0.1), "snr must be >= 0, got -0.1"),
        (lambda s: diffax.langevin(s, snr=0.1, num_steps=1.5), "num_steps must be an int >= 0, got 1.5"),
        (lambda s: diffax.annealed_langevin(s, step_size=-1.0), "step_size must be >= 0, got -1.0"),
        (lambda s: diffax.corrected(diffax.ddim(s), diffax.langevin(s, snr=-1)), "snr must be >= 0, got -1"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make(diffax.Cosine())
