"""Consistency samplers: results of diffusers, exact distributions for an exact consistency function, recursions."""

import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exam import BETAS, SCHEDULES, START, gaussian, mixture
from injected import LinearLogSNR, moments_from_gaussian_start, replace_noise_by_folds
from test_correctors import wave_noise

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


# Against published code. reference/diffusers_consistency.json names its source.

CASES = json.loads((Path(__file__).parents[1] / "samplers" / "reference" / "diffusers_consistency.json").read_text())[
    "cases"
]
SHAPE = (4, 3, 8, 8)


def inject_noise(monkeypatch):
    """Replace draw k by sqrt(2) sin(0.1 i + 1.7 k), where i is the flat index."""
    i = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    wave = lambda key, like: (jnp.sqrt(2.0) * jnp.sin(0.1 * i + 1.7 * key[0])).astype(like.dtype)
    replace_noise_by_folds(monkeypatch, wave)


def latent_setting(case):
    """(run, scale of the start) of an LCM or TCD case: eps-prediction at timesteps of a scaled-linear table."""
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
    times = jnp.append(times, 1e-3)  # the released loop ends at timestep 0 without a denoiser call
    sampler = diffax.tcd(schedule, gamma=0.0, num_train_steps=1000)
    return lambda x: diffax.integrate(KEY, sampler, denoise, x, times).x, 1.0


