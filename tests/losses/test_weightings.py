"""Weightings of the loss: published forms, information theory on a Gaussian, the unit weight of EDM."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffax
from diffax import analytic, random
from diffax.losses import training_times, weightings

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.newest]
KEY = jax.random.key(0)
COSINE = diffax.Cosine()
T = np.linspace(0.02, 0.98, 25)

# name -> (weighting, the kind of prediction whose error the paper weighs, the paper's weight as a function of SNR)
PUBLISHED = {
    "simple": (weightings.simple(), "eps", lambda snr: np.ones_like(snr)),
    "simple-v": (weightings.simple(), "v", lambda snr: snr / (snr + 1)),
    "min_snr-x0": (weightings.min_snr(), "x0", lambda snr: np.minimum(snr, 5)),
    "min_snr-eps": (weightings.min_snr(gamma=3.0), "eps", lambda snr: np.minimum(snr, 3) / snr),
    "min_snr-v": (weightings.min_snr(gamma=3.0), "v", lambda snr: np.minimum(snr, 3) / (snr + 1)),
    "truncated_snr": (weightings.truncated_snr(), "x0", lambda snr: np.maximum(snr, 1)),
    "snr_plus_one": (weightings.edm(sigma_data=1.0), "x0", lambda snr: snr + 1),
    "unit_v": (weightings.edm(sigma_data=1.0), "v", lambda snr: np.ones_like(snr)),
    "p2": (weightings.p2(gamma=0.5, k=2.0), "eps", lambda snr: 1 / (2 + snr) ** 0.5),
    "edm": (weightings.edm(sigma_data=0.4), "x0", lambda snr: (1 / snr + 0.4**2) / (0.4**2 / snr)),
    "sid2-eps": (weightings.sigmoid(bias=-1.0), "eps", lambda snr: 1 / (1 + snr * np.e)),
    "sid2-x0": (weightings.sigmoid(bias=-1.0), "x0", lambda snr: np.exp(-1) / (1 + 1 / (snr * np.e))),
}


def loss(kind, weighting, schedule=COSINE, t=T, predict=lambda x, t: 0.3 * x, **keywords):
    """The loss on data of two dimensions, with one example for each t."""
    x0 = jnp.stack([jnp.sin(jnp.arange(len(t))), jnp.ones(len(t))], 1)
    return diffax.denoising_loss(KEY, predict, schedule, kind, x0, t, weighting=weighting, **keywords)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_weighting_has_its_published_form(name):
    """The paper's weight on the paper's kind of prediction, with SNR = cot^2(pi t / 2)."""
    weighting, kind, weight = PUBLISHED[name]
    expected = weight(1 / np.tan(np.pi / 2 * np.asarray(T)) ** 2) * loss(kind, None)
    np.testing.assert_allclose(loss(kind, weighting), expected, rtol=1e-9)


def test_a_weighting_of_another_kind_fails_the_check(monkeypatch):
    """Negative control: min(SNR, gamma) is the weight of the error of x0, here used as the weight of that of eps."""
    wrong = lambda log_snr: jnp.minimum(jnp.exp(log_snr), 3.0)
    monkeypatch.setitem(PUBLISHED, "min_snr-v", (wrong, *PUBLISHED["min_snr-v"][1:]))
    with pytest.raises(AssertionError):
        test_a_weighting_has_its_published_form("min_snr-v")


@pytest.mark.parametrize("schedule", [diffax.LogLinear(0.002, 80.0), diffax.Linear(), diffax.Flow()])
def test_the_edm_weight_of_the_network_output_is_one(schedule):
    """lambda(sigma) c_out(sigma)^2 = 1 at every level, for any scaling (Karras et al. 2022, section 5)."""
    weighting = weightings.edm(sigma_data=0.4)
    np.testing.assert_allclose(
        loss("edm", weighting, schedule, sigma_data=0.4), loss("edm", None, schedule, sigma_data=0.4), rtol=1e-9
    )


def test_the_edm_loss_is_that_of_the_paper():
    """Equation 2 and table 1 in NumPy: lambda(sigma) |D(x0 + sigma eps) - x0|^2, D = c_skip x + c_out F."""
    schedule, std = diffax.LogLinear(0.002, 80.0), 0.4
    x0, sigma = np.random.default_rng(0).normal(size=(25, 2)), np.asarray(schedule(T).sigma)[:, None]
    x = x0 + sigma * np.asarray(random.noise(random.stream(KEY, "denoising_loss"), jnp.asarray(x0)))
    c_skip, c_out = std**2 / (sigma**2 + std**2), sigma * std / np.sqrt(sigma**2 + std**2)
    error = c_skip * x + c_out * np.tanh(x) - x0
    expected = ((sigma**2 + std**2) / (sigma * std) ** 2 * error**2).mean(1)
    for weighting in (None, weightings.edm(sigma_data=std)):
        result = diffax.denoising_loss(
            KEY, lambda x, t: jnp.tanh(x), schedule, "edm", jnp.asarray(x0), T, weighting=weighting, sigma_data=std
        )
        np.testing.assert_allclose(result, expected, rtol=1e-9)


def test_the_elbo_weights_the_score_by_half_g_squared():
    """Song et al. 2021: g(t)^2 / 2 on the error of the score; g^2 = beta(t) for the linear VP schedule."""
    beta = 0.1 + (20 - 0.1) * T
    expected = beta / 2 * loss("score", None, diffax.Linear())
    result = loss("score", weightings.elbo(), diffax.Linear(), measure="log_snr")
    np.testing.assert_allclose(result, expected, rtol=1e-9)


def test_the_elbo_weights_x0_by_half_the_slope_of_snr():
    """Kingma et al. 2021: -SNR'(t) / 2 on the error of x0; SNR = cot^2(pi t / 2)."""
    slope = -np.pi * np.cos(np.pi / 2 * T) / np.sin(np.pi / 2 * T) ** 3
    result = loss("x0", weightings.elbo(), measure="log_snr")
    np.testing.assert_allclose(result, -slope / 2 * loss("x0", None), rtol=1e-9)


