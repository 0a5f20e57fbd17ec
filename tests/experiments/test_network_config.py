"""config.network: the network that a config names, and what is said of one that cannot be."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffax.nn import EDM2, Attention, DiT, TimeEmbedding, UNet
from diffax.nn.text import Captioned
from experiments.configs import default
from experiments.models import build, networks, objectives
from experiments.run import checks

SHAPE = (8, 8, 1)


def config(**changes):
    """A small DiT with changes of config.network."""
    config = default.get_config()
    config.network.update({"name": "dit", "channels": 16, "num_heads": 2, "depth": 1, **changes})
    return config


def test_each_name_is_its_network():
    assert isinstance(networks.network(default.get_config(), 10), UNet)
    found = networks.network(config(depth=3, patch_size=4, positions="rope", learned_variance=True), 10)
    assert isinstance(found, DiT)
    assert (found.depth, found.patch_size, found.positions, found.outputs) == (3, 4, "rope", 2)
    assert (found.channels, found.num_heads, found.num_classes) == (16, 2, 10)


def test_each_key_of_a_u_net_is_a_setting_of_it():
    keys = {"channels": 16, "channel_multipliers": (1, 1.5, 2), "num_res_blocks": 3, "attention_levels": (0, 2)}
    options = {"num_heads": 4, "dropout_rate": 0.2, "time": "log_snr", "learned_variance": True, "remat": True}
    settings = config(name="unet", dtype="bfloat16", **keys, **options)
    expected = UNet(
        channels=16,
        channel_multipliers=(1, 1.5, 2),
        num_res_blocks=3,
        attention=Attention((0, 2), num_heads=4),
        time=TimeEmbedding(25.0),
        dropout_rate=0.2,
        num_classes=10,
        outputs=2,
        remat=True,
        dtype=jnp.bfloat16,
    )
    assert networks.network(settings, 10) == expected
    settings.text.enabled, settings.network.conditional = True, False
    attention = Attention((0, 2), num_heads=4, context_dim=128)
    captioned = expected.clone(attention=attention, vector_dim=128, num_classes=None)
    assert networks.network(settings, None).network == captioned


@pytest.mark.parametrize(("time", "scale"), [("t", 4.0), ("log_snr", 0.1)])
def test_edm2_has_heads_of_its_channels_and_small_times(time, scale):
    net = networks.network(config(name="edm2", channels=24, num_heads=3, time=time), 10)
    assert isinstance(net, EDM2)
    assert (net.head_channels, net.time_scale, net.num_classes) == (8, scale, 10)


def test_the_optimiser_puts_edm2_s_weights_back():
    settings = config(name="edm2", channel_multipliers=(1,), attention_levels=(), num_res_blocks=1)
    net, optimizer = networks.network(settings, 10), build.optimizer(settings)

    @jax.jit
    def moved(key):
        params = build.init_params(settings, net, SHAPE, key)
        updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
        return optax.apply_updates(params, updates)["conv_in"]["weight"]

    weight = moved(jax.random.key(0))
    np.testing.assert_allclose(jnp.sqrt(jnp.mean(weight**2, (0, 1, 2))), 1, rtol=1e-3)


def test_what_is_evaluated_has_forward_derivatives():
    plain = networks.network(config(), 10)
    assert networks.forwards(plain).implementation == "xla"
    u_net = networks.network(config(name="unet"), 10)
    assert networks.forwards(u_net) == u_net.clone(attention=Attention(num_heads=2, implementation="xla"))
    settings = config(conditional=False)
    settings.text.enabled = True
    captioned = networks.forwards(networks.network(settings, None))
    assert captioned.network.implementation == "xla"
    assert captioned.network.clone(implementation=None) == networks.network(settings, None).network


@pytest.mark.slow
def test_a_dit_reads_captions():
    settings = config(conditional=False)
    settings.text.enabled = True
    checks.check_config(settings, 1)
    net = networks.network(settings, None)
    assert isinstance(net, Captioned)
    params = jax.jit(lambda key: build.init_params(settings, net, SHAPE, key))(jax.random.key(0))
    # The answer is zero at first, and so are the maps from what is read: all of them are moved.
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), params)
    x, tokens = jnp.zeros((2, *SHAPE)), jnp.array([[3, 4, 0], [3, 4, 0]])
    call = jax.jit(lambda tokens: build.predict(settings, net, params, tokens)(x, 0.5))
    y, other = call(tokens), call(tokens.at[1, 1].set(5))
    np.testing.assert_array_equal(y[0], other[0])
    assert jnp.abs(y[1] - other[1]).max() > 1e-4


@pytest.mark.slow
def test_a_dit_has_a_loss_and_a_gradient():
    settings = config()
    net = networks.network(settings, 10)
    batch = {"image": jnp.ones((4, *SHAPE)), "label": jnp.arange(4), "index": jnp.arange(4)}

    @jax.jit
    def step(key):
        params = build.init_params(settings, net, SHAPE, key)
        keys = jax.random.split(key, 4)
        return jax.grad(lambda params: objectives.objective(settings, net).loss(params, batch, keys).mean())(params)

    gradient = step(jax.random.key(0))
    assert jnp.abs(gradient["out"]["kernel"]).max() > 0
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "vit"}, "config.network.name must be one of unet, dit, edm2, mlp, got 'vit'"),
        ({"depth": 0}, "config.network.depth must be an int >= 1, got 0"),
        ({"patch_size": 0}, "config.network.patch_size must be an int >= 1, got 0"),
        ({"positions": "learned"}, "config.network.positions must be one of sincos, rope, none, got 'learned'"),
        ({"num_heads": 3}, "config.network.num_heads must divide config.network.channels = 16, got 3"),
    ],
)
def test_bad_input(changes, message):
    with pytest.raises(ValueError, match=message):
        checks.check_config(config(**changes), 1)


def test_edm2_reads_no_captions():
    settings = config(name="edm2", conditional=False)
    settings.text.enabled = True
    with pytest.raises(ValueError, match=r"config.text.enabled must be False for config.network.name = 'edm2'"):
        checks.check_config(settings, 1)


def test_a_patch_that_does_not_divide():
    networks.check_shape(config(patch_size=4), (28, 28, 1))
    with pytest.raises(ValueError, match=r"config.network.patch_size must divide the sizes of \(28, 28, 1\), got 3"):
        networks.check_shape(config(patch_size=3), (28, 28, 1))


def test_other_models_have_no_dit():
    with pytest.raises(ValueError, match=r"config.network.name must be .unet. for training a classifier, got .dit."):
        checks.check_model(config(), "classifier")
