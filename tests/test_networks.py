"""Networks of any kind through the same samplers; ours learn in one, two and three dimensions."""

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import diffax
from diffax.nn import DiT, UNet

KEY = jax.random.key(0)


def generated(predict):
    """Four samples of eps = predict(x, t), and the same from a plain function with these weights."""
    schedule, times = diffax.Cosine(), diffax.times.uniform(5)
    x = diffax.initial_noise(KEY, schedule, (4, 3))

    @jax.jit
    def run(x):
        denoise = diffax.denoiser(predict, schedule, "eps")
        return diffax.sample(KEY, diffax.ddim(schedule), denoise, x, times)

    return run(x)


def test_an_nnx_network_is_sampled():
    """By the sampler that knows nothing of it: as the same arithmetic in plain functions."""
    net = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    kernel, bias = np.asarray(net.kernel[...]), np.asarray(net.bias[...]) + 0.5
    net.bias[...] = jnp.asarray(bias)
    features = lambda x, t: jnp.concatenate([x, jnp.broadcast_to(t, (len(x),))[:, None]], -1)
    found = generated(lambda x, t: net(features(x, t)))
    np.testing.assert_allclose(found, generated(lambda x, t: features(x, t) @ kernel + bias), rtol=1e-5)


def test_an_equinox_network_is_sampled():
    """It takes one example; vmap gives it a batch."""
    net = equinox.nn.Linear(4, 3, key=KEY)

    def predict(x, t):
        t = jnp.broadcast_to(t, (len(x),))
        return jax.vmap(lambda x, t: net(jnp.append(x, t)))(x, t)

    kernel, bias = np.asarray(net.weight).T, np.asarray(net.bias)
    features = lambda x, t: jnp.concatenate([x, jnp.broadcast_to(t, (len(x),))[:, None]], -1)
    expected = generated(lambda x, t: features(x, t) @ kernel + bias)
    np.testing.assert_allclose(generated(predict), expected, rtol=1e-5)


SMALL = {"channels": 8, "channel_multipliers": (1, 1), "num_res_blocks": 1, "attention_levels": (1,)}
SHAPES = {1: (2, 16, 2), 2: (2, 8, 8, 1), 3: (2, 4, 4, 4, 1)}


@pytest.mark.parametrize("ndim", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_unet_overfits_a_tiny_batch(ndim):
    """Waves of two examples at one level of noise: the error falls to a tenth of the first, that of zero."""
    shape, net, schedule = SHAPES[ndim], UNet(**SMALL), diffax.Cosine()
    grid = np.indices(shape[1:-1]).sum(0)[..., None]
    x0 = jnp.stack([jnp.sin(grid), jnp.cos(2.0 * grid)]) * jnp.ones(shape)
    eps = jax.random.normal(KEY, shape)
    optimizer = optax.adam(1e-2)

    def loss(params):
        y = net.apply(params, diffax.diffuse(schedule, x0, eps, 0.5), 0.5)
        return jnp.mean((y - diffax.target("v", schedule, x0, eps, 0.5)) ** 2)

    @jax.jit
    def train(key):
        def step(state, _):
            params, opt_state = state
            value, grads = jax.value_and_grad(loss)(params)
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(params, updates), opt_state), value

        params = net.init(key, x0, 0.5)
        return jax.lax.scan(step, (params, optimizer.init(params)), length=80)[1]

    losses = train(KEY)
    assert losses[-1] < 0.1 * losses[0]


def test_published_networks_have_one_calling_convention():
    """UNet and DiT: (x, t, label) with the null label for none, and the first answer zero."""
    x, label = jnp.ones((2, 8, 8, 2)), jnp.array([0, 1])
    dit = {"patch_size": 2, "channels": 12, "depth": 1, "num_heads": 2}
    for net in (UNet(**SMALL, num_classes=3, outputs=2), DiT(**dit, num_classes=3, outputs=2)):
        out, _ = jax.eval_shape(lambda net=net: net.init_with_output(KEY, x, jnp.zeros(2), label))
        assert out.shape == (2, 8, 8, 4)
