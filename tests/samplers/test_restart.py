"""Restart: the law of a run with jumps, the calls it makes, its grids, and what it must leave alone."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exam import SCHEDULES, START, gaussian, mixture, spread
from injected import LinearLogSNR, moments_from_gaussian_start, replace_noise_by_folds
from test_correctors import two_step, waves

import diffax
from diffax.samplers._base import Sampler, State

pytestmark = pytest.mark.usefixtures("x64")

KEY = jax.random.key(0)
C0 = np.array([[0.4, 0.15], [0.15, 0.2]])
M0 = np.array([0.7, -0.4])
ZIGZAG = [0.9, 0.5, 0.2, 0.6, 0.4, 0.2, 0.6, 0.4, 0.2, 0.1]
START_LAW = np.array([0.3, -1.0]), np.diag([0.5, 0.3])


def ddim_by_hand(schedule, t, s, mean, covariance):
    """x_s = alpha_s x0 + sigma_s eps, with eps = (x - alpha x0) / sigma and x0 = E[x0 | x]."""
    (alpha, sigma, _), (alpha_s, sigma_s, _) = schedule(t), schedule(s)
    alpha, sigma, alpha_s, sigma_s = map(float, (alpha, sigma, alpha_s, sigma_s))
    gain = alpha * C0 @ np.linalg.inv(alpha**2 * C0 + sigma**2 * np.eye(2))
    of_x0 = alpha_s - sigma_s * alpha / sigma
    slope = sigma_s / sigma * np.eye(2) + of_x0 * gain
    return slope @ mean + of_x0 * (M0 - alpha * gain @ M0), slope @ covariance @ slope.T


def jump_by_hand(schedule, t, s, mean, covariance, scale):
    """x_s = (alpha_s / alpha_t) x_t plus the noise that is missing at s."""
    (alpha, sigma, _), (alpha_s, sigma_s, _) = schedule(t), schedule(s)
    ratio = float(alpha_s / alpha)
    noise = scale**2 * (float(sigma_s) ** 2 - ratio**2 * float(sigma) ** 2)
    return ratio * mean, ratio**2 * covariance + noise * np.eye(2)


def check_law(schedule, monkeypatch, wrap=diffax.restart, scale=1.1):
    sampler = wrap(diffax.ddim(schedule), schedule, noise_scale=scale)
    end = lambda x: diffax.integrate(KEY, sampler, gaussian().denoiser(schedule), x, jnp.array(ZIGZAG)).x
    found = moments_from_gaussian_start(end, *START_LAW, len(ZIGZAG) - 1, lambda key: key[0], monkeypatch)
    mean, covariance = START_LAW
    for t, s in itertools.pairwise(ZIGZAG):
        if s > t:
            mean, covariance = jump_by_hand(schedule, t, s, mean, covariance, scale)
        else:
            mean, covariance = ddim_by_hand(schedule, t, s, mean, covariance)
    np.testing.assert_allclose(found[0], mean, rtol=1e-9)
    np.testing.assert_allclose(found[1], covariance, rtol=1e-9)


@pytest.mark.slow_cases(but=["log_linear"])
@pytest.mark.newest
@pytest.mark.parametrize("schedule", ["linear", "flow", "log_linear"])
def test_a_run_with_jumps_is_the_matrix_recursion(schedule, monkeypatch):
    """ddim down, q(x_s | x_t) up, twice, with S = 1.1: mean and covariance written by hand."""
    check_law(SCHEDULES[schedule], monkeypatch)


def test_the_exam_fails_a_broken_restart(monkeypatch):
    def wrong(edit):
        def wrap(sampler, schedule, *, noise_scale):
            right = diffax.restart(sampler, schedule, noise_scale=noise_scale)

            def step(key, denoise, state, t, s):
                new = right.step(key, denoise, state, t, s)
                return State(jnp.where(s > t, edit(schedule, state.x, new.x, t, s), new.x))

            return right._replace(step=step)

        return wrap

    unscaled = wrong(lambda schedule, x, new, t, s: new + x * (1 - schedule(s).alpha / schedule(t).alpha))
    lost = wrong(lambda schedule, x, new, t, s: x)
    for wrap in (unscaled, lost):
        with pytest.raises(AssertionError):
            check_law(SCHEDULES["linear"], monkeypatch, wrap)


def exact(oracle, schedule):
    """A sampler whose every step is the exact flow."""
    step = lambda key, denoise, state, t, s: State(oracle.flow(state.x, schedule(t), schedule(s)))
    return Sampler(lambda x, times: State(x), step, order=1, calls=0)


def test_restarts_forget_an_error_made_before(monkeypatch):
    """With exact steps the right law stays right, and an error of the mean shrinks by the same factor each time.

    The way down shrinks a deviation by sqrt(c_low / c_high), the way up by alpha_high / alpha_low.
    """
    schedule, oracle = diffax.Linear(), gaussian()
    low, high = schedule(0.2), schedule(0.6)
    c = lambda level: float(level.alpha) ** 2 * C0 + float(level.sigma) ** 2 * np.eye(2)
    values, basis = np.linalg.eigh(C0)
    factor = float(high.alpha / low.alpha) * np.sqrt(
        (float(low.alpha) ** 2 * values + float(low.sigma) ** 2)
        / (float(high.alpha) ** 2 * values + float(high.sigma) ** 2)
    )
    sampler = diffax.restart(exact(oracle, schedule), schedule)
    for k in (1, 3):
        times = jnp.array([0.2, *[0.6, 0.2] * k])
        end = lambda x, times=times: diffax.integrate(KEY, sampler, oracle.denoiser(schedule), x, times).x
        off = np.array([0.3, 0.1])
        mean, covariance = moments_from_gaussian_start(
            end, float(low.alpha) * M0 + off, c(low), len(times) - 1, lambda key: key[0], monkeypatch
        )
        np.testing.assert_allclose(covariance, c(low), rtol=1e-9)
        np.testing.assert_allclose(mean - float(low.alpha) * M0, basis @ (factor**k * (basis.T @ off)), rtol=1e-8)
    assert factor.max() < 0.5


def test_it_approaches_the_exact_marginal_at_the_rate_of_its_sampler(monkeypatch):
    schedule, oracle, errors = LinearLogSNR(), gaussian(), []
    sampler = diffax.restart(diffax.ddim(schedule), schedule)
    start, last = schedule(0.95), schedule(0.1)
    exact_law = lambda level: (
        float(level.alpha) * M0,
        float(level.alpha) ** 2 * C0 + float(level.sigma) ** 2 * np.eye(2),
    )
    for n in (30, 60):
        times = diffax.times.uniform_log_snr(schedule, n + 1, t_max=0.95, t_min=0.1)
        times = diffax.times.restart(schedule, times, 0.3, 0.6, num_restarts=2, num_steps=n)
        jumps = np.flatnonzero(np.diff(times) > 0)
        end = lambda x, times=times: diffax.integrate(KEY, sampler, oracle.denoiser(schedule), x, times).x
        row = lambda key, jumps=jumps: jnp.searchsorted(jumps, key[0])
        found = moments_from_gaussian_start(end, *exact_law(start), 2, row, monkeypatch)
        errors.append(max(np.abs(a - b).max() for a, b in zip(found, exact_law(last), strict=True)))
    assert errors[-1] < 0.02
    assert abs(np.log2(errors[0] / errors[1]) - 1) < 0.15, errors


# Neutral settings, calls, grids by example


BASES = {"ddim": diffax.ddim, "ddpm": diffax.ddpm, "two_step": two_step}


@pytest.mark.slow_cases(but=["two_step"])
@pytest.mark.newest
@pytest.mark.parametrize("name", BASES)
def test_over_a_grid_without_turns_it_is_the_bare_sampler(name, monkeypatch):
    """For scalars and for a grid by example, but for the last bit: XLA compiles what stands in a cond by itself."""
    replace_noise_by_folds(monkeypatch, lambda key, like: waves(key, like))
    schedule, sampler = LinearLogSNR(), BASES[name](LinearLogSNR())
    grid = jnp.array([0.9, 0.6, 0.6, 0.35, 0.2])
    run = lambda s, times: diffax.integrate(KEY, s, mixture().denoiser(schedule), jnp.asarray(START), times).x
    close = functools.partial(np.testing.assert_allclose, rtol=4e-16, atol=4e-16)
    close(run(diffax.restart(sampler, schedule), grid), run(sampler, grid))
    if name != "two_step":  # it keeps one time for all examples
        many = jnp.stack([grid * f for f in (1.0, 0.9, 0.8, 0.7, 0.6)], 1)
        close(run(diffax.restart(sampler, schedule), many), run(sampler, many))


@pytest.mark.newest
def test_a_jump_costs_no_call():
    schedule, calls = LinearLogSNR(), []

    def denoise(x, t):
        jax.debug.callback(lambda t: calls.append(float(t)), t)
        return 0.5 * x

    sampler = diffax.restart(diffax.ddim(schedule), schedule)
    jax.block_until_ready(diffax.sample(KEY, sampler, denoise, jnp.ones((2, 1)), jnp.array(ZIGZAG)))
    jax.effects_barrier()
    down = [t for t, s in itertools.pairwise([*ZIGZAG, 0.0]) if s < t]
    np.testing.assert_allclose(sorted(calls), sorted(down))
    assert sampler.calls == 1
    assert sampler.renoises


MEMORIES = ("dpmpp_3m", "unipc", "lms", "sa_solver", "pndm", "gaussian_adams")


@spread(("ddpm", *MEMORIES), ("ddpm", "unipc", "pndm"))
def test_a_grid_for_each_example(name):
    """Three examples, of which one restarts earlier and one not at all: each as if it were alone."""
    schedule, oracle = LinearLogSNR(), mixture()
    sampler = diffax.restart(getattr(diffax.samplers, name)(schedule), schedule)
    grids = jnp.array([[0.9, 0.5, 0.3, 0.6, 0.2], [0.9, 0.4, 0.7, 0.5, 0.2], [0.8, 0.7, 0.5, 0.3, 0.1]])
    keys = jax.random.split(KEY, 3)
    run = jax.jit(lambda keys, x, times: diffax.sample(keys, sampler, oracle.denoiser(schedule), x, times))
    together = run(keys, jnp.asarray(START[:3]), grids.T)
    for i in range(3):
        alone = run(keys[i : i + 1], jnp.asarray(START[i : i + 1]), grids[i])
        np.testing.assert_allclose(together[i : i + 1], alone, rtol=1e-9)


@pytest.mark.slow_cases("dpmpp_3m", "unipc")
@spread(MEMORIES, ("dpmpp_3m", "unipc", "pndm"))
def test_a_method_with_a_memory_starts_afresh_after_a_jump(name, monkeypatch):
    """A run with a jump is two runs of the bare sampler and the forward transition between them.

    Also where the jump lands just below the last node: what was met there is of another path all the same.
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
        found = run(jnp.asarray(START), jnp.concatenate([first, second]), True)
        scale, std = diffax.schedules.transition(schedule, high, 0.2)
        x = scale * run(jnp.asarray(START), first, False) + 0.3 * std
        np.testing.assert_allclose(found, run(x, second, False), rtol=1e-9, atol=1e-12)


