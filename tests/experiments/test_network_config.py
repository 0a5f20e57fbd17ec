"""config.network: the network of each config, and errors for invalid settings."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from commands import DATA, built

from diffax.nn import EDM2, Attention, DiT, TimeEmbedding, UNet
from diffax.nn.description import with_forward_mode
from diffax.nn.text import Captioned
from experiments.configs import default
from experiments.model import build

SHAPE = (8, 8, 1)


def config(**changes):
    """A small DiT with changes of config.network."""
    config = default.get_config()
    config.network.update({"name": "dit", "channels": 16, "num_heads": 2, "depth": 1, **changes})
    return config


def network(settings):
    """The network of a config."""
    return build(settings, DATA["digits"]).diffusion.module


def test_each_name_builds_its_network():
    assert isinstance(network(default.get_config()), UNet)
    net = network(config(depth=3, patch_size=4, positions="rope", learned_variance=True))
    assert isinstance(net, DiT)
    assert (net.depth, net.patch_size, net.positions, net.outputs) == (3, 4, "rope", 2)
    assert (net.channels, net.num_heads, net.num_classes) == (16, 2, 10)


def test_each_key_of_a_u_net_reaches_its_setting():
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
    assert network(settings) == expected
    settings.text.enabled, settings.network.conditional = True, False
    attention = Attention((0, 2), num_heads=4, context_dim=128)
    captioned = expected.clone(attention=attention, vector_dim=128, num_classes=None)
    assert network(settings).network == captioned


@pytest.mark.parametrize(("time", "scale"), [("t", 4.0), ("log_snr", 0.1)])
def test_edm2_has_the_head_channels_and_the_time_scale_of_its_config(time, scale):
    net = network(config(name="edm2", channels=24, num_heads=3, time=time))
    assert isinstance(net, EDM2)
    assert (net.head_channels, net.time_scale, net.num_classes) == (8, scale, 10)


def test_the_optimiser_normalises_the_weights_of_edm2():
    settings = config(name="edm2", channel_multipliers=(1,), attention_levels=(), num_res_blocks=1)
    model = built(settings)
    optimizer = model.optimizer.make()

    @jax.jit
    def moved(key):
        params = model.init(key)
        updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
        return optax.apply_updates(params, updates)["conv_in"]["weight"]

    weight = moved(jax.random.key(0))
    np.testing.assert_allclose(jnp.sqrt(jnp.mean(weight**2, (0, 1, 2))), 1, rtol=1e-3)


def test_networks_are_evaluated_with_attention_that_has_forward_derivatives():
    plain = network(config())
    assert with_forward_mode(plain).implementation == "xla"
    u_net = network(config(name="unet"))
    assert with_forward_mode(u_net) == u_net.clone(attention=Attention(num_heads=2, implementation="xla"))
    settings = config(conditional=False)
    settings.text.enabled = True
    captioned = with_forward_mode(network(settings))
    assert captioned.network.implementation == "xla"
    assert captioned.network.clone(implementation=None) == network(settings).network


@pytest.mark.slow
def test_a_dit_uses_its_captions():
    settings = config(conditional=False)
    settings.text.enabled = True
    model = built(settings)
    assert isinstance(model.diffusion.module, Captioned)
    params = jax.jit(model.init)(jax.random.key(0))
    # The output and the maps from the captions are zero at initialisation, so all parameters are changed.
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), params)
    x, tokens = jnp.zeros((2, *SHAPE)), jnp.array([[3, 4, 0], [3, 4, 0]])
    call = jax.jit(lambda tokens: model.diffusion.predict(params, tokens)(x, jnp.full(2, 0.5)))
    y, other = call(tokens), call(tokens.at[1, 1].set(5))
    np.testing.assert_array_equal(y[0], other[0])
    assert jnp.abs(y[1] - other[1]).max() > 1e-4


@pytest.mark.slow
def test_a_dit_has_a_loss_and_a_gradient():
    model = built(config())
    batch = {"x": jnp.ones((4, *SHAPE)), "label": jnp.arange(4), "index": jnp.arange(4)}

    @jax.jit
    def step(key):
        params, keys = model.init(key), jax.random.split(key, 4)
        return jax.grad(lambda params: model.objective().loss(params, batch, keys).mean())(params)

    gradient = step(jax.random.key(0))
    assert jnp.abs(gradient["out"]["kernel"]).max() > 0
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "vit"}, "config.network.name must be one of unet, dit, edm2, mlp, diffusers, got 'vit'"),
        ({"depth": 0}, "config.network.depth must be an int >= 1, got 0"),
        ({"patch_size": -1}, "config.network.patch_size must be an int >= 1, got -1"),
        ({"positions": "learned"}, "config.network.positions must be one of sincos, rope, none, got 'learned'"),
        ({"num_heads": 3}, "config.network.num_heads must divide the 16 channels, got 3"),
        (
            {"name": "unet", "attention_levels": (2,)},
            r"config\.network\.attention_levels must be in \[0, 2\), .* got 2",
        ),
        (
            {"name": "edm2", "attention_levels": (2,)},
            r"config\.network\.attention_levels must be in \[0, 2\), .* got 2",
        ),
    ],
)
def test_bad_input(changes, message):
    with pytest.raises(ValueError, match=message):
        built(config(**changes))


def test_edm2_does_not_support_captions():
    settings = config(name="edm2", conditional=False)
    settings.text.enabled = True
    with pytest.raises(
        ValueError, match=r"config.network.name must be unet or dit with config.text.enabled, got 'edm2'"
    ):
        built(settings)


def test_a_patch_that_does_not_divide_the_image_is_refused():
    built(config(patch_size=4), data=DATA["mnist5k"])
    with pytest.raises(ValueError, match=r"config.network must fit examples of shape \(28, 28, 1\): .*patch \(3, 3\)"):
        built(config(patch_size=3), data=DATA["mnist5k"])


def test_a_classifier_cannot_be_a_dit():
    settings = config()
    settings.model = "classifier"
    with pytest.raises(
        ValueError, match=r"config.network.name must be .unet. for config.model = .classifier., got .dit."
    ):
        built(settings)
