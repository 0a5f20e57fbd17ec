"""Consistency samplers: numbers of diffusers, exact laws with an exact consistency function, recursions by hand."""

import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exam import BETAS, SCHEDULES, START, gaussian, mixture
from injected import LinearLogSNR, moments_from_gaussian_start, replace_noise_by_folds
from test_correctors import waves

import diffax
from diffax import analytic

KEY = jax.random.key(0)
C0 = np.array([[0.4, 0.15], [0.15, 0.2]])
M0 = np.array([0.7, -0.4])
x64 = pytest.mark.usefixtures("x64")
SAMPLERS = {
    "consistency": diffax.consistency,
    "consistency-0.1": lambda schedule: diffax.consistency(schedule, t_min=0.1),
    "lcm": diffax.lcm,
    "tcd": diffax.tcd,
    "tcd-table": lambda schedule: diffax.tcd(schedule, gamma=0.4, num_train_steps=50),
}


# Against published code: reference/diffusers_consistency.json names its source.

CASES = json.loads((Path(__file__).parents[1] / "samplers" / "reference" / "diffusers_consistency.json").read_text())[
    "cases"
]
SHAPE = (4, 3, 8, 8)


def injected(monkeypatch):
    """Draw k is sqrt(2) sin(0.1 i + 1.7 k), i the flat index."""
    i = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    wave = lambda key, like: (jnp.sqrt(2.0) * jnp.sin(0.1 * i + 1.7 * key[0])).astype(like.dtype)
    replace_noise_by_folds(monkeypatch, wave)


def latent_setting(case):
    """(what to run, start) of an LCM or TCD case: eps-prediction on a scaled-linear table, at timesteps of it."""
    config = case["config"]
    betas = np.linspace(config["beta_start"] ** 0.5, config["beta_end"] ** 0.5, 1000) ** 2
    schedule = diffax.from_betas(betas)
    times = diffax.times.lcm(diffax.Cosine(), case["num_inference_steps"])
    np.testing.assert_allclose(1000 * times - 1, case["timesteps"], atol=1e-3)

    def model(x, t):
        step = jnp.round(t * 1000 - 1)
        return x * (step / (step + 1))

    denoise = diffax.denoiser(model, schedule, "eps")
    if case["id"].startswith("LCM"):
        function = diffax.denoisers.latent_consistency_function(denoise)
        return lambda x: diffax.sample(KEY, diffax.lcm(schedule), function, x, times), 1.0
    times = jnp.append(times, 1e-3)  # the released loop ends at timestep 0, not with a denoiser call
    sampler = diffax.tcd(schedule, gamma=0.0, num_train_steps=1000)
    return lambda x: diffax.integrate(KEY, sampler, denoise, x, times).x, 1.0


def consistency_setting(case):
    """(what to run, start) of a consistency model: sigma from 80 to 0.002, its own scaling of the input, clipped."""
    low, high = case["config"]["sigma_min"], case["config"]["sigma_max"]
    schedule = diffax.LogLinear(low, high)
    sigmas = np.array(case["sigmas"][:-1])
    times = jnp.asarray(schedule.inverse(-2 * jnp.log(sigmas)))

    def model(x, t):
        sigma = schedule(t).sigma
        scaled, step = x / jnp.sqrt(sigma**2 + 0.25), 250 * jnp.log(sigma)
        return scaled * (step / (step + 1))

    function = diffax.denoisers.clip_static(diffax.denoisers.consistency_function(model, schedule))
    return lambda x: diffax.sample(KEY, diffax.consistency(schedule), function, x, times), high


