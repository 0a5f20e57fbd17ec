"""EDM2's U-Net: numbers and sizes of the published code, magnitudes, weights without a scale, conditioning."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffax.nn.edm2 import EDM2, Block, MPConv, forced_weight_norm, fourier, mp_cat, mp_silu, mp_sum, normalised, unit

KEY = jax.random.key(0)
SMALL = {"channels": 8, "channel_multipliers": (1, 2), "num_res_blocks": 1, "attention_levels": (1,)}
SMALL |= {"head_channels": 8, "num_classes": 3}


def fill(path, leaf):
    """Standard normal weights that depend only on the path, and 0.7 for each gain."""
    seed = zlib.crc32("/".join(part.key for part in path[1:]).encode())
    value = np.random.RandomState(seed).normal(size=leaf.shape) if leaf.shape else 0.7
    return jnp.asarray(value, jnp.float32)


def filled(net, x):
    return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(net.init, KEY, x, jnp.zeros(len(x))))


# Outputs of the published code with the weights of `fill` and the constants of `fourier`.
PUBLISHED = [0.06966139, 0.08574568, -1.183643, 0.7954009, 0.06111408, -0.47328755, 1.7196589, -1.3542864]
PUBLISHED_STD = [0.69832325, 0.7651243]


def rms(x):
    return float(np.sqrt(np.mean(np.asarray(x) ** 2)))


@pytest.mark.slow_cases("128-124710821-125")
@pytest.mark.newest
@pytest.mark.parametrize(
    ("channels", "published", "millions"),
    [(128, 124_710_821, 125), (192, 280_209_253, 280)],
)
def test_the_imagenet_64_networks_have_the_published_sizes(channels, published, millions):
    """Karras et al. 2024, table 2: XS and S. A dropped label is a zero vector there; here it has a row of its own."""
    net = EDM2(channels=channels, num_classes=1000)
    params = jax.eval_shape(net.init, KEY, jnp.zeros((1, 64, 64, 3)), jnp.zeros(1))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count - 4 * channels == published
    assert round(count / 1e6) == millions
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


@pytest.fixture(scope="module")
def square():
    """A small network, its parameters, a (2, 8, 8, 2) input, times, labels and the compiled call."""
    net = EDM2(time_scale=1.0, **SMALL)
    x = np.sqrt(2) * np.cos(1.7 * np.arange(256)).reshape(2, 8, 8, 2)
    x = jnp.asarray(x, jnp.float32)
    return filled(net, x), x, jnp.array([-1.0, 0.6]), jnp.array([1, 3]), jax.jit(net.apply)


def test_the_published_code_gives_the_same_numbers(square):
    """NVlabs/edm2, training/networks_edm2.py at d8299d3, run in torch 2.13.0 with four labels, the last one null."""
    params, x, t, label, apply = square
    y = apply(params, x, t, label)
    np.testing.assert_allclose(y[:, ::4, ::5, 0].ravel(), PUBLISHED, atol=1e-5)
    np.testing.assert_allclose(y.reshape(2, -1).std(1), PUBLISHED_STD, atol=1e-5)


def test_the_scale_of_a_weight_changes_nothing(square):
    """Up to the 1e-4 that is added to its norm."""
    params, x, t, label, apply = square
    scaled = jax.tree.map(lambda leaf: leaf * 3 if leaf.ndim else leaf, params)
    np.testing.assert_allclose(apply(scaled, x, t, label), apply(params, x, t, label), atol=5e-3)
    np.testing.assert_allclose(apply(jax.jit(normalised)(params), x, t, label), apply(params, x, t, label), atol=5e-3)


@pytest.fixture(scope="module")
def line():
    """A network of one level in 1 dimension with dropout, its parameters, the loss of a network, value and gradient."""
    x, t, keys = jax.random.normal(KEY, (2, 4, 1)), jnp.array([0.2, 0.7]), jax.random.split(jax.random.key(3), 2)
    net = EDM2(channels=8, channel_multipliers=(1,), num_res_blocks=1, attention_levels=(), head_channels=8)
    net = net.clone(num_classes=3, dropout_rate=0.5)
    params = filled(net, x)

    def loss(net):
        return lambda params: jnp.sum(net.apply(params, x, t, 1, key=keys) ** 3)

    return net, params, loss, jax.jit(jax.value_and_grad(loss(net)))(params)


def test_a_gradient_is_orthogonal_to_its_weight(line):
    """For each output channel of each layer that has a gradient; a dropped channel has none."""
    _, params, _, (_, grads) = line

    def cosine(g, w):
        g, w = (np.asarray(v, np.float64).reshape(-1, v.shape[-1]) for v in (g, w))
        assert np.linalg.norm(g) > 1e-3
        return np.abs((g * w).sum(0)) / np.maximum(np.linalg.norm(g, axis=0), 1e-4) / np.linalg.norm(w, axis=0)

    worst = jax.tree.map(lambda g, w: cosine(g, w).max() if w.ndim else 0.0, grads, params)
    assert max(jax.tree.leaves(worst)) < 1e-3
    assert all(float(jnp.abs(leaf)) > 1e-4 for leaf in jax.tree.leaves(grads) if not leaf.ndim)


@pytest.mark.slow
def test_remat_changes_no_number(line):
    """The names of the parameters, the value and the gradient are the same, with dropout."""
    net, params, loss, expected = line
    remat = net.clone(remat=True)
    shapes = jax.eval_shape(remat.init, KEY, jnp.zeros((2, 4, 1)), jnp.zeros(2))
    assert jax.tree.structure(shapes) == jax.tree.structure(params)
    lowered = jax.jit(jax.value_and_grad(loss(remat))).lower(params)
    assert "optimization_barrier" in lowered.as_text()
    result = lowered.compile()(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), result, expected)


def test_weights_have_unit_magnitude_after_a_step_of_the_optimiser():
    """`forced_weight_norm` changes neither the gains nor the kernels of other networks."""
    rng = np.random.default_rng(0)
    params = {
        "edm2": {"conv": {"weight": rng.normal(size=(3, 3, 4, 5))}, "gain": 0.3},
        "text": {"kernel": np.ones((2, 3))},
    }
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    grads = jax.tree.map(jnp.cos, params)
    adam = optax.adam(0.1)
    forced = optax.chain(adam, optax.stateless(forced_weight_norm))

    def step(optimizer):
        return optax.apply_updates(params, jax.jit(optimizer.update)(grads, optimizer.init(params), params)[0])

    plain, normalised_params = step(adam), step(forced)
    weight = normalised_params["edm2"]["conv"]["weight"]
    np.testing.assert_allclose(jnp.sqrt(jnp.mean(weight**2, (0, 1, 2))), 1, atol=2e-4)
    plain_weight = np.asarray(plain["edm2"]["conv"]["weight"])
    np.testing.assert_allclose(weight, plain_weight / np.sqrt((plain_weight**2).mean((0, 1, 2))), atol=1e-3)
    np.testing.assert_allclose(normalised_params["edm2"]["gain"], plain["edm2"]["gain"], rtol=1e-6)
    np.testing.assert_allclose(normalised_params["text"]["kernel"], plain["text"]["kernel"], rtol=1e-6)
    with pytest.raises(ValueError, match="params must be passed to the optimiser's update, got None"):
        forced.update(grads, forced.init(params))


def test_the_functions_keep_magnitudes():
    """On normal numbers; `mp_cat` gives both parts their weights, however many channels each has."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(1000, 100)).astype("f"), rng.normal(size=(1000, 300)).astype("f")
    assert rms(mp_silu(a)) == pytest.approx(1, abs=0.01)
    assert rms(mp_sum(a, b[:, :100], 0.3)) == pytest.approx(1, abs=0.01)
    joined = mp_cat(a, b, 0.5)
    assert rms(joined) == pytest.approx(1, abs=0.01)
    assert rms(joined[:, :100]) / rms(joined[:, 100:]) == pytest.approx(3**0.5, abs=0.02)
    joined = np.asarray(mp_cat(a, b, 0.2))
    assert (joined[:, :100] ** 2).sum() / (joined**2).sum() == pytest.approx(16 / 17, abs=0.01)
    np.testing.assert_allclose(np.mean(np.asarray(unit(5 * a)) ** 2, -1), 1, atol=1e-3)
    assert jnp.isfinite(jax.grad(lambda x: unit(x).sum())(jnp.zeros((2, 3)))).all()


