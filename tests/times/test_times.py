"""Step grids: values of other libraries, default ends, tracing, errors."""

import inspect
import json
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from exam import SCHEDULES

import diffax
from diffax import times
from diffax.times._beta_quantile import beta_quantile

COSINE = diffax.Cosine()
pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.newest]


def timesteps(grid):
    return np.round(np.asarray(grid) * 1000 - 1).astype(int).tolist()


def test_discrete_grids_are_those_of_diffusers():
    """Timesteps that diffusers gives for T = 1000 (tests/schedulers and diffusers 0.42.1)."""
    assert timesteps(times.leading(COSINE, 10)) == [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]
    assert timesteps(times.leading(COSINE, 5, offset=1)) == [801, 601, 401, 201, 1]
    assert timesteps(times.trailing(COSINE, 10)) == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
    assert timesteps(times.linspace(COSINE, 5)) == [999, 749, 500, 250, 0]


def test_offsets_shift_the_timesteps():
    assert timesteps(times.leading(COSINE, 2, offset=499)) == [999, 499]
    assert timesteps(times.trailing(COSINE, 4, offset=-249)) == [750, 500, 250, 0]
    assert timesteps(times.linspace(COSINE, 3, offset=1)) == [999, 500, 1]
    assert timesteps(times.from_timesteps(1000, [999, 10, 0])) == [999, 10, 0]


# Results of get_sigmas_* in k-diffusion, without their last entry 0.
REFERENCE = json.loads((Path(__file__).parents[1] / "samplers" / "reference" / "samplers.json").read_text())[
    "sigma_schedules"
]
KARRAS = REFERENCE["karras_n10_0p02_10_rho7"][:-1]
KARRAS_EDM = REFERENCE["karras_n5_0p002_80_rho7"][:-1]
EXPONENTIAL = REFERENCE["exponential_n10_0p02_10"][:-1]
POLYEXPONENTIAL = REFERENCE["polyexp_n10_0p02_10_rho2"][:-1]
VP = REFERENCE["vp_n10"][:-1]
WIDE = diffax.LogLinear(0.001, 100.0)
SIGMA_ENDS = {"sigma_max": 10.0, "sigma_min": 0.02}


@pytest.mark.slow_cases("schedule0-<lambda>-sigmas0", "schedule1-<lambda>-sigmas1")
@pytest.mark.parametrize(
    ("schedule", "grid", "sigmas"),
    [
        (WIDE, lambda s: times.karras(s, 10, **SIGMA_ENDS), KARRAS),
        (WIDE, lambda s: times.karras(s, 5, sigma_max=80.0, sigma_min=0.002), KARRAS_EDM),
        (diffax.EDM(), lambda s: times.karras(s, 5, t_min=0.0), KARRAS_EDM),
        (diffax.EDM(), lambda s: times.uniform(s, 5, t_min=0.0), KARRAS_EDM),
        (diffax.LogLinear(0.02, 10.0), lambda s: times.karras(s, 10, t_max=1.0, t_min=0.0), KARRAS),
        (diffax.Flow(), lambda s: times.karras(s, 10, **SIGMA_ENDS), KARRAS),
        (WIDE, lambda s: times.uniform_log_snr(s, 10, **SIGMA_ENDS), EXPONENTIAL),
        (WIDE, lambda s: times.polyexponential(s, 10, rho=2.0, **SIGMA_ENDS), POLYEXPONENTIAL),
        (diffax.Linear(), lambda s: times.uniform(s, 10, t_max=1.0, t_min=1e-3), VP),
        (WIDE, lambda s: times.from_sigmas(s, KARRAS), KARRAS),
    ],
)
def test_noise_levels_are_those_of_k_diffusion(schedule, grid, sigmas):
    level = schedule(grid(schedule))
    np.testing.assert_allclose(level.sigma / level.alpha, sigmas, rtol=1e-12)


def test_the_check_rejects_another_rho():
    """Negative control: rho differs by 1e-7."""
    grid = times.karras(WIDE, 10, rho=6.9999999, **SIGMA_ENDS)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(WIDE(grid).sigma, KARRAS, rtol=1e-12)