def test_a_grid_may_turn_only_under_a_wrapper_that_renoises():
    schedule = diffax.Linear()
    with pytest.raises(ValueError, match="times must be monotone"):
        diffax.integrate(KEY, diffax.ddim(schedule), lambda x, t: x, jnp.ones((1, 1)), jnp.array(ZIGZAG))


def test_with_correctors_inside_and_outside(monkeypatch):
    """Zero-sized corrections change nothing, and only the outer one moves x after a jump."""
    replace_noise_by_folds(monkeypatch, lambda key, like: waves((key[0], len(key)), like))
    schedule, oracle = LinearLogSNR(), mixture()
    run = lambda s: (
        diffax.integrate(KEY, s, oracle.denoiser(schedule), jnp.asarray(START), jnp.array([0.5, 0.2, 0.6])).x
    )
    base, none, some = diffax.ddim(schedule), *(diffax.langevin(schedule, step_size=k) for k in (0.0, 0.2))
    plain = run(diffax.restart(base, schedule))
    np.testing.assert_array_equal(run(diffax.restart(diffax.corrected(base, none), schedule)), plain)
    np.testing.assert_array_equal(run(diffax.corrected(diffax.restart(base, schedule), none)), plain)
    inside = run(diffax.restart(diffax.corrected(base, some), schedule))
    outside = run(diffax.corrected(diffax.restart(base, schedule), some))
    assert float(jnp.abs(inside - outside).max()) > 1e-3


