"""Keys: functions that get the same one draw independently, and every implementation gives each example its own."""

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


def seen(run):
    """The first x (B, 1) that a loss's network or a bound's denoiser gets."""
    calls = []

    def listen(x, t):
        calls.append(x)
        return x

    run(listen)
    return calls[0]


def learned(key):
    schedule = diffax.Learned.init(jax.random.key(0), log_snr_max=5.0, log_snr_min=-5.0)
    return seen(lambda f: losses.vdm_loss(key, f, schedule, "eps", ZEROS, T))


def hybrid(key, loss):
    moments = lambda f: lambda x, t: diffax.Moments(f(x, t), 0 * x)
    return seen(lambda f: loss(key, moments(f), SCHEDULE, "eps", ZEROS, T, **TABLE))


def probes(key):
    """The slope of the trace's estimate e J e in J is e^2 for a Gaussian probe e: its size ranks the draws."""
    denoise = lambda x, t: 0.1 * x
    times = jnp.array([0.1, 0.2])
    run = lambda x: log_likelihood(key, SCHEDULE, denoise, x, times, probe_distribution="gaussian")
    return jnp.sqrt(jnp.maximum(run(ZEROS).log_prob.max() - run(ZEROS).log_prob, 0.0))


# name -> draw: key -> (B,), an increasing or decreasing function of the first number that each example's key gives
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
    "denoising_loss": lambda key: seen(lambda f: diffax.denoising_loss(key, f, SCHEDULE, "eps", ZEROS, T)),
    "drop_labels": lambda key: diffax.losses.drop_labels(key, jnp.zeros(SIZE, int), 1, p_uncond=0.5),
    "hybrid_loss": lambda key: hybrid(key, losses.hybrid_loss),
    "vlb_loss": lambda key: hybrid(key, losses.vlb_loss),
    "vdm_loss": learned,
    "continuous_bound": lambda key: seen(lambda f: _bound.continuous_bound(key, SCHEDULE, f, ZEROS, T)),
    "variational_bound": lambda key: _bound.variational_bound(
        key, SCHEDULE, lambda x, t: jnp.exp(x / 9), ZEROS, jnp.array([0.5, 0.4])
    ).steps[0],
    "log_likelihood": probes,
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
    """The rank correlations of all pairs of draws from these keys."""
    columns = [np.asarray(draw(keys)).reshape(SIZE).astype(float) for draw in DRAWS.values()]
    return dict(zip(DRAWS, stats.spearmanr(np.stack(columns, 1)).statistic, strict=True))


@pytest.mark.parametrize("keys", [KEY, jax.random.split(KEY, SIZE)], ids=["key", "keys"])
def test_functions_that_share_a_key_draw_independently(keys):
    """Rank correlations have a standard deviation of 1 / sqrt(2000) = 0.022."""
    for name, row in correlations(keys).items():
        others = np.delete(row, list(DRAWS).index(name))
        assert np.isfinite(others).all(), name
        assert np.abs(others).max() < 0.11, (name, dict(zip(DRAWS, row, strict=True)))


def test_a_predictor_that_sees_the_time_alone_learns_nothing_of_the_noise():
    """|eps - u(t)|^2 with u the quantile of t's rank: 2 where they are independent, 0 where eps is a function of t."""
    t = training_times.draw(KEY, SIZE).t
    u = jax.scipy.special.ndtri(jnp.clip(t, 1e-6, 1 - 1e-6))
    for sign in (1, -1):
        loss = diffax.denoising_loss(KEY, lambda x, t, s=sign: s * u[:, None], SCHEDULE, "eps", ZEROS, t)
        assert abs(loss.mean() - 2) < 0.2


@pytest.mark.newest
@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_an_example_depends_on_its_own_key_alone_whatever_the_implementation(implementation):
    """In the middle of a batch as by itself, and no two examples alike."""
    key, label = jax.random.key(3, impl=implementation), jnp.zeros(SIZE, int)
    draw = {
        "noise": lambda k, n: random.noise(k, ZEROS[:n]),
        "uniform": lambda k, n: random.unit_interval(k, n),
        "fold_in": lambda k, n: random.noise(random.fold_in(k, 1), ZEROS[:n]),
        "drop_labels": lambda k, n: diffax.losses.drop_labels(k, label[:n], 1, p_uncond=0.5),
        "dropout": lambda k, n: dropout(k, jnp.ones((n, 40)), 0.5),
        "dequantize": lambda k, n: dequantize(k, ZEROS[:n], Lattice(0.5)),
    }
    # From the middle: under `vmap` rbg draws for all from the first key, which a batch shares with its own start.
    split, middle = jax.random.split(key, SIZE), slice(3, 10)
    for keys, part, place in ((key, key, slice(7)), (split, split[middle], middle)):
        for name, of in draw.items():
            whole = np.asarray(of(keys, SIZE))
            np.testing.assert_array_equal(whole[place], of(part, 7))
            different = 2 if name == "drop_labels" else SIZE - 5  # of 2^23 floats two may be equal
            assert len(np.unique(whole, axis=0)) >= different, name
    noise = np.asarray(random.noise(key, ZEROS))
    assert abs(noise.mean()) < 0.1
    assert abs(noise.std() - 1) < 0.06
    over = jax.vmap(lambda k: random.noise(k, ZEROS[:2]))(jax.random.split(key, 3))
    assert len(np.unique(np.asarray(over))) == 6
    stratified = jax.vmap(lambda k: training_times.stratified(k, 4))(jax.random.split(key, 3))
    assert len(np.unique(np.asarray(4 * stratified % 1).round(4))) >= 3


def test_threefry_keys_are_used_as_they_are():
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
def test_another_kind_of_key_is_refused(key, message):
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
