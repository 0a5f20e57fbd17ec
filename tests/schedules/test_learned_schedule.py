"""The learned schedule of VDM: the properties of a schedule, and the gradient that trains it."""

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


def make_schedule(scaling="vp"):
    schedule = diffax.Learned.init(jax.random.key(1), log_snr_max=8.0, log_snr_min=-6.0, units=16, scaling=scaling)
    return jax.tree.map(lambda v: v.astype(jnp.float64), dataclasses.replace(schedule, heights=schedule.heights + 4))


@pytest.mark.slow_cases("vp", "ve")
@pytest.mark.parametrize("scaling", ["vp", "ve", "sub_vp", "flow"])
def test_log_snr_falls_between_its_ends_and_inverse_is_its_inverse(scaling):
    schedule, t = make_schedule(scaling), np.linspace(0, 1, 101)
    log_snr = schedule.log_snr(t)
    np.testing.assert_allclose(log_snr[np.array([0, -1])], [8, -6], rtol=1e-12)
    assert (np.diff(log_snr) < 0).all()
    np.testing.assert_allclose(schedule.inverse(log_snr), t, atol=1e-9)
    np.testing.assert_array_equal(schedule.inverse(jnp.array([9.0, -7.0])), [0, 1])
    assert np.abs(np.diff(log_snr, 2)).max() > 1e-3  # the curve is not a straight line


def test_the_inverse_has_the_right_derivatives():
    schedule, h = make_schedule(), 1e-5
    slope_log_snr = jax.grad(schedule.inverse)(jnp.asarray(1.0))
    np.testing.assert_allclose(
        slope_log_snr, (schedule.inverse(1.0 + h) - schedule.inverse(1.0 - h)) / (2 * h), rtol=1e-5
    )
    slope_of_slope = jax.grad(lambda v: dataclasses.replace(schedule, slope=v).inverse(1.0))(schedule.slope)
    up, down = (dataclasses.replace(schedule, slope=schedule.slope + d).inverse(1.0) for d in (h, -h))
    np.testing.assert_allclose(slope_of_slope, (up - down) / (2 * h), rtol=1e-4)


@pytest.mark.slow
def test_samplers_grids_and_the_likelihood_accept_a_learned_schedule():
    """All leaves of the schedule are traced."""
    schedule = make_schedule()

    @jax.jit
    def run(schedule, x):
        times = diffax.times.uniform_log_snr(schedule, 60, t_max=1.0, t_min=0.0)
        state = diffax.integrate(KEY, diffax.dpmpp_2m(schedule), MIXTURE.denoiser(schedule), x, times)
        return state.x, diffax.log_likelihood(
            KEY, schedule, MIXTURE.denoiser(schedule), state.x, times[::-1], divergence="exact",
            prior_log_prob=lambda x: MIXTURE.log_prob(x, schedule(1.0)),
        ).log_prob  # fmt: skip

    x, log_prob = run(schedule, jnp.asarray(np.random.default_rng(0).normal(size=(5, 2))))
    np.testing.assert_allclose(log_prob, MIXTURE.log_prob(x, schedule(0.0)), atol=2e-2)
    slopes = jax.grad(lambda schedule: jnp.sum(run(schedule, jnp.ones((2, 2)))[0]))(schedule)
    assert all(np.isfinite(v).all() for v in jax.tree.leaves(slopes))


def scaled_eps(theta=1.0):
    """The exact eps-network times theta, as a function of x and log_snr, () or (B,)."""

    def predict(x, log_snr):
        level = diffax.typing.Level(*diffax.schedules._scalings.SCALINGS["vp"](jnp.exp(-log_snr / 2)), log_snr)
        alpha, sigma = (diffax._pytrees.expand(v, x) for v in level[:2])
        return theta * (x - alpha * MIXTURE.denoise(x, level)) / sigma

    return predict


def network_data_times(theta, n=64):
    """(eps-network scaled by theta, data, stratified times)."""
    return scaled_eps(theta), MIXTURE.sample(jax.random.key(3), n), (np.arange(n) + 0.5) / n


def bits_per_dim(schedule, theta):
    """(B,) estimates of the diffusion loss in bits per dimension, differentiable in every leaf of the schedule."""
    predict, x0, t = network_data_times(theta)
    eps = diffax.random.noise(diffax.random.fold_in(KEY, 0), x0)
    x = diffax.diffuse(schedule, x0, eps, t)
    log_snr, slope = jax.jvp(schedule.log_snr, (jnp.asarray(t),), (jnp.ones(len(t)),))
    return jnp.sum(-slope[:, None] * (predict(x, log_snr) - eps) ** 2, 1) / 2 / (2 * np.log(2))


def loss(schedule, theta, **options):
    predict, x0, t = network_data_times(theta)
    return diffax.losses.vdm_loss(KEY, predict, schedule, "eps", x0, t, **options)