VARIANCE = 0.3
SCHEDULES = {
    "cosine": COSINE,
    "linear": diffax.Linear(),
    "flow": diffax.Flow(),
    "log_linear": diffax.LogLinear(1e-3, 200.0),
    "table": diffax.from_betas(diffax.schedules.linear_betas(1000)),
}


def expected_loss(schedule, weighting, monkeypatch, distribution=None, measure="log_snr", size=4096):
    """The mean loss of the exact denoiser for data N(0, VARIANCE), exact in x0 and eps, stratified in t.

    The error is linear in x0 and eps, so one standard deviation of x0 with both signs of eps has its exact mean square.
    """
    data = analytic.Gaussian.from_covariance(np.zeros(1), VARIANCE)
    x0 = jnp.full((size, 1), np.sqrt(VARIANCE))

    @jax.jit
    def mean():
        t, weight = training_times.draw(KEY, size, distribution, uniforms=lambda key, n: (jnp.arange(n) + 0.5) / n)

        def loss_of_sign(sign):
            monkeypatch.setattr(random, "noise", lambda key, like: sign * jnp.ones_like(like))
            return diffax.denoising_loss(
                KEY, data.denoiser(schedule), schedule, "x0", x0, t, weighting=weighting, measure=measure
            )

        return jnp.mean(weight * (loss_of_sign(1.0) + loss_of_sign(-1.0)) / 2)

    return float(mean())


def check_information(schedule, monkeypatch, **keywords):
    """The diffusion loss of the exact denoiser is the information gained between its ends, in nats.

    I(x0; x_t) = log(1 + VARIANCE SNR_t) / 2, and dI / dSNR = mmse / 2 (Guo, Shamai & Verdu 2005).
    """
    distribution = training_times.uniform(t_min=0.01, t_max=0.99)
    ends = np.asarray(schedule.log_snr(jnp.array([0.01, 0.99])))
    information = 0.5 * np.log1p(VARIANCE * np.exp(ends))
    result = expected_loss(schedule, weightings.elbo(), monkeypatch, distribution, **keywords)
    np.testing.assert_allclose(result, information[0] - information[1], rtol=1e-4)


@pytest.mark.slow_cases("cosine", "table")
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_the_elbo_of_a_gaussian_is_the_information_gained(schedule, monkeypatch):
    check_information(schedule, monkeypatch)


def test_an_elbo_on_equal_steps_of_t_fails_the_check(monkeypatch):
    """Negative control: the weight 1/2 without the factor -lambda'(t)."""
    with pytest.raises(AssertionError):
        check_information(COSINE, monkeypatch, measure="t")


DISTRIBUTIONS = {
    "uniform": training_times.uniform(),
    "logit_normal": training_times.logit_normal(mean=0.2, std=1.5),
    "mode": training_times.mode(),
    "mode-negative": training_times.mode(scale=-0.7),
    "cosmap": training_times.cosmap(),
    "log_normal_sigma": training_times.log_normal_sigma(COSINE, mean=-0.5, std=2.0),
}


