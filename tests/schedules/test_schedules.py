"""Schedules: inverses, scalings, ends, gradients, textbook formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exam import BETAS, SCHEDULES

import diffax
from diffax.schedules._curve import LOG_SNR_MAX, RATIO_MAX
from diffax.schedules._scalings import SCALINGS
from diffax.typing import Level

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.newest]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)

INNER_TIMES = np.linspace(0.002, 0.999, 301)


@pytest.mark.slow_cases("linear_betas")
@every_schedule
def test_inverse_is_the_inverse_of_log_snr(schedule):
    there_and_back = jax.jit(lambda t: schedule.inverse(schedule.log_snr(t)))
    np.testing.assert_allclose(there_and_back(INNER_TIMES), INNER_TIMES, rtol=0, atol=1e-12)


@pytest.mark.slow_cases("sigmoid", "linear_betas", "cosine_betas")
@every_schedule
def test_log_snr_decreases_and_is_clipped(schedule):
    lam = schedule.log_snr(np.linspace(0, 1, 2001))
    inside = np.abs(lam) < LOG_SNR_MAX
    assert (np.diff(lam) <= 0).all()
    assert (np.diff(lam)[inside[1:] & inside[:-1]] < 0).all()
    assert np.abs(lam).max() <= LOG_SNR_MAX


IDENTITIES = {
    "vp": lambda alpha, sigma: alpha**2 + sigma**2,
    "ve": lambda alpha, sigma: alpha,
    "sub_vp": lambda alpha, sigma: sigma + alpha**2,
    "flow": lambda alpha, sigma: alpha + sigma,
}


@every_schedule
def test_alpha_and_sigma_satisfy_the_identity_of_their_scaling(schedule):
    alpha, sigma, log_snr = schedule(np.linspace(0, 1, 101))
    np.testing.assert_allclose(IDENTITIES[schedule.scaling](alpha, sigma), 1.0, rtol=1e-12)
    np.testing.assert_allclose(2 * np.log(alpha / sigma), log_snr, rtol=0, atol=1e-10)


def test_every_scaling_has_an_identity():
    assert set(SCALINGS) == set(IDENTITIES)


@pytest.mark.slow_cases(
    but=[
        "float32-cosine-ve",
        "float32-laplace-sub_vp",
        "float32-flow",
        "float32-flow-vp",
        "float32-log_linear",
        "float32-edm",
        "float32-edm-flow",
        "float32-shifted",
        "float64-cosine-ve",
        "float64-flow",
        "float64-flow-vp",
        "float64-log_linear",
        "float64-edm",
        "float64-edm-flow",
        "float64-shifted",
    ]
)
@every_schedule
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_levels_and_slopes_are_finite_at_the_ends(schedule, dtype):
    t = jnp.asarray([0.0, 1e-7, 0.5, 1 - 1e-7, 1.0], dtype)
    evaluate = lambda t: (schedule(t), jax.vmap(jax.grad(schedule.log_snr))(t), diffax.schedules.rates(schedule, t))
    level, slope, rates = jax.jit(evaluate)(t)
    for value in (*level, slope, *rates):
        assert value.dtype == dtype
        assert np.isfinite(value).all()
    assert (level.alpha > 0).all()
    assert (level.sigma > 0).all()
    assert (slope < 0).all()


@pytest.mark.slow_cases("linear", "linear_betas", "cosine_betas", "zero_terminal_snr")
@every_schedule
def test_log_snr_in_float32_is_as_accurate_as_the_rounded_time(schedule):
    value_and_slope = jax.jit(jax.vmap(jax.value_and_grad(schedule.log_snr)))
    (exact, slope), (single, _) = value_and_slope(INNER_TIMES), value_and_slope(INNER_TIMES.astype(np.float32))
    # The time is rounded to float32, which changes log-SNR by the rounding error times the slope.
    slack = np.abs(slope) * INNER_TIMES * 2.0**-24
    assert (np.abs(single - exact) <= 3 * slack + 6e-6).all()


def check_float32(schedule):
    """Assert that alpha and sigma in float32 are those of float64 at the same t, to a relative error of 1e-6."""
    uniforms = np.random.default_rng(0).uniform(size=(3, 3000))
    t = np.concatenate([uniforms[0], 10 ** (-5 * uniforms[1]), 1 - 10 ** (-6 * uniforms[2]), np.arange(1001) / 1000])
    t = t.astype(np.float32)
    level_at = jax.jit(lambda t: schedule(t)[:2])
    for single, exact in zip(level_at(t), level_at(t.astype(np.float64)), strict=True):
        np.testing.assert_allclose(single, exact, rtol=1e-6)


@pytest.mark.slow_cases("linear", "cosine", "sigmoid", "linear_betas", "cosine_betas", "zero_terminal_snr", "shifted")
@every_schedule
def test_alpha_and_sigma_in_float32_are_those_of_float64(schedule):
    check_float32(schedule)


@pytest.mark.slow_cases(
    "linear", "quadratic", "sub_vp", "cosine", "sigmoid", "linear_betas", "cosine_betas", "zero_terminal_snr"
)
@every_schedule
def test_rates_are_the_slopes_of_alpha_and_sigma(schedule):
    t, h = np.linspace(0.0505, 0.9505, 19), 1e-6
    evaluate = jax.jit(lambda t: (schedule(t - h), schedule(t + h), diffax.schedules.rates(schedule, t)))
    before, after, (d_alpha, d_sigma) = evaluate(t)
    np.testing.assert_allclose(d_alpha, (after.alpha - before.alpha) / (2 * h), atol=2e-6)
    np.testing.assert_allclose(d_sigma, (after.sigma - before.sigma) / (2 * h), rtol=1e-6, atol=2e-6)


def test_the_slopes_of_flow_are_exact_in_float32():
    """At the noise end 1 - t keeps only three digits, so the slopes must not be computed from it."""
    t, flow = np.asarray([0.0, 1e-6, 0.3, 0.999, 1.0], np.float32), diffax.Flow()
    with jax.enable_x64(False):
        single = jax.jvp(flow, (t,), (np.ones_like(t),))[1]
    assert single.alpha.tolist() == [-1.0] * 5
    assert single.sigma.tolist() == [1.0] * 5
    double = jax.jvp(flow, (t.astype(float),), (np.ones(5),))[1]
    np.testing.assert_allclose(single.log_snr, double.log_snr, rtol=5e-7)


@pytest.mark.slow_cases(
    but=[
        "<lambda>-values3",
        "<lambda>-values5",
        "<lambda>-values6",
        "<lambda>-values7",
        "<lambda>-values11",
        "<lambda>-values12",
        "<lambda>-values13",
    ]
)
@pytest.mark.parametrize(
    ("make", "values"),
    [
        (lambda v: diffax.Linear(beta_min=v), [0.05, 0.1, 0.3]),
        (lambda v: diffax.Linear(beta_max=v), [10.0, 20.0]),
        (lambda v: diffax.LogLinear(v, 80.0), [0.002, 0.01]),
        (lambda v: diffax.LogLinear(0.01, v), [20.0, 80.0]),
        (lambda v: diffax.from_betas(v * BETAS), [0.5, 1.0]),
        (lambda v: diffax.Quadratic(beta_min=v), [0.5, 1.0]),
        (lambda v: diffax.Quadratic(beta_max=v), [5.0, 12.0]),
        (lambda v: diffax.SubVP(v, 10 * v), [0.5, 1.0]),
        (lambda v: diffax.Sigmoid(-v, 2 * v), [2.0, 3.0]),
        (lambda v: diffax.Sigmoid(tau=v), [0.5, 1.0]),
        (lambda v: diffax.Laplace(v, 2 * v), [0.3, 0.5]),
        (lambda v: diffax.EDM(v, 80.0), [0.002, 0.01]),
        (lambda v: diffax.EDM(rho=v), [3.0, 7.0]),
        (lambda v: diffax.shifted(diffax.Cosine(), v), [0.5, 3.0]),
        (lambda v: diffax.shifted(diffax.from_betas(BETAS), v), [0.5, 3.0]),
    ],
)
def test_parameters_may_be_traced(make, values):
    f = lambda v: make(v)(0.37).sigma
    values = jnp.asarray(values)
    np.testing.assert_allclose(jax.jit(jax.vmap(f))(values), [f(float(v)) for v in values], rtol=1e-12)
    slope = (f(float(values[0]) * (1 + 1e-6)) - f(float(values[0]) * (1 - 1e-6))) / (2e-6 * values[0])
    np.testing.assert_allclose(jax.grad(f)(values[0]), slope, rtol=1e-5)


def test_a_schedule_is_a_pytree():
    schedule = diffax.Linear(beta_min=0.2, scaling="flow")
    leaves, tree = jax.tree.flatten(schedule)
    assert leaves == [0.2, 20.0]
    assert jax.tree.unflatten(tree, leaves) == schedule
    np.testing.assert_allclose(jax.jit(lambda s, t: s(t).alpha)(schedule, 0.3), schedule(0.3).alpha)


def test_linear_is_the_textbook_vp_sde():
    t = np.linspace(0.01, 1, 50)
    schedule = diffax.Linear(0.1, 20.0)
    beta = 0.1 + 19.9 * t
    integral = 0.1 * t + 19.9 * t**2 / 2
    np.testing.assert_allclose(schedule(t).alpha, np.exp(-integral / 2), rtol=1e-12)
    np.testing.assert_allclose(schedule(t).sigma, np.sqrt(-np.expm1(-integral)), rtol=1e-12)
    f, g2 = drift_and_diffusion(schedule, t)
    np.testing.assert_allclose(f, -beta / 2, rtol=1e-9)
    np.testing.assert_allclose(g2, beta, rtol=1e-8)


def test_cosine_flow_and_log_linear_are_those_of_the_textbook():
    t = np.linspace(0.01, 0.99, 50)
    np.testing.assert_allclose(diffax.Cosine()(t).alpha, np.cos(np.pi * t / 2), rtol=1e-10)
    np.testing.assert_allclose(diffax.Cosine()(t).sigma, np.sin(np.pi * t / 2), rtol=1e-10)
    np.testing.assert_allclose(diffax.Flow()(t).alpha, 1 - t, rtol=1e-12)
    np.testing.assert_allclose(diffax.Flow()(t).sigma, t, rtol=1e-12)
    f, g2 = drift_and_diffusion(diffax.Flow(), t)
    np.testing.assert_allclose(f, -1 / (1 - t), rtol=1e-9)
    np.testing.assert_allclose(g2, 2 * t / (1 - t), rtol=1e-8)
    ve = diffax.LogLinear(0.01, 50.0)
    sigma = 0.01 * 5000.0**t
    np.testing.assert_allclose(ve(t).sigma, sigma, rtol=1e-12)
    f, g2 = drift_and_diffusion(ve, t)
    np.testing.assert_allclose(f, 0, atol=1e-12)
    np.testing.assert_allclose(g2, 2 * sigma**2 * np.log(5000.0), rtol=1e-9)


def test_the_square_root_of_beta_is_linear_in_time_for_quadratic():
    t, fine = np.linspace(0.01, 1, 50), np.linspace(0, 1, 200001)
    beta = (np.sqrt(0.85) + (np.sqrt(12.0) - np.sqrt(0.85)) * fine) ** 2
    integral = np.concatenate([[0], np.cumsum((beta[1:] + beta[:-1]) / 2 * fine[1])])
    schedule = diffax.Quadratic(0.85, 12.0)
    np.testing.assert_allclose(schedule(t).alpha, np.exp(-np.interp(t, fine, integral) / 2), rtol=1e-8)
    f, g2 = drift_and_diffusion(schedule, t)
    np.testing.assert_allclose(f, -np.interp(t, fine, beta) / 2, rtol=1e-8)
    np.testing.assert_allclose(g2, np.interp(t, fine, beta), rtol=1e-8)
    constant = diffax.Quadratic(5.0, 5.0)  # beta does not depend on t
    np.testing.assert_allclose(constant(t).alpha, np.exp(-2.5 * t), rtol=1e-12)
    np.testing.assert_allclose(constant.inverse(constant.log_snr(t)), t, rtol=1e-12)


def test_quadratic_is_the_limit_of_its_betas():
    """The 1,000 betas of Stable Diffusion, and 100,000 betas of a hundredth of their size."""
    t = np.array([0.1, 0.4, 1.0])
    for factor, tolerance in ((1, 4e-2), (100, 4e-4)):
        betas = diffax.schedules.quadratic_betas(1000 * factor, beta_start=0.85e-3 / factor, beta_end=12e-3 / factor)
        alpha = np.sqrt(np.cumprod(1 - betas))[np.round(t * len(betas)).astype(int) - 1]
        np.testing.assert_allclose(diffax.Quadratic()(t).alpha, alpha, rtol=tolerance)


def test_sub_vp_is_the_sde_of_the_paper():
    """Song et al. 2021, eq. 28 and 29."""
    t = np.linspace(0.01, 1, 50)
    beta, integral = 0.1 + 19.9 * t, 0.1 * t + 19.9 * t**2 / 2
    level = diffax.SubVP()(t)
    np.testing.assert_allclose(level.alpha, np.exp(-integral / 2), rtol=1e-12)
    np.testing.assert_allclose(level.sigma, -np.expm1(-integral), rtol=1e-12)
    f, g2 = drift_and_diffusion(diffax.SubVP(), t)
    np.testing.assert_allclose(f, -beta / 2, rtol=1e-9)
    np.testing.assert_allclose(g2, beta * -np.expm1(-2 * integral), rtol=1e-8)


@pytest.mark.parametrize(
    "settings", [{}, {"start": 0.0, "end": 3.0, "tau": 0.7}, {"start": -3.0, "end": 3.0, "tau": 0.2}]
)
def test_sigmoid_is_algorithm_1_of_the_paper(settings):
    """Chen 2023, algorithm 1: alpha^2 is a sigmoid, shifted and scaled to fall from 1 to 0."""
    start, end, tau = ({"start": -3.0, "end": 3.0, "tau": 1.0} | settings).values()
    t = np.linspace(0.01, 0.99, 50)
    first, last = (1 / (1 + np.exp(-v / tau)) for v in (start, end))
    gamma = (last - 1 / (1 + np.exp(-(t * (end - start) + start) / tau))) / (last - first)
    schedule = diffax.Sigmoid(**settings)
    np.testing.assert_allclose(schedule(t).alpha, np.sqrt(gamma), rtol=1e-9)
    betas = diffax.schedules.sigmoid_betas(100, **settings)
    np.testing.assert_allclose(
        np.cumprod(1 - betas)[:99], np.square(schedule(np.arange(1, 100) / 100).alpha), rtol=1e-9
    )


def test_log_snr_has_a_laplace_distribution():
    """Hang et al. 2024, table 1; log-SNR at uniform t has the moments of the Laplace distribution."""
    t = np.linspace(0.002, 0.998, 51)
    lam = 0.4 - 0.7 * np.sign(0.5 - t) * np.log(1 - 2 * np.abs(t - 0.5))
    np.testing.assert_allclose(diffax.Laplace(0.4, 0.7).log_snr(t), lam, rtol=0, atol=1e-12)
    draws = diffax.Laplace(0.4, 0.7).log_snr((np.arange(100000) + 0.5) / 100000)
    np.testing.assert_allclose([draws.mean(), draws.std()], [0.4, 0.7 * np.sqrt(2)], rtol=1e-3)


def test_edm_has_the_levels_of_karras():
    """The Karras grid of k-diffusion with 10 levels from 10 to 0.02 (sampler_cases.json), and the two limits in rho."""
    levels = [
        10.000000000000002, 6.229284415689508, 3.7494032846265046, 2.1688891596771134, 1.1976613909154572,
        0.6259018452023676, 0.30609557416197863, 0.13797900612791864, 0.0561382376309718, 0.020000000000000014,
    ]  # fmt: skip
    np.testing.assert_allclose(diffax.EDM(0.02, 10.0)(np.linspace(1, 0, 10)).sigma, levels, rtol=1e-12)
    t = np.linspace(0, 1, 11)
    np.testing.assert_allclose(diffax.EDM(0.02, 10.0, rho=1.0)(t).sigma, 0.02 + 9.98 * t, rtol=1e-12)
    np.testing.assert_allclose(
        diffax.EDM(0.02, 10.0, rho=1e7)(t).sigma, diffax.LogLinear(0.02, 10.0)(t).sigma, rtol=1e-5
    )


@pytest.mark.slow_cases(but=["ve"])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_every_curve_has_the_same_noise_ratio_under_every_scaling(scaling):
    """A scaling changes alpha and sigma but not their ratio."""
    t = np.linspace(0, 1, 21)
    curves = {
        "linear": diffax.Linear, "quadratic": diffax.Quadratic, "sub_vp": diffax.SubVP, "cosine": diffax.Cosine,
        "sigmoid": diffax.Sigmoid, "laplace": diffax.Laplace, "flow": diffax.Flow, "edm": diffax.EDM,
        "log_linear": lambda scaling: diffax.LogLinear(0.01, 50.0, scaling=scaling),
        "table": lambda scaling: diffax.from_betas(BETAS, scaling=scaling),
        "shifted": lambda scaling: diffax.shifted(diffax.Cosine(scaling), 2.0),
        "shifted table": lambda scaling: diffax.shifted(diffax.from_betas(BETAS, scaling=scaling), 2.0),
    }  # fmt: skip
    evaluate = lambda t: {
        name: (make(scaling=scaling)(t), make(scaling="ve")(t).sigma) for name, make in curves.items()
    }
    for name, (level, ratio) in jax.jit(evaluate)(t).items():
        np.testing.assert_allclose(IDENTITIES[scaling](level.alpha, level.sigma), 1.0, rtol=1e-12, err_msg=name)
        np.testing.assert_allclose(level.sigma / level.alpha, ratio, rtol=1e-12, err_msg=name)
        np.testing.assert_allclose(np.exp(-level.log_snr / 2), ratio, rtol=1e-10, err_msg=name)


@pytest.mark.slow_cases("linear")
@every_schedule
def test_a_shift_multiplies_the_noise_ratio(schedule):
    t, unshifted = np.linspace(0.02, 0.98, 31), schedule(np.linspace(0.02, 0.98, 31))
    level = diffax.shifted(schedule, 3.0)(t)
    expected = np.clip(3 * unshifted.sigma / unshifted.alpha, 1 / RATIO_MAX, RATIO_MAX)
    nodes = np.abs(t * 1000 - np.round(t * 1000)) < 1e-9 if isinstance(schedule, diffax.Tabulated) else t > 0
    np.testing.assert_allclose((level.sigma / level.alpha)[nodes], expected[nodes], rtol=1e-9)
    assert diffax.shifted(schedule, 3.0).scaling == schedule.scaling
    twice = diffax.shifted(diffax.shifted(schedule, 2.0), 1.5)(t)
    np.testing.assert_allclose(twice.alpha, level.alpha, rtol=1e-9)
    np.testing.assert_allclose(diffax.shifted(schedule, 1.0)(t).sigma, unshifted.sigma, rtol=1e-12)


def test_the_shift_of_flow_matching_is_a_shift_of_time():
    """t' = s t / (1 + (s - 1) t): Esser et al. 2024, eq. 23."""
    t, s = np.linspace(0.001, 0.999, 101), 3.0
    np.testing.assert_allclose(diffax.shifted(diffax.Flow(), s)(t).sigma, s * t / (1 + (s - 1) * t), rtol=1e-12)