def test_quadratic_is_that_of_ddim():
    """Timesteps of the code of ddim, (linspace(0, sqrt(0.8 T), n))^2, and of time_quadratic in DPM-Solver."""
    expected = (np.linspace(0, np.sqrt(800), 20) ** 2)[::-1]
    np.testing.assert_allclose(1000 * times.quadratic(COSINE, 20, t_max=0.8, t_min=0.0), expected, rtol=1e-12)
    expected = np.linspace(1, np.sqrt(1e-3), 11) ** 2
    np.testing.assert_allclose(times.quadratic(COSINE, 11, t_max=1.0, t_min=1e-3), expected, rtol=1e-12)


def test_beta_has_the_quantiles_of_the_beta_distribution():
    """Against the quantiles of SciPy, and for derivatives in the parameters against their differences."""
    quantile = scipy.stats.beta.ppf
    p, d = np.linspace(1, 0, 9)[1:-1], 1e-6
    parameters = np.array([(0.6, 0.6), (0.5, 0.8), (1.0, 1.0), (2.0, 0.7), (0.3, 3.0), (5.0, 5.0), (20.0, 3.0)])
    grid_and_copy = lambda v: (times.beta(COSINE, 9, a=v[0], b=v[1], t_max=1.0, t_min=1e-3),) * 2
    slopes, grids = jax.jit(jax.vmap(jax.jacfwd(grid_and_copy, has_aux=True)))(parameters)
    for (a, b), grid, slope in zip(parameters, grids, slopes, strict=True):
        np.testing.assert_allclose(grid[1:-1], 1e-3 + 0.999 * quantile(p, a, b), rtol=1e-11)
        for i, (da, db) in enumerate([(d, 0), (0, d)]):
            difference = 0.999 * (quantile(p, a + da, b + db) - quantile(p, a - da, b - db)) / (2 * d)
            np.testing.assert_allclose(slope[1:-1, i], difference, rtol=1e-6, atol=1e-8)


def test_beta_in_closed_form():
    """a = b = 1/2 is the arcsine distribution, a = b = 1 the uniform one; also in float32."""
    p = np.linspace(1, 0, 33)
    grid = jax.jit(lambda a: times.beta(COSINE, 33, a=a, b=a, t_max=1.0, t_min=0.0))
    np.testing.assert_allclose(grid(0.5), np.sin(np.pi * p / 2) ** 2, atol=1e-13)
    np.testing.assert_allclose(grid(1.0), p, atol=1e-13)
    single = jax.jit(beta_quantile)(p[1:-1].astype(np.float32), np.float32(0.5), np.float32(0.5))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, np.sin(np.pi * p[1:-1] / 2) ** 2, atol=1e-6)


@pytest.mark.parametrize(("dtype", "error"), [(np.float32, 3e-6), (np.float64, 2e-10)])
def test_beta_quantiles_are_accurate_in_both_precisions(dtype, error):
    """Against SciPy at the error in the docstring: parameters from 0.05 to 30, p from 1e-6 to 1 - 1e-6."""
    p = np.concatenate([np.geomspace(1e-6, 0.5, 30), 1 - np.geomspace(1e-6, 0.5, 30)]).astype(dtype)
    parameters = np.array([0.05, 0.3, 1.0, 2.0, 30.0], dtype)
    a, b = (v.ravel() for v in np.meshgrid(parameters, parameters))
    result = jax.jit(jax.vmap(lambda a, b: beta_quantile(p, a, b)))(a, b)
    assert result.dtype == dtype
    exact = scipy.special.betaincinv(*(v.astype(float) for v in (a[:, None], b[:, None], p[None])))
    np.testing.assert_allclose(result, exact, atol=error, rtol=0)


def jacobian_and_differences(make, values):
    """The Jacobian of the grid in its parameters, by autodiff and by central differences."""
    values = jnp.asarray(values)
    jacobian = jax.jit(jax.jacfwd(make))(values)
    grids = jax.jit(jax.vmap(make))(values + 1e-6 * jnp.concatenate([jnp.eye(len(values)), -jnp.eye(len(values))]))
    return jacobian, (grids[: len(values)] - grids[len(values) :]).T / 2e-6