def bound(schedule, theta):
    """(B,) bounds in nats."""
    predict, x0, t = network_data_times(theta)
    denoise = diffax.denoiser(lambda x, t: predict(x, schedule.log_snr(t)), schedule, "eps")
    return diffax.likelihood.continuous_bound(KEY, schedule, denoise, x0, jnp.asarray(t), t_max=1.0, t_min=0.0).total


@pytest.mark.usefixtures("one_stream")
def test_the_loss_is_the_bound():
    schedule, theta = make_schedule(), 0.9
    np.testing.assert_allclose(loss(schedule, theta) * 2 * np.log(2), bound(schedule, theta), rtol=1e-9)


@pytest.mark.slow
@pytest.mark.usefixtures("one_stream")
def test_the_curve_gets_the_gradient_of_the_squared_estimate_and_the_network_that_of_the_bound():
    schedule, theta = make_schedule(), 0.9
    grad_schedule, grad_theta = jax.grad(lambda *a: jnp.mean(loss(*a)), (0, 1))(schedule, theta)
    grad_square = jax.grad(lambda schedule: jnp.mean(bits_per_dim(schedule, theta) ** 2))(schedule)
    for name in ("slope", "weights", "biases", "heights"):
        np.testing.assert_allclose(getattr(grad_schedule, name), getattr(grad_square, name), rtol=1e-8, atol=1e-12)
        assert np.abs(getattr(grad_schedule, name)).max() > 1e-4
    np.testing.assert_array_equal(grad_schedule.ends, 0)
    grad_bound = jax.grad(lambda theta: bound(schedule, theta).mean())(theta)
    np.testing.assert_allclose(grad_theta, grad_bound / (2 * np.log(2)), rtol=1e-8)


@pytest.mark.slow
@pytest.mark.usefixtures("one_stream")
def test_learned_ends_get_the_gradient_of_the_bound():
    schedule, theta = make_schedule(), 0.9
    grad_ends = jax.grad(lambda schedule: jnp.mean(loss(schedule, theta, learn_ends=True)))(schedule).ends
    grad_bound = jax.grad(lambda ends: bound(dataclasses.replace(schedule, ends=ends), theta).mean())(schedule.ends)
    np.testing.assert_allclose(grad_ends, grad_bound / (2 * np.log(2)), rtol=1e-8)


@pytest.mark.slow
def test_training_the_curve_lowers_the_variance_but_keeps_the_mean():
    """Gradient descent on the loss of an inexact network, with new times and noise in each step."""
    schedule = make_schedule()
    x0 = MIXTURE.sample(jax.random.key(3), 256)

    def loss_values(schedule, key):
        u = diffax.losses.training_times.stratified(jax.random.fold_in(key, 7), 256)
        return diffax.losses.vdm_loss(key, scaled_eps(0.8), schedule, "eps", x0, u)

    @jax.jit
    def step(schedule, key):
        slopes = jax.grad(lambda schedule: jnp.mean(loss_values(schedule, key)))(schedule)
        return jax.tree.map(lambda p, g: p - 0.02 * g, schedule, slopes)

    losses = jax.jit(
        lambda schedule: jnp.stack([loss_values(schedule, k) for k in jax.random.split(jax.random.key(9), 8)])
    )
    before = losses(schedule)
    for i in range(150):
        schedule = step(schedule, jax.random.fold_in(KEY, i))
    after = losses(schedule)
    assert after.var() < 0.9 * before.var()
    assert abs(float(after.mean() - before.mean())) < 4 * float(before.std()) / np.sqrt(before.size)


def test_ends_outside_their_range_are_clipped():
    for ends, clipped in (([25.0, -30.0], [20.0, -20.0]), ([1.0, 1.5], [1.0, 0.9])):
        clipped_schedule = dataclasses.replace(make_schedule(), ends=jnp.asarray(ends))
        np.testing.assert_allclose([clipped_schedule.log_snr(0.0), clipped_schedule.log_snr(1.0)], clipped, atol=1e-6)
        np.testing.assert_allclose(clipped_schedule.inverse(clipped_schedule.log_snr(0.3)), 0.3, atol=1e-6)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: diffax.Learned.init(KEY, log_snr_max=30.0), r"log_snr_max must be in \[-20, 20\], got 30.0"),
        (lambda: diffax.Learned.init(KEY, log_snr_max=-6.0), "log_snr_min must be <= log_snr_max - 0.1 = -6"),
        (lambda: diffax.Learned.init(KEY, units=0), "units must be an int >= 1, got 0"),
        (lambda: diffax.losses.vdm_loss(KEY, None, diffax.Cosine(), "eps", None, None),
         "schedule must be Learned, got Cosine"),
        (lambda: diffax.losses.vdm_loss(KEY, None, make_schedule(), "velocity", None, None),
         "kind must be one of x0, eps, score, v, edm, got 'velocity'"),
    ],
)  # fmt: skip
def test_bad_input(run, message):
    with pytest.raises(ValueError, match=message):
        run()