def test_a_shift_adapts_the_schedule_to_the_resolution():
    """Hoogeboom et al. 2023, section 3.1: for 256 pixels and the reference 64, log-SNR + 2 log(64 / 256)."""
    t = np.linspace(0.01, 0.99, 50)
    expected = -2 * np.log(np.tan(np.pi * t / 2)) + 2 * np.log(64 / 256)
    np.testing.assert_allclose(diffax.shifted(diffax.Cosine(), 256 / 64).log_snr(t), expected, rtol=0, atol=1e-10)


def test_user_schedules_and_tables_can_be_shifted():
    """A schedule of a class outside diffax, and a table with zero terminal SNR."""

    class UserSchedule:
        scaling = "flow"

        def log_snr(self, t):
            return 6.0 - 12.0 * jnp.asarray(t)

        def inverse(self, log_snr):
            return (6.0 - log_snr) / 12.0

        def __call__(self, t):
            ratio = jnp.exp(-self.log_snr(t) / 2)
            return Level(1 / (1 + ratio), ratio / (1 + ratio), self.log_snr(t))

    t = np.linspace(0, 1, 11)
    level = diffax.shifted(UserSchedule(), 2.0)(t)
    np.testing.assert_allclose(level.sigma / level.alpha, 2 * np.exp(6 * t - 3), rtol=1e-12)
    np.testing.assert_allclose(level.alpha + level.sigma, 1, rtol=1e-12)
    table = diffax.shifted(SCHEDULES["zero_terminal_snr"], 3.0)
    assert table.zero_terminal_snr
    np.testing.assert_allclose(table.log_snr(np.array([0.0, 1.0])), [LOG_SNR_MAX, -LOG_SNR_MAX])
    with pytest.raises(ValueError, match="eps"):
        diffax.denoiser(lambda x, t: x, table, "eps")


