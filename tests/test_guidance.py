"""Classifier-free guidance, one call for both branches, guidance intervals, and properties of every guidance rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exam import START, gaussian

import diffax
from diffax import analytic

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.newest]
SCHEDULE = diffax.Cosine()
W = 3.5


def test_weights_1_and_0_give_the_two_denoisers():
    conditional, unconditional = (lambda x, t: 2 * x), (lambda x, t: -x)
    x = jnp.asarray(START)
    for weight, expected in ((1.0, conditional), (0.0, unconditional)):
        for value in (weight, jnp.asarray(weight)):
            guided = diffax.classifier_free_guidance(conditional, unconditional, value)
            np.testing.assert_allclose(guided(x, 0.5), expected(x, 0.5), atol=1e-15)
    assert diffax.classifier_free_guidance(conditional, unconditional, 1) is conditional
    assert diffax.classifier_free_guidance(conditional, unconditional, 0.0) is unconditional


@pytest.mark.slow_cases("velocity")
@pytest.mark.parametrize("kind", ["eps", "v", "velocity", "score"])
def test_guiding_denoisers_equals_guiding_any_prediction(kind):
    """Ho & Salimans 2021 guide eps. x0 is affine in a prediction of any kind, so guiding x0 gives the same."""
    networks = [lambda x, t: jnp.sin(x), lambda x, t: 0.3 * x]
    denoisers = [diffax.denoiser(net, SCHEDULE, kind) for net in networks]
    mixed = diffax.denoiser(lambda x, t: 3.5 * networks[0](x, t) - 2.5 * networks[1](x, t), SCHEDULE, kind)
    np.testing.assert_allclose(
        diffax.classifier_free_guidance(*denoisers, 3.5)(START, 0.4), mixed(START, 0.4), rtol=1e-10
    )


def test_the_guided_score_of_gaussians_is_that_of_a_moved_gaussian():
    """For two Gaussians of one covariance, the guided mean is mean_u + w (mean_c - mean_u)."""
    covariance, w = np.array([[0.4, 0.1], [0.1, 0.3]]), 2.5
    gaussians = [analytic.Gaussian.from_covariance(np.array(m), covariance) for m in ([1.0, 0.2], [-0.3, 0.5])]
    moved = analytic.Gaussian.from_covariance(
        gaussians[1].mean + w * (gaussians[0].mean - gaussians[1].mean), covariance
    )
    guided = diffax.classifier_free_guidance(*(oracle.denoiser(SCHEDULE) for oracle in gaussians), w)
    np.testing.assert_allclose(guided(START, 0.6), moved.denoise(START, SCHEDULE(0.6)), rtol=1e-10)
    times = diffax.times.uniform_log_snr(SCHEDULE, 200, t_max=0.9, t_min=0.05)
    end = diffax.integrate(jax.random.key(0), diffax.ddim(SCHEDULE), guided, START, times).x
    np.testing.assert_allclose(end, moved.flow(START, SCHEDULE(0.9), SCHEDULE(0.05)), atol=0.02)


def test_the_checks_reject_swapped_denoisers(monkeypatch):
    """Negative control: conditional and unconditional denoiser swapped."""
    original = diffax.classifier_free_guidance
    monkeypatch.setattr(diffax, "classifier_free_guidance", lambda c, u, w: original(u, c, w))
    for check in (
        test_weights_1_and_0_give_the_two_denoisers,
        test_the_guided_score_of_gaussians_is_that_of_a_moved_gaussian,
    ):
        with pytest.raises(AssertionError):
            check()


def test_the_weight_may_be_a_function_of_time():
    times = jnp.linspace(0.1, 0.9, len(START))
    guided = diffax.classifier_free_guidance(lambda x, t: 2 * x, lambda x, t: -x, lambda t: 5 * t)
    expected = START * (-1 + 15 * np.asarray(times))[:, None]
    np.testing.assert_allclose(guided(jnp.asarray(START), times), expected, rtol=1e-12)
    np.testing.assert_allclose(guided(jnp.asarray(START), 0.3), START * 3.5, rtol=1e-12)


def test_missing_branches_and_bad_arguments_raise():
    denoise = lambda x, t: x
    for make in (
        lambda: diffax.classifier_free_guidance(denoise, None, 2.0),
        lambda: diffax.classifier_free_guidance(denoise, None, 0),
        lambda: diffax.adaptive_projected_guidance(denoise, None, 2.0),
    ):
        with pytest.raises(ValueError, match=r"unconditional must be a denoiser \(x, t\) -> x0, got None"):
            make()
    assert diffax.classifier_free_guidance(denoise, None, 1.0) is denoise
    labels = jnp.arange(3)
    for null, message in ((None, "null must be the condition"), ({"a": 1}, "a tree like"), (jnp.ones(2), "broadcast")):
        with pytest.raises(ValueError, match=message):
            diffax.batched_classifier_free_guidance(lambda x, t, label: x, labels, null, 2.0)
    for make_wrong, message in (
        (lambda: diffax.guidance_interval(None, denoise), "guided must be a denoiser"),
        (lambda: diffax.guidance_rescale(denoise, denoise, 1.5), r"strength must be in \[0, 1\], got 1.5"),
        (lambda: diffax.guidance_rescale(denoise, denoise, 0.5, kind="w"), "kind must be one of"),
        (
            lambda: diffax.guidance_rescale(denoise, denoise, 0.5, kind="v"),
            "schedule must be a noise schedule to rescale kind 'v'",
        ),
        (
            lambda: diffax.adaptive_projected_guidance(denoise, denoise, 2.0, threshold=0.0),
            "threshold must be > 0, got 0",
        ),
        (lambda: diffax.classifier_guidance(denoise, None, SCHEDULE, 1.0), "log_prob must be a function"),
        (lambda: diffax.classifier_free_guidance(denoise, denoise, None), "weight must be a number, .* got None"),
        (lambda: diffax.classifier_free_guidance(denoise, denoise, float("nan")), "weight must be a number, got nan"),
        (lambda: diffax.adaptive_projected_guidance(denoise, denoise, "big"), "weight must be a number, .* got 'big'"),
        (lambda: diffax.adaptive_projected_guidance(denoise, denoise, 2.0, eta="x"), "eta must be a number, got 'x'"),
        (lambda: diffax.classifier_guidance(denoise, denoise, SCHEDULE, None), "scale must be a number, .* got None"),
    ):
        with pytest.raises(ValueError, match=message):
            make_wrong()


# One call for both branches


def network(calls, mix):
    """A denoiser of x, t and a condition {label, text} that records the shape of x in each call."""

    def denoise(x, t, condition):
        calls.append(x.shape)
        time = jnp.broadcast_to(t, x.shape[:1])[:, None]
        shift = condition["label"][:, None] + condition["text"].sum(1, keepdims=True)
        shift = shift.mean() * jnp.ones_like(shift) if mix else shift
        return jnp.sin(x + time) * shift

    return denoise


def check_one_call(time, *, mix):
    calls, text = [], np.arange(15.0).reshape(5, 3)
    condition = {"label": jnp.arange(5), "text": jnp.asarray(text)}
    denoise, null = network(calls, mix), {"label": 10, "text": jnp.zeros(3)}
    guided = diffax.batched_classifier_free_guidance(denoise, condition, null, W)(jnp.asarray(START), time)
    assert calls == [(10, 2)]
    sine = np.sin(START + np.broadcast_to(time, 5)[:, None])
    conditional, unconditional = sine * (np.arange(5) + text.sum(1))[:, None], sine * 10
    np.testing.assert_allclose(guided, unconditional + W * (conditional - unconditional), rtol=1e-12)
    for weight, expected in ((1, conditional), (0.0, unconditional)):
        calls.clear()
        result = diffax.batched_classifier_free_guidance(denoise, condition, null, weight)(jnp.asarray(START), time)
        np.testing.assert_allclose(result, expected, rtol=1e-12)
        assert calls == [(5, 2)]
    calls.clear()
    guide = lambda conditional, unconditional: diffax.guidance_rescale(
        diffax.classifier_free_guidance(conditional, unconditional, W), conditional, 1.0
    )
    rescaled = diffax.batched_guidance(guide, denoise, condition, null)(jnp.asarray(START), time)
    np.testing.assert_allclose(np.std(rescaled, 1), np.std(conditional, 1), rtol=1e-12)
    assert len(calls) == 1


@pytest.mark.parametrize("time", [0.4, np.linspace(0.1, 0.9, 5)], ids=["t", "t_by_example"])
def test_one_call_serves_both_branches(time):
    check_one_call(time, mix=False)


def test_the_check_rejects_a_network_that_mixes_examples():
    """Negative control: the network averages the condition over the batch."""
    with pytest.raises(AssertionError):
        check_one_call(0.4, mix=True)


def test_one_call_accepts_a_tree_for_x_and_one_label_for_all():
    x = {"a": jnp.ones((3, 2)), "b": jnp.ones((3, 1, 4))}
    denoise = lambda x, t, label: jax.tree.map(lambda v: v * label.reshape(-1, *[1] * (v.ndim - 1)), x)
    x0 = diffax.batched_classifier_free_guidance(denoise, jnp.asarray(3), 7, 0.5)(x, 0.5)
    assert jax.tree.map(lambda v: (v.shape, float(v.min()), float(v.max())), x0) == {
        "a": ((3, 2), 5.0, 5.0),
        "b": ((3, 1, 4), 5.0, 5.0),
    }


# Intervals


def test_guidance_applies_inside_the_interval_only():
    """The result equals the guided x0 inside and the plain one outside, to the bit.

    The bounds are in t, log-SNR or sigma, and traced.
    """
    guided, plain, x = (lambda x, t: jnp.sin(3 * x)), (lambda x, t: jnp.cos(x)), jnp.asarray(START)
    times, bounds = np.array([0.05, 0.3, 0.5, 0.7, 0.95]), np.array([0.25, 0.75])
    levels = {"t": None, "log_snr": SCHEDULE.log_snr, "sigma": lambda t: SCHEDULE(t).sigma}
    branch = np.where((times >= 0.3) & (times <= 0.7), 0, 1)
    answers = [np.asarray(f(x, 0.5)) for f in (guided, plain)]
    for name in levels:
        low, high = sorted(float(v) for v in (bounds if levels[name] is None else levels[name](bounds)))

        @jax.jit
        def run(t, low, high, level_of=levels[name]):
            return diffax.guidance_interval(guided, plain, low, high, of=level_of)(x, t)

        for t, index in zip(times, branch, strict=True):
            np.testing.assert_array_equal(run(t, low, high), answers[index])
        by_example = run(jnp.asarray(times), low, high)
        np.testing.assert_array_equal(by_example, np.where(branch[:, None], answers[1], answers[0]))
    swept = jax.vmap(lambda low, high: diffax.guidance_interval(guided, plain, low, high)(x, 0.5))
    ends = jnp.array([0.4, 0.5, 0.6])  # the interval includes its bounds
    np.testing.assert_array_equal(swept(0 * ends, ends), [answers[1], answers[0], answers[0]])
    np.testing.assert_array_equal(swept(ends, 0 * ends + 1), [answers[0], answers[0], answers[1]])


def test_outside_the_interval_guidance_is_not_computed():
    runs = []

    def guided(x, t):
        jax.debug.callback(lambda: runs.append(1))
        return x

    run = jax.jit(
        lambda t: diffax.guidance_interval(guided, lambda x, t: x.astype(jnp.float32), 0.4, 0.6)(jnp.asarray(START), t)
    )
    for t in (0.2, 0.5, 0.8):
        assert run(t).dtype == jnp.float64
    jax.effects_barrier()
    assert len(runs) == 1


# Properties of every rule


RULES = {
    "classifier_free": lambda c, u, w, k: diffax.classifier_free_guidance(c, u, w),
    "autoguidance": lambda c, u, w, k: diffax.classifier_free_guidance(c, u, w),
    "interval": lambda c, u, w, k: diffax.guidance_interval(diffax.classifier_free_guidance(c, u, w), c, 0.1, 0.5 + k),
    "rescale": lambda c, u, w, k: diffax.guidance_rescale(diffax.classifier_free_guidance(c, u, w), c, k),
    "rescale-v": lambda c, u, w, k: diffax.guidance_rescale(
        diffax.classifier_free_guidance(c, u, w), c, k, kind="v", schedule=SCHEDULE
    ),
    "apg": lambda c, u, w, k: diffax.adaptive_projected_guidance(c, u, w, eta=k, threshold=1.0 + k),
    "apg-inf": lambda c, u, w, k: diffax.adaptive_projected_guidance(c, u, w, eta=k, threshold=jnp.inf),
    "classifier": lambda c, u, w, k: diffax.classifier_guidance(u, lambda x, t: -((x - k) ** 2).sum(-1), SCHEDULE, w),
}


@pytest.mark.slow_cases(but=["autoguidance", "interval", "apg-inf"])
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_is_traced_by_example_and_differentiable(rule):
    """Each example gets its own weight; gradients are finite, also where c = u and x = 0."""
    x = jnp.asarray(START).at[0].set(0.0)
    branches = lambda x, t: jnp.sin(x) + x * t, lambda x, t: jnp.sin(x)
    f = lambda w, k, t: RULES[rule](*branches, w, k)(x, t)
    weights, levels = jnp.array([0.0, 0.5, 1.0, 2.0, 7.0]), jnp.array([0.0, 0.2, 0.5, 0.9, 1.0])
    each = jax.jit(jax.vmap(f, (0, None, None)))(weights, 0.5, 0.3)
    np.testing.assert_allclose(f(weights, 0.5, 0.3), each[np.arange(5), np.arange(5)], rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(f(lambda t: 20 * t / 3, 0.5, 0.3), each[3], rtol=1e-10, atol=1e-14)
    slopes = jax.jit(jax.vmap(jax.grad(lambda *a: (f(*a) ** 2).sum(), (0, 1, 2))))(weights, levels, 0.2 * levels)
    assert all(np.isfinite(v).all() for v in slopes)
    slope_at_equal_branches = jax.grad(lambda x: RULES[rule](*(lambda x, t: 0 * x,) * 2, 2.0, 1.0)(x, 0.3).sum())(x)
    assert np.isfinite(slope_at_equal_branches).all()


@pytest.mark.parametrize("t", [0.3, [0.3, 0.9]])
def test_an_interval_needs_a_variance_from_both_denoisers_or_from_none(t):
    x, plain = jnp.ones((2, 1), jnp.float32), lambda x, t: x
    with_v = lambda x, t: diffax.Moments(2 * x, x.astype(jnp.bfloat16))
    result = diffax.guidance_interval(with_v, lambda x, t: diffax.Moments(x, 0.5 * x), 0.2, 0.5)(x, jnp.asarray(t))
    inside = jnp.asarray(t).ravel() < 0.5
    for leaf, values in ((result.x0, (2.0, 1.0)), (result.v, (1.0, 0.5))):
        assert leaf.dtype == jnp.float32
        assert leaf.ravel().tolist() == [values[0 if i else 1] for i in np.broadcast_to(inside, 2)]
    for guided, other, message in ((with_v, plain, "Moments .*, got x0"), (plain, with_v, "x0 .*, got Moments")):
        with pytest.raises(ValueError, match=f"plain must return {message}"):
            diffax.guidance_interval(guided, other, 0.2, 0.5)(x, jnp.asarray(t))


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_changes_x0_but_not_a_learned_variance(rule):
    """A learned variance is not extrapolated: it is that of c, or of u in classifier guidance."""
    branches = lambda x, t: jnp.sin(x) + x * t, lambda x, t: jnp.sin(x)
    with_v = [
        lambda x, t, f=f, v=v: diffax.Moments(f(x, t), v + 0 * x) for f, v in zip(branches, (0.9, 0.1), strict=True)
    ]
    result = RULES[rule](*with_v, 7.5, 0.5)(jnp.asarray(START), 0.3)
    np.testing.assert_allclose(result.x0, RULES[rule](*branches, 7.5, 0.5)(jnp.asarray(START), 0.3), rtol=1e-12)
    np.testing.assert_array_equal(result.v, np.full_like(START, 0.1 if rule == "classifier" else 0.9))


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_is_finite_in_single_precision_and_keeps_dtypes(rule):
    oracle = gaussian()
    x = jnp.asarray(START, jnp.float32)
    guided = RULES[rule](lambda x, t: oracle.denoise(x, SCHEDULE(t)).astype(x.dtype), lambda x, t: 0 * x, W, 0.5)
    for t in (0.0, 1.0):
        x0 = jax.jit(guided)(x, jnp.float32(t))
        assert x0.dtype == jnp.float32
        assert np.isfinite(x0).all()


def test_the_weight_may_be_traced_batched_and_differentiated():
    denoise = gaussian().denoiser(SCHEDULE)
    f = lambda w: diffax.classifier_free_guidance(denoise, lambda x, t: 0 * x, w)(jnp.asarray(START), 0.5)
    swept = jax.vmap(f)(jnp.array([0.0, 1.0, 4.0]))
    np.testing.assert_allclose(swept[2], 4 * swept[1], rtol=1e-12)
    by_example = f(jnp.array([0.0, 1.0, 2.0, 3.0, 4.0]))
    np.testing.assert_allclose(by_example[3], 3 * swept[1][3], rtol=1e-12)
    np.testing.assert_allclose(jax.grad(lambda w: f(w).sum())(2.0), swept[1].sum(), rtol=1e-12)