TRACED = {
    "uniform": (lambda v: times.uniform(COSINE, 7, t_max=v[0], t_min=v[1]), [0.95, 0.02]),
    "quadratic": (lambda v: times.quadratic(COSINE, 7, t_max=v[0], t_min=v[1]), [0.95, 0.02]),
    "beta": (lambda v: times.beta(COSINE, 7, t_max=v[0], t_min=v[1], a=v[2], b=v[3]), [0.95, 0.02, 0.6, 0.7]),
    "uniform_log_snr": (lambda v: times.uniform_log_snr(diffax.Linear(), 7, t_max=v[0], t_min=v[1]), [0.95, 0.02]),
    "karras": (lambda v: times.karras(diffax.Cosine(), 7, t_max=v[0], t_min=v[1], rho=v[2]), [0.95, 0.02, 7.0]),
    "karras-sigma": (lambda v: times.karras(diffax.EDM(), 7, sigma_max=v[0], sigma_min=v[1]), [60.0, 0.02]),
    "polyexponential": (
        lambda v: times.polyexponential(diffax.Flow(), 7, t_max=v[0], t_min=v[1], rho=v[2]),
        [0.95, 0.02, 1.5],
    ),
    "arctan": (lambda v: times.arctan(COSINE, 7, t_max=v[0], t_min=v[1], scale=v[2]), [0.95, 0.02, 0.7]),
    "schedule": (lambda v: times.karras(diffax.Linear(v[0], v[1]), 7), [0.1, 20.0]),
    "schedule, own ends": (lambda v: times.uniform(diffax.EDM(v[0], v[1]), 7), [0.05, 20.0]),
}


@pytest.mark.slow_cases(but=["quadratic", "karras-sigma", "arctan", "schedule, own ends"])
@pytest.mark.parametrize(("make", "values"), TRACED.values(), ids=TRACED)
def test_every_parameter_may_be_traced(make, values):
    jacobian, differences = jacobian_and_differences(make, values)
    np.testing.assert_allclose(jacobian, differences, rtol=1e-5, atol=1e-8)
    assert (np.diff(make(jnp.asarray(values))) < 0).all()


CONTINUOUS = {
    "uniform": times.uniform,
    "quadratic": times.quadratic,
    "beta": times.beta,
    "uniform_log_snr": times.uniform_log_snr,
    "polyexponential": partial(times.polyexponential, rho=2.0),
    "karras": times.karras,
    "arctan": times.arctan,
}


@pytest.mark.slow_cases("quadratic", "beta", "uniform_log_snr")
@pytest.mark.parametrize("make", CONTINUOUS.values(), ids=CONTINUOUS)
def test_ends_are_exact_and_gradients_finite_at_t_0_and_1(make):
    assert make(COSINE, 1, t_max=0.9).tolist() == [0.9]
    assert make(COSINE, 4, t_max=np.float32(0.9), t_min=np.float32(0.1)).dtype == np.float32
    assert make(COSINE, 2, t_max=0.9, t_min=0.1).tolist() == [0.9, 0.1]
    grid_between = lambda v: make(COSINE, 6, t_max=v[0], t_min=v[1])
    grid, slopes = jax.jit(lambda v: (grid_between(v), jax.jacrev(grid_between)(v)))(jnp.array([1.0, 0.0]))
    assert (grid[0], grid[-1]) == (1.0, 0.0)
    assert (np.diff(grid) < 0).all()
    assert np.isfinite(slopes).all()


def test_a_path_may_rise_or_fall():
    path = jax.jit(lambda v: times.path(COSINE, 6, v[0], v[1]))
    np.testing.assert_allclose(path(jnp.array([0.9, 0.1])), times.uniform_log_snr(COSINE, 6, t_max=0.9, t_min=0.1))
    np.testing.assert_allclose(path(jnp.array([0.1, 0.9]))[::-1], path(jnp.array([0.9, 0.1])), rtol=1e-12)


# The default ends: sigma / alpha = 80 and 0.02, or the ends of the schedule if it does not reach these.

TABLES = {
    "DDPM": diffax.from_betas(diffax.schedules.linear_betas(1000)),
    "Stable Diffusion": diffax.from_betas(diffax.schedules.quadratic_betas(1000)),
    "cosine_betas": diffax.from_betas(diffax.schedules.cosine_betas(1000)),
    "zero terminal SNR": diffax.from_betas(diffax.schedules.zero_terminal_snr(diffax.schedules.linear_betas(1000))),
}
SCHEDULES_WITH_DEFAULT_ENDS = {
    "linear": diffax.Linear(),
    "cosine": COSINE,
    "flow": diffax.Flow(),
    "edm": diffax.EDM(),
    "log_linear": diffax.LogLinear(0.01, 348.0),
    "laplace": diffax.Laplace(),
    "sigmoid": diffax.Sigmoid(),
    "shifted": diffax.shifted(diffax.Flow(), 3.0),
    "DDPM": TABLES["DDPM"],
    "cosine_betas": TABLES["cosine_betas"],
}