def test_zero_terminal_snr_is_algorithm_1_of_the_paper():
    """Lin et al. 2024, algorithm 1, line by line."""
    betas = diffax.schedules.quadratic_betas(1000)
    alphas_bar, total = [], 1.0
    for beta in betas:
        total *= 1 - beta
        alphas_bar.append(total)
    root = np.sqrt(alphas_bar)
    first, last = root[0], root[-1]
    root = (root - last) * first / (first - last)
    rescaled = diffax.schedules.zero_terminal_snr(betas)
    assert rescaled[-1] == 1
    np.testing.assert_allclose(rescaled[0], betas[0], rtol=1e-12)
    np.testing.assert_allclose(np.sqrt(np.cumprod(1 - rescaled))[:-1], root[:-1], rtol=1e-9)
    np.testing.assert_allclose(diffax.schedules.zero_terminal_snr(rescaled), rescaled, rtol=1e-9)
    schedule = diffax.from_betas(rescaled)
    assert schedule.zero_terminal_snr
    t = np.arange(1, 1000) / 1000
    np.testing.assert_allclose(schedule(t).alpha, root[:-1], rtol=1e-9)
    np.testing.assert_allclose(schedule(1.0).alpha, 1 / RATIO_MAX, rtol=1e-8)


def drift_and_diffusion(schedule, t):
    """f = d log alpha / dt and g^2 = d sigma^2 / dt - 2 f sigma^2 of dx = f x dt + g dw."""
    level = schedule(t)
    d_alpha, d_sigma = diffax.schedules.rates(schedule, t)
    f = d_alpha / level.alpha
    return f, 2 * level.sigma * d_sigma - 2 * f * level.sigma**2


