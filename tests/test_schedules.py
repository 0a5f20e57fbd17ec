"""Schedules: inverses, scalings, ends, gradients, textbook formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exam import BETAS, SCHEDULES

import diffax
from diffax.curves import LOG_SNR_MAX, SCALINGS

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.newest]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)

INSIDE = np.linspace(0.002, 0.999, 301)


@every_schedule
def test_inverse_undoes_log_snr(schedule):
    np.testing.assert_allclose(schedule.inverse(schedule.log_snr(INSIDE)), INSIDE, rtol=0, atol=1e-12)


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
def test_scaling_identity(schedule):
    alpha, sigma, log_snr = schedule(np.linspace(0, 1, 101))
    np.testing.assert_allclose(IDENTITIES[schedule.scaling](alpha, sigma), 1.0, rtol=1e-12)
    np.testing.assert_allclose(2 * np.log(alpha / sigma), log_snr, rtol=0, atol=1e-10)


def test_every_scaling_has_an_identity():
    assert set(SCALINGS) == set(IDENTITIES)


@every_schedule
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ends_are_finite_and_so_are_slopes(schedule, dtype):
    t = jnp.asarray([0.0, 1e-7, 0.5, 1 - 1e-7, 1.0], dtype)
    level, slope = schedule(t), jax.vmap(jax.grad(schedule.log_snr))(t)
    for value in (*level, slope, *diffax.rates(schedule, t)):
        assert value.dtype == dtype
        assert np.isfinite(value).all()
    assert (level.alpha > 0).all()
    assert (level.sigma > 0).all()
    assert (slope < 0).all()


@every_schedule
def test_float32_loses_nothing(schedule):
    exact = schedule(INSIDE)
    short = schedule(INSIDE.astype(np.float32))
    # The time itself is rounded to float32, which moves log-SNR by its slope.
    slack = np.abs(jax.vmap(jax.grad(schedule.log_snr))(INSIDE)) * INSIDE * 2.0**-24
    assert (np.abs(short.log_snr - exact.log_snr) <= 3 * slack + 6e-6).all()


@every_schedule
def test_rates_are_the_slopes_of_alpha_and_sigma(schedule):
    t, h = np.linspace(0.0505, 0.9505, 19), 1e-6
    before, after = schedule(t - h), schedule(t + h)
    d_alpha, d_sigma = diffax.rates(schedule, t)
    np.testing.assert_allclose(d_alpha, (after.alpha - before.alpha) / (2 * h), atol=2e-6)
    np.testing.assert_allclose(d_sigma, (after.sigma - before.sigma) / (2 * h), rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize(
    ("make", "values"),
    [
        (lambda v: diffax.Linear(beta_min=v), [0.05, 0.1, 0.3]),
        (lambda v: diffax.Linear(beta_max=v), [10.0, 20.0]),
        (lambda v: diffax.LogLinear(v, 80.0), [0.002, 0.01]),
        (lambda v: diffax.LogLinear(0.01, v), [20.0, 80.0]),
        (lambda v: diffax.from_betas(v * BETAS), [0.5, 1.0]),
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


def test_other_textbook_formulas():
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


def drift_and_diffusion(schedule, t):
    """f = d log alpha / dt and g^2 = d sigma^2 / dt - 2 f sigma^2 of dx = f x dt + g dw."""
    level = schedule(t)
    d_alpha, d_sigma = diffax.rates(schedule, t)
    f = d_alpha / level.alpha
    return f, 2 * level.sigma * d_sigma - 2 * f * level.sigma**2


@pytest.mark.parametrize("betas", [BETAS, diffax.cosine_betas(100), np.full(7, 0.1)])
def test_a_table_holds_the_levels_of_ddpm(betas):
    schedule = diffax.from_betas(betas)
    t = (np.arange(len(betas)) + 1) / len(betas)
    alpha_bar = np.cumprod(1 - betas)
    np.testing.assert_allclose(schedule(t).alpha, np.sqrt(alpha_bar), rtol=1e-9)
    np.testing.assert_allclose(schedule(t).sigma, np.sqrt(1 - alpha_bar), rtol=1e-9)
    single = schedule(t.astype(np.float32))
    # float32 holds log-SNR of up to 20 to 1e-6, and alpha to half of that, relatively.
    np.testing.assert_allclose(single.alpha, np.sqrt(alpha_bar), rtol=3e-6)
    np.testing.assert_allclose(single.sigma, np.sqrt(1 - alpha_bar), rtol=3e-6)
    np.testing.assert_allclose(schedule(0.0).alpha, 1.0, rtol=1e-8)


def test_the_paper_s_betas():
    assert BETAS[0] == 1e-4
    assert BETAS[-1] == pytest.approx(0.02)
    s, n = 0.008, 50
    f = np.cos((np.arange(n + 1) / n + s) / (1 + s) * np.pi / 2) ** 2
    expected = np.sqrt((f / f[0])[1:-1])  # before the last beta, which is capped
    t = np.arange(1, n) / n
    np.testing.assert_allclose(diffax.from_betas(diffax.cosine_betas(n))(t).alpha, expected, rtol=1e-9)


def test_transition_is_ddpm_s_single_step():
    schedule, t = diffax.from_betas(BETAS), (np.arange(1000) + 1) / 1000
    scale, std = diffax.transition(schedule, t[1:], t[:-1])
    np.testing.assert_allclose(scale, np.sqrt(1 - BETAS[1:]), rtol=1e-9)
    np.testing.assert_allclose(std, np.sqrt(BETAS[1:]), rtol=1e-7)


@every_schedule
def test_transitions_compose(schedule):
    r, s, t = 0.2, 0.55, 0.9
    (scale_1, std_1), (scale_2, std_2) = diffax.transition(schedule, s, r), diffax.transition(schedule, t, s)
    scale, std = diffax.transition(schedule, t, r)
    np.testing.assert_allclose(scale, scale_1 * scale_2, rtol=1e-12)
    np.testing.assert_allclose(std**2, std_2**2 + scale_2**2 * std_1**2, rtol=1e-9)
    assert diffax.transition(schedule, t, t)[1] == 0
    assert np.isfinite(jax.grad(lambda s: diffax.transition(schedule, t, s)[1])(t))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: diffax.Linear(beta_min=-0.1), "beta_min must be > 0, got -0.1"),
        (lambda: diffax.Linear(beta_max=0.0), "beta_max must be >= beta_min = 0.1, got 0.0"),
        (lambda: diffax.Linear(scaling="edm"), "scaling must be one of vp, ve, sub_vp, flow, got 'edm'"),
        (lambda: diffax.Linear(20.0, 0.1), "beta_max must be >= beta_min = 20.0, got 0.1"),
        (lambda: diffax.LogLinear(0.0, 1.0), "sigma_min must be > 0, got 0.0"),
        (lambda: diffax.LogLinear(2.0, 1.0), "sigma_max must be > sigma_min = 2.0, got 1.0"),
        (lambda: diffax.from_betas([0.1, 1.2]), r"betas must lie in \(0, 1\), .* got betas\[1\] = 1.2"),
        (lambda: diffax.from_betas([0.1, 0.0]), r"betas must lie in \(0, 1\), .* got betas\[1\] = 0"),
        (lambda: diffax.Tabulated(np.zeros(0)), r"log_snr_table must have shape \(T,\)"),
        (lambda: diffax.Tabulated(np.array([1.0, 2.0])), "log_snr_table must decrease, got 1 then 2"),
        (lambda: diffax.transition(diffax.Cosine(), 0.2, 0.3), "transition goes from s to a later t"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_exam_fails_a_wrong_schedule():
    """Negative control: a cosine whose inverse forgets the factor 2 of log alpha^2."""

    class Wrong(diffax.Cosine):
        def uncurve(self, log_snr):
            return 2 / jnp.pi * jnp.arctan(jnp.exp(-log_snr))

    with pytest.raises(AssertionError):
        test_inverse_undoes_log_snr(Wrong())
    with pytest.raises(AssertionError):
        test_scaling_identity(_Doubled())


class _Doubled:
    scaling = "vp"

    def __call__(self, t):
        level = diffax.Cosine()(t)
        return level._replace(alpha=2 * level.alpha)
