"""Networks of several libraries in the same sampler, and short training runs in one, two and three dimensions."""

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import diffax
from diffax.nn import Attention, DiT, UNet
from diffax.nn.layers import convolve

KEY = jax.random.key(0)


def draw_samples(predict):
    """Four samples with eps = predict(x, t)."""
    schedule, times = diffax.Cosine(), diffax.times.uniform_log_snr(diffax.Cosine(), 5)
    x = diffax.initial_noise(KEY, schedule, (4, 3))

    @jax.jit
    def run(x):
        denoise = diffax.denoiser(predict, schedule, "eps")
        return diffax.sample(KEY, diffax.ddim(schedule), denoise, x, times)

    return run(x)


def test_an_nnx_network_gives_the_samples_of_the_same_plain_function():
    net = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    kernel, bias = np.asarray(net.kernel[...]), np.asarray(net.bias[...]) + 0.5
    net.bias[...] = jnp.asarray(bias)
    features = lambda x, t: jnp.concatenate([x, jnp.broadcast_to(t, (len(x),))[:, None]], -1)
    result = draw_samples(lambda x, t: net(features(x, t)))
    np.testing.assert_allclose(result, draw_samples(lambda x, t: features(x, t) @ kernel + bias), rtol=1e-5)


def test_an_equinox_network_gives_the_samples_of_the_same_plain_function():
    """The network takes one example; vmap maps it over a batch."""
    net = equinox.nn.Linear(4, 3, key=KEY)

    def predict(x, t):
        t = jnp.broadcast_to(t, (len(x),))
        return jax.vmap(lambda x, t: net(jnp.append(x, t)))(x, t)

    kernel, bias = np.asarray(net.weight).T, np.asarray(net.bias)
    features = lambda x, t: jnp.concatenate([x, jnp.broadcast_to(t, (len(x),))[:, None]], -1)
    expected = draw_samples(lambda x, t: features(x, t) @ kernel + bias)
    np.testing.assert_allclose(draw_samples(predict), expected, rtol=1e-5)


UNET = UNet(channels=8, channel_multipliers=(1, 1), num_res_blocks=1, attention=Attention(()), num_classes=4)
DIT = DiT(channels=32, depth=1, num_heads=2, positions="rope", num_classes=4)
SHAPES = {1: (8, 8), 2: (8, 8, 1), 3: (4, 4, 4, 1)}


def digits(shape):
    """Four 8x8 digits in [-1, 1]; by shape, each is a sequence of 8 rows, an image, or a 4x4x4 volume."""
    from sklearn.datasets import load_digits

    return jnp.asarray(load_digits().images[:4].reshape(4, *shape) / 8 - 1, jnp.float32)


@pytest.mark.slow_cases("unet-2")
@pytest.mark.parametrize("ndim", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("net", [UNET, DIT], ids=["unet", "dit"])
def test_a_network_overfits_four_digits(net, ndim):
    """Predict the noise in one batch. The loss starts at that of a zero prediction and falls 10-fold."""
    x0, t, label = digits(SHAPES[ndim]), jnp.array([0.2, 0.4, 0.6, 0.8]), jnp.arange(4)
    noise = jax.random.normal(KEY, x0.shape)
    x = diffax.diffuse(diffax.Cosine(), x0, noise, t)
    optimizer = optax.adam(2e-2)

    def step(carry, _):
        params, state = carry
        loss, grads = jax.value_and_grad(lambda p: jnp.mean((net.apply(p, x, t, label) - noise) ** 2))(params)
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(params, updates), state), loss

    @jax.jit
    def train(key):
        params = net.init(key, x, t)
        return jax.lax.scan(step, (params, optimizer.init(params)), length=40)[1]

    losses = train(KEY)
    np.testing.assert_allclose(losses[0], jnp.mean(noise**2), rtol=1e-5)
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.slow_cases("unet")
@pytest.mark.parametrize("net", [UNET.clone(channel_multipliers=(1,)), DIT], ids=["unet", "dit"])
def test_unet_and_dit_share_their_calling_convention(net):
    """Arguments (x, t, label), null label for None, `outputs` predictions in the channels, zero at initialisation."""
    net = net.clone(outputs=2)
    x, t = jax.random.normal(KEY, (2, 4, 4, 2)), jnp.array([0.2, 0.7])

    @jax.jit
    def predictions(key):
        initial, params = net.init_with_output(key, x, t, jnp.arange(2))
        params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(key, p.shape), params)
        labelled = jax.lax.map(lambda label: net.apply(params, x, t, label), jnp.array([4, 0]))
        return initial, net.apply(params, x, t), *labelled

    initial, unlabelled, null_label, label_0 = predictions(KEY)
    assert initial.shape == (2, 4, 4, 4)
    assert not initial.any()
    np.testing.assert_allclose(unlabelled, null_label, atol=1e-5)
    assert float(jnp.abs(unlabelled - label_0).max()) > 1e-3


@pytest.mark.parametrize("shape", [(9,), (6, 5), (6, 5, 7)])
@pytest.mark.parametrize(("stride", "padding"), [(1, (1, 1)), (2, (0, 1))])
def test_convolutions_are_those_of_jax(shape, stride, padding):
    """Over three axes they are computed plane by plane on a CPU."""
    axes = len(shape)
    x = jax.random.normal(jax.random.key(0), (2, *shape, 3))
    kernel = jax.random.normal(jax.random.key(1), (3,) * axes + (3, 4))
    space = "DHW"[-axes:]
    layout = (f"N{space}C", f"{space}IO", f"N{space}C")
    arguments = ((stride,) * axes, [padding] * axes)
    expected = jax.lax.conv_general_dilated(x, kernel, *arguments, dimension_numbers=layout)
    np.testing.assert_allclose(convolve(x, kernel, *arguments), expected, atol=1e-4)
