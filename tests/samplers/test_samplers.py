"""Every sampler on distributions with a known answer: order, exact results, gradients, dtypes and the contract."""

import functools
import itertools
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exam import (
    BETAS,
    CLAIMED,
    FEW_SCHEDULES,
    ORDERS,
    SAMPLERS,
    SCHEDULES,
    START,
    check_order,
    errors,
    gaussian,
    mixture,
    moments_from_fixed_start,
    problem,
    spread,
)

import diffax
from diffax import analytic, samplers
from diffax.predictions import KINDS
from diffax.samplers._base import State
from diffax.samplers.engines import adams as engine
from diffax.samplers.wrappers._ancestral import ancestral_levels

pytestmark = [pytest.mark.usefixtures("x64")]

KEY = jax.random.key(0)
COSINE = diffax.Cosine()
TABLES = [name for name, schedule in SCHEDULES.items() if hasattr(schedule, "log_snr_table")]
EXTREME_SCHEDULES = {name: SCHEDULES[name] for name in FEW_SCHEDULES}
every_sampler = pytest.mark.parametrize("name", SAMPLERS)
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def build(name, schedule, **changes):
    make, values, _ = SAMPLERS[name]
    return make(schedule, **{**values, **changes})


# Convergence order


@functools.cache
def problem_of(schedule):
    return problem(SCHEDULES[schedule])


FEW_SAMPLERS = ["ddim", "heun", "dpmpp_3m", "lms", "unipc", "pndm"]


@pytest.mark.slow_cases(but=["lms"])
@pytest.mark.newest
@pytest.mark.parametrize("name", FEW_SAMPLERS)
def test_the_measured_order_is_the_claimed_one(name):
    check_order(ORDERS[name](SCHEDULES["linear"]), problem_of("linear"))


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in ORDERS if n not in FEW_SAMPLERS])
def test_the_measured_order_of_every_setting_is_the_claimed_one(name):
    check_order(ORDERS[name](SCHEDULES["linear"]), problem_of("linear"))


@pytest.mark.slow_cases(
    "dpmpp_3m-flow", "dpmpp_3m-edm", "dpmpp_3m-zero_terminal_snr", "unipc-flow", "unipc-zero_terminal_snr"
)
@pytest.mark.parametrize("schedule", ["flow", "edm", "zero_terminal_snr"])
@spread(["heun", "dpmpp_3m", "unipc", "flow_adams"], ("dpmpp_3m", "unipc"))
def test_the_measured_order_on_other_schedules_is_the_claimed_one(name, schedule):
    check_order(ORDERS[name](SCHEDULES[schedule]), problem_of(schedule))


@pytest.mark.slow
@pytest.mark.parametrize("schedule", [s for s in SCHEDULES if s != "linear"])
def test_the_measured_order_on_every_schedule_is_the_claimed_one(schedule):
    failures = []
    for name, make in ORDERS.items():
        if name.endswith("time") and schedule in TABLES:
            continue  # a table is linear in log-SNR between its nodes, so alpha and sigma have kinks in t
        try:
            check_order(make(SCHEDULES[schedule]), problem_of(schedule))
        except AssertionError as error:
            failures.append(f"{name}: {error}")
    assert not failures, "\n".join(failures)


def test_samplers_claim_the_order_of_their_source():
    assert {name: make(COSINE).order for name, make in ORDERS.items()} == CLAIMED


# Exact results


@pytest.mark.parametrize("schedule", ["log_linear", "linear"])
def test_a_ddim_step_on_a_gaussian_has_the_closed_form(schedule):
    """In u = x / alpha: u' = m + (s^2 + rho rho') / (s^2 + rho^2) (u - m), rho = sigma / alpha."""
    schedule, (m, s) = SCHEDULES[schedule], (0.7, 0.5)
    oracle = analytic.Gaussian.from_covariance(np.array([m]), s**2)
    x = jnp.linspace(-2, 2, 7)[:, None]
    t, t_next = schedule(0.8), schedule(0.3)
    rho, rho_next = t.sigma / t.alpha, t_next.sigma / t_next.alpha
    state = diffax.integrate(KEY, diffax.ddim(schedule), oracle.denoiser(schedule), x, jnp.array([0.8, 0.3]))
    factor = (s**2 + rho * rho_next) / (s**2 + rho**2)
    np.testing.assert_allclose(state.x / t_next.alpha, m + factor * (x / t.alpha - m), rtol=1e-12)


