"""The autoencoder: shapes, its loss against known values, and training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffax
from diffax.nn import Autoencoder
from diffax.nn.autoencoding import autoencoder_loss, kl_to_standard_normal, reparameterise

KEY = jax.random.key(0)
SMALL = {
    "sample_channels": 1,
    "latent_channels": 2,
    "channels": 4,
    "channel_multipliers": (1, 2),
    "num_res_blocks": 1,
}


def perturbed(net, x):
    """Initial parameters plus noise, so that none is zero."""
    params = jax.jit(net.init)(KEY, x)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda p: p + 0.1 * rng.normal(size=p.shape).astype(p.dtype), params)


@pytest.fixture(scope="module")
def small():
    """A small autoencoder, its parameters, an input, and the compiled calls."""
    net, x = Autoencoder(**SMALL), jax.random.normal(KEY, (3, 4, 6, 1))
    return net, perturbed(net, x), x, jax.jit(net.apply, static_argnames="method")


@pytest.mark.slow_cases("shape0-True")
@pytest.mark.newest
@pytest.mark.parametrize("pad_after", [True, False])
@pytest.mark.parametrize("shape", [(2, 8, 1), (2, 8, 12, 1), (1, 4, 8, 4, 1)])
def test_one_to_three_dimensions(shape, pad_after):
    net = Autoencoder(**SMALL | {"channel_multipliers": (1, 1, 2), "pad_after": pad_after})
    x = jnp.ones(shape)
    y, mean, log_variance = jax.eval_shape(lambda: net.init_with_output(KEY, x, KEY)[0])
    assert y.shape == shape
    assert mean.shape == log_variance.shape == (shape[0], *(size // 4 for size in shape[1:-1]), 2)


@pytest.mark.slow
def test_encode_and_decode_are_the_two_halves_of_the_network(small):
    _, params, x, apply = small
    mean, log_variance = apply(params, x, method="encode")
    y, *moments = apply(params, x, KEY)
    np.testing.assert_allclose(moments, (mean, log_variance), atol=1e-6)
    z = reparameterise(KEY, mean, log_variance)
    np.testing.assert_allclose(y, apply(params, z, method="decode"), atol=1e-5)
    without_noise, *_ = apply(params, x)
    np.testing.assert_allclose(without_noise, apply(params, mean, method="decode"), atol=1e-5)
    assert float(jnp.abs(without_noise - y).max()) > 1e-2


def test_an_example_does_not_depend_on_the_others(small):
    _, params, x, apply = small
    keys = jax.random.split(KEY, 3)
    outputs, changed = apply(params, x, keys), apply(params, x.at[0].add(1.0), keys)
    for a, b in zip(outputs, changed, strict=True):
        assert float(jnp.abs(a[0] - b[0]).max()) > 1e-3
        np.testing.assert_allclose(a[1:], b[1:], atol=1e-5)


def test_log_variance_is_clipped_as_published(small):
    """To [-30, 20]. The test shifts the bias of the last layer, whose first two entries belong to the mean."""
    _, params, x, apply = small
    quant = params["params"]["encoder"]["quant"]
    for shift, bound in ((1e3, 20.0), (-1e3, -30.0)):
        quant["bias"] = quant["bias"] + jnp.array([0.0, 0.0, shift, shift])
        assert (apply(params, x, method="encode")[1] == bound).all()
        quant["bias"] = quant["bias"] - jnp.array([0.0, 0.0, shift, shift])


def test_bfloat16_computes_near_float32_with_float32_results(small):
    net, params, x, apply = small
    result = jax.jit(net.clone(dtype=jnp.bfloat16).apply)(params, x)
    for a, b in zip(result, apply(params, x), strict=True):
        assert a.dtype == jnp.float32
        assert 0 < float(jnp.abs(a - b).max()) < 0.1 * float(jnp.abs(b).max())


@pytest.mark.parametrize(
    ("settings", "shape", "method", "message"),
    [
        ({}, (2, 8, 6, 3), "encode", r"x must have shape \(B, \*space, 1\) with 1 to 3 spatial axes, got"),
        ({}, (2, 1), "encode", r"x must have shape"),
        ({}, (2, 4, 4, 1), "decode", r"z must have shape \(B, \*space, 2\)"),
        ({}, (2, 8, 7, 1), "encode", r"x must have sizes that are multiples of 2, got \(2, 8, 7, 1\)"),
        ({"channel_multipliers": ()}, (2, 8, 8, 1), "encode", r"channel_multipliers must be ints >= 1, got \(\)"),
        ({"norm_groups": 3}, (2, 8, 8, 1), "encode", "groups must divide the 4 channels, got 3"),
        ({"norm_groups": 0}, (2, 8, 8, 1), "encode", "groups must be an int >= 1, got 0"),
        ({"channels": 0}, (2, 8, 8, 1), "encode", "channels must be an int >= 1, got 0"),
        ({"latent_channels": 0}, (2, 8, 8, 1), "encode", "latent_channels must be an int >= 1, got 0"),
        ({"num_res_blocks": -1}, (2, 8, 8, 1), "encode", "num_res_blocks must be an int >= 0, got -1"),
        ({"channel_multipliers": (1, 1.5)}, (2, 8, 8, 2), "decode", "channel_multipliers must be an int >= 1, got 1.5"),
    ],
)
def test_bad_shapes_are_refused(settings, shape, method, message):
    net = Autoencoder(**SMALL | settings)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: net.init(KEY, jnp.ones(shape), method=method))


def test_kl_to_standard_normal_equals_quadrature():
    """Quadrature of q log(q / p) in each dimension; KL and its gradient are 0 at the standard normal."""
    mean, log_variance = np.array([[0.0, 1.5, -2.0], [0.3, 0.0, 0.0]]), np.array([[0.0, 1.0, -3.0], [0.0, -0.5, 0.0]])
    z = np.linspace(-15, 15, 200_001)
    std = np.exp(log_variance / 2)[..., None]
    log_q = -0.5 * ((z - mean[..., None]) / std) ** 2 - np.log(std)
    density = np.exp(log_q) / np.sqrt(2 * np.pi)
    expected = (density * (log_q + 0.5 * z**2)).sum((1, 2)) * (z[1] - z[0])
    np.testing.assert_allclose(kl_to_standard_normal(jnp.array(mean), jnp.array(log_variance)), expected, rtol=1e-5)
    zero = jnp.zeros((1, 5))
    assert kl_to_standard_normal(zero, zero)[0] == 0
    assert not jnp.stack(jax.grad(lambda *m: kl_to_standard_normal(*m)[0], (0, 1))(zero, zero)).any()
    tiny = jnp.full((1, 1), 1e-3)  # 1/2 (e^v - 1 - v) = v^2 / 4, without cancellation in float32
    np.testing.assert_allclose(kl_to_standard_normal(jnp.zeros((1, 1)), tiny), 0.25e-6, rtol=2e-3)


def test_a_draw_has_the_moments_of_each_example():
    mean, log_variance = jnp.array([[1.0], [-2.0]]), jnp.array([[0.0], [2.0]])
    keys = jax.random.split(KEY, 2)
    wide = jnp.ones((1, 20_000))
    z = reparameterise(keys, mean * wide, log_variance * wide)
    np.testing.assert_allclose(z.mean(1), mean[:, 0], atol=0.06)
    np.testing.assert_allclose(z.var(1), np.exp(log_variance[:, 0]), rtol=0.05)
    np.testing.assert_array_equal(z[:1], reparameterise(keys[:1], mean[:1] * wide, log_variance[:1] * wide))
    noise = diffax.random.noise(diffax.random.stream(keys, "reparameterise"), wide * mean)
    np.testing.assert_allclose(z, mean + jnp.exp(log_variance / 2) * noise, rtol=1e-6)


def test_each_term_of_the_loss_has_its_known_value():
    """Encoder and decoder return constants, so each term is known."""
    x = jnp.array([[1.0, 3.0], [0.0, -2.0]])
    parts = (KEY, lambda x: (jnp.full((2, 1), 2.0), jnp.zeros((2, 1))), lambda z: jnp.ones_like(x))
    loss = lambda **kwargs: autoencoder_loss(*parts, x, **{"kl_weight": 0.0, **kwargs})
    np.testing.assert_allclose(loss(), [2.0, 5.0])
    np.testing.assert_allclose(loss(reconstruction="absolute"), [1.0, 2.0])
    np.testing.assert_allclose(loss(kl_weight=0.5), [2.5, 5.5])  # KL = 2 nats over 2 dimensions of x
    hooks = {"perceptual": lambda x, y: 10 * (x - y)[:, 0], "adversarial": lambda y: -y[:, 1]}
    np.testing.assert_allclose(loss(**hooks), [2.0 + 0 - 1, 5.0 - 10 - 1])
    slope = jax.grad(lambda w: loss(kl_weight=w).sum())(0.1)
    np.testing.assert_allclose(slope, 2.0)
    with pytest.raises(ValueError, match=r"kl_weight must be >= 0, got -1.0"):
        loss(kl_weight=-1.0)
    with pytest.raises(ValueError, match="reconstruction must be one of squared, absolute, got 'l3'"):
        loss(reconstruction="l3")


def test_the_loss_is_the_evidence_bound_of_a_linear_model():
    """x = z + N(0, 1/2), z ~ N(0, 1): at the true posterior the loss is -log p(x), without the decoder's constant."""
    x = jnp.repeat(jnp.array([[0.7, -1.2]]), 40_000, 0)
    encode = lambda x: (x / 1.5, jnp.full_like(x, np.log(1 / 3)))
    result = 2 * autoencoder_loss(KEY, encode, lambda z: z, x, kl_weight=1.0).mean()
    expected = 0.5 * (x[0] ** 2 / 1.5).sum() + 0.5 * 2 * np.log(1.5 / 0.5)
    np.testing.assert_allclose(result, expected, rtol=0.01)


@pytest.mark.slow
def test_training_reduces_the_loss_to_a_tenth():
    """The network learns to copy eight random signals of length 4 through codes of the same size."""
    net = Autoencoder(**SMALL | {"latent_channels": 1, "channel_multipliers": (2,), "attention": False})
    x = jax.random.normal(KEY, (8, 4, 1))
    adam = optax.adam(1e-2)

    def loss(params, key):
        encode, decode = (lambda v, m=m: net.apply(params, v, method=m) for m in ("encode", "decode"))
        return autoencoder_loss(key, encode, decode, x, kl_weight=1e-4).mean()

    @jax.jit
    def step(params, state, key):
        value, grads = jax.value_and_grad(loss)(params, key)
        updates, state = adam.update(grads, state)
        return optax.apply_updates(params, updates), state, value

    params = jax.jit(net.init)(KEY, x)
    state, values = adam.init(params), []
    for key in jax.random.split(KEY, 200):
        params, state, value = step(params, state, key)
        values.append(float(value))
    assert np.mean(values[-20:]) < 0.1 * values[0]
