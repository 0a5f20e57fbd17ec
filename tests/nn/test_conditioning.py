"""Networks with an array condition: fields as channels, vectors in the embedding, and invalid shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffax.nn.conditioning import conditioned
from diffax.nn.description import from_description, with_forward_mode
from diffax.nn.dit import DiT

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (2, 4, 4, 3))
SETTINGS = {
    "channels": 8, "dropout_rate": 0.0, "num_classes": None, "outputs": 2, "time_scale": 1000.0, "dtype": "float32",
    "channel_multipliers": [1], "num_res_blocks": 1, "attention_levels": [], "num_heads": 1, "remat": False, "depth": 1,
    "patch_size": 2, "positions": "sincos", "text": None,
}  # fmt: skip


def described(name, shape):
    return from_description({**SETTINGS, "name": name, "condition": {"shape": list(shape), "channels": X.shape[-1]}})


def random_params(net, x=X):
    """Parameters without zeros. At initialisation the output is zero and would not depend on the condition."""
    shapes = jax.eval_shape(lambda: net.init(KEY, x, jnp.ones(len(x))))
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(tree, [jnp.asarray(0.3 * rng.normal(size=v.shape), v.dtype) for v in leaves])


@pytest.mark.parametrize("shape", [(4, 4, 2), (5,)], ids=["field", "vector"])
@pytest.mark.parametrize("name", ["mlp", "dit", "unet", "edm2"])
@pytest.mark.slow_cases("unet-vector", "edm2-vector", "edm2-field")
def test_each_network_uses_its_condition_and_no_condition_means_zeros(name, shape):
    net = described(name, shape)
    params, apply = random_params(net), jax.jit(net.apply)
    condition = jax.random.normal(jax.random.key(1), (2, *shape))
    y = apply(params, X, jnp.full(2, 0.5), condition)
    assert y.shape == (2, 4, 4, 6)
    other = apply(params, X, jnp.full(2, 0.5), condition.at[1].add(1.0))
    np.testing.assert_allclose(other[0], y[0], atol=1e-4)  # only the condition of the other example changed
    assert jnp.abs(other[1] - y[1]).max() > 1e-2
    zeros = apply(params, X, jnp.full(2, 0.5), jnp.zeros_like(condition))
    np.testing.assert_allclose(apply(params, X, jnp.full(2, 0.5)), zeros, atol=1e-5)


def test_a_field_condition_acts_at_its_positions():
    """In a network without attention between patches, a patch of the condition changes only the same patch of y."""
    net = conditioned(DiT(patch_size=2, channels=8, depth=1, num_heads=1, positions="none"), (4, 4, 1), 3)
    params = random_params(net)
    values = params["params"]["network"]["block_0"]["self"]["out"]
    values["kernel"] = jnp.zeros_like(values["kernel"])
    condition = jnp.zeros((2, 4, 4, 1))
    change = net.apply(params, X, 0.5, condition.at[:, :2, 2:].set(1.0)) - net.apply(params, X, 0.5, condition)
    moved = jnp.abs(change).max((0, 3)) > 1e-4
    assert moved[:2, 2:].any()
    assert not moved[2:].any()
    assert not moved[:, :2].any()


def test_a_vector_is_repeated_for_points_and_sets():
    point = conditioned(from_description({**SETTINGS, "name": "mlp", "outputs": 1}), (5,), 2)
    x = jnp.ones((3, 2))
    params = random_params(point, x)
    y = point.apply(params, x, 0.5, jnp.ones((3, 5)))
    assert y.shape == (3, 2)
    assert jnp.abs(y - point.apply(params, x, 0.5, jnp.zeros((3, 5)))).max() > 1e-2


def test_conditions_of_points_outside_the_mask_are_ignored():
    net = conditioned(DiT(patch_size=None, channels=8, depth=1, num_heads=1), (4, 2), 3)
    x, condition, mask = X[:, 0], jnp.ones((2, 4, 2)), jnp.arange(4)[None] < jnp.array([[4], [2]])
    params = random_params(net, x)
    y = net.apply(params, x, 0.5, condition, mask=mask)
    other = net.apply(params, x, 0.5, condition.at[1, 3].set(9.0), mask=mask)
    np.testing.assert_allclose(other, y, atol=1e-5)
    assert jnp.abs(net.apply(params, x, 0.5, condition.at[1, 1].set(9.0), mask=mask) - y).max() > 1e-3


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"condition must have shape \(D,\) or \(4, 4, C\) for x .*, got \(8, 8, 2\)"):
        described("mlp", (8, 8, 2)).init(KEY, X, 0.5)
    with pytest.raises(ValueError, match=r"condition must have shape \(2, 5\), got \(2, 4\)"):
        described("mlp", (5,)).init(KEY, X, 0.5, jnp.ones((2, 4)))


def test_with_forward_mode_selects_the_xla_attention():
    net = with_forward_mode(described("dit", (5,)))
    assert net.network.implementation == "xla"
    assert net.shape == (5,)