@pytest.mark.slow_cases("quadratic", "laplace-sub_vp", "linear_betas")
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
    run = lambda x: moments_from_fixed_start(sampler, oracle.denoiser(schedule), x, times, monkeypatch)
    slope = jax.jacobian(lambda x: run(x[None])[0])(x[0])
    np.testing.assert_allclose(run(x)[1] + slope @ slope.T, 1.0, rtol=1e-12)


# Distributions of the papers


@pytest.mark.slow_cases("small")
@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm_follows_the_recursion_of_the_paper(variance, monkeypatch):
    """Ho et al. 2020, eq. 7 and 11, in terms of betas: 20 steps on Gaussian data N(0.7, 0.5^2)."""
    betas = np.linspace(0.01, 0.3, 20)
    schedule = diffax.from_betas(betas)
    times = (np.arange(20)[::-1] + 1) / 20
    oracle = analytic.Gaussian.from_covariance(np.array([0.7]), 0.25)
    sampler = diffax.ddpm(schedule, variance=variance)
    mean, covariance = moments_from_fixed_start(
        sampler, oracle.denoiser(schedule), jnp.array([[1.3]]), times, monkeypatch
    )

    alphas, bars = 1 - betas, np.cumprod(1 - betas)
    m, v = 1.3, 0.0
    for i in range(19, 0, -1):
        gain = np.sqrt(bars[i]) * 0.25 / (bars[i] * 0.25 + 1 - bars[i])
        gain_x0, offset_x0 = gain, 0.7 - gain * np.sqrt(bars[i]) * 0.7
        c_x0 = np.sqrt(bars[i - 1]) * betas[i] / (1 - bars[i])
        c_x = np.sqrt(alphas[i]) * (1 - bars[i - 1]) / (1 - bars[i])
        beta_tilde = (1 - bars[i - 1]) / (1 - bars[i]) * betas[i]
        slope = c_x0 * gain_x0 + c_x
        m = slope * m + c_x0 * offset_x0
        v = slope**2 * v + (beta_tilde if variance == "small" else betas[i])
    np.testing.assert_allclose(mean, [m], rtol=1e-9)
    np.testing.assert_allclose(covariance, [[v]], rtol=1e-9)


@pytest.mark.slow_cases(but=["0.0"])
@pytest.mark.parametrize("eta", [0.0, 0.35, 1.0])
def test_ddim_follows_equation_12_of_the_paper(eta, monkeypatch):
    """Song, Meng & Ermon 2021, eq. 12 and 16, in terms of alpha bar, on a strided grid of the table of DDPM."""
    bars, steps = np.cumprod(1 - BETAS), [999, 700, 350, 40]
    oracle = analytic.Gaussian.from_covariance(np.array([0.7]), 0.25)
    schedule = diffax.from_betas(BETAS)
    times = (np.array(steps) + 1) / 1000
    mean, covariance = moments_from_fixed_start(
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


@pytest.mark.slow_cases("linear", "flow", "zero_terminal_snr")
@spread(SCHEDULES, FEW_SCHEDULES)
def test_ddim_at_eta_1_is_ddpm(name):
    schedule = SCHEDULES[name]
    denoise, times = gaussian().denoiser(schedule), jnp.linspace(1.0, 0.0, 9)
    ends = [
        diffax.integrate(KEY, s, denoise, START, times).x
        for s in (diffax.ddpm(schedule), diffax.ddim(schedule, eta=1.0))
    ]
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-8)


def test_ddpm_towards_noise_is_the_forward_transition(monkeypatch):
    schedule, x = diffax.Linear(), jnp.array([[0.4]])
    mean, covariance = moments_from_fixed_start(
        diffax.ddpm(schedule), lambda x, t: 0 * x + 9.0, x, jnp.array([0.1, 0.3, 0.7]), monkeypatch
    )
    scale, std = diffax.schedules.transition(schedule, 0.7, 0.1)
    np.testing.assert_allclose(mean, scale * x[0], rtol=1e-12)
    np.testing.assert_allclose(covariance, [[std**2]], rtol=1e-12)


