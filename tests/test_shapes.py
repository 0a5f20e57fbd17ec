"""Arguments of wrong shape, type or order raise a one-line error that names the argument before anything runs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffax
from diffax import analytic, inverse, samplers, sde
from diffax.losses import resampling, training_times
from diffax.nn import Attention, UNet
from diffax.nn.autoencoding import autoencoder_loss
from diffax.nn.dit import DiT
from diffax.nn.edm2 import EDM2
from diffax.nn.mlp import MLP

KEY, SCHEDULE = jax.random.key(0), diffax.Cosine()
X, T, WEIGHTS = jnp.ones((4, 2)), jnp.full(4, 0.5), jnp.ones(3)
GRID = jnp.array([0.9, 0.5, 0.1])
MASK, Y = inverse.Mask(jnp.array([1, 0])), jnp.ones((1, 2))


def good(x, t):
    return 0.5 * x


def narrow(x, t):
    return x[:, :1]


def without_last_axis(x, t):
    return x[:, 0]


def with_narrow_variance(x, t):
    return diffax.Moments(x, x[:, :1])


def loss(predict=good, *, x0=X, t=T, key=KEY, **options):
    return diffax.denoising_loss(key, predict, SCHEDULE, "v", x0, t, **options)


def run(sampler=None, denoise=good, *, x=X, times=GRID):
    return diffax.sample(KEY, diffax.ddim(SCHEDULE) if sampler is None else sampler, denoise, x, times)


def guided(make, weight=2.0, first=good, second=good):
    return make(first, second, weight)(X, T)


LIKE_X = r"must have the shape of x, \(4, 2\), got"
PER_EXAMPLE = r"must have shape \(\) or \(4,\), got"
SHAPES = {
    "loss-prediction": (
        lambda: loss(without_last_axis, x0=X[:, :1]),
        r"predict\(x, t\) must have the shape of x, \(4, 1\), got \(4,\)",
    ),
    "loss-narrow": (lambda: loss(narrow), rf"predict\(x, t\) {LIKE_X} \(4, 1\)"),
    "loss-t": (lambda: loss(t=T[:, None]), rf"t {PER_EXAMPLE} \(4, 1\)"),
    "loss-weighting": (lambda: loss(weighting=lambda log_snr: WEIGHTS), rf"weighting\(log_snr\) {PER_EXAMPLE} \(3,\)"),
    "loss-sigma_data": (lambda: loss(sigma_data=WEIGHTS), rf"sigma_data {PER_EXAMPLE} \(3,\)"),
    "drop_labels": (
        lambda: diffax.losses.drop_labels(KEY, jnp.arange(4), 9, p_uncond=WEIGHTS / 2),
        f"p_uncond {PER_EXAMPLE}",
    ),
    "hybrid": (
        lambda: diffax.losses.hybrid_loss(KEY, with_narrow_variance, SCHEDULE, "v", X, T, num_steps=9),
        rf"predict\(x, t\) {LIKE_X}",
    ),
    "vlb": (
        lambda: diffax.losses.vlb_loss(KEY, with_narrow_variance, SCHEDULE, "v", X, T, num_steps=9),
        rf"predict\(x, t\) {LIKE_X}",
    ),
    "vdm": (
        lambda: diffax.losses.vdm_loss(KEY, narrow, diffax.Learned.init(KEY), "v", X, T),
        rf"predict\(x, t\) {LIKE_X}",
    ),
    "vlb-t": (
        lambda: diffax.losses.vlb_loss(KEY, with_narrow_variance, SCHEDULE, "v", X, T[:, None], num_steps=9),
        rf"t {PER_EXAMPLE} \(4, 1\)",
    ),
    "variational": (
        lambda: diffax.likelihood.variational_bound(KEY, SCHEDULE, narrow, X, GRID),
        rf"denoise\(x, t\) {LIKE_X}",
    ),
    "continuous": (
        lambda: diffax.likelihood.continuous_bound(KEY, SCHEDULE, narrow, X, T),
        rf"denoise\(x, t\) {LIKE_X}",
    ),
    "likelihood": (
        lambda: diffax.log_likelihood(KEY, SCHEDULE, narrow, X, GRID[::-1]),
        rf"denoise\(x, t\) {LIKE_X} \(4, 1\)",
    ),
    "likelihood-prior": (
        lambda: diffax.log_likelihood(KEY, SCHEDULE, good, X, GRID[::-1], prior_log_prob=lambda x: x[:, :1]),
        r"prior_log_prob\(x\) must have shape \(4,\), got \(4, 1\)",
    ),
    "sample": (lambda: run(denoise=narrow), rf"denoise\(x, t\) {LIKE_X} \(4, 1\)"),
    "sample-last": (lambda: run(denoise=narrow, times=GRID[:1]), rf"denoise\(x, t\) {LIKE_X} \(4, 1\)"),
    "sample-eta": (lambda: run(diffax.ddim(SCHEDULE, eta=WEIGHTS)), rf"eta {PER_EXAMPLE} \(3,\)"),
    "sample-column": (lambda: run(diffax.ddim(SCHEDULE, eta=T[:, None])), rf"eta {PER_EXAMPLE} \(4, 1\)"),
    "sample-adams": (lambda: run(samplers.dpmpp_2m_sde(SCHEDULE, eta=WEIGHTS)), rf"eta {PER_EXAMPLE} \(3,\)"),
    "sample-restart": (
        lambda: run(diffax.restart(diffax.ddim(SCHEDULE), SCHEDULE, noise_scale=WEIGHTS)),
        rf"noise_scale {PER_EXAMPLE} \(3,\)",
    ),
    "sample-langevin": (
        lambda: run(diffax.annealed_langevin(SCHEDULE, step_size=lambda t: WEIGHTS)),
        rf"step_size {PER_EXAMPLE} \(3,\)",
    ),
    "sampler-step": (
        lambda: run(diffax.ddim(SCHEDULE)._replace(step=lambda *a: samplers.State(a[2].x[:, :1]))),
        rf"x of sampler.step's state {LIKE_X} \(4, 1\)",
    ),
    "denoiser": (lambda: diffax.denoiser(narrow, SCHEDULE, "v")(X, T), rf"predict\(x, t\) {LIKE_X} \(4, 1\)"),
    "denoiser-t": (lambda: diffax.denoiser(good, SCHEDULE, "v")(X, T[:, None]), rf"t {PER_EXAMPLE} \(4, 1\)"),
    "diffuse": (lambda: diffax.diffuse(SCHEDULE, X, X[:, :1], T), "arrays to combine must have one shape"),
    "score": (lambda: sde.score(narrow, SCHEDULE, X, T), "arrays to combine must have one shape"),
    "guidance": (
        lambda: guided(diffax.classifier_free_guidance, second=narrow),
        rf"unconditional\(x, t\) {LIKE_X} \(4, 1\)",
    ),
    "guidance-weight": (lambda: guided(diffax.classifier_free_guidance, WEIGHTS), rf"weight {PER_EXAMPLE} \(3,\)"),
    "guidance-function": (
        lambda: guided(diffax.classifier_free_guidance, lambda t: WEIGHTS),
        rf"weight {PER_EXAMPLE} \(3,\)",
    ),
    "guidance-batched": (
        lambda: diffax.batched_classifier_free_guidance(lambda x, t, c: x[:4], jnp.arange(4), 9, 2.0)(X, T),
        r"denoise\(x, t\) must have the shape of x, \(8, 2\), got \(4, 2\)",
    ),
    "apg": (
        lambda: guided(diffax.adaptive_projected_guidance, first=narrow),
        rf"conditional\(x, t\) {LIKE_X} \(4, 1\)",
    ),
    "apg-eta": (
        lambda: diffax.adaptive_projected_guidance(good, good, 2.0, eta=WEIGHTS)(X, T),
        rf"eta {PER_EXAMPLE} \(3,\)",
    ),
    "rescale": (lambda: guided(diffax.guidance_rescale, WEIGHTS / 2), rf"strength {PER_EXAMPLE} \(3,\)"),
    "interval": (lambda: guided(diffax.guidance_interval, WEIGHTS / 4), rf"low {PER_EXAMPLE} \(3,\)"),
    "classifier": (
        lambda: diffax.classifier_guidance(good, narrow, SCHEDULE, 1.0)(X, T),
        r"log_prob\(x, t\) must have shape \(4,\), got \(4, 1\)",
    ),
    "clip_static": (lambda: diffax.denoisers.clip_static(good, -WEIGHTS)(X, T), rf"low {PER_EXAMPLE} \(3,\)"),
    "clip_dynamic": (lambda: diffax.denoisers.clip_dynamic(good, limit=WEIGHTS)(X, T), rf"limit {PER_EXAMPLE} \(3,\)"),
    "cfg_plus_plus": (
        lambda: run(diffax.cfg_plus_plus(diffax.ddim(SCHEDULE), SCHEDULE, narrow, 0.5)),
        rf"conditional\(x, t\) {LIKE_X} \(4, 1\)",
    ),
    "consistency": (
        lambda: diffax.denoisers.consistency_function(narrow, SCHEDULE)(X, T),
        rf"predict\(x, t\) {LIKE_X} \(4, 1\)",
    ),
    "ddnm": (lambda: inverse.ddnm(narrow, MASK, Y)(X, T), rf"denoise\(x, t\) {LIKE_X} \(4, 1\)"),
    "pigdm": (lambda: inverse.pigdm(good, SCHEDULE, MASK, Y, std=WEIGHTS)(X, T), rf"std {PER_EXAMPLE} \(3,\)"),
    "dps": (
        lambda: run(inverse.dps(diffax.ddim(SCHEDULE), MASK, Y, scale=WEIGHTS)),
        rf"scale {PER_EXAMPLE} \(3,\)",
    ),
    "draw-distribution": (
        lambda: training_times.draw(KEY, 4, lambda u: u[:, None]),
        r"distribution\(u\) must have shape \(4,\), got \(4, 1\)",
    ),
    "draw-uniforms": (
        lambda: training_times.draw(KEY, 4, uniforms=lambda key, size: jnp.ones((size, 1))),
        r"uniforms\(key, size\) must have shape \(4,\), got \(4, 1\)",
    ),
    "loss_aware": (
        lambda: resampling.loss_aware(4).update(resampling.loss_aware(4).init(), T[:, None], T),
        r"t and losses must have shape \(B,\), got \(4, 1\) and \(4,\)",
    ),
    "autoencoder": (
        lambda: autoencoder_loss(KEY, lambda x: (x, x), lambda z: z[:, :1], X),
        rf"decode\(z\) {LIKE_X} \(4, 1\)",
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_results_of_user_functions_are_not_broadcast(name):
    call, message = SHAPES[name]
    with pytest.raises(ValueError, match=message) as caught:
        jax.eval_shape(call)
    assert "\n" not in str(caught.value)


def test_correct_shapes_are_accepted():
    assert jax.eval_shape(lambda: run(diffax.ddim(SCHEDULE, eta=T))).shape == (4, 2)
    assert jax.eval_shape(lambda: loss(weighting=lambda log_snr: 2.0)).shape == (4,)


# Types


@pytest.mark.parametrize(
    "call",
    [
        lambda x: run(x=x),
        lambda x: diffax.log_likelihood(KEY, SCHEDULE, good, x, GRID[::-1]),
        lambda x: loss(x0=x),
        lambda x: diffax.likelihood.variational_bound(KEY, SCHEDULE, good, x, GRID),
    ],
)
def test_integer_data_raise(call):
    with pytest.raises(ValueError, match=r"^x0? must be of a float type, got int32$"):
        call(jnp.ones((4, 2), int))


def test_dequantize_accepts_integers():
    pixels = jnp.arange(8, dtype=jnp.uint8).reshape(2, 4)
    dequantized = diffax.likelihood.dequantize(KEY, pixels, diffax.likelihood.Lattice(1, 0, 255))
    assert (abs(dequantized - pixels) <= 0.5).all()
    assert (dequantized != pixels).any()


def test_oracles_with_integer_parameters_are_float():
    from_covariance = analytic.Gaussian.from_covariance([1, 2], [[0.4, 0.15], [0.15, 0.2]])
    np.testing.assert_allclose(inverse.moments(from_covariance)[1], [[0.4, 0.15], [0.15, 0.2]], rtol=1e-12)
    mixture = analytic.Mixture(np.array([0.5, 0.5]), np.array([[-1, 0], [1, 0]]), 1)
    assert jnp.issubdtype(mixture.sample(KEY, 3).dtype, jnp.floating)
    gaussian = analytic.Gaussian(np.array([1, 2]), np.eye(2, dtype=int), np.array([1, 1]))
    assert {np.asarray(leaf).dtype.kind for leaf in jax.tree.leaves((from_covariance, mixture, gaussian))} == {"f"}


@pytest.mark.parametrize(
    "operator",
    [
        MASK,
        inverse.BoxDownsample(2, (4, 4), axes=(0, 1)),
        inverse.Blur(np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]), (4, 4)),
        inverse.linear(lambda x: 3.0 * x, jnp.ones(2)),
    ],
    ids=lambda operator: type(operator).__name__,
)
def test_integer_measurements_equal_float_measurements(operator):
    y = jnp.arange(4).reshape(1, 2, 2) if isinstance(operator, inverse.BoxDownsample) else jnp.array([[5, 2]])
    y = jnp.arange(16).reshape(1, 4, 4) if isinstance(operator, inverse.Blur) else y
    values = [
        (operator.adjoint(v), operator.solve(v, 2.0, 0.3), inverse.pseudo_inverse(operator, v))
        for v in (y, y.astype(float))
    ]
    jax.tree.map(np.testing.assert_array_equal, *values)


@pytest.mark.parametrize(
    ("make", "value"),
    [
        (diffax.LogLinear, (1, 100)),
        (diffax.Linear, (1, 20)),
        (diffax.EDM, (1, 80, 7)),
        (diffax.Sigmoid, (-3, 3, 1)),
        (lambda *v: diffax.Tabulated([*v]), (4, 0, -4)),
        (lambda v: diffax.NoiseFloor(diffax.Flow(), v), (1,)),
        (lambda v: diffax.shifted(diffax.Flow(), v), (2,)),
    ],
)
def test_schedules_of_integers_can_be_differentiated(make, value):
    schedule, floats = make(*value), make(*map(float, value))
    slopes = [jax.grad(lambda s: s.log_snr(0.6))(s) for s in (schedule, floats)]
    jax.tree.map(np.testing.assert_array_equal, *slopes)


@pytest.mark.parametrize(
    "network",
    [
        UNet(channels=8, channel_multipliers=(1,), num_res_blocks=1, attention=Attention(())),
        DiT(channels=8, depth=1, num_heads=1),
        MLP(channels=8, depth=1),
        EDM2(channels=8, channel_multipliers=(1,), num_res_blocks=1, attention_levels=(), head_channels=8),
    ],
    ids=lambda network: type(network).__name__,
)
def test_integer_timesteps_in_place_of_times_raise(network):
    x = jnp.ones((4, 8, 8, 3))
    for t, got in ((500, "500"), (np.arange(4) + 1, r"\[1, 2, 3, 4\]"), (jnp.array([7] * 4), r"\[7, 7, 7, 7\]")):
        with pytest.raises(ValueError, match=rf"t must be a float in \[0, 1\], such as .* got {got}"):
            network.init(KEY, x, t)
    with pytest.raises(ValueError, match=r"t must be a float in \[0, 1\], such as .* got an array of int32"):
        jax.eval_shape(lambda t: network.init(KEY, x, t), jnp.array([7] * 4))
    with pytest.raises(ValueError, match=rf"t {PER_EXAMPLE} \(4, 1\)"):
        network.init(KEY, x, T[:, None])
    jax.eval_shape(lambda: network.init(KEY, x, 1))


# Arguments


def not_a_schedule(*got):
    return r"schedule must be a noise schedule, such as diffax.Cosine\(\), got " + "".join(got)


def not_a_sampler(got):
    return rf"sampler must be a Sampler, such as ddim\(schedule\) or Sampler\(init, step, order, calls\), got {got}"


PAIR = (lambda x, times: samplers.State(x), lambda key, denoise, state, t, s: state)
DDIM = diffax.ddim(SCHEDULE)
ARGUMENTS = {
    "string": (lambda: diffax.ddim("cosine"), not_a_schedule("'cosine'")),
    "none": (lambda: diffax.dpmpp_2m(None), not_a_schedule("None")),
    "class": (lambda: diffax.heun(diffax.Cosine), not_a_schedule("the class Cosine")),
    "denoiser": (lambda: diffax.denoiser(good, "flow", "v"), not_a_schedule("'flow'")),
    "loss-schedule": (lambda: diffax.denoising_loss(KEY, good, None, "v", X, T), not_a_schedule("None")),
    "noise": (lambda: diffax.initial_noise(KEY, "cosine", (4, 2)), not_a_schedule("'cosine'")),
    "grid": (lambda: diffax.times.uniform_log_snr("cosine", 5), not_a_schedule("'cosine'")),
    "grid-swapped": (lambda: diffax.times.uniform(50, SCHEDULE), not_a_schedule("50")),
    "table": (lambda: diffax.times.trailing(1000, 50), not_a_schedule("1000")),
    "unbuilt": (lambda: run(diffax.ddim), not_a_sampler("the function ddim")),
    "pair": (lambda: run(PAIR), not_a_sampler("a tuple of 2")),
    "wrapped pair": (lambda: diffax.restart(PAIR, SCHEDULE), not_a_sampler("a tuple of 2")),
    "swapped": (lambda: diffax.sample(KEY, good, DDIM, X, GRID), not_a_sampler("the function good")),
    "key second": (lambda: diffax.sample(DDIM, KEY, good, X, GRID), not_a_sampler("an array of shape ()")),
    "schedule for denoise": (
        lambda: run(denoise=SCHEDULE),
        r"denoise must be a function \(x, t\) -> x0, got Cosine\(scaling='vp'\)",
    ),
    "likelihood": (
        lambda: diffax.log_likelihood(KEY, good, SCHEDULE, X, GRID[::-1]),
        not_a_schedule("the function good"),
    ),
    "loss": (
        lambda: diffax.denoising_loss(KEY, SCHEDULE, good, "v", X, T),
        r"predict must be a function \(x, t\) -> y, got Cosine\(scaling='vp'\)",
    ),
    "loss-key": (
        lambda: diffax.denoising_loss(good, KEY, SCHEDULE, "v", X, T),
        r"predict must be a function \(x, t\) -> y, got an array of shape \(\)",
    ),
    "loss-t": (lambda: diffax.denoising_loss(KEY, good, SCHEDULE, "v", T, X), rf"t {PER_EXAMPLE} \(4, 2\)"),
    "array": (
        lambda: diffax.classifier_free_guidance(good, X, 2.0),
        r"unconditional must be a denoiser .* got an array of shape \(4, 2\) and dtype float32",
    ),
}
SCHEDULED = ("ddpm", "lcm", "tcd", "consistency", "pndm", "ipndm", "unipc", "sa_solver", "dpm2", "dpmpp_sde", "heun")
SCHEDULED += ("dpm_solver", "euler", "euler_maruyama", "stochastic_heun", "gaussian_adams")
for _name in SCHEDULED:
    ARGUMENTS[_name] = functools.partial(getattr(samplers, _name), "cosine"), not_a_schedule("'cosine'")


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_argument_in_the_wrong_place_is_named(name):
    call, message = ARGUMENTS[name]
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


# Wrappers and the noise floor. Inside `noise_floor` the denoiser returns centres, not x0.


INSIDE = {
    "cfg_plus_plus": lambda make, schedule: diffax.cfg_plus_plus(make(schedule), schedule, good, 0.5),
    "guidance_momentum": lambda make, schedule: diffax.guidance_momentum(make(schedule), good, lambda c, u: c),
    "replacement": lambda make, schedule: inverse.replacement(make(schedule), schedule, MASK, Y),
    "repaint": lambda make, schedule: inverse.repaint(make(schedule), schedule, MASK, Y),
    "dps": lambda make, schedule: inverse.dps(make(schedule), MASK, Y),
}


@pytest.mark.parametrize("name", INSIDE)
def test_wrappers_that_compare_x0_must_be_around_a_noise_floor(name):
    wrap = INSIDE[name]
    inside = diffax.noise_floor(lambda schedule: wrap(diffax.ddim, schedule), SCHEDULE, 0.3)
    name_in_error = {"repaint": "replacement"}.get(name, name)
    with pytest.raises(ValueError, match=f"{name_in_error} must be put around noise_floor"):
        jax.eval_shape(lambda: run(inside))
    around = wrap(lambda schedule: diffax.noise_floor(diffax.ddim, schedule, 0.3), SCHEDULE)
    assert jax.eval_shape(lambda: run(around)).shape == (4, 2)


def test_guidance_around_a_noise_floor_acts_on_x0():
    """c = u gives the unconditional sampler with the floor, std = 0 the guided sampler without a floor."""
    around = lambda std, c: diffax.cfg_plus_plus(diffax.noise_floor(diffax.ddim, SCHEDULE, std), SCHEDULE, c, 0.5)
    without_guidance = diffax.noise_floor(diffax.ddim, SCHEDULE, 0.3)
    np.testing.assert_allclose(run(around(0.3, good)), run(without_guidance), rtol=1e-6)
    other_denoiser = lambda x, t: 0.2 * x + 1
    expected = run(diffax.cfg_plus_plus(diffax.ddim(SCHEDULE), SCHEDULE, other_denoiser, 0.5))
    np.testing.assert_allclose(run(around(0.0, other_denoiser)), expected, rtol=1e-5)