def consistency_setting(case):
    """(run, scale of the start) of a consistency model: sigma from 80 to 0.002, scaled input, clipped output."""
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
def test_results_are_those_of_diffusers(case, monkeypatch):
    inject_noise(monkeypatch)
    setting = consistency_setting if case["id"].startswith("CM") else latent_setting
    run, scale = setting(case)
    x = scale * (np.arange(768).reshape(3, 8, 8, 4) / 768).transpose(3, 0, 1, 2).astype(np.float32)
    result = np.asarray(run(jnp.asarray(x)))
    assert result.dtype == np.float32
    np.testing.assert_allclose(np.abs(result).sum(dtype=np.float64), case["observed_sum"], rtol=1e-5)
    # At the start eps is divided by alpha = 0.07, so the last bit of x is 1e-6 of x0. The entries of diffusers differ
    # from the same recursion in float64 as much: the third-last entry of LCM by 1.2e-5, relatively.
    np.testing.assert_allclose(result.ravel()[:4], case["observed_first4"], rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(result.ravel()[-4:], case["observed_last4"], rtol=1e-5, atol=2e-6)


# Distributions


def marginal(level):
    return float(level.alpha) * M0, float(level.alpha) ** 2 * C0 + float(level.sigma) ** 2 * np.eye(2)


def assert_close(actual, expected):
    for x, y in zip(actual, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12)


def check_exact(name, schedule, monkeypatch, make=None):
    """With the flow map as f, three steps of any size from the exact start have the exact distribution at the end."""
    oracle = gaussian()
    end_level = {"lcm": analytic.CLEAN, "consistency": schedule(0.0), "consistency-0.1": schedule(0.1)}[name]
    function = lambda x, t: oracle.flow(x, schedule(t), end_level)
    sampler = (make or SAMPLERS[name])(schedule)
    times = [0.95, 0.9, 0.5, 0.15]

    def ends(x):  # results of `integrate` and of `sample`
        x = diffax.integrate(KEY, sampler, function, x, jnp.array(times)).x
        return jnp.concatenate([x, function(x, times[-1])], 1)

    mean, covariance = moments_from_gaussian_start(
        ends, *marginal(schedule(times[0])), 3, lambda key: key[0], monkeypatch
    )
    assert_close((mean[:2], covariance[:2, :2]), marginal(schedule(times[-1])))
    assert_close((mean[2:], covariance[2:, 2:]), marginal(end_level))


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
def test_an_exact_consistency_function_gives_the_exact_distribution_at_every_level(name, schedule, monkeypatch):
    check_exact(name, SCHEDULES[schedule], monkeypatch)


@x64
def test_the_check_rejects_a_broken_consistency_sampler(monkeypatch):
    schedule = SCHEDULES["log_linear"]
    with pytest.raises(AssertionError):  # sigma_s z in place of sqrt(sigma_s^2 - sigma_min^2) z
        check_exact("consistency-0.1", schedule, monkeypatch, diffax.lcm)

    def step_to_halfway(schedule):
        original = diffax.lcm(schedule)
        return original._replace(
            step=lambda key, denoise, state, t, s: original.step(key, denoise, state, t, 0.5 * (t + s))
        )

    with pytest.raises(AssertionError):
        check_exact("lcm", schedule, monkeypatch, step_to_halfway)


def check_tcd(gamma, table, monkeypatch, make=diffax.tcd):
    """Zheng et al. 2024: x_s' from the predictions of x0 and eps, then the forward process from s' to s."""
    bars, steps = np.cumprod(1 - BETAS), [999, 611, 248, 40, 0]
    schedule, oracle = diffax.from_betas(BETAS), gaussian()
    times = jnp.asarray((np.array(steps) + 1) / 1000)
    sampler = make(schedule, gamma=gamma, num_train_steps=1000 if table else None)
    end = lambda x: diffax.integrate(KEY, sampler, oracle.denoiser(schedule), x, times).x
    start = np.array([0.3, -1.0]), np.diag([1.5, 0.8])
    result = moments_from_gaussian_start(end, *start, 4, lambda key: key[0], monkeypatch)
    mean, covariance = start
    for i, j in itertools.pairwise(steps):
        if table:
            bar_past = bars[int(np.floor((1 - gamma) * j))]
        else:
            bar_past = float(schedule((1 - gamma) * (j + 1) / 1000).alpha) ** 2
        gain = np.sqrt(bars[i]) * C0 @ np.linalg.inv(bars[i] * C0 + (1 - bars[i]) * np.eye(2))
        constant = M0 - np.sqrt(bars[i]) * gain @ M0  # x0 = gain x + constant
        c_eps = np.sqrt((1 - bar_past) / (1 - bars[i]))
        c_x0 = np.sqrt(bar_past) - c_eps * np.sqrt(bars[i])
        slope = c_eps * np.eye(2) + c_x0 * gain
        ratio = bars[j] / bar_past
        mean = np.sqrt(ratio) * (slope @ mean + c_x0 * constant)
        covariance = ratio * slope @ covariance @ slope.T + (1 - ratio) * np.eye(2)
    assert_close(result, (mean, covariance))


@pytest.mark.slow_cases(but=["1.0-table"])
@pytest.mark.newest
@x64
@pytest.mark.parametrize("table", [False, True], ids=["continuous", "table"])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_tcd_follows_the_recursion_of_the_paper(gamma, table, monkeypatch):
    check_tcd(gamma, table, monkeypatch)


@x64
def test_the_check_rejects_a_broken_tcd(monkeypatch):
    smaller_gamma = lambda schedule, *, gamma, num_train_steps: diffax.tcd(schedule, gamma=0.9 * gamma)
    with pytest.raises(AssertionError):
        check_tcd(0.3, False, monkeypatch, smaller_gamma)


# Special cases


@x64
def test_tcd_is_ddim_at_gamma_0_and_lcm_at_gamma_1(monkeypatch):
    replace_noise_by_folds(monkeypatch, lambda key, like: wave_noise(key, like))
    schedule, x, times = diffax.Cosine(), jnp.asarray(START), jnp.array([1.0, 0.8, 0.4, 0.1])
    run = lambda s: diffax.integrate(KEY, s, mixture().denoiser(schedule), x, times).x
    np.testing.assert_allclose(run(diffax.tcd(schedule, gamma=0.0)), run(diffax.ddim(schedule)), rtol=1e-9)
    # At s' = 0 a share sigma(0) = exp(-10) of eps remains.
    np.testing.assert_allclose(run(diffax.tcd(schedule, gamma=1.0)), run(diffax.lcm(schedule)), atol=1e-3)
    np.testing.assert_allclose(run(diffax.consistency(schedule)), run(diffax.lcm(schedule)), atol=1e-3)
    assert diffax.tcd(schedule, gamma=0.0).order == 1


@x64
def test_one_entry_is_one_step_generation():
    schedule, x = diffax.Cosine(), jnp.asarray(START)
    for make in SAMPLERS.values():
        result = diffax.sample(KEY, make(schedule), lambda x, t: 0.5 * x, x, jnp.array([1.0]))
        np.testing.assert_array_equal(result, 0.5 * x)


@x64
@pytest.mark.parametrize("schedule", ["linear", "log_linear", "flow"])
def test_consistency_functions_satisfy_their_boundary_conditions(schedule):
    """f(x, t_min) = x for any network; far from t_min the f of LCM is the network."""
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
def test_the_scalings_are_those_of_the_papers():
    """Song et al. 2023, appendix C, as functions of sigma; Luo et al. 2023, as functions of timesteps."""
    schedule, sigma_min, x = diffax.LogLinear(0.002, 80.0), 0.002, jnp.asarray(START)
    for sigma in (0.0021, 0.3, 80.0):
        t = schedule.inverse(-2 * jnp.log(sigma))
        c_skip, c_out = 0.25 / ((sigma - sigma_min) ** 2 + 0.25), 0.5 * (sigma - sigma_min) / np.sqrt(0.25 + sigma**2)
        result = diffax.denoisers.consistency_function(lambda x, t: 2 * x + 1, schedule)(x, t)
        np.testing.assert_allclose(result, c_skip * x + c_out * (2 * x + 1), rtol=1e-9)
    tau = 10.0 * 3
    result = diffax.denoisers.latent_consistency_function(lambda x, t: 2 * x + 1)(x, 0.004)
    expected = 0.25 / (tau**2 + 0.25) * x + tau / np.sqrt(tau**2 + 0.25) * (2 * x + 1)
    np.testing.assert_allclose(result, expected, rtol=1e-9)


# Transformations


@pytest.mark.slow
@x64
def test_parameters_may_be_traced_swept_and_differentiated_with_one_compilation(monkeypatch):
    replace_noise_by_folds(monkeypatch, lambda key, like: wave_noise(key, like))
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
def test_results_are_finite_keep_the_dtype_and_zero_length_steps_change_nothing(schedule, monkeypatch):
    """In float32 and bfloat16, from t = 1 to t = 0."""
    replace_noise_by_folds(monkeypatch, lambda key, like: wave_noise((), like))
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
def test_the_times_of_lcm_are_those_of_the_released_code():
    """4 of 50 steps as diffusers reports them; 8 of 50 by its rule, the entries floor(50 m / 8) of 999, 979, .., 19."""
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