def test_the_kernel_of_the_time_embedding_is_gaussian():
    """It is the expectation of 2 cos(a) cos(b) over normal frequencies and uniform phases."""
    t = jnp.linspace(-2, 2, 41)
    emb = np.asarray(fourier(t, 256))
    expected = np.exp(-((2 * np.pi * (t[:, None] - t)) ** 2) / 2)
    np.testing.assert_allclose(emb @ emb.T / 256, expected, atol=0.05)


@pytest.mark.slow_cases("window2", "window3")
@pytest.mark.parametrize("window", [(), (3,), (3, 3), (3, 3, 3)])
def test_a_layer_keeps_magnitudes_for_any_weights(window):
    """Away from the border, where the input is padded by zeros."""
    x = jax.random.normal(KEY, (4, *(7 for _ in window or (0,)), 32))
    layer = MPConv(64, window)
    params = {"params": {"weight": 5 * jax.random.normal(KEY, (*window, 32, 64)) + 1}}
    y = jax.jit(layer.apply)(params, x)
    assert y.shape == (*x.shape[:-1], 64)
    inner = y[(slice(None), *(slice(1, -1) for _ in window))]
    assert float(jnp.sqrt(jnp.mean(inner**2))) == pytest.approx(1, abs=0.06)


@pytest.mark.slow_cases(but=["False-32-0-0.96"])
@pytest.mark.parametrize(
    ("encoder", "channels", "heads", "minimum"),
    [(True, 32, 0, 0.96), (True, 16, 0, 0.96), (True, 16, 4, 0.9), (False, 32, 0, 0.96), (False, 64, 4, 0.9)],
)
def test_a_block_keeps_magnitudes(encoder, channels, heads, minimum):
    """Zero padding reduces them a little, attention more, because it averages values that do not correlate."""
    x, emb = jax.random.normal(KEY, (4, 16, 16, channels)), jax.random.normal(jax.random.key(1), (4, 64))
    block = Block(32, encoder, heads)
    params = jax.tree_util.tree_map_with_path(fill, jax.eval_shape(block.init, KEY, x, emb))
    params["params"]["emb_gain"] = jnp.zeros(())
    y = jax.jit(block.apply)(params, x, emb)
    assert y.shape == (4, 16, 16, 32)
    assert minimum < rms(y) < 1.04
    large = jax.jit(block.apply)(params, 1000 * x, emb)
    assert encoder == (rms(large) < 1.04)
    assert float(jnp.abs(large).max()) <= 256