@pytest.mark.slow_cases(
    but=["CMStochasticIterativeScheduler/onestep", "CMStochasticIterativeScheduler/multistep_injected"]
)
@pytest.mark.newest
@pytest.mark.parametrize("case", CASES, ids=lambda c: c["id"])
def test_diffusers(case, monkeypatch):
    injected(monkeypatch)
    setting = consistency_setting if case["id"].startswith("CM") else latent_setting
    run, scale = setting(case)
    x = scale * (np.arange(768).reshape(3, 8, 8, 4) / 768).transpose(3, 0, 1, 2).astype(np.float32)
    found = np.asarray(run(jnp.asarray(x)))
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.abs(found).sum(dtype=np.float64), case["observed_sum"], rtol=1e-5)
    # eps is divided by alpha = 0.07 at the start: a last bit of x is 1e-6 of x0, and diffusers' own entries are as far
    # from the same recursion in float64, 1.2e-5 relative in LCM's third-last.
    np.testing.assert_allclose(found.ravel()[:4], case["observed_first4"], rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(found.ravel()[-4:], case["observed_last4"], rtol=1e-5, atol=2e-6)


# Laws


def marginal(level):
    return float(level.alpha) * M0, float(level.alpha) ** 2 * C0 + float(level.sigma) ** 2 * np.eye(2)


def close(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def check_exact(name, schedule, monkeypatch, make=None):
    """With the flow map as f every level has exactly its law, from the exact start, over three steps of any size."""
    oracle = gaussian()
    end_level = {"lcm": analytic.CLEAN, "consistency": schedule(0.0), "consistency-0.1": schedule(0.1)}[name]
    function = lambda x, t: oracle.flow(x, schedule(t), end_level)
    sampler = (make or SAMPLERS[name])(schedule)
    times = [0.95, 0.9, 0.5, 0.15]

    def ends(x):  # of integrate and of sample
        x = diffax.integrate(KEY, sampler, function, x, jnp.array(times)).x
        return jnp.concatenate([x, function(x, times[-1])], 1)

    mean, covariance = moments_from_gaussian_start(
        ends, *marginal(schedule(times[0])), 3, lambda key: key[0], monkeypatch
    )
    close((mean[:2], covariance[:2, :2]), marginal(schedule(times[-1])))
    close((mean[2:], covariance[2:, 2:]), marginal(end_level))


@pytest.mark.slow_cases(but=["lcm-linear", "lcm-flow"])
@x64
@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        ("consistency", "log_linear"),
        ("consistency", "linear"),
        ("consistency-0.1", "linear"),
        ("consistency-0.1", "flow"),
        ("lcm", "linear"),
        ("lcm", "flow"),
    ],
)
def test_exact_in_law_at_every_level_with_an_exact_consistency_function(name, schedule, monkeypatch):
    check_exact(name, SCHEDULES[schedule], monkeypatch)


@x64
def test_the_exam_fails_a_broken_consistency_sampler(monkeypatch):
    schedule = SCHEDULES["log_linear"]
    with pytest.raises(AssertionError):  # sigma_s z in place of sqrt(sigma_s^2 - sigma_min^2) z
        check_exact("consistency-0.1", schedule, monkeypatch, diffax.lcm)

    def level_of_now(schedule):
        right = diffax.lcm(schedule)
        return right._replace(step=lambda key, denoise, state, t, s: right.step(key, denoise, state, t, 0.5 * (t + s)))

    with pytest.raises(AssertionError):
        check_exact("lcm", schedule, monkeypatch, level_of_now)


def check_tcd(gamma, table, monkeypatch, make=diffax.tcd):
    """Zheng et al. 2024: x_s' from the x0- and eps-predictions, then the forward process from s' to s, by hand."""
    bars, steps = np.cumprod(1 - BETAS), [999, 611, 248, 40, 0]
    schedule, oracle = diffax.from_betas(BETAS), gaussian()
    times = jnp.asarray((np.array(steps) + 1) / 1000)
    sampler = make(schedule, gamma=gamma, num_train_steps=1000 if table else None)
    end = lambda x: diffax.integrate(KEY, sampler, oracle.denoiser(schedule), x, times).x
    start = np.array([0.3, -1.0]), np.diag([1.5, 0.8])
    found = moments_from_gaussian_start(end, *start, 4, lambda key: key[0], monkeypatch)
    mean, covariance = start
    for i, j in itertools.pairwise(steps):
        if table:
            past = bars[int(np.floor((1 - gamma) * j))]
        else:
            past = float(schedule((1 - gamma) * (j + 1) / 1000).alpha) ** 2
        gain = np.sqrt(bars[i]) * C0 @ np.linalg.inv(bars[i] * C0 + (1 - bars[i]) * np.eye(2))
        constant = M0 - np.sqrt(bars[i]) * gain @ M0  # x0 = gain x + constant
        of_eps = np.sqrt((1 - past) / (1 - bars[i]))
        of_x0 = np.sqrt(past) - of_eps * np.sqrt(bars[i])
        slope = of_eps * np.eye(2) + of_x0 * gain
        ratio = bars[j] / past
        mean = np.sqrt(ratio) * (slope @ mean + of_x0 * constant)
        covariance = ratio * slope @ covariance @ slope.T + (1 - ratio) * np.eye(2)
    close(found, (mean, covariance))