def test_ddim_inverts_on_the_reversed_grid():
    """The error of a round trip shrinks at order 1, and eta has no effect on steps towards noise."""
    schedule, oracle, x = diffax.Cosine(), gaussian(), jnp.asarray(START)
    errors = []
    for n in (50, 100):
        times = diffax.times.uniform_log_snr(schedule, n, t_max=0.9, t_min=0.05)
        for eta in (0.0, 0.7):
            up = diffax.integrate(KEY, diffax.ddim(schedule, eta=eta), oracle.denoiser(schedule), x, times[::-1]).x
            back = diffax.integrate(KEY, diffax.ddim(schedule), oracle.denoiser(schedule), up, times).x
            errors.append(float(jnp.abs(back - x).max()))
    assert errors[0] == pytest.approx(errors[1], rel=1e-12)
    assert 0.8 < np.log2(errors[0] / errors[2]) < 1.3


# Transformations


def arrays(values):
    return {k: jnp.asarray(v) for k, v in values.items()}


@pytest.mark.slow_cases("dpmpp_2m_sde", "unipc", "heun-churn")
@pytest.mark.newest
@spread(SAMPLERS, ("ddim-eta", "heun-churn", "dpmpp_2m_sde", "unipc"))
def test_one_compilation_covers_all_hyperparameters_and_grids(name):
    """Values and gradients in every hyperparameter and in the grid, vmapped over both, in one compiled function.

    The gradients equal central differences, and the second call does not trace again.
    """
    values, traces = SAMPLERS[name][1], []

    def total(values, times):
        schedule = diffax.Linear()
        x = diffax.sample(KEY, build(name, schedule, **values), gaussian().denoiser(schedule), START, times)
        return jnp.sum(x**2)

    @jax.jit
    def both(values, grids):
        traces.append(name)
        return jax.vmap(jax.value_and_grad(total, argnums=(0, 1)))(values, grids)

    times, h, count = jnp.linspace(0.9, 0.1, 6), 1e-5, 4 + len(values)
    grids, swept = np.tile(times, (2 * count, 1)), {k: np.full(2 * count, float(v)) for k, v in values.items()}
    for i in range(count):  # each pair of rows has one inner time, or one hyperparameter, moved down and up
        row = grids[:, 1 + i] if i < 4 else swept[list(values)[i - 4]]
        row[2 * i : 2 * i + 2] += (-h, h)
    totals, (slopes_values, slopes_times) = both(arrays(swept), jnp.asarray(grids))
    slopes = (totals[1::2] - totals[::2]) / (2 * h)
    central = jax.tree.map(lambda g: (g[1::2] + g[::2]) / 2, (slopes_values, slopes_times))
    for i in range(count):
        slope = central[1][i, 1 + i] if i < 4 else central[0][list(values)[i - 4]][i]
        np.testing.assert_allclose(slope, slopes[i], rtol=1e-4, atol=1e-7)

    extreme_values = {k: np.linspace(0.0 if k in MAY_BE_ZERO else 0.3, 1.0, 2 * count) for k in values}
    extreme_grids = np.stack([np.linspace(1.0, t, 6) for t in np.linspace(0.0, 0.2, 2 * count)])
    totals, slopes = both(arrays(extreme_values), jnp.asarray(extreme_grids))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((totals, slopes)))
    assert len(traces) == 1
    for i in (0, 2 * count - 1):
        single = total({k: v[i] for k, v in extreme_values.items()}, jnp.asarray(extreme_grids[i]))
        np.testing.assert_allclose(totals[i], single, rtol=1e-9)


MAY_BE_ZERO = ("eta", "tau", "s_churn")  # gradients must be finite at 0 too, where a square root starts


@pytest.mark.slow_cases(but=["pndm"])
@pytest.mark.parametrize("name", ["ddim-eta", "unipc", "pndm"])
def test_jit_equals_no_jit(name):
    schedule, times = diffax.Linear(), jnp.linspace(1.0, 0.05, 6)
    run = lambda: diffax.sample(KEY, build(name, schedule), gaussian().denoiser(schedule), START, times)
    with jax.disable_jit():
        plain = run()
    np.testing.assert_allclose(jax.jit(run)(), plain, rtol=1e-10)