def test_the_initial_output_is_zero_and_the_network_keeps_magnitudes():
    """Weights are random and the gains of the embedding 0, as initially; the gain of the output is 0, then 1."""
    net = EDM2(**{**SMALL, "channels": 32}, out_channels=64)
    x, t = jax.random.normal(KEY, (8, 64, 2)), jnp.linspace(0, 1, 8)
    gains = jax.jit(lambda: [leaf for leaf in jax.tree.leaves(net.init(KEY, x, t)) if not leaf.ndim])()
    assert len(gains) == 11  # of 3 encoder blocks, 7 decoder blocks and the output
    assert not any(gains)
    shapes, apply, rng = jax.eval_shape(net.init, KEY, x, t), jax.jit(net.apply), np.random.default_rng(0)
    magnitudes = []
    for _ in range(6):
        params = jax.tree.map(lambda s: rng.normal(size=s.shape).astype("f") if s.shape else np.zeros((), "f"), shapes)
        assert not np.any(apply(params, x, t))
        params["params"]["gain"] = np.ones((), "f")
        magnitudes.append(rms(apply(params, x, t)))
    assert 0.85 < np.mean(magnitudes) < 1.05


@pytest.mark.slow_cases("shape0", "shape3")
@pytest.mark.newest
@pytest.mark.parametrize("shape", [(2, 28, 28, 1), (2, 7, 5, 2), (2, 9, 3), (1, 5, 6, 7, 1)])
def test_odd_sizes_and_one_to_three_dimensions(shape):
    net = EDM2(channels=8, channel_multipliers=(1, 1, 2), num_res_blocks=1, attention_levels=(2,), head_channels=8)
    out, params = jax.eval_shape(lambda: net.init_with_output(KEY, jnp.ones(shape), jnp.zeros(shape[0])))
    assert out.shape == shape
    assert out.dtype == jnp.float32
    assert params["params"]["conv_in"]["weight"].shape == (3,) * (len(shape) - 2) + (shape[-1] + 1, 8)
    wide = jax.eval_shape(lambda: net.clone(outputs=2).init_with_output(KEY, jnp.ones(shape), 0.5)[0])
    assert wide.shape == (*shape[:-1], 2 * shape[-1])


