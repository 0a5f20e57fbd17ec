"""Guidance against known answers: the papers' equations in numpy, laws whose guided score is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exam import START, mixture

import diffax
from diffax import analytic

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.newest]
SCHEDULE = diffax.Cosine()
W = 3.5
PAIR = np.random.default_rng(1).normal(size=(2, 5, 3, 2)) * np.array([2.0, 1.0])[:, None, None, None]  # c, u
constant = lambda value: lambda x, t: jnp.asarray(value)


# Rescaling


def rescaled(strength, **kwargs):
    c, u = (constant(v) for v in PAIR)
    return diffax.rescale(diffax.classifier_free(c, u, W), c, strength, **kwargs)(jnp.zeros((5, 3, 2)), 0.4)


def test_rescaling_by_lin_et_al():
    """Equations 15 and 16 in numpy, example by example; phi = 0 changes nothing, phi = 1 leaves c's deviation."""
    c, u = PAIR
    cfg = u + W * (c - u)
    for phi in (0.0, 0.7, 1.0):
        for i, x0 in enumerate(rescaled(phi)):
            known = phi * cfg[i] * np.std(c[i]) / np.std(cfg[i]) + (1 - phi) * cfg[i]
            np.testing.assert_allclose(x0, known, rtol=1e-12)
    np.testing.assert_allclose(rescaled(0.0), cfg, rtol=1e-13)
    np.testing.assert_allclose(np.std(rescaled(1.0), (1, 2)), np.std(c, (1, 2)), rtol=1e-12)
    strengths = np.linspace(0, 1, 5)
    np.testing.assert_allclose(rescaled(strengths)[1], rescaled(0.25)[1], rtol=1e-12)


def test_rescaling_the_network_s_own_prediction():
    """A v-network rescaled in v, as in the paper, then turned into x0."""
    x, t, phi = np.random.default_rng(2).normal(size=(5, 3, 2)), 0.4, 0.7
    alpha, sigma = np.cos(np.pi * t / 2), np.sin(np.pi * t / 2)
    pos, neg = PAIR
    cfg = neg + W * (pos - neg)
    ratio = (np.std(pos, (1, 2)) / np.std(cfg, (1, 2)))[:, None, None]
    c, u = (diffax.denoiser(constant(v), SCHEDULE, "v") for v in PAIR)
    ours = diffax.rescale(diffax.classifier_free(c, u, W), c, phi, kind="v", schedule=SCHEDULE)(jnp.asarray(x), t)
    np.testing.assert_allclose(ours, alpha * x - sigma * cfg * (phi * ratio + 1 - phi), rtol=1e-10)


def test_the_exam_fails_rescaling_by_the_batch(monkeypatch):
    """Negative control."""

    def wrong(guided, conditional, phi):
        def denoise(x, t):
            g, c = guided(x, t), conditional(x, t)
            return g * (phi * jnp.std(c) / jnp.std(g) + 1 - phi)

        return denoise

    monkeypatch.setattr(diffax, "rescale", wrong)
    with pytest.raises(AssertionError):
        test_rescaling_by_lin_et_al()


# Adaptive projected guidance


def projected(weight, **kwargs):
    return diffax.apg(*(constant(v) for v in PAIR), weight, **kwargs)(jnp.zeros((5, 3, 2)), 0.4)


def test_projected_guidance_of_sadat_et_al():
    """The paper's steps in numpy: cut to the norm r, split along c, put together; eta = 1, r = inf is CFG."""
    c, u = PAIR
    np.testing.assert_allclose(projected(W, eta=1.0), u + W * (c - u), rtol=1e-12)
    for eta, r in ((0.0, np.inf), (0.3, 5.0), (0.0, 0.5)):
        for i, x0 in enumerate(projected(W, eta=eta, threshold=r)):
            d = (c - u)[i] * min(1, r / np.linalg.norm((c - u)[i]))
            unit = c[i] / np.linalg.norm(c[i])
            parallel = (d * unit).sum() * unit
            np.testing.assert_allclose(x0, c[i] + (W - 1) * (d - parallel + eta * parallel), rtol=1e-10)
            if eta == 0:
                push = np.asarray(x0) - c[i]
                assert abs((push * c[i]).sum()) < 1e-10
                assert np.linalg.norm(push) <= (W - 1) * r * (1 + 1e-12)