@pytest.mark.slow_cases(but=["betas2"])
@pytest.mark.parametrize("betas", [BETAS, diffax.schedules.cosine_betas(100), np.full(7, 0.1)])
def test_a_table_has_the_levels_of_ddpm(betas):
    schedule = diffax.from_betas(betas)
    level_at = jax.jit(lambda t: schedule(t))
    t = (np.arange(len(betas)) + 1) / len(betas)
    alpha_bar = np.cumprod(1 - betas)
    np.testing.assert_allclose(level_at(t).alpha, np.sqrt(alpha_bar), rtol=1e-9)
    np.testing.assert_allclose(level_at(t).sigma, np.sqrt(1 - alpha_bar), rtol=1e-9)
    single = level_at(t.astype(np.float32))
    # float32 represents a log-SNR of up to 20 to 1e-6, and so alpha to a relative error of half of that.
    np.testing.assert_allclose(single.alpha, np.sqrt(alpha_bar), rtol=3e-6)
    np.testing.assert_allclose(single.sigma, np.sqrt(1 - alpha_bar), rtol=3e-6)
    np.testing.assert_allclose(level_at(0.0).alpha, 1.0, rtol=1e-8)


def test_rounding_of_a_table_time_does_not_change_its_level():
    """XLA divides i + 1 by T as a product with 1 / T, which may be off by two units in the last place."""
    schedule = diffax.from_betas(diffax.schedules.cosine_betas(1000))
    level = np.arange(1, 1001)
    exact, product = (level / 1000).astype(np.float32), level.astype(np.float32) * np.float32(1 / 1000)
    assert (exact != product).sum() > 500
    for time in (product, (jnp.asarray(level, jnp.float32) / 1000)):
        np.testing.assert_array_equal(schedule(time).alpha, schedule(exact).alpha)