@spread(["ddim-eta", "dpmpp_2m_sde"], ("ddim-eta",))
def test_the_gradient_in_a_schedule_parameter_is_right(name):
    @jax.jit
    def total(beta_max):
        schedule = diffax.Linear(beta_max=beta_max)
        sampler = build(name, schedule)
        return jnp.sum(diffax.sample(KEY, sampler, gaussian().denoiser(schedule), START, jnp.linspace(1.0, 0.1, 5)))

    slope = (total(20.0 + 1e-4) - total(20.0 - 1e-4)) / 2e-4
    np.testing.assert_allclose(jax.jit(jax.grad(total))(20.0), slope, rtol=1e-5)


DETERMINISTIC = [name for name, row in SAMPLERS.items() if row[2]]


@pytest.mark.slow_cases("dpmpp_3m", "unipc")
@pytest.mark.newest
@spread(DETERMINISTIC, ("ddim", "heun", "dpmpp_3m", "unipc", "pndm"))
def test_a_step_of_length_zero_changes_nothing(name):
    schedule, times = diffax.Cosine(), np.array([0.9, 0.7, 0.5, 0.3, 0.2, 0.1])
    sampler = build(name, schedule)
    run = jax.jit(lambda times: diffax.integrate(KEY, sampler, mixture().denoiser(schedule), START, times).x)
    repeated = run(times[[0, 0, 1, 2, 2, 2, 3, 4, 5, 5]])
    np.testing.assert_allclose(repeated, run(np.pad(times, (0, 4), mode="edge")), rtol=1e-12)


def test_repeated_times_do_not_count_as_remaining_steps():
    """The last steps have order 2 and 1, also on a padded grid."""
    schedule, times = diffax.Cosine(), np.array([0.9, 0.6, 0.35, 0.1, 0.05])
    sampler = samplers.dpmpp_3m(schedule, lower_order_final=True)
    run = lambda times: diffax.integrate(KEY, sampler, mixture().denoiser(schedule), START, times).x
    bare = run(times)
    assert float(jnp.abs(bare - run(np.append(times, 0.04))).max()) > 1e-3
    for padded in (times[[0, 1, 2, 3, 4, 4, 4, 4]], times[[0, 0, 0, 1, 2, 2, 3, 4]]):
        np.testing.assert_allclose(run(padded), bare, rtol=1e-12)
        np.testing.assert_allclose(run(np.stack([padded] * len(START), 1)), bare, rtol=1e-12)
    np.testing.assert_array_equal(run(times[:1]), START)


def test_churn_adds_noise_only_to_steps_towards_data():
    schedule, times = diffax.Cosine(), jnp.array([0.7, 0.5, 0.3])
    sampler, denoise = samplers.heun(schedule, s_churn=1.0), mixture().denoiser(schedule)
    state = sampler.init(jnp.asarray(START), times)
    assert float(state.gamma) == pytest.approx(1 / 3)
    assert float(sampler.init(START, times[jnp.array([0, 1, 1, 2, 2])]).gamma) == pytest.approx(1 / 3)
    by_example = sampler.init(START, jnp.array([[0.7, 0.7], [0.5, 0.7], [0.3, 0.3]])).gamma
    np.testing.assert_allclose(by_example, [1 / 3, np.sqrt(2) - 1])
    np.testing.assert_array_equal(sampler.step(KEY, denoise, state, times[1], times[1]).x, START)
    towards_noise, bare = (
        diffax.integrate(KEY, s, denoise, START, times[::-1]).x for s in (sampler, samplers.heun(schedule))
    )
    np.testing.assert_allclose(towards_noise, bare, rtol=1e-12)


