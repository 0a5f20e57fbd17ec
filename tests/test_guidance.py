"""Classifier-free guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exam import START, gaussian

import diffax
from diffax import analytic

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.newest]
SCHEDULE = diffax.Cosine()


def test_the_weights_ends_are_its_denoisers():
    conditional, unconditional = (lambda x, t: 2 * x), (lambda x, t: -x)
    x = jnp.asarray(START)
    for weight, known in ((1.0, conditional), (0.0, unconditional)):
        for value in (weight, jnp.asarray(weight)):
            guided = diffax.classifier_free(conditional, unconditional, value)
            np.testing.assert_allclose(guided(x, 0.5), known(x, 0.5), atol=1e-15)
    assert diffax.classifier_free(conditional, unconditional, 1) is conditional
    assert diffax.classifier_free(conditional, unconditional, 0.0) is unconditional


@pytest.mark.parametrize("kind", ["eps", "v", "velocity", "score"])
def test_guiding_denoisers_is_guiding_any_prediction(kind):
    """Ho & Salimans 2021 guide eps; x0 is affine in every kind, so it makes no difference."""
    nets = [lambda x, t: jnp.sin(x), lambda x, t: 0.3 * x]
    of = [diffax.denoiser(net, SCHEDULE, kind) for net in nets]
    mixed = diffax.denoiser(lambda x, t: 3.5 * nets[0](x, t) - 2.5 * nets[1](x, t), SCHEDULE, kind)
    np.testing.assert_allclose(diffax.classifier_free(*of, 3.5)(START, 0.4), mixed(START, 0.4), rtol=1e-10)


def test_the_guided_score_is_the_score_of_the_sharpened_law():
    """For Gaussians of one covariance the guided score is that of a Gaussian whose mean is moved by w."""
    spread, w = np.array([[0.4, 0.1], [0.1, 0.3]]), 2.5
    laws = [analytic.Gaussian.from_covariance(np.array(m), spread) for m in ([1.0, 0.2], [-0.3, 0.5])]
    moved = analytic.Gaussian.from_covariance(laws[1].mean + w * (laws[0].mean - laws[1].mean), spread)
    guided = diffax.classifier_free(*(law.denoiser(SCHEDULE) for law in laws), w)
    np.testing.assert_allclose(guided(START, 0.6), moved.denoise(START, SCHEDULE(0.6)), rtol=1e-10)
    times = diffax.times.uniform_log_snr(SCHEDULE, 200, t_max=0.9, t_min=0.05)
    end = diffax.integrate(jax.random.key(0), diffax.ddim(SCHEDULE), guided, START, times).x
    np.testing.assert_allclose(end, moved.flow(START, SCHEDULE(0.9), SCHEDULE(0.05)), atol=0.02)


def test_the_exam_fails_swapped_denoisers(monkeypatch):
    """Negative control."""
    right = diffax.classifier_free
    monkeypatch.setattr(diffax, "classifier_free", lambda c, u, w: right(u, c, w))
    for exam in (test_the_weights_ends_are_its_denoisers, test_the_guided_score_is_the_score_of_the_sharpened_law):
        with pytest.raises(AssertionError):
            exam()


def test_the_weight_may_be_traced_batched_and_differentiated():
    denoise = gaussian().denoiser(SCHEDULE)
    f = lambda w: diffax.classifier_free(denoise, lambda x, t: 0 * x, w)(jnp.asarray(START), 0.5)
    swept = jax.vmap(f)(jnp.array([0.0, 1.0, 4.0]))
    np.testing.assert_allclose(swept[2], 4 * swept[1], rtol=1e-12)
    by_example = f(jnp.array([0.0, 1.0, 2.0, 3.0, 4.0]))
    np.testing.assert_allclose(by_example[3], 3 * swept[1][3], rtol=1e-12)
    np.testing.assert_allclose(jax.grad(lambda w: f(w).sum())(2.0), swept[1].sum(), rtol=1e-12)