@pytest.mark.slow_cases(but=["1.0-table"])
@pytest.mark.newest
@x64
@pytest.mark.parametrize("table", [False, True], ids=["continuous", "table"])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_tcd_is_the_paper_s_recursion(gamma, table, monkeypatch):
    check_tcd(gamma, table, monkeypatch)


@x64
def test_the_exam_fails_a_broken_tcd(monkeypatch):
    wrong = lambda schedule, *, gamma, num_train_steps: diffax.tcd(schedule, gamma=0.9 * gamma)
    with pytest.raises(AssertionError):
        check_tcd(0.3, False, monkeypatch, wrong)


# Neutral settings


@x64
def test_tcd_lies_between_ddim_and_lcm(monkeypatch):
    replace_noise_by_folds(monkeypatch, lambda key, like: waves(key, like))
    schedule, x, times = diffax.Cosine(), jnp.asarray(START), jnp.array([1.0, 0.8, 0.4, 0.1])
    run = lambda s: diffax.integrate(KEY, s, mixture().denoiser(schedule), x, times).x
    np.testing.assert_allclose(run(diffax.tcd(schedule, gamma=0.0)), run(diffax.ddim(schedule)), rtol=1e-9)
    # sigma(0) = exp(-10) of eps is left at s' = 0.
    np.testing.assert_allclose(run(diffax.tcd(schedule, gamma=1.0)), run(diffax.lcm(schedule)), atol=1e-3)
    np.testing.assert_allclose(run(diffax.consistency(schedule)), run(diffax.lcm(schedule)), atol=1e-3)
    assert diffax.tcd(schedule, gamma=0.0).order == 1


@x64
def test_one_entry_is_one_step_generation():
    schedule, x = diffax.Cosine(), jnp.asarray(START)
    for make in SAMPLERS.values():
        found = diffax.sample(KEY, make(schedule), lambda x, t: 0.5 * x, x, jnp.array([1.0]))
        np.testing.assert_array_equal(found, 0.5 * x)


@x64
@pytest.mark.parametrize("schedule", ["linear", "log_linear", "flow"])
def test_boundary_conditions(schedule):
    """f(x, t_min) = x, whatever the network; far from it LCM's f is the denoiser."""
    schedule, x = SCHEDULES[schedule], jnp.asarray(START)
    network = lambda x, t: jnp.cos(7 * x) + 3
    for t_min in (0.0, 0.2):
        f = diffax.denoisers.consistency_function(network, schedule, t_min=t_min, sigma_data=0.7)
        np.testing.assert_allclose(f(x, t_min), x, rtol=1e-12)
        assert float(jnp.abs(f(x, 0.9) - x).min()) > 0.01
    f = diffax.denoisers.latent_consistency_function(network, num_train_steps=100)
    np.testing.assert_allclose(f(x, jnp.array([0.01, 0.0, 0.01, 0.01, 0.01])), x, rtol=1e-12)
    np.testing.assert_allclose(f(x, 1.0), network(x, 1.0), rtol=1e-5)


@x64
def test_the_scalings_are_the_paper_s():
    """Song et al. 2023, appendix C, in sigma; Luo et al. 2023, in timesteps."""
    schedule, low, x = diffax.LogLinear(0.002, 80.0), 0.002, jnp.asarray(START)
    for sigma in (0.0021, 0.3, 80.0):
        t = schedule.inverse(-2 * jnp.log(sigma))
        skip, out = 0.25 / ((sigma - low) ** 2 + 0.25), 0.5 * (sigma - low) / np.sqrt(0.25 + sigma**2)
        found = diffax.denoisers.consistency_function(lambda x, t: 2 * x + 1, schedule)(x, t)
        np.testing.assert_allclose(found, skip * x + out * (2 * x + 1), rtol=1e-9)
    tau = 10.0 * 3
    found = diffax.denoisers.latent_consistency_function(lambda x, t: 2 * x + 1)(x, 0.004)
    wanted = 0.25 / (tau**2 + 0.25) * x + tau / np.sqrt(tau**2 + 0.25) * (2 * x + 1)
    np.testing.assert_allclose(found, wanted, rtol=1e-9)


# Transformations