@pytest.mark.slow_cases("flow")
@pytest.mark.parametrize("schedule", ["cosine", "flow"])
def test_ancestral_steps_from_pure_noise_have_finite_gradients_in_float32(schedule):
    """In such a long step 1 - (share of noise) rounds to 0, so the formula must not use this difference."""
    noise_schedule = SCHEDULES[schedule]
    levels = [noise_schedule(jnp.float32(t)) for t in (1.0, 0.6)]
    down, _ = ancestral_levels(*levels, 1.0)
    rho_t, rho_s = (level.sigma / level.alpha for level in levels)
    np.testing.assert_allclose(down, rho_s**2 / rho_t, rtol=1e-5)

    def total(times, make):
        denoise = jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), gaussian()).denoiser(noise_schedule)
        return jnp.sum(
            diffax.integrate(KEY, make(noise_schedule), denoise, jnp.asarray(START, jnp.float32), times).x ** 2
        )

    for make in (samplers.dpm2_ancestral, samplers.dpmpp_2s_ancestral, samplers.dpmpp_sde):
        assert np.isfinite(jax.grad(total)(jnp.asarray([1.0, 0.6, 0.3, 0.1], jnp.float32), make)).all()


@pytest.mark.newest
def test_the_history_is_dropped_where_the_grid_turns_back():
    """After a jump back to noise the step equals that of a cold start."""
    schedule, denoise = diffax.Cosine(), mixture().denoiser(diffax.Cosine())
    for name in ("dpmpp_2m", "unipc", "lms", "ipndm"):
        sampler = build(name, schedule)
        state = sampler.init(jnp.asarray(START), jnp.array([0.9, 0.5]))
        for t, s in ((0.9, 0.7), (0.7, 0.5)):
            state = sampler.step(KEY, denoise, state, jnp.asarray(t), jnp.asarray(s))
        after_jump = sampler.step(
            KEY, denoise, state._replace(x=jnp.asarray(START)), jnp.asarray(0.8), jnp.asarray(0.6)
        )
        cold_start = sampler.init(jnp.asarray(START), jnp.array([0.8, 0.6]))
        cold_start = sampler.step(KEY, denoise, cold_start, jnp.asarray(0.8), jnp.asarray(0.6))
        np.testing.assert_allclose(after_jump.x, cold_start.x, rtol=1e-12)


@pytest.mark.parametrize(
    "schedule",
    [v if k == "zero_terminal_snr" else pytest.param(v, marks=pytest.mark.slow) for k, v in EXTREME_SCHEDULES.items()],
    ids=EXTREME_SCHEDULES,
)
@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "names", [(*FEW_SAMPLERS, "ddim-eta", "ddpm"), pytest.param((*SAMPLERS,), marks=pytest.mark.slow)]
)
def test_results_are_finite_and_keep_the_dtype_from_pure_noise_to_data(schedule, dtype, names):
    """In float32 and bfloat16, on a grid with repeated t = 1 and t = 0, with v-prediction."""
    denoise = diffax.denoiser(lambda x, t: 0.3 * x, schedule, "v")
    times = jnp.asarray([1.0, 1.0, 0.8, 0.5, 0.2, 1e-6, 0.0, 0.0], jnp.float32)

    @jax.jit
    def run(x):
        return {name: diffax.unroll(KEY, build(name, schedule), denoise, x, times) for name in names}

    x = diffax.initial_noise(KEY, schedule, jax.ShapeDtypeStruct((16, 3), dtype))
    for name, (_, path) in run(x).items():
        assert path.dtype == dtype, name
        assert np.isfinite(np.asarray(path, np.float32)).all(), name
        if SAMPLERS[name][2]:  # a step of length zero may change only the last bit
            np.testing.assert_allclose(*(np.asarray(v, np.float32) for v in (path[0], x)), rtol=2e-7)
            np.testing.assert_allclose(*(np.asarray(v, np.float32) for v in (path[-1], path[-2])), rtol=2e-7)


@pytest.mark.slow_cases(but=["flow"])
@pytest.mark.newest
@pytest.mark.parametrize("schedule", EXTREME_SCHEDULES.values(), ids=EXTREME_SCHEDULES)
def test_every_kind_of_network_is_finite_in_float32(schedule):
    """Networks of every prediction kind, from t = 1 to t = 0, with ddim and ddpm."""
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


# These compiler options undo the settings of conftest.py, so that the programs compile as for users.
DEFAULT_COMPILATION = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
if "--xla_cpu_use_fusion_emitters=false" in os.environ.get("XLA_FLAGS", ""):
    DEFAULT_COMPILATION["xla_cpu_use_fusion_emitters"] = True