# Transformations


@pytest.mark.slow
def test_traced_grids_and_noise_scale(monkeypatch):
    """One compile for many intervals; finite gradients, also at S = 0; the slope in S and t_max is right."""
    replace_noise_by_folds(monkeypatch, lambda key, like: waves(key, like))
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
def test_finite_and_of_the_same_dtype_between_the_ends(schedule, monkeypatch):
    replace_noise_by_folds(monkeypatch, lambda key, like: waves((), like))
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


def test_restart_times_by_hand():
    schedule, times = diffax.LogLinear(0.01, 10.0), np.linspace(1.0, 0.0, 6)  # log-SNR is linear in t
    upper = lambda grid, t_min=0.41: diffax.times.restart(schedule, grid, t_min, 0.8, num_restarts=2, num_steps=2)
    lower = lambda grid: diffax.times.restart(schedule, grid, 0.21, 0.9, num_steps=1)
    splice = lambda t_min: diffax.times.restart(schedule, times, t_min, 0.4, num_steps=2)

    @jax.jit
    def grids(minus_one):
        grid = upper(times)
        none = diffax.times.restart(schedule, times, 0.4, 0.8, num_restarts=0)
        return grid, upper(times, 0.59), lower(grid), upper(lower(times)), splice(0.0), splice(minus_one), none

    once = [1.0, 0.8, 0.6, 0.4, 0.8, 0.6, 0.4, 0.8, 0.6, 0.4, 0.2, 0.0]
    twice = [*once[:-1], 0.9, 0.2, 0.0]  # the same in either order
    at_end = [*times, 0.4, 0.2, 0.0]  # also where t_min, traced, lies below the grid
    for found, wanted in zip(grids(-1.0), [once, once, twice, twice, at_end, at_end, times], strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-12)


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