@pytest.fixture(scope="module")
def odd():
    """A small network with dropout, its parameters, an input of odd sizes, and the compiled call."""
    net = EDM2(**{**SMALL, "num_res_blocks": 0}, dropout_rate=0.5)
    x = jax.random.normal(KEY, (4, 7, 5, 1))
    return net, filled(net, x), x, jax.jit(net.apply)


def test_an_example_depends_only_on_its_own_time_and_label(odd):
    _, params, x, apply = odd
    t, label = jnp.array([0.1, 0.5, 0.5, 0.9]), jnp.array([0, 1, 2, 3])
    y = apply(params, x, t, label)
    np.testing.assert_allclose(apply(params, x, jnp.full(4, 0.5), jnp.full(4, 1))[1], y[1], atol=1e-5)
    for other in (apply(params, x, t.at[0].set(0.3), label), apply(params, x, t, label.at[0].set(2))):
        assert float(jnp.abs(other[0] - y[0]).max()) > 1e-2
        np.testing.assert_allclose(other[1:], y[1:], atol=1e-5)


def test_no_label_is_the_null_label(odd):
    _, params, x, apply = odd
    t = jnp.full(4, 0.5)
    y = apply(params, x, t)
    np.testing.assert_allclose(y, apply(params, x, t, jnp.full(4, 3)), atol=1e-6)
    assert float(jnp.abs(y - apply(params, x, t, jnp.full(4, 0))).max()) > 1e-2


def test_dropout_depends_on_the_key_of_each_example(odd):
    _, params, x, apply = odd
    keys, t, label = jax.random.split(KEY, 4), jnp.full(4, 0.5), jnp.full(4, 0)
    y = apply(params, x, t, label, key=keys)
    other_key = apply(params, x, t, label, key=keys.at[3].set(keys[0]))
    np.testing.assert_allclose(other_key[:3], y[:3], atol=1e-5)
    assert float(jnp.abs(other_key[3] - y[3]).max()) > 1e-2
    assert float(jnp.abs(apply(params, x, t, label) - y).max((1, 2, 3)).min()) > 1e-2


def test_bfloat16_computes_near_float32(odd):
    net, params, x, apply = odd
    t, label = jnp.full(4, 0.5), jnp.full(4, 0)
    y, result = apply(params, x, t, label), jax.jit(net.clone(dtype=jnp.bfloat16).apply)(params, x, t, label)
    assert result.dtype == jnp.float32
    assert 0 < float(jnp.abs(result - y).max()) < 0.1 * float(jnp.abs(y).max())


@pytest.mark.parametrize(
    ("settings", "shape", "label", "message"),
    [
        ({}, (2, 8), None, r"x must have shape \(B, \*space, C\) with 1 to 3 spatial axes, got \(2, 8\)"),
        ({"channel_multipliers": (1,) * 4}, (2, 4, 4, 1), None, "channel_multipliers must have at most 3 levels"),
        ({"channel_multipliers": ()}, (2, 8, 8, 1), None, r"must give each level at least one channel, got \(\)"),
        (
            {"attention_levels": (2,)},
            (2, 8, 8, 1),
            None,
            r"attention_levels must be in \[0, 2\), the levels of channel_multipliers, got 2",
        ),
        ({"head_channels": 3}, (2, 8, 8, 1), None, "head_channels must divide the 16 channels, got 3"),
        ({"head_channels": 0}, (2, 8, 8, 1), None, "head_channels must be an int >= 1, got 0"),
        ({"num_res_blocks": -1}, (2, 8, 8, 1), None, "num_res_blocks must be an int >= 0, got -1"),
        ({"outputs": 0}, (2, 8, 8, 1), None, "outputs must be an int >= 1, got 0"),
        ({"dropout_rate": 1.0}, (2, 8, 8, 1), None, r"dropout_rate must be in \[0, 1\), got 1.0"),
        ({"num_classes": None}, (2, 8, 8, 1), 0, "label must be None where num_classes is None, got 0"),
        ({}, (2, 8, 8, 1), np.array([0, 4]), r"label must be in \[0, 3\], got \[0, 4\]"),
    ],
)
def test_bad_input_is_refused(settings, shape, label, message):
    net = EDM2(**{**SMALL, **settings})
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: net.init(KEY, jnp.ones(shape), 0.5, label))