# Tolerated error of 1,000 steps in float32, for a state of size 1. The values above 5e-6 are measured. They have two
# causes: 1,000 noise draws, and the rounding of a time where log-SNR is steep in t, as in the first steps of the cosine
# and of zero terminal SNR. A rounded time changes the path but not the distribution, because the step goes to the level
# of the rounded time.
FLOAT32 = {name: 5e-6 if row[2] else 1e-5 for name, row in SAMPLERS.items()} | {
    **dict.fromkeys(("ddim-eta", "dpmpp_2m_sde", "dpmpp_3m_sde"), 2e-5),
    **dict.fromkeys(("dpmpp_sde", "sa_solver"), 4e-5),
    **dict.fromkeys(("heun-churn", "dpm2_ancestral", "dpmpp_2s_ancestral"), 1.2e-4),
    ("ddim-eta", "zero_terminal_snr"): 1.2e-4,
    "gaussian_adams": 1e-5,  # its carry coefficient, close to 1, is rounded in every step
    "noise_floor": 1e-5,  # near t = 0 rounding errors of the denoiser are multiplied by (std / sigma)^2
    **dict.fromkeys((("dpm2_ancestral", "cosine"), ("dpmpp_2s_ancestral", "cosine")), 8e-4),
}


def check_float32(name, schedule):
    """1,000 steps from t = 1 to t = 1e-3 on the mixture, against float64 on the same grid with the same noise."""
    noise_schedule = SCHEDULES[schedule]
    times = diffax.times.uniform_log_snr(noise_schedule, 1001, t_max=1.0, t_min=1e-3).astype(jnp.float32)

    def run(dtype):
        noise_schedule, oracle = (
            jax.tree.map(lambda v: jnp.asarray(v, dtype), tree) for tree in (SCHEDULES[schedule], mixture())
        )
        end = lambda x, times: (
            diffax.integrate(KEY, build(name, noise_schedule), oracle.denoiser(noise_schedule), x, times).x
        )
        return jax.jit(end, compiler_options=DEFAULT_COMPILATION)(x.astype(dtype), times.astype(dtype))

    x = (noise_schedule(times[0]).sigma * jnp.asarray(START)).astype(jnp.float32)
    with pytest.MonkeyPatch.context() as patch:
        draw = lambda key, like: jax.random.normal(key, like.shape, jnp.float32).astype(like.dtype)
        patch.setattr(diffax.random, "noise", draw)
        single = run(jnp.float32)
        assert single.dtype == jnp.float32
        np.testing.assert_allclose(single, run(jnp.float64), rtol=0, atol=FLOAT32.get((name, schedule), FLOAT32[name]))


@pytest.mark.slow_cases(but=["dpmpp_2m-cosine"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "unipc"])
def test_a_thousand_steps_in_float32_are_close_to_float64(name, schedule):
    check_float32(name, schedule)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["linear", "cosine", "flow", "edm", "sub_vp", "zero_terminal_snr"])
@every_sampler
def test_a_thousand_steps_of_every_sampler_in_float32_are_close_to_float64(name, schedule):
    check_float32(name, schedule)


@pytest.mark.newest
def test_a_wrapper_without_noise_adds_no_rounding_error():
    """In float32 the difference of two roundings of the same log-SNR would add noise of std 1e-3."""
    schedule, x = SCHEDULES["linear"], jnp.asarray(START, jnp.float32)
    times = diffax.times.uniform_log_snr(schedule, 50, t_max=1.0, t_min=1e-3).astype(jnp.float32)
    denoise = mixture().denoiser(schedule)
    bare = diffax.heun(schedule)
    for wrapped in (
        samplers.churn(bare, schedule, 3.0, s_tmax=0.0),
        samplers.ancestral(bare, schedule, eta=jnp.zeros(())),
    ):
        ends = [diffax.integrate(KEY, s, denoise, x, times).x for s in (wrapped, bare)]
        np.testing.assert_allclose(*ends, rtol=2e-6, atol=2e-6)


# Contract