def ratio(schedule, t):
    level = schedule(t)
    return level.sigma / level.alpha


@pytest.mark.parametrize("schedule", SCHEDULES_WITH_DEFAULT_ENDS.values(), ids=SCHEDULES_WITH_DEFAULT_ENDS)
def test_the_default_start_is_the_largest_float_below_80(schedule):
    """Also in float32, where the inverse of `Laplace` rounds to t = 1 and sigma / alpha = 22,026."""
    for enabled, dtype in ((True, np.float64), (False, np.float32)):
        with jax.enable_x64(enabled):
            t_max, t_min = times.default_ends(schedule)
            assert t_max.dtype == dtype
            assert ratio(schedule, t_max) <= 80
            above = np.nextafter(np.asarray(t_max), dtype(2))
            assert above > 1 or ratio(schedule, above) > 80
            np.testing.assert_allclose(ratio(schedule, t_min), 0.02, rtol=1e-6)
            for make in (times.uniform, times.karras):
                grid = make(schedule, 5)
                assert (grid[0], grid[-1]) == (t_max, t_min)


@pytest.mark.parametrize(
    ("schedule", "ends"),
    [
        (diffax.EDM(sigma_min=0.05, sigma_max=20.0), (1.0, 0.0)),
        (diffax.Linear(0.1, 5.0), (1.0, None)),
        (TABLES["Stable Diffusion"], (1.0, 1e-3)),
        (diffax.NoiseFloor(COSINE, 0.1), (None, 0.0)),
        (diffax.EDM(), (1.0, None)),
    ],
)
def test_the_default_ends_are_those_of_the_schedule_where_it_does_not_reach_80_or_0_02(schedule, ends):
    for result, end in zip(times.default_ends(schedule), ends, strict=True):
        assert end is None or result == end


def test_grids_of_zero_terminal_snr_start_at_t_1():
    """The second entry is at sigma / alpha = 80, because no network is trained between the last two levels."""
    schedule = TABLES["zero terminal SNR"]
    for make in (*CONTINUOUS.values(), times.trailing):
        assert make(schedule, 5)[0] == 1
    grid = times.uniform_log_snr(schedule, 5)
    assert grid.shape == (5,)
    assert 79.9 < ratio(schedule, grid[1]) <= 80
    gaps = np.diff(schedule.log_snr(grid[1:]))
    np.testing.assert_allclose(gaps, gaps[0], rtol=1e-6)
    assert times.uniform_log_snr(schedule, 1).tolist() == [1.0]
    assert times.default_ends(schedule)[0] == 1


def test_sigma_max_is_not_exceeded():
    with jax.enable_x64(False):
        assert ratio(diffax.Laplace(), times.karras(diffax.Laplace(), 3, sigma_max=80.0)[0]) <= 80


def test_discrete_grids_use_the_length_of_the_table():
    table = diffax.from_betas(diffax.schedules.linear_betas(50))
    for make in (times.leading, times.trailing, times.linspace):
        np.testing.assert_array_equal(make(table, 5), make(COSINE, 5, num_train_steps=50))
    assert times.trailing(diffax.NoiseFloor(table, 0.1), 50)[-1] == 1 / 50
    assert times.lcm(table, 2).tolist() == [1.0, 0.5]


@pytest.mark.parametrize("make", [*CONTINUOUS.values(), times.leading, times.trailing, times.linspace, times.lcm])
def test_every_grid_has_the_same_signature(make):
    signature = inspect.signature(make)
    names = list(signature.parameters)
    assert names[:2] == ["schedule", "n"]
    for name, parameter in list(signature.parameters.items())[2:]:
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY, name
    assert {"t_max", "t_min"} <= {*names} or "num_train_steps" in names


