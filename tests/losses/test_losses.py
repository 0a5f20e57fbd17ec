"""The denoising loss: its minimiser, its value on a Gaussian, its weightings; label dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffax
from diffax import analytic
from diffax.predictions import KINDS

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.newest]
SCHEDULE = diffax.Linear()
KEY = jax.random.key(0)
LAW = analytic.Gaussian.from_covariance(np.array([0.7, -0.4]), 0.25)


def perfect(kind, shift=0.0):
    """The network that predicts the posterior mean, or misses x0 by `shift`."""

    def predict(x, t):
        level = SCHEDULE(t)
        x0 = LAW.denoise(x, level) + shift
        eps = (x - level.alpha[:, None] * x0) / level.sigma[:, None]
        return diffax.predictions.target(kind, SCHEDULE, x0, eps, t)

    return predict


def times(n):
    return jnp.linspace(0.1, 0.9, n)


@pytest.mark.slow_cases("x0", "eps")
@pytest.mark.parametrize("kind", KINDS)
def test_the_posterior_mean_minimises_the_loss(kind):
    """Against shifts both ways; every kind has the same minimiser."""
    x0 = LAW.sample(jax.random.key(1), 20_000)
    loss = lambda shift: diffax.denoising_loss(KEY, perfect(kind, shift), SCHEDULE, kind, x0, times(len(x0))).mean()
    best = loss(0.0)
    assert loss(0.1) > best
    assert loss(-0.1) > best


def test_its_value_on_a_gaussian_is_the_posterior_variance():
    """E |x0_hat - x0|^2 / D = v sigma^2 / (alpha^2 v + sigma^2)."""
    x0, t = LAW.sample(jax.random.key(1), 200_000), 0.35
    loss = diffax.denoising_loss(KEY, perfect("x0"), SCHEDULE, "x0", x0, jnp.full(len(x0), t))
    alpha, sigma, _ = SCHEDULE(t)
    assert loss.shape == (len(x0),)
    np.testing.assert_allclose(loss.mean(), 0.25 * sigma**2 / (alpha**2 * 0.25 + sigma**2), rtol=0.01)


@pytest.mark.slow_cases("x0", "eps")
@pytest.mark.parametrize("kind", KINDS)
def test_a_weighting_means_the_same_for_every_kind(kind):
    x0, t = LAW.sample(jax.random.key(1), 500), times(500)
    weighting = lambda log_snr: 1 / (1 + jnp.exp(-log_snr))
    reference = weighting(SCHEDULE.log_snr(t)) * diffax.denoising_loss(KEY, perfect("eps", 0.2), SCHEDULE, "eps", x0, t)
    loss = diffax.denoising_loss(KEY, perfect(kind, 0.2), SCHEDULE, kind, x0, t, weighting=weighting)
    np.testing.assert_allclose(loss, reference, rtol=1e-8)


def test_the_exam_fails_a_weighting_without_its_conversion(monkeypatch):
    """Negative control: w(lambda) applied to the error of whatever is predicted."""
    right = diffax.denoising_loss

    def wrong(*args, weighting=None):
        return right(*args) if weighting is None else weighting(SCHEDULE.log_snr(args[-1])) * right(*args)

    monkeypatch.setattr(diffax, "denoising_loss", wrong)
    with pytest.raises(AssertionError):
        test_a_weighting_means_the_same_for_every_kind("v")


def test_the_loss_of_an_example_depends_on_its_own_key():
    x0, keys = LAW.sample(jax.random.key(1), 8), jax.random.split(KEY, 8)
    f = lambda keys, x0, t: diffax.denoising_loss(keys, perfect("v"), SCHEDULE, "v", x0, t)
    np.testing.assert_allclose(f(keys, x0, times(8))[:3], f(keys[:3], x0[:3], times(8)[:3]), rtol=1e-12)


def test_eps_is_refused_where_no_signal_is_left():
    table = diffax.from_betas(diffax.schedules.zero_terminal_snr(diffax.schedules.linear_betas(100)))
    with pytest.raises(ValueError, match="kind must be x0, v, velocity or edm with zero terminal SNR, got 'eps'"):
        diffax.denoising_loss(KEY, lambda x, t: x, table, "eps", jnp.ones((2, 3)), 0.5)


def test_trees():
    tree = {"a": jnp.ones((4, 3)), "b": jnp.ones((4, 2, 2))}
    loss = diffax.denoising_loss(KEY, lambda x, t: x, SCHEDULE, "v", tree, 0.5)
    assert loss.shape == (4,)


def test_label_dropout():
    labels = jnp.arange(10_000) % 10
    dropped = diffax.losses.drop_labels(KEY, labels, 10, p_uncond=0.2)
    assert abs(float((dropped == 10).mean()) - 0.2) < 0.02
    assert (jnp.where(dropped == 10, labels, dropped) == labels).all()
    assert (diffax.losses.drop_labels(KEY, labels, 10, p_uncond=0.0) == labels).all()
    assert (diffax.losses.drop_labels(KEY, labels, 10, p_uncond=1.0) == 10).all()
    with pytest.raises(ValueError, match=r"p_uncond must be in \[0, 1\], got 1.2"):
        diffax.losses.drop_labels(KEY, labels, 10, p_uncond=1.2)