@pytest.mark.slow_cases("euler_maruyama")
@every_sampler
def test_every_sampler_satisfies_the_contract(name):
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
    assert len(calls) == sampler.calls + (name == "pndm")  # its first step makes one extra call
    edited = sampler.step(KEY, denoise, state._replace(x=state.x + 1), 1.0, 0.5)
    assert float(jnp.abs(edited.x - new.x).min()) > 0  # the step starts from the x in the state


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: diffax.ddim(diffax.Cosine(), eta=-0.1), r"eta must be in \[0, 1\], got -0.1"),
        (lambda: diffax.ddim(diffax.Cosine(), eta=1.5), r"eta must be in \[0, 1\], got 1.5"),
        (lambda: samplers.unipc(COSINE, order=4), "order must be an int in 1 .. 3, got 4"),
        (lambda: samplers.unipc(COSINE, variant="vary_coeff"), "variant must be one of bh1, bh2, got 'vary_coeff'"),
        (lambda: samplers.unipc(COSINE, form="v"), "form must be one of eps, x0, got 'v'"),
        (lambda: samplers.deis(COSINE, order=0), "order must be an int in 1 .. 3, got 0"),
        (lambda: samplers.lms(COSINE, order=True), "order must be an int in 1 .. 4, got True"),
        (lambda: samplers.lms(COSINE, order=2.0), "order must be an int in 1 .. 4, got 2.0"),
        (lambda: samplers.dpm_solver(COSINE, order=4), "order must be an int in 1 .. 3, got 4"),
        (lambda: samplers.dpm_solver(COSINE, space="rho"), "space must be one of log_snr, time, got 'rho'"),
        (lambda: samplers.heun(COSINE, space="log_snr"), "space must be one of rho, time, got 'log_snr'"),
        (lambda: samplers.heun(COSINE, alpha=0.0), r"alpha must be in \(0, 1\], got 0.0"),
        (lambda: samplers.heun(COSINE, s_churn=-1.0), "s_churn must be >= 0, got -1.0"),
        (lambda: samplers.heun(COSINE, s_noise=-1.0), "s_noise must be >= 0, got -1.0"),
        (lambda: samplers.heun(COSINE, s_churn=1.0, s_tmin=np.nan), "s_tmin must be a number, got nan"),
        (lambda: samplers.heun(COSINE, s_churn=1.0, s_tmin=2.0, s_tmax=1.0), "s_tmax must be >= s_tmin = 2.0, got 1.0"),
        (lambda: diffax.ddim(COSINE, eta=None), r"eta must be in \[0, 1\], got None"),
        (lambda: samplers.dpmpp_2m(COSINE, solver="taylor"), "solver must be one of midpoint, heun, got 'taylor'"),
        (lambda: samplers.dpmpp_3m(COSINE, start="warm"), "start must be one of corrected, cold, got 'warm'"),
        (lambda: samplers.dpmpp_2m_sde(COSINE, eta=-0.5), "eta must be >= 0, got -0.5"),
        (lambda: samplers.dpmpp_sde(COSINE, eta=2.0), r"eta must be in \[0, 1\], got 2.0"),
        (lambda: samplers.dpm2_ancestral(COSINE, eta=-1), r"eta must be in \[0, 1\], got -1"),
        (lambda: samplers.sa_solver(COSINE, tau=-1.0), "tau must be >= 0, got -1.0"),
        (lambda: samplers.pndm(COSINE, start="rk"), "start must be one of plms, prk, got 'rk'"),
        (lambda: samplers.ipndm(COSINE, order=5), "order must be an int in 1 .. 4, got 5"),
        (lambda: engine.adams(COSINE, rule="bh3"), "rule must be one of exact, bh1, bh2, got 'bh3'"),
        (lambda: engine.adams(COSINE, corrected="end"), "corrected must be True, False or 'start', got 'end'"),
        (lambda: engine.adams(COSINE, form="eps", eta=0.3), "eta must be 0 in form 'eps', got 0.3"),
        (
            lambda: samplers.churn(samplers.unipc(COSINE), COSINE, 1.0),
            "sampler must be single-step .* got a multistep sampler of order 4",
        ),
        (lambda: samplers.ancestral(samplers.ipndm(COSINE), COSINE), "sampler must be single-step .* order 2;"),
        (lambda: samplers.dpmpp_2m_sde(COSINE, noise_scale=-1.0), "noise_scale must be >= 0, got -1.0"),
        (lambda: samplers.dpmpp_sde(COSINE, noise_scale=-1.0), "noise_scale must be >= 0, got -1.0"),
        (lambda: samplers.heun(COSINE, s_churn=1.0, s_noise=-1.0), "s_noise must be >= 0, got -1.0"),
        (lambda: diffax.ddim(COSINE, eta="1"), r"eta must be in \[0, 1\], got '1'"),
        (
            lambda: diffax.ddpm(diffax.Cosine(), variance="medium"),
            "variance must be one of small, large, learned, got 'medium'",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Negative controls: each breaks one thing, and the check must fail.


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


@pytest.mark.slow_cases(but=["sigma off by 1%"])
@pytest.mark.parametrize("kind", ["alpha of now", "sigma off by 1%", "score without the half"])
def test_the_check_rejects_a_broken_sampler(kind):
    schedule = diffax.Linear()
    check_order(broken_ddim("none", schedule), problem_of("linear"))
    with pytest.raises(AssertionError):
        check_order(broken_ddim(kind, schedule), problem_of("linear"))


def test_the_check_rejects_a_wrong_distribution(monkeypatch):
    """The noise is 5 % too strong."""
    original = diffax.ddpm

    def too_noisy(schedule, **kwargs):
        def step(key, denoise, state, t, s):
            noisy = original(schedule, **kwargs).step(key, denoise, state, t, s).x
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(diffax.random, "noise", lambda key, like: 0 * like)
                mean = original(schedule, **kwargs).step(key, denoise, state, t, s).x
            return State(mean + 1.05 * (noisy - mean))

        return original(schedule, **kwargs)._replace(step=step)

    test_ddpm_follows_the_recursion_of_the_paper("small", monkeypatch)
    monkeypatch.setattr(diffax, "ddpm", too_noisy)
    with pytest.raises(AssertionError):
        test_ddpm_follows_the_recursion_of_the_paper("small", monkeypatch)


def test_the_check_rejects_a_wrong_claim():
    with pytest.raises(AssertionError, match="claims order 2, measured"):
        check_order(diffax.ddim(SCHEDULES["linear"])._replace(order=2), problem_of("linear"))


def test_the_check_rejects_the_released_third_order_step(monkeypatch):
    """Multistep 3 of dpm-solver lacks a factor 2 in the term of the second difference, so it converges at order 2."""
    original = engine.newton_integrals

    def released(moments, offsets):
        integrals = original(moments, offsets)
        return [*integrals[:2], *(v / 2 for v in integrals[2:])]

    monkeypatch.setattr(engine, "newton_integrals", released)
    with pytest.raises(AssertionError, match=r"claims order 3, measured (2\.\d|1\.9)"):
        check_order(samplers.dpmpp_3m(SCHEDULES["linear"], start="cold"), problem_of("linear"))


def test_the_check_rejects_a_sampler_that_ignores_an_edit_of_x():
    """check_order edits x to set an exact history; a sampler that continues from its own copy of x keeps its error."""
    original = samplers.deis(SCHEDULES["linear"])

    class CopiedState(NamedTuple):
        x: Any
        inner: Any

    def step(key, denoise, state, t, s):
        inner = original.step(key, denoise, state.inner, t, s)
        return CopiedState(inner.x, inner)

    ignoring_edits = original._replace(init=lambda x, times: CopiedState(x, original.init(x, times)), step=step)
    problem = problem_of("linear")
    with_edit, without_edit = (errors(original, problem, warm=w) for w in (6, 0))
    np.testing.assert_allclose(errors(ignoring_edits, problem, warm=6), without_edit, rtol=1e-6)
    assert np.abs(with_edit / without_edit - 1).max() > 1e-4


def test_the_reference_solution_is_more_accurate_than_the_samplers():
    """The Runge-Kutta path is within 2e-11 of the closed form; the error of unipc on its finest grid is larger."""
    problem = problem_of("linear")
    schedule, num_gaussian = problem.schedule, len(START)
    ends = (schedule(schedule.inverse(jnp.asarray(v))) for v in (-9.0, 2.2))
    exact = gaussian().flow(problem.x[:num_gaussian], *ends)
    np.testing.assert_allclose(problem.end[:num_gaussian], exact, atol=2e-11)
    assert errors(samplers.unipc(schedule), problem).min() > 1e-10
