"""Keys: functions with the same key draw independently, and each example depends only on its own key."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import diffax
from diffax import analytic, inverse, losses, random
from diffax.likelihood import Lattice, _bound, dequantize, log_likelihood
from diffax.losses import training_times
from diffax.nn.autoencoding import reparameterise
from diffax.nn.layers import dropout
from diffax.training import init_state, train_step

SIZE = 2000
KEY = jax.random.key(5)
SCHEDULE = diffax.Cosine()
T = jnp.full(SIZE, 0.5)
ZEROS = jnp.zeros((SIZE, 1), jnp.float32)
TABLE = {"num_steps": 4}
GAUSSIAN = analytic.Gaussian(jnp.zeros(1), jnp.eye(1), jnp.ones(1))
MIXTURE = analytic.Mixture(jnp.ones(1), jnp.zeros((1, 1)), jnp.ones(()))
POSTERIOR = inverse._exact.GaussianMixture(jnp.ones(1), jax.tree.map(lambda v: v[None], GAUSSIAN))


def first_input(call):
    """The first x (B, 1) that `call(denoise)` passes to its network or denoiser."""
    calls = []

    def record(x, t):
        calls.append(x)
        return x

    call(record)
    return calls[0]


def vdm_input(key):
    schedule = diffax.Learned.init(jax.random.key(0), log_snr_max=5.0, log_snr_min=-5.0)
    return first_input(lambda f: losses.vdm_loss(key, f, schedule, "eps", ZEROS, T))


def loss_input(key, loss):
    moments = lambda f: lambda x, t: diffax.Moments(f(x, t), 0 * x)
    return first_input(lambda f: loss(key, moments(f), SCHEDULE, "eps", ZEROS, T, **TABLE))


def probe_sizes(key):
    """|e| of each Gaussian probe e: the trace estimate e J e has the slope e^2 in J, so its size ranks the draws."""
    denoise = lambda x, t: 0.1 * x
    times = jnp.array([0.1, 0.2])
    evaluate = lambda x: log_likelihood(key, SCHEDULE, denoise, x, times, probe_distribution="gaussian")
    return jnp.sqrt(jnp.maximum(evaluate(ZEROS).log_prob.max() - evaluate(ZEROS).log_prob, 0.0))


# name -> draw: key -> (B,), where each value is a monotone function of the first number drawn from the example's key
DRAWS = {
    "noise": lambda key: random.noise(key, ZEROS),
    "unit_interval": lambda key: random.unit_interval(key, SIZE),
    "draw": lambda key: training_times.draw(key, SIZE).t,
    "draw-own-way": lambda key: (
        training_times.draw(key, SIZE, uniforms=lambda key, size: random.noise(key, ZEROS)[:, 0]).t
    ),
    "independent": lambda key: training_times.independent(key, SIZE),
    "antithetic": lambda key: training_times.antithetic(key, SIZE),
    "stratified": lambda key: SIZE * training_times.stratified(random.per_example(key, SIZE), SIZE) % 1,
    "initial_noise": lambda key: diffax.initial_noise(key, SCHEDULE, (SIZE, 1)),
    "denoising_loss": lambda key: first_input(lambda f: diffax.denoising_loss(key, f, SCHEDULE, "eps", ZEROS, T)),
    "drop_labels": lambda key: diffax.losses.drop_labels(key, jnp.zeros(SIZE, int), 1, p_uncond=0.5),
    "hybrid_loss": lambda key: loss_input(key, losses.hybrid_loss),
    "vlb_loss": lambda key: loss_input(key, losses.vlb_loss),
    "vdm_loss": vdm_input,
    "continuous_bound": lambda key: first_input(lambda f: _bound.continuous_bound(key, SCHEDULE, f, ZEROS, T)),
    "variational_bound": lambda key: _bound.variational_bound(
        key, SCHEDULE, lambda x, t: jnp.exp(x / 9), ZEROS, jnp.array([0.5, 0.4])
    ).steps[0],
    "log_likelihood": probe_sizes,
    "dequantize": lambda key: dequantize(key, ZEROS, Lattice(0.5)),
    "Gaussian.sample": lambda key: GAUSSIAN.sample(key, SIZE),
    "Mixture.sample": lambda key: MIXTURE.sample(key, SIZE),
    "GaussianMixture.sample": lambda key: POSTERIOR.sample(key, SIZE),
    "reparameterise": lambda key: reparameterise(key, ZEROS, ZEROS),
    "dropout": lambda key: dropout(key, ZEROS + 1, 0.5),
    "sample": lambda key: (
        diffax.integrate(key, diffax.ddpm(SCHEDULE), lambda x, t: 0 * x, ZEROS, jnp.array([0.9, 0.5])).x
    ),
}


def correlations(keys):
    """{name: (N,)} rank correlations with all draws, for draws from the same keys."""
    columns = [np.asarray(draw(keys)).reshape(SIZE).astype(float) for draw in DRAWS.values()]
    return dict(zip(DRAWS, stats.spearmanr(np.stack(columns, 1)).statistic, strict=True))


@pytest.mark.slow_cases("keys")
@pytest.mark.parametrize("keys", [KEY, jax.random.split(KEY, SIZE)], ids=["key", "keys"])
def test_functions_that_share_a_key_draw_independently(keys):
    """Rank correlations of independent draws have a standard deviation of 1 / sqrt(2000) = 0.022."""
    for name, row in correlations(keys).items():
        others = np.delete(row, list(DRAWS).index(name))
        assert np.isfinite(others).all(), name
        assert np.abs(others).max() < 0.11, (name, dict(zip(DRAWS, row, strict=True)))


def test_the_time_does_not_predict_the_noise():
    """For u(t) the normal quantile of t, E |eps - u(t)|^2 is 2 if they are independent, and 0 if eps = u(t)."""
    t = training_times.draw(KEY, SIZE).t
    u = jax.scipy.special.ndtri(jnp.clip(t, 1e-6, 1 - 1e-6))
    for sign in (1, -1):
        loss = diffax.denoising_loss(KEY, lambda x, t, s=sign: s * u[:, None], SCHEDULE, "eps", ZEROS, t)
        assert abs(loss.mean() - 2) < 0.2


@pytest.mark.newest
@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_an_example_depends_only_on_its_own_key_for_every_implementation(implementation):
    """An example is the same in a batch and alone, and no two examples are equal."""
    key, label = jax.random.key(3, impl=implementation), jnp.zeros(SIZE, int)
    draw = {
        "noise": lambda k, n: random.noise(k, ZEROS[:n]),
        "uniform": lambda k, n: random.unit_interval(k, n),
        "fold_in": lambda k, n: random.noise(random.fold_in(k, 1), ZEROS[:n]),
        "drop_labels": lambda k, n: diffax.losses.drop_labels(k, label[:n], 1, p_uncond=0.5),
        "dropout": lambda k, n: dropout(k, jnp.ones((n, 40)), 0.5),
        "dequantize": lambda k, n: dequantize(k, ZEROS[:n], Lattice(0.5)),
    }
    # Compare rows from the middle: under `vmap`, rbg draws for all examples from the first key, so that a part that
    # starts at row 0 would agree even then.
    split, middle = jax.random.split(key, SIZE), slice(3, 10)
    for keys, part_keys, rows in ((key, key, slice(7)), (split, split[middle], middle)):
        for name, draw_one in draw.items():
            whole = np.asarray(draw_one(keys, SIZE))
            np.testing.assert_array_equal(whole[rows], draw_one(part_keys, 7))
            # There are only 2^23 floats, so a few of them may coincide.
            num_different = 2 if name == "drop_labels" else SIZE - 5
            assert len(np.unique(whole, axis=0)) >= num_different, name
    noise = np.asarray(random.noise(key, ZEROS))
    assert abs(noise.mean()) < 0.1
    assert abs(noise.std() - 1) < 0.06
    vmapped = jax.vmap(lambda k: random.noise(k, ZEROS[:2]))(jax.random.split(key, 3))
    assert len(np.unique(np.asarray(vmapped))) == 6
    stratified = jax.vmap(lambda k: training_times.stratified(k, 4))(jax.random.split(key, 3))
    assert len(np.unique(np.asarray(4 * stratified % 1).round(4))) >= 3


def test_threefry_keys_are_used_unchanged():
    keys = jax.random.split(KEY, 3)
    assert random.threefry(KEY) is KEY
    by_hand = jax.vmap(lambda k: jax.random.normal(k, (2,)))(keys)
    np.testing.assert_array_equal(random.noise(keys, jnp.zeros((3, 2))), by_hand)
    assert (random.keys_at(KEY, jnp.array([2, 0])) == random.per_example(KEY, 3)[jnp.array([2, 0])]).all()


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (jax.random.PRNGKey(0), r"key must be typed, from jax.random.key, got an array of uint32"),
        (None, r"key must be typed, from jax.random.key, got None"),
        (0, r"key must be typed, from jax.random.key, got 0"),
        (jax.random.split(jax.random.key(0), (2, 2)), r"key must have shape \(\) or \(B,\), got \(2, 2\)"),
    ],
)
def test_untyped_or_misshapen_keys_raise(key, message):
    x, times = jnp.ones((2, 3)), jnp.array([0.9, 0.5])
    for run in (
        lambda: random.noise(key, x),
        lambda: diffax.sample(key, diffax.ddpm(SCHEDULE), lambda x, t: x, x, times),
        lambda: diffax.denoising_loss(key, lambda x, t: x, SCHEDULE, "v", x, 0.5),
        lambda: training_times.stratified(key, 2),
    ):
        with pytest.raises(ValueError, match=f"^{message}$"):
            run()


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_a_training_step_does_not_depend_on_how_the_batch_is_divided(implementation):
    loss = lambda params, batch, keys: params * random.noise(keys, batch["x"])[:, 0]
    step = train_step(loss, optax.sgd(0.1), ema_decay=0.9)
    state = init_state(jax.random.key(1, impl=implementation), jnp.ones(()), optax.sgd(0.1))
    mean = lambda index: step(state, {"x": jnp.ones((len(index), 1)), "index": index})[1]["loss"]
    halves = np.array([mean(np.arange(4)), mean(np.arange(4, 8))])
    np.testing.assert_allclose(mean(np.arange(8)), halves.mean(), rtol=1e-5)
    assert halves[0] != halves[1]
