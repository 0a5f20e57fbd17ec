"""VDM's learned schedule: a schedule like any other, and the gradient that trains it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffax
from diffax import analytic

pytestmark = pytest.mark.usefixtures("x64")
KEY = jax.random.key(0)
MIXTURE = analytic.Mixture(np.array([0.3, 0.7]), np.array([[-0.6, 0.1], [0.5, -0.2]]), 0.2)


def schedule(scaling="vp"):
    made = diffax.Learned.init(jax.random.key(1), log_snr_max=8.0, log_snr_min=-6.0, units=16, scaling=scaling)
    return jax.tree.map(lambda v: v.astype(jnp.float64), dataclasses.replace(made, heights=made.heights + 4))


@pytest.mark.slow_cases("vp", "ve")
@pytest.mark.parametrize("scaling", ["vp", "ve", "sub_vp", "flow"])
def test_it_falls_from_end_to_end_and_its_inverse_is_one(scaling):
    made, t = schedule(scaling), np.linspace(0, 1, 101)
    log_snr = made.log_snr(t)
    np.testing.assert_allclose(log_snr[np.array([0, -1])], [8, -6], rtol=1e-12)
    assert (np.diff(log_snr) < 0).all()
    np.testing.assert_allclose(made.inverse(log_snr), t, atol=1e-9)
    np.testing.assert_array_equal(made.inverse(jnp.array([9.0, -7.0])), [0, 1])
    assert np.abs(np.diff(log_snr, 2)).max() > 1e-3  # no straight line


def test_the_inverse_has_its_derivatives():
    made, h = schedule(), 1e-5
    of_log_snr = jax.grad(made.inverse)(jnp.asarray(1.0))
    np.testing.assert_allclose(of_log_snr, (made.inverse(1.0 + h) - made.inverse(1.0 - h)) / (2 * h), rtol=1e-5)
    of_slope = jax.grad(lambda v: dataclasses.replace(made, slope=v).inverse(1.0))(made.slope)
    up, down = (dataclasses.replace(made, slope=made.slope + d).inverse(1.0) for d in (h, -h))
    np.testing.assert_allclose(of_slope, (up - down) / (2 * h), rtol=1e-4)


@pytest.mark.slow
def test_it_works_where_a_schedule_works():
    """Samplers, grids, likelihood, all its leaves traced."""
    made = schedule()

    @jax.jit
    def run(made, x):
        times = diffax.times.uniform_log_snr(made, 60, t_max=1.0, t_min=0.0)
        state = diffax.integrate(KEY, diffax.dpmpp_2m(made), MIXTURE.denoiser(made), x, times)
        return state.x, diffax.log_likelihood(
            KEY, made, MIXTURE.denoiser(made), state.x, times[::-1], divergence="exact",
            prior_log_prob=lambda x: MIXTURE.log_prob(x, made(1.0)),
        ).log_prob  # fmt: skip

    x, log_prob = run(made, jnp.asarray(np.random.default_rng(0).normal(size=(5, 2))))
    np.testing.assert_allclose(log_prob, MIXTURE.log_prob(x, made(0.0)), atol=2e-2)
    slopes = jax.grad(lambda made: jnp.sum(run(made, jnp.ones((2, 2)))[0]))(made)
    assert all(np.isfinite(v).all() for v in jax.tree.leaves(slopes))


def eps_of(theta=1.0):
    """An eps-network of the level: the exact one times theta. log_snr: () or (B,)."""

    def predict(x, log_snr):
        level = diffax.typing.Level(*diffax.schedules._scalings.SCALINGS["vp"](jnp.exp(-log_snr / 2)), log_snr)
        alpha, sigma = (diffax._pytrees.expand(v, x) for v in level[:2])
        return theta * (x - alpha * MIXTURE.denoise(x, level)) / sigma

    return predict


def parts(theta, n=64):
    """A network that is a little wrong, data, stratified times."""
    return eps_of(theta), MIXTURE.sample(jax.random.key(3), n), (np.arange(n) + 0.5) / n


def plain(made, theta):
    """The estimate of the integral, in bits per dimension, differentiable in all of the schedule."""
    predict, x0, t = parts(theta)
    eps = diffax.random.noise(diffax.random.fold_in(KEY, 0), x0)
    x = diffax.diffuse(made, x0, eps, t)
    log_snr, slope = jax.jvp(made.log_snr, (jnp.asarray(t),), (jnp.ones(len(t)),))
    return jnp.sum(-slope[:, None] * (predict(x, log_snr) - eps) ** 2, 1) / 2 / (2 * np.log(2))


def loss(made, theta, **options):
    predict, x0, t = parts(theta)
    return diffax.losses.vdm_loss(KEY, predict, made, "eps", x0, t, **options)


def bound_of(made, theta):
    """(B,) The bound in nats."""
    predict, x0, t = parts(theta)
    denoise = diffax.denoiser(lambda x, t: predict(x, made.log_snr(t)), made, "eps")
    return diffax.likelihood.continuous_bound(KEY, made, denoise, x0, jnp.asarray(t), t_max=1.0, t_min=0.0).total


@pytest.mark.usefixtures("one_stream")
def test_its_value_is_the_bound():
    made, theta = schedule(), 0.9
    np.testing.assert_allclose(loss(made, theta) * 2 * np.log(2), bound_of(made, theta), rtol=1e-9)


@pytest.mark.slow
@pytest.mark.usefixtures("one_stream")
def test_the_curve_gets_the_gradient_of_the_estimate_s_square_and_the_network_that_of_the_bound():
    made, theta = schedule(), 0.9
    of_made, of_theta = jax.grad(lambda *a: jnp.mean(loss(*a)), (0, 1))(made, theta)
    square = jax.grad(lambda made: jnp.mean(plain(made, theta) ** 2))(made)
    for name in ("slope", "weights", "biases", "heights"):
        np.testing.assert_allclose(getattr(of_made, name), getattr(square, name), rtol=1e-8, atol=1e-12)
        assert np.abs(getattr(of_made, name)).max() > 1e-4
    np.testing.assert_array_equal(of_made.ends, 0)
    slope = jax.grad(lambda theta: bound_of(made, theta).mean())(theta)
    np.testing.assert_allclose(of_theta, slope / (2 * np.log(2)), rtol=1e-8)


@pytest.mark.slow
@pytest.mark.usefixtures("one_stream")
def test_the_ends_get_the_gradient_of_the_bound_where_they_are_learned():
    made, theta = schedule(), 0.9
    of_ends = jax.grad(lambda made: jnp.mean(loss(made, theta, learn_ends=True)))(made).ends
    slope = jax.grad(lambda ends: bound_of(dataclasses.replace(made, ends=ends), theta).mean())(made.ends)
    np.testing.assert_allclose(of_ends, slope / (2 * np.log(2)), rtol=1e-8)


@pytest.mark.slow
def test_training_the_curve_lowers_the_variance_and_leaves_the_mean():
    """By gradient descent on the loss, fresh times and noise in each step, for a network that is wrong."""
    made = schedule()
    x0 = MIXTURE.sample(jax.random.key(3), 256)

    def values(made, key):
        u = diffax.losses.training_times.stratified(jax.random.fold_in(key, 7), 256)
        return diffax.losses.vdm_loss(key, eps_of(0.8), made, "eps", x0, u)

    @jax.jit
    def step(made, key):
        slopes = jax.grad(lambda made: jnp.mean(values(made, key)))(made)
        return jax.tree.map(lambda p, g: p - 0.02 * g, made, slopes)

    spread = jax.jit(lambda made: jnp.stack([values(made, k) for k in jax.random.split(jax.random.key(9), 8)]))
    before = spread(made)
    for i in range(150):
        made = step(made, jax.random.fold_in(KEY, i))
    after = spread(made)
    assert after.var() < 0.9 * before.var()
    assert abs(float(after.mean() - before.mean())) < 4 * float(before.std()) / np.sqrt(before.size)


def test_ends_that_training_moved_too_far_are_clipped():
    for ends, clipped in (([25.0, -30.0], [20.0, -20.0]), ([1.0, 1.5], [1.0, 0.9])):
        moved = dataclasses.replace(schedule(), ends=jnp.asarray(ends))
        np.testing.assert_allclose([moved.log_snr(0.0), moved.log_snr(1.0)], clipped, atol=1e-6)
        np.testing.assert_allclose(moved.inverse(moved.log_snr(0.3)), 0.3, atol=1e-6)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: diffax.Learned.init(KEY, log_snr_max=30.0), r"log_snr_max must be in \[-20, 20\], got 30.0"),
        (lambda: diffax.Learned.init(KEY, log_snr_max=-6.0), "log_snr_min must be <= log_snr_max - 0.1 = -6"),
        (lambda: diffax.Learned.init(KEY, units=0), "units must be an int >= 1, got 0"),
        (lambda: diffax.losses.vdm_loss(KEY, None, diffax.Cosine(), "eps", None, None),
         "schedule must be Learned, got Cosine"),
        (lambda: diffax.losses.vdm_loss(KEY, None, schedule(), "velocity", None, None),
         "kind must be one of x0, eps, score, v, edm, got 'velocity'"),
    ],
)  # fmt: skip
def test_bad_input(run, message):
    with pytest.raises(ValueError, match=message):
        run()