def test_the_exam_fails_a_projection_on_the_other_branch(monkeypatch):
    """Negative control: the parallel part taken along u."""
    right = diffax.apg
    monkeypatch.setattr(diffax, "apg", lambda c, u, w, **kwargs: right(u, c, 1 - w, **kwargs))
    with pytest.raises(AssertionError):
        test_projected_guidance_of_sadat_et_al()


# Another model, a classifier


def test_autoguidance_of_gaussians():
    """A model guided by one that is too wide: the score is that of the precision w / c_good + (1 - w) / c_bad."""
    alpha, sigma, _ = SCHEDULE(0.5)
    good, bad = (diffax.analytic.Gaussian.from_covariance([0.7, -0.4], v) for v in (0.2, 0.9))
    guided = diffax.autoguidance(good.denoiser(SCHEDULE), bad.denoiser(SCHEDULE), 2.0)(START, 0.5)
    precision = 2 / (alpha**2 * 0.2 + sigma**2) - 1 / (alpha**2 * 0.9 + sigma**2)
    score = -precision * (START - alpha * np.array([0.7, -0.4]))
    np.testing.assert_allclose(guided, (START + sigma**2 * score) / alpha, rtol=1e-10)
    same = diffax.autoguidance(good.denoiser(SCHEDULE), good.denoiser(SCHEDULE), 7.0)
    np.testing.assert_allclose(same(START, 0.5), good.denoise(START, SCHEDULE(0.5)), rtol=1e-12)


CLASS = np.array([0, 1, 0])  # of the mixture's components


def log_prob(schedule, labels):
    """log p(y | x_t) by Bayes: the responsibilities of the components of class y."""
    law = mixture()

    def of(x, t):
        alpha, sigma, _ = (jnp.broadcast_to(v, x.shape[:1])[:, None] for v in schedule(t))
        square = ((x[:, None] - alpha[..., None] * law.means) ** 2).sum(-1)
        log_joint = jnp.log(law.weights) - square / (2 * (alpha**2 * law.std**2 + sigma**2))
        own = jnp.where(labels[:, None] == CLASS, log_joint, -jnp.inf)
        return jax.nn.logsumexp(own, 1) - jax.nn.logsumexp(log_joint, 1)

    return of


@pytest.mark.parametrize(
    "schedule", [diffax.Linear(), diffax.LogLinear(0.01, 20.0), diffax.Flow()], ids=["vp", "ve", "flow"]
)
def test_a_true_classifier_gives_the_conditional_law(schedule):
    """Scale 1 and the exact p(y | x_t): the denoiser of the components of class y alone."""
    law, labels, t = mixture(), np.array([0, 1, 0, 1, 1]), np.linspace(0.1, 0.95, 5)
    guided = diffax.classifier(law.denoiser(schedule), log_prob(schedule, labels), schedule, 1.0)
    ours = jax.jit(guided)(jnp.asarray(START), t)
    weights = np.where(np.arange(2)[:, None] == CLASS, law.weights, 0)
    weights = weights / weights.sum(1, keepdims=True)
    for i, y in enumerate(labels):
        alone = analytic.Mixture(weights[y], law.means, law.std)
        np.testing.assert_allclose(ours[i], alone.denoise(START[i], schedule(t[i])), rtol=1e-8)
    assert diffax.classifier(law.denoiser(schedule), log_prob(schedule, labels), schedule, 0)(START, 0.5) is not None


def test_the_exam_fails_a_classifier_with_the_wrong_factor(monkeypatch):
    """Negative control: sigma / alpha in place of sigma^2 / alpha."""
    right = diffax.classifier
    wrong = lambda f, p, schedule, w: right(f, p, schedule, lambda t: w / schedule(t).sigma)
    monkeypatch.setattr(diffax, "classifier", wrong)
    with pytest.raises(AssertionError):
        test_a_true_classifier_gives_the_conditional_law(diffax.Flow())


def test_a_classifier_of_another_schedule():
    law, ve, labels = mixture(), diffax.LogLinear(0.01, 50.0), np.array([0, 1, 0, 1, 1])
    moved = diffax.reschedule(log_prob(ve, labels), ve, SCHEDULE)
    guided = [diffax.classifier(law.denoiser(SCHEDULE), p, SCHEDULE, 2.0) for p in (moved, log_prob(SCHEDULE, labels))]
    np.testing.assert_allclose(*(f(jnp.asarray(START), 0.4) for f in guided), rtol=1e-9)
