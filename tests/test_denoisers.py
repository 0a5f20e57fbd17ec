"""Functions denoiser -> denoiser: dynamic clipping and the change of schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exam import START, gaussian, mixture, spread

import diffax

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.newest]
identity = lambda x, t: x
SCHEDULES = {
    "linear": diffax.Linear(),
    "cosine-ve": diffax.Cosine(scaling="ve"),
    "flow": diffax.Flow(),
    "log_linear": diffax.LogLinear(0.002, 80.0),
    "linear-sub_vp": diffax.Linear(scaling="sub_vp"),
    "cosine_betas": diffax.from_betas(diffax.schedules.cosine_betas(1000)),
}
WIDE = np.random.default_rng(0).normal(size=(4, 3, 5)) * np.array([0.2, 1.0, 3.0, 30.0])[:, None, None]


def test_dynamic_clipping_is_that_of_imagen():
    """Against the quantile of numpy, for each example (Saharia et al. 2022, section 2.3)."""
    for quantile, limit in ((0.9, 1.0), (0.5, 0.7), (1.0, 1.0), (0.0, 1.0)):
        clipped = diffax.denoisers.clip_dynamic(identity, quantile=quantile, limit=limit)(jnp.asarray(WIDE), 0.5)
        for x, y in zip(WIDE, clipped, strict=True):
            s = max(limit, np.quantile(np.abs(x), quantile))
            np.testing.assert_allclose(y, np.clip(x, -s, s) / s * limit, rtol=1e-12)


def test_the_check_rejects_clipping_by_the_batch(monkeypatch):
    """Negative control: one quantile for the whole batch."""

    def clip(denoise, *, quantile, limit):
        s = jnp.maximum(limit, jnp.quantile(jnp.abs(WIDE), quantile))
        return lambda x, t: jnp.clip(x, -s, s) / s * limit

    monkeypatch.setattr(diffax.denoisers, "clip_dynamic", clip)
    with pytest.raises(AssertionError):
        test_dynamic_clipping_is_that_of_imagen()


def test_dynamic_clipping_is_traced_by_example_on_trees_and_in_half_precision():
    f = lambda quantile, limit: diffax.denoisers.clip_dynamic(identity, quantile=quantile, limit=limit)(
        jnp.asarray(WIDE), 0.5
    )
    quantiles = jnp.array([0.1, 0.5, 0.9, 0.99])
    swept = jax.jit(jax.vmap(f, (0, None)))(quantiles, 1.0)
    by_example = f(quantiles, jnp.ones(4))
    np.testing.assert_allclose(by_example, swept[np.arange(4), np.arange(4)], rtol=1e-12)
    slopes = jax.grad(lambda *a: f(*a).sum(), (0, 1))(0.9, 1.0)
    assert all(np.isfinite(v) for v in slopes)
    tree = {"a": jnp.asarray(WIDE, jnp.bfloat16), "b": jnp.full((4,), 3.0)}
    clipped = diffax.denoisers.clip_dynamic(identity)(tree, 0.5)
    assert clipped["a"].dtype == jnp.bfloat16
    assert clipped["b"].tolist() == [1.0] * 4
    for name, value in (("quantile", 1.5), ("limit", 0.0)):
        with pytest.raises(ValueError, match=f"{name} must be .* got {value}"):
            diffax.denoisers.clip_dynamic(identity, **{name: value})


@jax.jit
def rescheduled_and_exact(trained, target):
    """The mixture's denoiser, rescheduled from `trained` to `target`, and the exact one of `target`, at nine times."""
    oracle, t = mixture(), jnp.linspace(0.1, 0.9, 9)
    x = target(t).alpha[:, None, None] * 0.5 + target(t).sigma[:, None, None] * START
    rescheduled = jax.vmap(diffax.denoisers.reschedule(oracle.denoiser(trained), trained, target))(x, t)
    return rescheduled, jax.vmap(oracle.denoiser(target))(x, t)


@pytest.mark.slow_cases("linear-linear")
@spread(SCHEDULES, ("linear", "edm"), "trained")
@pytest.mark.parametrize("target", ["linear", "cosine-ve", "flow", "linear-sub_vp"])
def test_a_denoiser_trained_on_any_schedule_works_on_any_other(trained, target):
    """E[x0 | x] is a function of x / alpha and log-SNR."""
    np.testing.assert_allclose(*rescheduled_and_exact(SCHEDULES[trained], SCHEDULES[target]), atol=1e-10)


def test_the_check_rejects_a_denoiser_whose_input_is_not_rescaled(monkeypatch):
    """Negative control: the wrapper changes the time but not x."""

    def wrong(denoise, schedule, target):
        return lambda x, t: denoise(x, schedule.inverse(target(t).log_snr))

    monkeypatch.setattr(diffax.denoisers, "reschedule", wrong)
    rescheduled_and_exact.clear_cache()
    with pytest.raises(AssertionError):
        test_a_denoiser_trained_on_any_schedule_works_on_any_other("log_linear", "flow")
    rescheduled_and_exact.clear_cache()


def test_sampling_with_a_rescheduled_denoiser_ends_at_the_same_data():
    """The flow map of x / alpha is the same for both schedules."""
    vp, flow, oracle = diffax.Cosine(), diffax.Flow(), gaussian()
    denoise = diffax.denoisers.reschedule(oracle.denoiser(vp), vp, flow)
    times = diffax.times.uniform_log_snr(flow, 300, t_max=0.9, t_min=0.02)
    end = jax.jit(lambda x: diffax.integrate(jax.random.key(0), diffax.ddim(flow), denoise, x, times).x)(START)
    np.testing.assert_allclose(end, oracle.flow(START, flow(0.9), flow(0.02)), atol=0.02)


def test_levels_outside_the_trained_schedule_use_its_nearest_level():
    narrow, oracle = diffax.LogLinear(0.1, 10.0), mixture()
    rescheduled = diffax.denoisers.reschedule(oracle.denoiser(narrow), narrow, diffax.LogLinear(0.01, 100.0))
    np.testing.assert_allclose(rescheduled(START, 0.0), oracle.denoise(START, narrow(0.0)), rtol=1e-12)
    x = jnp.asarray(START, jnp.float32)
    for t in (0.0, 1.0):
        flow = diffax.denoisers.reschedule(oracle.denoiser(narrow), narrow, diffax.Flow())(x, t)
        assert np.isfinite(flow).all()