def check_total(schedule, distribution, monkeypatch, bias=0.7):
    """int sigmoid(a + lambda) sigmoid(bias - lambda) dlambda, a = log VARIANCE, in closed form.

    sigmoid(a + lambda) is the error of eps of the exact denoiser. The integral depends on the schedule through its ends
    alone, and not on the distribution of t (Kingma & Gao 2023).
    """
    ends = np.asarray(schedule.log_snr(jnp.array([0.0, 1.0])))
    c = np.log(VARIANCE) + bias
    y = np.log(VARIANCE) + ends
    primitive = (np.logaddexp(0, y) - np.logaddexp(0, y - c)) / -np.expm1(-c)
    result = expected_loss(schedule, weightings.sigmoid(bias=bias), monkeypatch, distribution)
    np.testing.assert_allclose(result, primitive[0] - primitive[1], rtol=1e-3)


@pytest.mark.slow_cases("logit_normal", "log_normal_sigma")
@pytest.mark.parametrize("distribution", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_the_distribution_of_t_does_not_change_the_objective(distribution, monkeypatch):
    check_total(COSINE, distribution, monkeypatch)


@pytest.mark.slow_cases("table")
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_the_schedule_does_not_change_the_objective(schedule, monkeypatch):
    check_total(schedule, training_times.uniform(), monkeypatch)


def test_a_distribution_without_its_weight_fails_the_check(monkeypatch):
    """Negative control."""
    draw = training_times.draw
    monkeypatch.setattr(training_times, "draw", lambda *a, **k: draw(*a, **k)._replace(weight=1.0))
    with pytest.raises(AssertionError):
        check_total(COSINE, DISTRIBUTIONS["mode"], monkeypatch)


HYPERPARAMETERS = {
    "min_snr": (lambda v: weightings.min_snr(gamma=v), 5.0),
    "p2-gamma": (lambda v: weightings.p2(gamma=v), 0.0),
    "p2-k": (lambda v: weightings.p2(k=v), 0.0),
    "edm": (lambda v: weightings.edm(sigma_data=v), 0.5),
    "sigmoid": (lambda v: weightings.sigmoid(bias=v), 0.0),
}


@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_hyperparameters_are_traced(name):
    make, value = HYPERPARAMETERS[name]
    log_snr = jnp.array([-20.0, -1.0, 0.0, 3.0, 20.0], jnp.float32)
    values = jnp.array([value, value + 0.5], jnp.float32)
    jacobian = jax.jit(jax.vmap(jax.jacobian(lambda v: make(v)(log_snr))))(values)
    assert np.isfinite(jacobian).all()
    assert np.abs(jacobian).max() > 0
    batched = jax.vmap(lambda v: make(v)(log_snr))(values)
    np.testing.assert_allclose(batched[1], make(value + 0.5)(log_snr), rtol=1e-6)


@pytest.mark.slow_cases("t")
@pytest.mark.parametrize("measure", ["t", "log_snr"])
def test_the_loss_is_finite_in_float32_at_both_ends(measure):
    """The weights of EDM are the largest; the gradient with respect to the prediction is finite too."""
    t = jnp.array([0.0, 1e-6, 1.0], jnp.float32)

    def total(scale, schedule):
        return loss(
            "v", weightings.edm(), schedule, t, lambda x, t: (scale * x).astype(jnp.float32), measure=measure
        ).sum()

    for schedule in (COSINE, diffax.Flow(), diffax.LogLinear(0.002, 80.0)):
        assert np.isfinite(jax.jit(jax.value_and_grad(total))(0.3, schedule)).all()


def test_the_gradient_reaches_the_schedule():
    """d loss / d beta_max through the rate -lambda'(t), against finite differences."""
    total = lambda b: loss("eps", weightings.elbo(), diffax.Linear(beta_max=b), measure="log_snr").sum()
    slope, up, down = jax.jit(lambda b: (jax.grad(total)(b), total(b + 1e-3), total(b - 1e-3)))(20.0)
    np.testing.assert_allclose(slope, (up - down) / 2e-3, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: weightings.min_snr(gamma=0.0), "gamma must be > 0, got 0.0"),
        (lambda: weightings.p2(gamma=-1.0), "gamma must be >= 0, got -1.0"),
        (lambda: weightings.p2(k=-1.0), "k must be >= 0, got -1.0"),
        (lambda: weightings.edm(sigma_data=0.0), "sigma_data must be > 0, got 0.0"),
        (lambda: loss("v", None, measure="log_snr"), "measure must be 't' without a weighting, got 'log_snr'"),
        (lambda: loss("v", weightings.simple(), measure="snr"), "measure must be one of t, log_snr, got 'snr'"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