def test_noise_is_drawn_at_the_start_of_the_default_grids():
    schedule, shape = diffax.LogLinear(0.01, 348.0), (2, 3)
    expected = diffax.initial_noise(jax.random.key(0), schedule, shape, times.uniform(schedule, 4)[0])
    np.testing.assert_array_equal(diffax.initial_noise(jax.random.key(0), schedule, shape), expected)


def test_uniform_is_uniform_in_t():
    np.testing.assert_allclose(times.uniform(COSINE, 5, t_max=1.0, t_min=0.0), [1, 0.75, 0.5, 0.25, 0])
    np.testing.assert_allclose(times.uniform(COSINE, 3, t_max=0.9, t_min=0.1), [0.9, 0.5, 0.1])
    assert times.uniform(COSINE, 1).shape == (1,)


@pytest.mark.slow_cases("linear", "sigmoid", "linear_betas", "cosine_betas")
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_uniform_log_snr_is_uniform_in_log_snr(schedule):
    grid = times.uniform_log_snr(schedule, 12, t_max=0.97, t_min=0.03)
    gaps = np.diff(schedule.log_snr(grid))
    np.testing.assert_allclose(gaps, gaps[0], rtol=1e-9)
    assert (grid[0], grid[-1]) == (0.97, 0.03)
    assert times.uniform_log_snr(schedule, 1, t_max=0.97).tolist() == [0.97]


@pytest.mark.parametrize(
    "grid",
    [
        lambda n: times.leading(COSINE, n),
        lambda n: times.trailing(COSINE, n),
        lambda n: times.linspace(COSINE, n),
        lambda n: times.uniform(COSINE, n),
    ],
)
def test_every_grid_has_n_entries_and_falls(grid):
    for n in (1, 2, 7, 1000):
        values = np.asarray(grid(n))
        assert values.shape == (n,)
        assert (np.diff(values) < 0).all()
        assert values.min() > 0
        assert values.max() <= 1


def test_ends_may_be_traced():
    grids = jax.vmap(lambda t_min: times.uniform_log_snr(diffax.Linear(), 4, t_min=t_min))(jnp.array([0.01, 0.1]))
    assert grids[:, -1].tolist() == [0.01, 0.1]
    slope = jax.grad(lambda t_min: times.uniform(COSINE, 3, t_min=t_min)[1])(0.1)
    assert slope == 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: times.uniform(COSINE, 0), "n must be an int >= 1, got 0"),
        (lambda: times.uniform(COSINE, 3, t_max=1.5), r"t_max must be in \[0, 1\], got 1.5"),
        (lambda: times.leading(COSINE, 11, num_train_steps=10), "n must be at most num_train_steps = 10, got 11"),
        (
            lambda: times.leading(COSINE, 10, num_train_steps=10, offset=1),
            r"offset must keep timesteps in \[0, 9\], got 1",
        ),
        (
            lambda: times.trailing(COSINE, 5, num_train_steps=10, offset=1),
            r"offset must keep timesteps in \[0, 9\], got 1",
        ),
        (lambda: times.linspace(COSINE, 5, num_train_steps=10, offset=10), r"offset must be in \[0, 9\], got 10"),
        (lambda: times.from_timesteps(0, [3]), "num_train_steps must be an int >= 1, got 0"),
        (lambda: times.from_timesteps(10, [10, 3]), r"timesteps must be in \[0, 9\], got \[10, 3\]"),
        (lambda: times.from_sigmas(WIDE, [1.0, 0.0]), r"sigmas must be > 0, got \[1.0, 0.0\]"),
        (lambda: times.quadratic(COSINE, 3, t_min=-0.1), r"t_min must be in \[0, 1\], got -0.1"),
        (lambda: times.beta(COSINE, 3, a=0.0), "a must be > 0, got 0.0"),
        (lambda: times.karras(WIDE, 3, rho=0.0), "rho must be > 0, got 0.0"),
        (lambda: times.karras(WIDE, 3, sigma_min=0.0), "sigma_min must be > 0, got 0.0"),
        (lambda: times.karras(WIDE, 3, sigma_min=2.0, sigma_max=1.0), "sigma_max must be > sigma_min = 2.0, got 1.0"),
        (lambda: times.uniform(COSINE, 3, t_max=0.1, t_min=0.5), "t_max must be > t_min = 0.5, got 0.1"),
        (lambda: times.arctan(COSINE, 3, t_max=0.5, t_min=0.5), "t_max must be > t_min = 0.5, got 0.5"),
        (lambda: times.karras(COSINE, 3, t_max=0.001), "t_max must be > t_min = 0.0127307, got 0.001"),
        (lambda: times.karras(COSINE, 3, sigma_max=0.01), "sigma_max must be > sigma_min = 0.02, got 0.01"),
        (lambda: times.trailing(COSINE, 0), "n must be an int >= 1, got 0"),
        (lambda: times.lcm(COSINE, 0), "n must be an int >= 1, got 0"),
        (lambda: times.leading(COSINE, 3, num_train_steps=0), "num_train_steps must be an int >= 1, got 0"),
        (lambda: times.polyexponential(WIDE, 0), "n must be an int >= 1, got 0"),
        (lambda: times.uniform_log_snr(WIDE, 3, t_max=1.1), r"t_max must be in \[0, 1\], got 1.1"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def run(grid):
    schedule = diffax.Cosine()
    return diffax.sample(jax.random.key(0), diffax.ddim(schedule), lambda x, t: x, jnp.ones((2, 1)), grid)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (np.array([1.0, 0.5, 0.7]), r"times must be monotone, got \[1.  0.5 0.7\]"),
        (np.array([1.2, 0.5]), r"times must be in \[0, 1\], got 1.2"),
        (np.array([1.0, -0.1]), r"times must be in \[0, 1\], got -0.1"),
        (np.array([1.0, np.nan]), r"times must be in \[0, 1\], got nan"),
        (np.zeros(0), r"times must have shape \(n, ...\) with n >= 1, got \(0,\)"),
    ],
)
def test_a_concrete_grid_is_checked(grid, message):
    with pytest.raises(ValueError, match=message):
        run(grid)


