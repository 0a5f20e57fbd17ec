"""Networks with a second time: at initialisation they equal the network of one time; forward derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffax import nn
from diffax.nn.attention import Attention
from diffax.nn.layers import TimeEmbedding

X = jnp.linspace(-1, 1, 2 * 4 * 4 * 2).reshape(2, 4, 4, 2)
NETWORKS = {
    "unet": nn.UNet(
        channels=4,
        channel_multipliers=(1,),
        num_res_blocks=1,
        num_classes=3,
        attention=Attention(levels=(0,), implementation="xla"),
        time=TimeEmbedding(1.0),
    ),
    "dit": nn.DiT(channels=8, depth=1, num_heads=1, num_classes=3, time_scale=1.0, implementation="xla"),
    "edm2": nn.EDM2(
        channels=8,
        channel_multipliers=(1,),
        num_res_blocks=1,
        attention_levels=(),
        head_channels=8,
        implementation="xla",
    ),
    "mlp": nn.MLP(channels=8, depth=1, num_classes=3, time_scale=1.0),
}


def nonzero(params, key):
    """The parameters plus noise, because y is 0 with the initial zeros of the last layers."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(
        structure, [v + 0.1 * jax.random.normal(k, v.shape) for v, k in zip(leaves, keys, strict=True)]
    )


@pytest.mark.slow_cases("unet", "dit", "edm2")
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_with_a_second_time_starts_as_the_network_of_one_time_and_depends_on_both(name):
    one, t, s = NETWORKS[name], jnp.array([0.9, 0.4]), jnp.array([0.3, 0.4])
    two = one.clone(second_time=True, guidance_input=True)
    params = one.init(jax.random.key(0), X, t)["params"]
    params = nonzero(params, jax.random.key(1))
    whole = {**two.init(jax.random.key(2), X, t)["params"], **params}
    assert set(whole) - set(params) == {"few_step"}
    y = one.apply({"params": params}, X, t)
    for options in ({}, {"s": s}, {"s": s, "weight": 3.0}):
        np.testing.assert_allclose(two.apply({"params": whole}, X, t, **options), y, atol=1e-6)
    whole["few_step"] = nonzero(whole["few_step"], jax.random.key(3))
    moved = two.apply({"params": whole}, X, t, s=s)
    at_once = two.apply({"params": whole}, X, t, s=t)
    assert float(abs(moved - at_once)[0].max()) > 1e-4
    np.testing.assert_allclose(moved[1], at_once[1], atol=1e-6)  # the second example has s = t
    np.testing.assert_allclose(two.apply({"params": whole}, X, t), at_once, atol=1e-6)
    guided = two.apply({"params": whole}, X, t, s=s, weight=jnp.array([1.0, 4.0]))
    np.testing.assert_allclose(guided[0], moved[0], atol=1e-6)
    assert float(abs(guided - moved)[1].max()) > 1e-4
    f = lambda x, t: two.apply({"params": whole}, x, t, s=s)
    _, slope = jax.jvp(f, (X, t), (X, jnp.ones_like(t)))
    h = 2e-3
    difference = (f(X + h * X, t + h) - f(X - h * X, t - h)) / (2 * h)
    np.testing.assert_allclose(slope, difference, atol=2e-2 * float(abs(slope).max()))


@pytest.mark.parametrize("name", NETWORKS)
def test_inputs_without_a_setting_are_refused(name):
    t = jnp.array([0.9, 0.4])
    with pytest.raises(ValueError, match="s must be None for a network without second_time, got"):
        NETWORKS[name].init(jax.random.key(0), X, t, s=t)
    with pytest.raises(ValueError, match="weight must be None for a network without guidance_input, got 2"):
        NETWORKS[name].clone(second_time=True).init(jax.random.key(0), X, t, weight=2.0)
    with pytest.raises(ValueError, match="guidance_input must be False without second_time, got True"):
        NETWORKS[name].clone(guidance_input=True).init(jax.random.key(0), X, t)
    with pytest.raises(ValueError, match=r"s must have shape"):
        NETWORKS[name].clone(second_time=True).init(jax.random.key(0), X, t, s=jnp.ones(3))