@pytest.mark.slow
@x64
def test_traced_parameters_compile_once_are_swept_and_differentiated(monkeypatch):
    replace_noise_by_folds(monkeypatch, lambda key, like: waves(key, like))
    schedule, oracle, traces = LinearLogSNR(), mixture(), []

    def total(gamma, t_min, sigma_data, times):
        function = diffax.denoisers.consistency_function(
            lambda x, t: oracle.denoise(x, schedule(t)), schedule, t_min=t_min, sigma_data=sigma_data
        )
        x = jnp.asarray(START)
        x = diffax.integrate(KEY, diffax.tcd(schedule, gamma=gamma), function, x, times).x
        return jnp.sum(diffax.sample(KEY, diffax.consistency(schedule, t_min=t_min), function, x, times) ** 2)

    @jax.jit
    def many(*arguments):
        traces.append(1)
        return jax.vmap(jax.value_and_grad(total, (0, 1, 2, 3)))(*arguments)

    grids = jnp.stack([jnp.linspace(1.0, low, 4) for low in (0.0, 0.1, 0.2)])
    values = jnp.array([0.0, 0.4, 1.0]), jnp.array([0.0, 0.05, 0.1]), jnp.array([0.5, 0.4, 1.0])
    totals, slopes = many(*values, grids)
    assert all(np.isfinite(g).all() for g in slopes)
    np.testing.assert_allclose(totals[1], total(*(v[1] for v in values), grids[1]), rtol=1e-9)
    h = 1e-6
    for i in range(3):
        shift = lambda sign, i=i: [v + sign * h * (j == i) * jnp.eye(3)[1] for j, v in enumerate(values)]
        slope = (many(*shift(1), grids)[0][1] - many(*shift(-1), grids)[0][1]) / (2 * h)
        np.testing.assert_allclose(slopes[i][1], slope, rtol=1e-4, atol=1e-8)
    assert len(traces) == 1


@pytest.mark.slow_cases(but=["log_linear"])
@pytest.mark.parametrize("schedule", ["linear", "log_linear", "zero_terminal_snr"])
def test_finite_of_the_same_dtype_and_still_where_the_grid_is(schedule, monkeypatch):
    """float32 and bfloat16 from t = 1 to t = 0; a step of length zero changes nothing."""
    replace_noise_by_folds(monkeypatch, lambda key, like: waves((), like))
    schedule = SCHEDULES[schedule]
    denoise = diffax.denoiser(lambda x, t: 0.3 * x, schedule, "v")
    times = jnp.asarray([1.0, 1.0, 0.5, 1e-6, 0.0, 0.0], jnp.float32)
    run = jax.jit(
        lambda x: {k: diffax.unroll(KEY, make(schedule), denoise, x, times)[1] for k, make in SAMPLERS.items()}
    )
    for dtype in (jnp.float32, jnp.bfloat16):
        x = jnp.ones((2, 3), dtype)
        for name, path in run(x).items():
            assert path.dtype == dtype, name
            assert np.isfinite(np.asarray(path, np.float32)).all(), name
            np.testing.assert_array_equal(*(np.asarray(v, np.float32) for v in (path[0], x)))
            np.testing.assert_array_equal(*(np.asarray(v, np.float32) for v in (path[-1], path[-2])))


@pytest.mark.newest
def test_lcm_s_times_are_the_released_ones():
    """For 4 of 50 as diffusers reports them; for 8 by the rule: every index floor(50 m / 8) of 999, 979, .., 19."""
    np.testing.assert_allclose(1000 * diffax.times.lcm(diffax.Cosine(), 4) - 1, [999, 759, 499, 259], atol=1e-3)
    index = np.floor(np.linspace(0, 50, 8, endpoint=False)).astype(int)
    np.testing.assert_allclose(
        1000 * diffax.times.lcm(diffax.Cosine(), 8) - 1, np.arange(19, 1000, 20)[::-1][index], atol=1e-3
    )
    np.testing.assert_allclose(diffax.times.lcm(diffax.Cosine(), 2, num_train_steps=100, original_steps=4), [1.0, 0.5])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: diffax.consistency(s, t_min=1.5), r"t_min must be in \[0, 1\], got 1.5"),
        (lambda s: diffax.tcd(s, gamma=-0.1), r"gamma must be in \[0, 1\], got -0.1"),
        (lambda s: diffax.tcd(s, num_train_steps=0), "num_train_steps must be an int >= 1, got 0"),
        (
            lambda s: diffax.denoisers.latent_consistency_function(None, num_train_steps=1.5),
            "num_train_steps must be an int >= 1",
        ),
        (lambda s: diffax.times.lcm(s, 0), "n must be an int >= 1, got 0"),
        (lambda s: diffax.times.lcm(s, 51), "n must be at most 50, got 51"),
        (lambda s: diffax.times.lcm(s, 5, num_train_steps=10), "original_steps must be at most 10, got 50"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make(diffax.Cosine())
