"""Restart: exact moments of runs with jumps, number of denoiser calls, grids, and settings that change nothing."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exam import SCHEDULES, START, gaussian, mixture, spread
from injected import LinearLogSNR, moments_from_gaussian_start, replace_noise_by_folds
from test_correctors import two_step, wave_noise

import diffax
from diffax.samplers._base import Sampler, State

pytestmark = pytest.mark.usefixtures("x64")

KEY = jax.random.key(0)
C0 = np.array([[0.4, 0.15], [0.15, 0.2]])
M0 = np.array([0.7, -0.4])
ZIGZAG = [0.9, 0.5, 0.2, 0.6, 0.4, 0.2, 0.6, 0.4, 0.2, 0.1]
START_MOMENTS = np.array([0.3, -1.0]), np.diag([0.5, 0.3])


def ddim_by_hand(schedule, t, s, mean, covariance):
    """x_s = alpha_s x0 + sigma_s eps, with eps = (x - alpha x0) / sigma and x0 = E[x0 | x]."""
    (alpha, sigma, _), (alpha_s, sigma_s, _) = schedule(t), schedule(s)
    alpha, sigma, alpha_s, sigma_s = map(float, (alpha, sigma, alpha_s, sigma_s))
    gain = alpha * C0 @ np.linalg.inv(alpha**2 * C0 + sigma**2 * np.eye(2))
    c_x0 = alpha_s - sigma_s * alpha / sigma
    slope = sigma_s / sigma * np.eye(2) + c_x0 * gain
    return slope @ mean + c_x0 * (M0 - alpha * gain @ M0), slope @ covariance @ slope.T


def jump_by_hand(schedule, t, s, mean, covariance, scale):
    """x_s = (alpha_s / alpha_t) x_t plus `scale` times the noise up to the level s."""
    (alpha, sigma, _), (alpha_s, sigma_s, _) = schedule(t), schedule(s)
    ratio = float(alpha_s / alpha)
    noise = scale**2 * (float(sigma_s) ** 2 - ratio**2 * float(sigma) ** 2)
    return ratio * mean, ratio**2 * covariance + noise * np.eye(2)


def check_moments(schedule, monkeypatch, wrap=diffax.restart, scale=1.1):
    sampler = wrap(diffax.ddim(schedule), schedule, noise_scale=scale)
    end = lambda x: diffax.integrate(KEY, sampler, gaussian().denoiser(schedule), x, jnp.array(ZIGZAG)).x
    result = moments_from_gaussian_start(end, *START_MOMENTS, len(ZIGZAG) - 1, lambda key: key[0], monkeypatch)
    mean, covariance = START_MOMENTS
    for t, s in itertools.pairwise(ZIGZAG):
        if s > t:
            mean, covariance = jump_by_hand(schedule, t, s, mean, covariance, scale)
        else:
            mean, covariance = ddim_by_hand(schedule, t, s, mean, covariance)
    np.testing.assert_allclose(result[0], mean, rtol=1e-9)
    np.testing.assert_allclose(result[1], covariance, rtol=1e-9)


@pytest.mark.slow_cases(but=["log_linear"])
@pytest.mark.newest
@pytest.mark.parametrize("schedule", ["linear", "flow", "log_linear"])
def test_a_run_with_jumps_follows_the_matrix_recursion(schedule, monkeypatch):
    """ddim towards data and q(x_s | x_t) towards noise, twice, with noise scale S = 1.1: mean and covariance."""
    check_moments(SCHEDULES[schedule], monkeypatch)


def test_the_check_rejects_a_broken_restart(monkeypatch):
    def edit_after_jumps(edit):
        def wrap(sampler, schedule, *, noise_scale):
            restarted = diffax.restart(sampler, schedule, noise_scale=noise_scale)

            def step(key, denoise, state, t, s):
                new = restarted.step(key, denoise, state, t, s)
                return State(jnp.where(s > t, edit(schedule, state.x, new.x, t, s), new.x))

            return restarted._replace(step=step)

        return wrap

    unscaled = edit_after_jumps(lambda schedule, x, new, t, s: new + x * (1 - schedule(s).alpha / schedule(t).alpha))
    without_jump = edit_after_jumps(lambda schedule, x, new, t, s: x)
    for wrap in (unscaled, without_jump):
        with pytest.raises(AssertionError):
            check_moments(SCHEDULES["linear"], monkeypatch, wrap)


def exact_sampler(oracle, schedule):
    """A sampler whose every step is the exact flow."""
    step = lambda key, denoise, state, t, s: State(oracle.flow(state.x, schedule(t), schedule(s)))
    return Sampler(lambda x, times: State(x), step, order=1, calls=0)


def test_restarts_reduce_an_earlier_error(monkeypatch):
    """With exact steps the covariance stays exact, and an error of the mean shrinks by the same factor in each restart.

    The steps towards data scale a deviation by sqrt(c_low / c_high), the jump by alpha_high / alpha_low.
    """
    schedule, oracle = diffax.Linear(), gaussian()
    low, high = schedule(0.2), schedule(0.6)
    covariance_at = lambda level: float(level.alpha) ** 2 * C0 + float(level.sigma) ** 2 * np.eye(2)
    values, basis = np.linalg.eigh(C0)
    factor = float(high.alpha / low.alpha) * np.sqrt(
        (float(low.alpha) ** 2 * values + float(low.sigma) ** 2)
        / (float(high.alpha) ** 2 * values + float(high.sigma) ** 2)
    )
    sampler = diffax.restart(exact_sampler(oracle, schedule), schedule)
    for k in (1, 3):
        times = jnp.array([0.2, *[0.6, 0.2] * k])
        end = lambda x, times=times: diffax.integrate(KEY, sampler, oracle.denoiser(schedule), x, times).x
        mean_error = np.array([0.3, 0.1])
        mean, covariance = moments_from_gaussian_start(
            end, float(low.alpha) * M0 + mean_error, covariance_at(low), len(times) - 1, lambda key: key[0], monkeypatch
        )
        np.testing.assert_allclose(covariance, covariance_at(low), rtol=1e-9)
        np.testing.assert_allclose(
            mean - float(low.alpha) * M0, basis @ (factor**k * (basis.T @ mean_error)), rtol=1e-8
        )
    assert factor.max() < 0.5


def test_marginals_converge_at_the_order_of_the_inner_sampler(monkeypatch):
    schedule, oracle, errors = LinearLogSNR(), gaussian(), []
    sampler = diffax.restart(diffax.ddim(schedule), schedule)
    start, last = schedule(0.95), schedule(0.1)
    exact_moments = lambda level: (
        float(level.alpha) * M0,
        float(level.alpha) ** 2 * C0 + float(level.sigma) ** 2 * np.eye(2),
    )
    for n in (30, 60):
        times = diffax.times.uniform_log_snr(schedule, n + 1, t_max=0.95, t_min=0.1)
        times = diffax.times.restart(schedule, times, 0.3, 0.6, num_restarts=2, num_steps=n)
        jumps = np.flatnonzero(np.diff(times) > 0)
        end = lambda x, times=times: diffax.integrate(KEY, sampler, oracle.denoiser(schedule), x, times).x
        row = lambda key, jumps=jumps: jnp.searchsorted(jumps, key[0])
        result = moments_from_gaussian_start(end, *exact_moments(start), 2, row, monkeypatch)
        errors.append(max(np.abs(a - b).max() for a, b in zip(result, exact_moments(last), strict=True)))
    assert errors[-1] < 0.02
    assert abs(np.log2(errors[0] / errors[1]) - 1) < 0.15, errors


# Neutral settings, number of calls, grids for each example


BASES = {"ddim": diffax.ddim, "ddpm": diffax.ddpm, "two_step": two_step}


@pytest.mark.slow_cases(but=["two_step"])
@pytest.mark.newest
@pytest.mark.parametrize("name", BASES)
def test_a_grid_without_jumps_gives_the_bare_sampler(name, monkeypatch):
    """For one grid and for a grid of each example. The last bit may differ, because XLA compiles a cond separately."""
    replace_noise_by_folds(monkeypatch, lambda key, like: wave_noise(key, like))
    schedule, sampler = LinearLogSNR(), BASES[name](LinearLogSNR())
    grid = jnp.array([0.9, 0.6, 0.6, 0.35, 0.2])
    run = lambda s, times: diffax.integrate(KEY, s, mixture().denoiser(schedule), jnp.asarray(START), times).x
    assert_close = functools.partial(np.testing.assert_allclose, rtol=4e-16, atol=4e-16)
    assert_close(run(diffax.restart(sampler, schedule), grid), run(sampler, grid))
    if name != "two_step":  # the state of two_step has one time for all examples
        grids = jnp.stack([grid * f for f in (1.0, 0.9, 0.8, 0.7, 0.6)], 1)
        assert_close(run(diffax.restart(sampler, schedule), grids), run(sampler, grids))


@pytest.mark.newest
def test_a_jump_needs_no_denoiser_call():
    schedule, calls = LinearLogSNR(), []

    def denoise(x, t):
        jax.debug.callback(lambda t: calls.append(float(t)), t)
        return 0.5 * x

    sampler = diffax.restart(diffax.ddim(schedule), schedule)
    jax.block_until_ready(diffax.sample(KEY, sampler, denoise, jnp.ones((2, 1)), jnp.array(ZIGZAG)))
    jax.effects_barrier()
    expected = [t for t, s in itertools.pairwise([*ZIGZAG, 0.0]) if s < t]
    np.testing.assert_allclose(sorted(calls), sorted(expected))
    assert sampler.calls == 1
    assert sampler.renoises


MULTISTEP = ("dpmpp_3m", "unipc", "lms", "sa_solver", "pndm", "gaussian_adams")


@spread(("ddpm", *MULTISTEP), ("ddpm", "unipc", "pndm"))
def test_each_example_may_have_its_own_jumps(name):
    """Of three examples one jumps earlier and one never; the results equal those of separate runs."""
    schedule, oracle = LinearLogSNR(), mixture()
    sampler = diffax.restart(getattr(diffax.samplers, name)(schedule), schedule)
    grids = jnp.array([[0.9, 0.5, 0.3, 0.6, 0.2], [0.9, 0.4, 0.7, 0.5, 0.2], [0.8, 0.7, 0.5, 0.3, 0.1]])
    keys = jax.random.split(KEY, 3)
    run = jax.jit(lambda keys, x, times: diffax.sample(keys, sampler, oracle.denoiser(schedule), x, times))
    together = run(keys, jnp.asarray(START[:3]), grids.T)
    for i in range(3):
        single = run(keys[i : i + 1], jnp.asarray(START[i : i + 1]), grids[i])
        np.testing.assert_allclose(together[i : i + 1], single, rtol=1e-9)


@pytest.mark.slow_cases("dpmpp_3m", "unipc")
@spread(MULTISTEP, ("dpmpp_3m", "unipc", "pndm"))
def test_a_multistep_sampler_drops_its_history_at_a_jump(name, monkeypatch):
    """A run with a jump equals two runs of the bare sampler with the forward transition between them.

    This also holds for a jump to just below a time of the history, because that history belongs to another path.
    """
    replace_noise_by_folds(monkeypatch, lambda key, like: jnp.full_like(like, 0.3))
    schedule, oracle = LinearLogSNR(), mixture()
    sampler = getattr(diffax.samplers, name)(schedule)
    first = jnp.array([0.9, 0.75, 0.6, 0.4, 0.2])
    run = jax.jit(
        lambda x, times, wrap: (
            diffax.integrate(
                KEY, diffax.restart(sampler, schedule) if wrap else sampler, oracle.denoiser(schedule), x, times
            ).x
        ),
        static_argnums=2,
    )
    for high in (0.7, 0.399):
        second = jnp.linspace(high, 0.1, 6)
        result = run(jnp.asarray(START), jnp.concatenate([first, second]), True)
        scale, std = diffax.schedules.transition(schedule, high, 0.2)
        x = scale * run(jnp.asarray(START), first, False) + 0.3 * std
        np.testing.assert_allclose(result, run(x, second, False), rtol=1e-9, atol=1e-12)


def test_a_grid_may_turn_back_only_for_samplers_that_renoise():
    schedule = diffax.Linear()
    with pytest.raises(ValueError, match="times must be monotone"):
        diffax.integrate(KEY, diffax.ddim(schedule), lambda x, t: x, jnp.ones((1, 1)), jnp.array(ZIGZAG))


def test_correctors_may_be_inside_or_outside(monkeypatch):
    """Corrections of size zero change nothing, and only a corrector outside moves x after a jump."""
    replace_noise_by_folds(monkeypatch, lambda key, like: wave_noise((key[0], len(key)), like))
    schedule, oracle = LinearLogSNR(), mixture()
    run = lambda s: (
        diffax.integrate(KEY, s, oracle.denoiser(schedule), jnp.asarray(START), jnp.array([0.5, 0.2, 0.6])).x
    )
    base, no_correction, correction = (
        diffax.ddim(schedule),
        *(diffax.langevin(schedule, step_size=k) for k in (0.0, 0.2)),
    )
    expected = run(diffax.restart(base, schedule))
    np.testing.assert_array_equal(run(diffax.restart(diffax.corrected(base, no_correction), schedule)), expected)
    np.testing.assert_array_equal(run(diffax.corrected(diffax.restart(base, schedule), no_correction)), expected)
    inside = run(diffax.restart(diffax.corrected(base, correction), schedule))
    outside = run(diffax.corrected(diffax.restart(base, schedule), correction))
    assert float(jnp.abs(inside - outside).max()) > 1e-3


# Transformations


@pytest.mark.slow
def test_grids_and_the_noise_scale_may_be_traced(monkeypatch):
    """One compilation for many intervals; gradients are finite, also at S = 0, and right in S and t_max."""
    replace_noise_by_folds(monkeypatch, lambda key, like: wave_noise(key, like))
    schedule, oracle, traces = LinearLogSNR(), mixture(), []

    def total(scale, t_min, t_max, times):
        times = diffax.times.restart(schedule, times, t_min, t_max, num_restarts=2, num_steps=2)
        sampler = diffax.restart(diffax.ddpm(schedule), schedule, noise_scale=scale)
        return jnp.sum(diffax.sample(KEY, sampler, oracle.denoiser(schedule), jnp.asarray(START), times) ** 2)

    @jax.jit
    def many(*arguments):
        traces.append(1)
        return jax.vmap(jax.value_and_grad(total, (0, 1, 2, 3)), (0, 0, 0, None))(*arguments)

    times = jnp.linspace(1.0, 0.0, 5)
    scale, t_min, t_max = jnp.array([0.0, 1.0]), jnp.array([0.3, 0.55]), jnp.array([0.7, 0.9])
    values, slopes = many(scale, t_min, t_max, times)
    assert all(np.isfinite(g).all() for g in slopes)
    np.testing.assert_allclose(values[1], total(1.0, 0.55, 0.9, times), rtol=1e-9)
    h = 1e-6
    up, down = (many(scale + d, t_min, t_max, times)[0] for d in (h, -h))
    np.testing.assert_allclose(slopes[0], (up - down) / (2 * h), rtol=1e-4)
    up, down = (many(scale, t_min, t_max + d, times)[0] for d in (h, -h))
    np.testing.assert_allclose(slopes[2], (up - down) / (2 * h), rtol=1e-4)
    assert len(traces) == 1


@pytest.mark.slow_cases("flow", "zero_terminal_snr")
@pytest.mark.parametrize("schedule", ["linear", "flow", "log_linear", "zero_terminal_snr"])
def test_results_are_finite_and_keep_the_dtype_between_the_ends(schedule, monkeypatch):
    replace_noise_by_folds(monkeypatch, lambda key, like: wave_noise((), like))
    schedule = SCHEDULES[schedule]
    denoise = diffax.denoiser(lambda x, t: 0.3 * x, schedule, "v")
    sampler = diffax.restart(diffax.ddpm(schedule), schedule)
    times = jnp.asarray([1.0, 0.5, 0.0, 1.0, 1.0, 0.0, 0.0, 0.3, 0.0], jnp.float32)
    run = jax.jit(lambda x: diffax.unroll(KEY, sampler, denoise, x, times)[1])
    for dtype in (jnp.float32, jnp.bfloat16):
        path = run(jnp.ones((2, 3), dtype))
        assert path.dtype == dtype
        assert np.isfinite(np.asarray(path, np.float32)).all()


# Grids


def test_restart_times_are_those_written_by_hand():
    schedule, times = diffax.LogLinear(0.01, 10.0), np.linspace(1.0, 0.0, 6)  # log-SNR is linear in t
    upper = lambda grid, t_min=0.41: diffax.times.restart(schedule, grid, t_min, 0.8, num_restarts=2, num_steps=2)
    lower = lambda grid: diffax.times.restart(schedule, grid, 0.21, 0.9, num_steps=1)
    splice = lambda t_min: diffax.times.restart(schedule, times, t_min, 0.4, num_steps=2)

    @jax.jit
    def grids(minus_one):
        grid = upper(times)
        no_restarts = diffax.times.restart(schedule, times, 0.4, 0.8, num_restarts=0)
        return grid, upper(times, 0.59), lower(grid), upper(lower(times)), splice(0.0), splice(minus_one), no_restarts

    once = [1.0, 0.8, 0.6, 0.4, 0.8, 0.6, 0.4, 0.8, 0.6, 0.4, 0.2, 0.0]
    twice = [*once[:-1], 0.9, 0.2, 0.0]  # the same grid for either order of the two restarts
    at_end = [*times, 0.4, 0.2, 0.0]  # the same if a traced t_min is below the grid
    for result, expected in zip(grids(-1.0), [once, once, twice, twice, at_end, at_end, times], strict=True):
        np.testing.assert_allclose(result, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s, g: diffax.restart(diffax.ddim(s), s, noise_scale=-1.0), "noise_scale must be >= 0, got -1.0"),
        (
            lambda s, g: diffax.times.restart(s, g, 0.2, 0.5, num_restarts=-1),
            "num_restarts must be an int >= 0, got -1",
        ),
        (lambda s, g: diffax.times.restart(s, g, 0.2, 0.5, num_steps=0), "num_steps must be an int >= 1, got 0"),
        (lambda s, g: diffax.times.restart(s, g, 0.5, 0.5), "t_min must be < t_max = 0.5, got 0.5"),
        (lambda s, g: diffax.times.restart(s, g, 0.2, 1.5), r"t_max must be in \[0, 1\], got 1.5"),
        (lambda s, g: diffax.times.restart(s, g, 0.05, 0.5), "t_min must be >= the last of times, 0.1, got 0.05"),
        (lambda s, g: diffax.times.restart(s, 0.5, 0.2, 0.5), r"times must have shape \(n,\) with n >= 1, got \(\)"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make(diffax.Cosine(), jnp.linspace(1.0, 0.1, 4))