def test_valid_grids_are_accepted():
    run(np.array([1.0]))
    run(np.array([0.3, 0.3, 0.6]))
    jax.jit(run)(np.array([0.9, 0.5, 0.7]))  # a traced grid is not checked


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: times.uniform(COSINE, 2.5), "n must be an int >= 1, got 2.5"),
        (lambda: times.linspace(COSINE, 5, num_train_steps=10, offset=0.5), "offset must be a whole number, got 0.5"),
        (lambda: times.leading(COSINE, 5, num_train_steps=10, offset=0.5), "offset must be a whole number, got 0.5"),
        (lambda: times.from_timesteps("a", [3]), "num_train_steps must be an int >= 1, got 'a'"),
        (lambda: run(np.float64(0.3)), r"times must have shape \(n, ...\)"),
    ],
)
def test_wrong_types_raise(make, message):
    """A ValueError, or the TypeError of the type checker if annotations are checked."""
    with pytest.raises((ValueError, TypeError)) as error:
        make()
    if isinstance(error.value, ValueError):
        assert re.search(message, str(error.value))


@pytest.mark.parametrize(
    "betas",
    [diffax.schedules.zero_terminal_snr(diffax.schedules.linear_betas(100)), diffax.schedules.cosine_betas(100)],
)
def test_a_traced_table_gives_the_same_grids_and_steps(betas):
    """The schedule is an argument of the jitted function, as in sweeps over its parameters."""

    def run(schedule):
        grids = times.uniform_log_snr(schedule, 5), times.default_ends(schedule), times.uniform(schedule, 1)
        heun, trailing = diffax.heun(schedule), times.trailing(schedule, 6)
        return *grids, diffax.integrate(jax.random.key(0), heun, lambda x, t: 0.3 * x, jnp.ones((2, 2)), trailing).x

    schedule = diffax.from_betas(betas)
    for expected, traced in zip(jax.tree.leaves(run(schedule)), jax.tree.leaves(jax.jit(run)(schedule)), strict=True):
        np.testing.assert_allclose(traced, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: times.karras(COSINE, 5, sigma_max=0.01), "sigma_max must be > sigma_min = 0.02, got 0.01"),
        (lambda: times.karras(COSINE, 5, sigma_min=100.0), r"sigma_min must be < sigma_max = 80\.0, got 100"),
        (lambda: times.uniform(COSINE, 5, t_max=np.ones(2)), r"t_max must have shape \(\), got \(2,\)"),
    ],
)
def test_the_error_names_the_argument_of_the_caller(run, message):
    with pytest.raises(ValueError, match=message):
        run()
