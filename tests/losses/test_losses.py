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
DATA = analytic.Gaussian.from_covariance(np.array([0.7, -0.4]), 0.25)


def exact_network(kind, shift=0.0):
    """A network that predicts the posterior mean of x0, plus `shift`."""

    def predict(x, t):
        level = SCHEDULE(t)
        x0 = DATA.denoise(x, level) + shift
        eps = (x - level.alpha[:, None] * x0) / level.sigma[:, None]
        return diffax.predictions.target(kind, SCHEDULE, x0, eps, t)

    return predict


def times(n):
    return jnp.linspace(0.1, 0.9, n)


@pytest.mark.slow_cases("x0", "eps")
@pytest.mark.parametrize("kind", KINDS)
def test_the_posterior_mean_minimises_the_loss(kind):
    """For every kind of prediction, a shift of x0 in either direction raises the loss."""
    x0 = DATA.sample(jax.random.key(1), 20_000)
    loss = lambda shift: diffax.denoising_loss(
        KEY, exact_network(kind, shift), SCHEDULE, kind, x0, times(len(x0))
    ).mean()
    best = loss(0.0)
    assert loss(0.1) > best
    assert loss(-0.1) > best


def test_the_loss_on_gaussian_data_is_the_posterior_variance():
    """E |x0_hat - x0|^2 / D = v sigma^2 / (alpha^2 v + sigma^2)."""
    x0, t = DATA.sample(jax.random.key(1), 200_000), 0.35
    loss = diffax.denoising_loss(KEY, exact_network("x0"), SCHEDULE, "x0", x0, jnp.full(len(x0), t))
    alpha, sigma, _ = SCHEDULE(t)
    assert loss.shape == (len(x0),)
    np.testing.assert_allclose(loss.mean(), 0.25 * sigma**2 / (alpha**2 * 0.25 + sigma**2), rtol=0.01)


@pytest.mark.slow_cases("x0", "eps")
@pytest.mark.parametrize("kind", KINDS)
def test_a_weighted_loss_is_the_same_for_every_kind(kind):
    x0, t = DATA.sample(jax.random.key(1), 500), times(500)
    weighting = lambda log_snr: 1 / (1 + jnp.exp(-log_snr))
    expected = weighting(SCHEDULE.log_snr(t)) * diffax.denoising_loss(
        KEY, exact_network("eps", 0.2), SCHEDULE, "eps", x0, t
    )
    loss = diffax.denoising_loss(KEY, exact_network(kind, 0.2), SCHEDULE, kind, x0, t, weighting=weighting)
    np.testing.assert_allclose(loss, expected, rtol=1e-8)


def test_a_weighting_without_its_conversion_fails_the_check(monkeypatch):
    """Negative control: w(lambda) multiplies the error of v, not that of eps."""
    right = diffax.denoising_loss

    def wrong(*args, weighting=None):
        return right(*args) if weighting is None else weighting(SCHEDULE.log_snr(args[-1])) * right(*args)

    monkeypatch.setattr(diffax, "denoising_loss", wrong)
    with pytest.raises(AssertionError):
        test_a_weighted_loss_is_the_same_for_every_kind("v")


def test_the_loss_of_an_example_depends_on_no_other_key():
    x0, keys = DATA.sample(jax.random.key(1), 8), jax.random.split(KEY, 8)
    loss = lambda keys, x0, t: diffax.denoising_loss(keys, exact_network("v"), SCHEDULE, "v", x0, t)
    np.testing.assert_allclose(loss(keys, x0, times(8))[:3], loss(keys[:3], x0[:3], times(8)[:3]), rtol=1e-12)


def test_eps_is_refused_with_zero_terminal_snr():
    table = diffax.from_betas(diffax.schedules.zero_terminal_snr(diffax.schedules.linear_betas(100)))
    with pytest.raises(ValueError, match="kind must be x0, v, velocity or edm with zero terminal SNR, got 'eps'"):
        diffax.denoising_loss(KEY, lambda x, t: x, table, "eps", jnp.ones((2, 3)), 0.5)


def test_the_loss_of_a_tree_has_one_value_for_each_example():
    tree = {"a": jnp.ones((4, 3)), "b": jnp.ones((4, 2, 2))}
    loss = diffax.denoising_loss(KEY, lambda x, t: x, SCHEDULE, "v", tree, 0.5)
    assert loss.shape == (4,)


def test_label_dropout_replaces_the_given_share_of_labels():
    labels = jnp.arange(10_000) % 10
    dropped = diffax.losses.drop_labels(KEY, labels, 10, p_uncond=0.2)
    assert abs(float((dropped == 10).mean()) - 0.2) < 0.02
    assert (jnp.where(dropped == 10, labels, dropped) == labels).all()
    assert (diffax.losses.drop_labels(KEY, labels, 10, p_uncond=0.0) == labels).all()
    assert (diffax.losses.drop_labels(KEY, labels, 10, p_uncond=1.0) == 10).all()
    with pytest.raises(ValueError, match=r"p_uncond must be in \[0, 1\], got 1.2"):
        diffax.losses.drop_labels(KEY, labels, 10, p_uncond=1.2)
