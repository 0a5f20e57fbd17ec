"""Public functions under `jax_numpy_dtype_promotion=strict` and `jax_numpy_rank_promotion=raise`, traced only.

Networks with dtype=bfloat16 do not work under strict promotion, because the norms and pooling of Flax promote
(`jax.numpy.promote_types`). The layers of diffax do not promote.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exam import KEY, SAMPLERS, SCHEDULES, gaussian, mixture

import diffax
from diffax import analytic, inverse, likelihood, metrics, samplers, sde
from diffax.likelihood import adaptive
from diffax.losses import resampling, training_times, weightings
from diffax.nn.attention import Attention
from diffax.nn.autoencoder import Autoencoder
from diffax.nn.autoencoding import autoencoder_loss
from diffax.nn.dit import DiT
from diffax.nn.edm2 import EDM2
from diffax.nn.layers import Residual, TimeEmbedding
from diffax.nn.mlp import MLP
from diffax.nn.text import Captioned, TextEncoder
from diffax.nn.unet import UNet
from diffax.predictions import KINDS
from diffax.samplers.engines.adams import adams

SCHEDULE, LATTICE = diffax.Cosine(), diffax.likelihood.Lattice(2 / 255)
X, IMAGES = jnp.ones((4, 2)), jnp.ones((4, 8, 8, 3))
TREE = {"a": X, "b": jnp.ones((4, 3, 3))}
GRID = jnp.linspace(1.0, 0.0, 6)
GRIDS = jnp.stack([GRID] * 4, 1)
T, KEYS = jnp.full(4, 0.5), jax.random.split(KEY, 4)


def half(x, t):
    return jax.tree.map(lambda v: 0.5 * v, x)


def half_with_variance(x, t):
    return diffax.Moments(half(x, t), half(x, t))


def trace_strictly(f, *args):
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        return jax.eval_shape(f, *args)


def test_strict_settings_reject_dtype_and_rank_promotion():
    """Negative control: JAX promotes in both calls."""
    with pytest.raises(Exception, match="promotion"):
        trace_strictly(lambda: jnp.arange(3) * jnp.ones(3))
    with pytest.raises(Exception, match="rank"):
        trace_strictly(lambda: jnp.ones(3) * jnp.ones((2, 3)))


def run(sampler, x=X, times=GRID, key=KEY, denoise=half):
    return diffax.sample(key, sampler, denoise, x, times)


def by_example(name, values):
    return values if name == "noise_floor" else {key: jnp.full(4, value) for key, value in values.items()}


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_trace_strictly(name):
    make, values, _ = SAMPLERS[name]
    trace_strictly(lambda: run(make(SCHEDULE, **values)))
    trace_strictly(
        lambda: run(make(SCHEDULE, **by_example(name, values)), x=X.astype(jnp.bfloat16), times=GRIDS, key=KEYS)
    )


OTHER_SAMPLERS = {
    "adams-1": lambda: adams(SCHEDULE, form="time", order=1),
    "adams-final": lambda: adams(SCHEDULE, order=4, corrected="start", lower_order_final=True),
    "consistency": lambda: samplers.consistency(SCHEDULE),
    "lcm": lambda: samplers.lcm(SCHEDULE),
    "tcd": lambda: samplers.tcd(SCHEDULE, num_train_steps=100),
    "annealed_langevin": lambda: samplers.annealed_langevin(SCHEDULE, snr=0.1),
    "predictor_corrector": lambda: samplers.corrected(samplers.ddpm(SCHEDULE), samplers.langevin(SCHEDULE, snr=0.16)),
    "restart": lambda: samplers.restart(samplers.dpmpp_2m(SCHEDULE), SCHEDULE),
    "cfg_plus_plus": lambda: samplers.cfg_plus_plus(samplers.ddim(SCHEDULE), SCHEDULE, half, T),
    "guidance_momentum": lambda: samplers.guidance_momentum(
        samplers.ddim(SCHEDULE),
        half,
        lambda c, u: diffax.adaptive_projected_guidance(c, u, 3.0, threshold=2.5),
        momentum=-T,
    ),
    "gaussian_adams-mean": lambda: samplers.gaussian_adams(SCHEDULE, mean=jnp.ones(2), std=0.5, end="smooth", start=1),
    "sa_solver-tau": lambda: samplers.sa_solver(SCHEDULE, tau=lambda t: jnp.where(t > 0.5, 1.0, 0.0)),
    "pndm-prk": lambda: samplers.pndm(SCHEDULE, start="prk"),
    "runge_kutta": lambda: analytic.runge_kutta(SCHEDULE),
    "renoising": lambda: inverse.renoising(SCHEDULE, zeta=0.5),
}


@pytest.mark.parametrize("name", OTHER_SAMPLERS)
def test_other_samplers_and_wrappers_trace_strictly(name):
    trace_strictly(lambda: run(OTHER_SAMPLERS[name]()))
    trace_strictly(lambda: run(OTHER_SAMPLERS[name](), times=GRIDS, key=KEYS))


def test_a_learned_variance_and_a_tree_trace_strictly():
    trace_strictly(lambda: run(samplers.ddpm(SCHEDULE, variance="learned"), denoise=half_with_variance))
    trace_strictly(lambda: run(samplers.unipc(SCHEDULE), x=TREE))


@pytest.mark.parametrize("name", [*SCHEDULES, "learned"])
def test_schedules_trace_strictly(name):
    schedule = diffax.Learned.init(KEY) if name == "learned" else SCHEDULES[name]

    def evaluate(t):
        values = schedule(t), schedule.inverse(schedule.log_snr(t)), diffax.schedules.rates(schedule, t)
        return (
            *values,
            sde.coefficients(schedule, t),
            diffax.schedules.transition(schedule, t, t),
            sde.score(half, schedule, X, t),
        )

    trace_strictly(evaluate, T)
    trace_strictly(lambda t: jax.grad(lambda t: schedule(t).alpha)(t), 0.5)
    trace_strictly(lambda: diffax.initial_noise(KEY, schedule, (4, 3, 3)))
    kind = "v" if name == "zero_terminal_snr" else "eps"
    trace_strictly(lambda t: diffax.denoising_loss(KEY, half, schedule, kind, X, t, weighting=weightings.p2()), T)


def test_grids_trace_strictly():
    for name in ("uniform", "quadratic", "beta", "uniform_log_snr", "karras", "polyexponential", "arctan", "trailing"):
        trace_strictly(functools.partial(getattr(diffax.times, name), SCHEDULE, 7))
    trace_strictly(lambda: diffax.times.from_sigmas(SCHEDULE, [3, 2, 1]))
    trace_strictly(lambda: diffax.times.from_timesteps(10, [3, 2]))
    trace_strictly(lambda: diffax.times.restart(SCHEDULE, GRID, 0.1, 0.5))
    trace_strictly(lambda: diffax.times.jumps(GRID, length=2, repeats=2))
    trace_strictly(
        lambda: diffax.training.learn_grid(KEY, diffax.ddim(SCHEDULE), SCHEDULE, half, X, GRID[1:], num_steps=2)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_trace_strictly(kind):
    trace_strictly(lambda: diffax.denoising_loss(KEYS, half, SCHEDULE, kind, TREE, T, weighting=weightings.sigmoid()))
    trace_strictly(lambda: diffax.denoiser(half_with_variance, SCHEDULE, kind)(X.astype(jnp.bfloat16), T))
    trace_strictly(lambda: diffax.guidance_rescale(half, half, T, kind=kind, schedule=SCHEDULE)(X, T))


WEIGHTINGS = ("simple", "min_snr", "truncated_snr", "p2", "edm", "sigmoid", "elbo")


def test_losses_trace_strictly():
    def in_half(x, t):
        return half(x, t).astype(jnp.bfloat16)

    for name in WEIGHTINGS:
        weighting = getattr(weightings, name)()
        trace_strictly(lambda w=weighting: diffax.denoising_loss(KEY, half, SCHEDULE, "v", X, T, weighting=w))
    trace_strictly(
        lambda: diffax.denoising_loss(KEY, in_half, SCHEDULE, "v", X, T, weighting=weightings.elbo(), measure="log_snr")
    )
    trace_strictly(lambda: diffax.losses.drop_labels(KEY, jnp.arange(4), 10, p_uncond=0.1))
    for lattice in (None, LATTICE):
        common = {"num_steps": 100, "lattice": lattice}
        trace_strictly(lambda c=common: diffax.losses.hybrid_loss(KEY, half_with_variance, SCHEDULE, "v", X, T, **c))
        trace_strictly(lambda c=common: diffax.losses.vlb_loss(KEY, half_with_variance, SCHEDULE, "v", X, T, **c))
        trace_strictly(
            lambda v=lattice: diffax.losses.vdm_loss(KEY, half, diffax.Learned.init(KEY), "v", X, T, lattice=v)
        )
    trace_strictly(lambda: autoencoder_loss(KEY, lambda x: (x, x), lambda z: z, IMAGES))


def test_draws_of_training_times_trace_strictly():
    def resampled():
        resampler = resampling.loss_aware(10)
        t, weight = training_times.draw(KEY, 6, resampler.distribution(resampler.init()))
        return resampler.update(resampler.init(), t, weight)

    trace_strictly(resampled)
    for distribution in (
        training_times.uniform(),
        training_times.logit_normal(),
        training_times.mode(),
        training_times.cosmap(),
        training_times.log_normal_sigma(SCHEDULE),
    ):
        trace_strictly(
            lambda distribution=distribution: training_times.discrete(
                training_times.draw(KEY, 4, distribution, uniforms=training_times.stratified), 100
            )
        )
    for uniforms in (training_times.independent, training_times.stratified, training_times.antithetic):
        trace_strictly(lambda uniforms=uniforms: training_times.draw(KEYS, 4, uniforms=uniforms))


def test_bounds_and_likelihood_trace_strictly():
    for variance, denoise in (("small", half), ("learned", half_with_variance)):
        trace_strictly(
            lambda v=variance, d=denoise: diffax.likelihood.variational_bound(KEY, SCHEDULE, d, X, GRID, variance=v)
        )
    trace_strictly(lambda: diffax.likelihood.continuous_bound(KEY, SCHEDULE, half, X, T, lattice=LATTICE))
    trace_strictly(lambda: diffax.likelihood.forward_posterior(SCHEDULE, X, X, T, T))
    trace_strictly(lambda: diffax.likelihood.dequantize(KEY, X, LATTICE))
    for divergence in ("hutchinson", "exact"):
        options = {"divergence": divergence, "probes": 3}
        trace_strictly(lambda o=options: likelihood.log_likelihood(KEY, SCHEDULE, half, TREE, GRID[::-1], **o))
    trace_strictly(lambda: adaptive.solve_and_denoise(SCHEDULE, half, X, (0.9, 0.1)))


@pytest.mark.parametrize("weight", [3, jnp.full(4, 3.0), lambda t: 2 * t], ids=["int", "by_example", "function"])
@pytest.mark.parametrize("t", [0.5, T], ids=["one", "by_example"])
def test_guidance_traces_strictly(weight, t):
    def outputs(x):
        with_label = diffax.batched_classifier_free_guidance(lambda x, t, label: half(x, t), jnp.arange(4), 10, weight)
        yield diffax.classifier_free_guidance(half, half, weight)(x, t)
        yield with_label(x, t)
        yield diffax.adaptive_projected_guidance(half, half, weight, eta=T, threshold=2)(x, t)
        yield diffax.classifier_guidance(half, lambda x, t: x.sum((1, 2, 3)), SCHEDULE, weight)(x, t)
        yield diffax.guidance_interval(half, half, -1, T, of=SCHEDULE.log_snr)(x, t)
        yield diffax.denoisers.clip_static(half, -1, T)(x, t)
        yield diffax.denoisers.clip_dynamic(half, quantile=T, limit=1)(x, t)
        yield diffax.denoisers.reschedule(half, SCHEDULE, diffax.Flow())(x, t)
        yield diffax.denoisers.consistency_function(half, SCHEDULE)(x, t)
        yield diffax.denoisers.latent_consistency_function(half)(x, t)

    trace_strictly(lambda: [*outputs(IMAGES)])
    trace_strictly(lambda: [*outputs(IMAGES.astype(jnp.bfloat16))])


@pytest.mark.parametrize("make", [gaussian, mixture])
def test_oracles_trace_strictly(make):
    oracle, mask = make(), inverse.Mask(jnp.array([1, 0]))
    posterior = inverse.posterior(oracle, mask, np.array([[1.0, 0.0]]), std=0.1)
    level = SCHEDULE(T)

    def evaluate(oracle):
        return (
            oracle.denoise(X, level),
            oracle.log_prob(X, level),
            oracle.log_prob(X),
            oracle.log_prob(X[0]),
            oracle.sample(KEY, 5),
        )

    trace_strictly(lambda: (evaluate(oracle), oracle.score(X, level), oracle.score(X)))
    trace_strictly(lambda: evaluate(posterior))
    trace_strictly(lambda: analytic.flow(SCHEDULE, oracle.denoiser(SCHEDULE), X, 0.9, 0.1, num_steps=5))


OPERATORS = {
    "mask": inverse.Mask(jnp.ones((8, 8, 1), bool)),
    "mask-int": inverse.Mask(jnp.ones((1, 8, 8, 1), int)),
    "box": inverse.BoxDownsample(2, (8, 8, 3)),
    "blur": inverse.gaussian_blur(1.0, (8, 8, 3), radius=1),
    "linear": inverse.linear(lambda v: 2.0 * v[:4], jnp.zeros((8, 8, 3))),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_inverse_problems_trace_strictly(name):
    operator = OPERATORS[name]
    for y in (operator.forward(IMAGES), operator.forward(IMAGES)[:1].astype(int)):
        for std in (0, T):
            trace_strictly(lambda y=y, std=std: inverse.pigdm(half, SCHEDULE, operator, y, std=std)(IMAGES, T))
            trace_strictly(lambda y=y, std=std: inverse.mmps(half, SCHEDULE, operator, y, std=std)(IMAGES, 0.5))
            trace_strictly(lambda y=y, std=std: inverse.diffpir(half, SCHEDULE, operator, y, std=std)(IMAGES, T))
        trace_strictly(lambda y=y: inverse.ddnm(half, operator, y)(IMAGES, T))
        trace_strictly(lambda y=y: run(inverse.dps(diffax.ddim(SCHEDULE), operator, y, scale=T), x=IMAGES))
        if name.startswith("mask"):
            trace_strictly(lambda y=y: run(inverse.repaint(diffax.ddpm(SCHEDULE), SCHEDULE, operator, y), x=IMAGES))
            trace_strictly(lambda y=y: run(inverse.ddnm_plus(SCHEDULE, operator, y, std=T), x=IMAGES))


CONTEXT = {"context": jnp.ones((4, 5, 6)), "context_mask": jnp.ones((4, 5), bool)}
UNETS = {"channels": 8, "channel_multipliers": (1, 2), "num_res_blocks": 1}
DITS = {"channels": 16, "depth": 1, "num_heads": 2}
NETWORKS = {
    "unet": (UNet(**UNETS, num_classes=10, dropout_rate=0.1), {"label": jnp.arange(4), "key": KEY}),
    "unet-adm": (UNet(**UNETS, residual=Residual("block", scale_shift=True, rescale=2**0.5), remat=True), {}),
    "unet-conditions": (
        UNet(**UNETS, vector_dim=3, image_channels=2, time=TimeEmbedding(shift=0)),
        {"vector": jnp.ones((4, 3))},
    ),
    "unet-cross": (UNet(**UNETS, attention=Attention(context_dim=6)), CONTEXT),
    "dit": (DiT(**DITS, num_classes=10, dropout_rate=0.1), {"label": 3, "key": KEY}),
    "dit-rope": (DiT(**DITS, positions="rope"), {}),
    "dit-points": (DiT(**DITS, patch_size=None), {"mask": jnp.ones((4, 6), bool)}),
    "dit-cross": (DiT(**DITS, cross_attention=True, vector_dim=3, embed_each_block=True), CONTEXT),
    "mlp": (MLP(channels=16, depth=1, num_classes=10, dropout_rate=0.1), {"label": jnp.arange(4), "key": KEY}),
    "edm2": (EDM2(**UNETS, attention_levels=(1,), head_channels=8, num_classes=10), {"label": jnp.arange(4)}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_trace_strictly(name):
    network, options = NETWORKS[name]
    x = jnp.ones((4, 6, 3)) if name == "dit-points" else IMAGES
    params = trace_strictly(lambda: network.init(KEY, x, 0.5, **options))
    trace_strictly(jax.grad(lambda params: network.apply(params, x, T, **options).sum()), params)


def test_the_text_encoder_and_the_autoencoder_trace_strictly():
    text, tokens = TextEncoder(vocab_size=20, width=16), jnp.ones((4, 5), int)
    network = UNet(**UNETS, attention=Attention(context_dim=16), vector_dim=16)
    for words in (tokens, None):
        trace_strictly(lambda w=words: Captioned(network, text).init(KEY, IMAGES, 0.5, w))
    autoencoder = Autoencoder(channels=8, channel_multipliers=(1, 2), num_res_blocks=1)
    trace_strictly(lambda: autoencoder.init_with_output(KEY, IMAGES, KEY))


def test_metrics_run_under_strict_promotion():
    features = np.random.default_rng(0).normal(size=(2, 20, 3))
    trace_strictly(lambda: metrics.psnr(IMAGES, IMAGES, data_range=2))
    trace_strictly(lambda: metrics.ssim(IMAGES, IMAGES, data_range=2, window=5))
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        metrics.frechet_infinity(KEY, *features)
        metrics.kernel_distance_subsets(KEY, *features, size=10)
        metrics.precision_recall(*features)
        metrics.sliced_wasserstein(KEY, *features, projections=10)
        metrics.sinkhorn_divergence(*features)