def test_betas_are_those_of_the_papers():
    assert BETAS[0] == 1e-4
    assert BETAS[-1] == pytest.approx(0.02)
    s, n = 0.008, 50
    f = np.cos((np.arange(n + 1) / n + s) / (1 + s) * np.pi / 2) ** 2
    expected = np.sqrt((f / f[0])[1:-1])  # without the last beta, which is capped
    t = np.arange(1, n) / n
    np.testing.assert_allclose(diffax.from_betas(diffax.schedules.cosine_betas(n))(t).alpha, expected, rtol=1e-9)


def test_a_transition_between_neighbours_is_a_step_of_ddpm():
    schedule, t = diffax.from_betas(BETAS), (np.arange(1000) + 1) / 1000
    scale, std = diffax.schedules.transition(schedule, t[1:], t[:-1])
    np.testing.assert_allclose(scale, np.sqrt(1 - BETAS[1:]), rtol=1e-9)
    np.testing.assert_allclose(std, np.sqrt(BETAS[1:]), rtol=1e-7)


@every_schedule
def test_transitions_compose(schedule):
    r, s, t = 0.2, 0.55, 0.9
    (scale_1, std_1), (scale_2, std_2) = (
        diffax.schedules.transition(schedule, s, r),
        diffax.schedules.transition(schedule, t, s),
    )
    scale, std = diffax.schedules.transition(schedule, t, r)
    np.testing.assert_allclose(scale, scale_1 * scale_2, rtol=1e-12)
    np.testing.assert_allclose(std**2, std_2**2 + scale_2**2 * std_1**2, rtol=1e-9)
    assert diffax.schedules.transition(schedule, t, t)[1] == 0
    assert np.isfinite(jax.grad(lambda s: diffax.schedules.transition(schedule, t, s)[1])(t))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: diffax.Linear(beta_min=-0.1), "beta_min must be > 0, got -0.1"),
        (lambda: diffax.Linear(beta_max=0.0), "beta_max must be >= beta_min = 0.1, got 0.0"),
        (lambda: diffax.Linear(scaling="edm"), "scaling must be one of vp, ve, sub_vp, flow, got 'edm'"),
        (lambda: diffax.Linear(20.0, 0.1), "beta_max must be >= beta_min = 20.0, got 0.1"),
        (lambda: diffax.LogLinear(0.0, 1.0), "sigma_min must be > 0, got 0.0"),
        (lambda: diffax.LogLinear(2.0, 1.0), "sigma_max must be > sigma_min = 2.0, got 1.0"),
        (lambda: diffax.from_betas([0.1, 1.2]), r"betas must be in \(0, 1\), .* got betas\[1\] = 1.2"),
        (lambda: diffax.from_betas([0.1, 0.0]), r"betas must be in \(0, 1\), .* got betas\[1\] = 0"),
        (lambda: diffax.Tabulated(np.zeros(0)), r"log_snr_table must have shape \(T,\)"),
        (lambda: diffax.Tabulated(np.array([1.0, 2.0])), "log_snr_table must decrease, got 1 then 2"),
        (lambda: diffax.Quadratic(0.0), "beta_min must be > 0, got 0.0"),
        (lambda: diffax.SubVP(2.0, 1.0), "beta_max must be >= beta_min = 2.0, got 1.0"),
        (lambda: diffax.Sigmoid(tau=0.0), "tau must be > 0, got 0.0"),
        (lambda: diffax.Sigmoid(1.0, 1.0), "end must be > start = 1.0, got 1.0"),
        (lambda: diffax.Laplace(width=-1.0), "width must be > 0, got -1.0"),
        (lambda: diffax.Laplace(mean=np.nan), "mean must be finite, got nan"),
        (lambda: diffax.schedules.Tabulated(np.array([2.0, np.nan])), "must hold numbers, got nan at index 1"),
        (lambda: diffax.EDM(rho=0.0), "rho must be > 0, got 0.0"),
        (lambda: diffax.EDM(80.0, 0.002), "sigma_max must be > sigma_min = 80.0, got 0.002"),
        (lambda: diffax.shifted(diffax.Flow(), 0.0), "shift must be > 0, got 0.0"),
        (lambda: diffax.shifted(lambda t: t, 2.0), "schedule must have one of the scalings vp, ve, sub_vp, flow, got"),
        (lambda: diffax.schedules.zero_terminal_snr([0.1]), r"betas must have shape \(T,\) with T >= 2, got \(1,\)"),
        (lambda: diffax.schedules.zero_terminal_snr([0.1, 1.5]), r"betas\[1\] = 1.5"),
        (lambda: diffax.schedules.sigmoid_betas(10, tau=-1.0), "tau must be > 0, got -1.0"),
        (lambda: diffax.schedules.transition(diffax.Cosine(), 0.2, 0.3), "s must be <= t = 0.2, got 0.3"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_checks_reject_wrong_schedules():
    """Negative controls: an inverse without the factor 2 of log alpha^2, a doubled alpha, an inaccurate formula."""

    class WrongInverse(diffax.Cosine):
        def uncurve(self, log_snr):
            return 2 / jnp.pi * jnp.arctan(jnp.exp(-log_snr))

    with pytest.raises(AssertionError):
        test_inverse_is_the_inverse_of_log_snr(WrongInverse())
    with pytest.raises(AssertionError):
        test_alpha_and_sigma_satisfy_the_identity_of_their_scaling(_DoubledAlpha())
    with pytest.raises(AssertionError):
        check_float32(_TextbookCosine())


class _DoubledAlpha:
    scaling = "vp"

    def __call__(self, t):
        level = diffax.Cosine()(t)
        return level._replace(alpha=2 * level.alpha)


class _TextbookCosine:
    """The textbook formula of the cosine schedule, which loses the digits of alpha near t = 1."""

    def __call__(self, t):
        t = jnp.asarray(t)
        return Level(jnp.cos(jnp.pi / 2 * t) + 1e-5, jnp.sin(jnp.pi / 2 * t) + 1e-5, None)
