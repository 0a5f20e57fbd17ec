"""The diffusion transformer: its size, positions, patches, conditioning, sets of points, precision."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffax.nn.attention import attend
from diffax.nn.dit import DIT_SIZES, DiT, _join
from diffax.nn.positions import rotary_angles, rotate, sincos

KEY = jax.random.key(0)
TINY = {"channels": 12, "depth": 2, "num_heads": 2}
TEXT = {"cross_attention": True, "context_dim": 5}


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def perturbed(net, x, **kwargs):
    """Initial parameters plus noise, so that none is zero."""
    params = jax.jit(net.init)(KEY, x, jnp.zeros(len(x)), **kwargs)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda p: p + 0.2 * rng.normal(size=p.shape).astype(p.dtype), params)


def output_shape(net, shape, **kwargs):
    """The shape of the output for an input of this shape."""
    return jax.eval_shape(lambda: net.init_with_output(KEY, jnp.ones(shape), 0.5, **kwargs)[0]).shape


@pytest.mark.slow_cases("L-458-458102816", "XL-675-675129632")
@pytest.mark.newest
@pytest.mark.parametrize(
    ("size", "millions", "published"),
    [("S", 33, 32_963_360), ("B", 130, 130_512_416), ("L", 458, 458_102_816), ("XL", 675, 675_129_632)],
)
def test_the_networks_have_the_published_sizes(size, millions, published):
    """Peebles & Xie 2023, table 4: latents 32x32x4 in patches of 2, 1000 classes and a null class, learned sigma.

    The published code also counts the fixed positions, 256 tokens x D, as parameters. With D channels a block has
    4 D^2 + 4 D (attention), 8 D^2 + 5 D (feed-forward), 6 D^2 + 6 D (modulation).
    """
    net = DiT(**DIT_SIZES[size], patch_size=2, num_classes=1000, outputs=2)
    params = jax.eval_shape(net.init, KEY, jnp.zeros((1, 32, 32, 4)), jnp.zeros(1))
    d = net.channels
    embedding = (256 * d + d) + (d * d + d) + 1001 * d
    around = (16 * d + d) + (2 * d * d + 2 * d) + (32 * d + 32)
    assert count(params) + 256 * d == net.depth * (18 * d * d + 15 * d) + embedding + around + 256 * d == published
    assert abs(published / 1e6 - millions) < 0.6
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def numpy_sincos(positions, dim):
    """On one axis: sin and cos of p / 10000^(k / (dim / 2))."""
    angles = np.asarray(positions, np.float64)[:, None] / 10_000 ** (np.arange(dim // 2) / (dim / 2))
    return np.concatenate([np.sin(angles), np.cos(angles)], 1)


def test_sincos_is_the_published_formula():
    """The formula of MAE and DiT; on two axes the first half of the channels encodes the column."""
    rows, columns = (v.ravel() for v in np.meshgrid(np.arange(3), np.arange(5), indexing="ij"))
    expected = np.concatenate([numpy_sincos(columns, 8), numpy_sincos(rows, 8)], 1)
    np.testing.assert_allclose(sincos((3, 5), 16), expected, atol=1e-7)
    np.testing.assert_allclose(sincos((7,), 6), numpy_sincos(np.arange(7), 6), atol=1e-7)
    frames, rows, columns = (v.ravel() for v in np.meshgrid(*map(np.arange, (2, 3, 4)), indexing="ij"))
    expected = [numpy_sincos(columns, 6), numpy_sincos(rows, 4), numpy_sincos(frames, 4)]  # 7 frequencies on 3 axes
    np.testing.assert_allclose(sincos((2, 3, 4), 14), np.concatenate(expected, 1), atol=1e-7)


def test_positions_continue_or_are_spread_over_the_training_grid():
    """On a larger grid they continue without `base`, and are spread over the training grid with it."""
    small, large = sincos((3, 5), 8).reshape(3, 5, 8), sincos((4, 6), 8).reshape(4, 6, 8)
    np.testing.assert_array_equal(large[:3, :5], small)
    np.testing.assert_array_equal(sincos((4,), 8, base=4), sincos((4,), 8))
    np.testing.assert_allclose(sincos((8,), 8, base=4), numpy_sincos(np.arange(8) / 2, 8), atol=1e-7)
    np.testing.assert_allclose(rotary_angles((8,), 4, base=4)[:, 0], np.arange(8) / 2)


@pytest.mark.newest
def test_each_axis_has_its_own_training_grid():
    """From 3 x 2 in training to 6 x 8: positions p / 2 on one axis and p / 4 on the other."""
    rows, columns = (v.ravel() for v in np.meshgrid(np.arange(6) / 2, np.arange(8) / 4, indexing="ij"))
    expected = np.concatenate([numpy_sincos(columns, 8), numpy_sincos(rows, 8)], 1)
    np.testing.assert_allclose(sincos((6, 8), 16, base=(3, 2)), expected, atol=1e-7)
    np.testing.assert_allclose(rotary_angles((6, 8), 4, base=(3, 2)), np.stack([rows, columns], 1), atol=1e-7)
    np.testing.assert_array_equal(sincos((6, 8), 16, base=(4, 4)), sincos((6, 8), 16, base=4))
    with pytest.raises(ValueError, match=r"base must be an int or one for each of the 2 axes of x, got \(3,\)"):
        sincos((6, 8), 16, base=(3,))


@pytest.mark.slow_cases("sincos")
@pytest.mark.newest
@pytest.mark.parametrize("positions", ["sincos", "rope"])
def test_a_video_has_a_training_grid_for_each_axis(positions):
    """A training grid equal to the grid of the input changes nothing; another one changes the output."""
    x = jax.random.normal(KEY, (1, 2, 4, 2, 1))
    net = DiT(patch_size=(1, 2, 1), positions=positions, **TINY)
    params = perturbed(net, x)
    nets = (net.clone(position_grid=grid) for grid in (None, (2, 2, 2), (1, 2, 4)))
    y, same, other = (jax.jit(net.apply)(params, x, jnp.full(1, 0.5)) for net in nets)
    np.testing.assert_allclose(same, y, atol=1e-5)
    assert float(jnp.abs(other - y).max()) > 1e-3


def test_rotary_scores_depend_only_on_relative_positions():
    """With one vector at all positions, the score of i and j is the sum of |pair k|^2 cos(w_k (i - j))."""
    vector = np.random.default_rng(0).normal(size=8).astype(np.float32)
    x = jnp.broadcast_to(jnp.asarray(vector), (1, 9, 1, 8))
    rotated = rotate(x, rotary_angles((9,), 8))[0, :, 0]
    power = vector[:4] ** 2 + vector[4:] ** 2
    difference = np.arange(9)[:, None] - np.arange(9)
    expected = (power * np.cos(difference[..., None] / 10_000 ** (np.arange(4) / 4))).sum(-1)
    np.testing.assert_allclose(rotated @ rotated.T, expected, atol=1e-5)


def test_rotary_scores_on_more_axes_depend_only_on_relative_positions():
    """With one query and one key at all positions, scores agree where differences of positions do, and only there."""
    for grid, dim in (((4, 5), 10), ((2, 3, 3), 8)):
        rng = np.random.default_rng(0)
        q, k = (
            jnp.broadcast_to(jnp.asarray(rng.normal(size=dim), jnp.float32), (1, np.prod(grid), 1, dim)) for _ in "qk"
        )
        angles = rotary_angles(grid, dim)
        scores = np.asarray(rotate(q, angles)[0, :, 0] @ rotate(k, angles)[0, :, 0].T)
        positions = np.array(list(itertools.product(*map(range, grid))))
        by_difference = {}
        for i, j in itertools.product(range(len(positions)), repeat=2):
            by_difference.setdefault(tuple(positions[i] - positions[j]), []).append(scores[i, j])
        assert len(by_difference) == np.prod([2 * n - 1 for n in grid])
        assert max(np.ptp(v) for v in by_difference.values()) < 1e-4
        assert np.diff(np.sort([np.mean(v) for v in by_difference.values()])).min() > 1e-4


@pytest.mark.parametrize(("grid", "patch"), [((3,), (2,)), ((2, 3), (2, 1)), ((2, 1, 3), (1, 3, 2))])
def test_join_puts_each_token_in_the_place_of_its_patch(grid, patch):
    space = [n * p for n, p in zip(grid, patch, strict=True)]
    x = np.random.default_rng(0).normal(size=(2, *space, 3))
    tokens = []
    for place in itertools.product(*map(range, grid)):
        window = tuple(slice(i * p, (i + 1) * p) for i, p in zip(place, patch, strict=True))
        tokens.append(x[(slice(None), *window)].reshape(2, -1))
    np.testing.assert_array_equal(_join(jnp.asarray(np.stack(tokens, 1)), grid, patch), x.astype(np.float32))


def test_attention_equals_its_formula_in_numpy():
    """softmax(q k / sqrt(d)) v in float64, without and with a mask of keys."""
    q, k, v = (jax.random.normal(key, (2, n, 3, 4)) for key, n in zip(jax.random.split(KEY, 3), (5, 6, 6), strict=True))
    mask = jnp.array([[1, 1, 0, 1, 0, 1], [0, 1, 1, 1, 1, 1]], bool)
    for key_mask in (None, mask):
        result = attend(q, k, v, key_mask)
        scores = np.einsum("bnhd,bmhd->bhnm", *(np.asarray(a, np.float64) for a in (q, k))) / 2
        scores = scores if key_mask is None else np.where(np.asarray(key_mask)[:, None, None], scores, -np.inf)
        weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        np.testing.assert_allclose(result, np.einsum("bhnm,bmhd->bnhd", weights, np.asarray(v)), atol=1e-6)


@pytest.mark.newest
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN needs a GPU")
@pytest.mark.parametrize("mask", [None, [[1, 1, 0, 1, 0, 1], [0, 0, 0, 0, 0, 0]]])
def test_the_fused_kernel_equals_the_attention_of_xla(mask):
    """Output and gradient, in bfloat16."""
    parts = zip(jax.random.split(KEY, 3), (8, 6, 6), strict=True)
    qkv = tuple(jax.random.normal(key, (2, n, 3, 16), jnp.bfloat16) for key, n in parts)

    def value(implementation, *qkv):
        result = attend(*qkv, mask, implementation=implementation)
        return jnp.sum(result.astype(jnp.float32) ** 2), result

    fused, plain = (
        jax.jit(jax.grad(functools.partial(value, name), (0, 1, 2), has_aux=True))(*qkv) for name in ("cudnn", "xla")
    )
    for a, b in zip(jax.tree.leaves(fused), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), rtol=0.05, atol=0.05)


@pytest.fixture
def attention_calls(monkeypatch):
    """A function that simulates a device and returns the list of later calls of `jax.nn.dot_product_attention`."""

    def simulate(backend, capability):
        calls, device = [], type("Device", (), {} if capability is None else {"compute_capability": capability})
        monkeypatch.setattr(jax, "default_backend", lambda: backend)
        monkeypatch.setattr(jax, "local_devices", lambda: [device])

        def record(q, k, v, *, mask=None, implementation=None):
            calls.append((implementation, None if mask is None else mask.shape))
            return q

        monkeypatch.setattr(jax.nn, "dot_product_attention", record)
        return calls

    return simulate


@pytest.mark.newest
@pytest.mark.parametrize(
    ("backend", "capability", "dtype", "head_size", "fused"),
    [
        ("gpu", "9.0", "bfloat16", 256, True),
        ("gpu", "9.0", "float16", 264, False),
        ("gpu", "8.0", "float16", 128, True),
        ("gpu", "8.6", "bfloat16", 136, False),
        ("gpu", "10.0", "bfloat16", 128, True),
        ("gpu", "10.0", "bfloat16", 256, False),
        ("gpu", "9.0", "bfloat16", 12, False),
        ("gpu", "9.0", "float32", 64, False),
        ("gpu", "7.5", "float16", 64, False),
        ("gpu", "gfx942", "bfloat16", 64, False),
        ("gpu", None, "bfloat16", 64, False),
        ("cpu", None, "bfloat16", 64, False),
        ("tpu", None, "bfloat16", 64, False),
    ],
)
def test_the_fused_kernel_is_used_where_the_gpu_has_one(attention_calls, backend, capability, dtype, head_size, fused):
    """Self-attention without a mask uses it. A named implementation is kept; "cudnn" gets a mask for each query."""
    calls = attention_calls(backend, capability)
    q, short = jnp.ones((2, 4, 1, head_size), dtype), jnp.ones((2, 3, 1, head_size), dtype)
    mask = jnp.ones((2, 4), bool)
    attend(q, q, q)
    attend(q, short, short)
    attend(q, q, q, mask)
    attend(q, q, q, implementation="xla")
    attend(q, q, q, mask, implementation="cudnn")
    assert calls == [
        ("cudnn" if fused else None, None),
        (None, None),
        (None, (2, 1, 1, 4)),
        ("xla", None),
        ("cudnn", (2, 1, 4, 4)),
    ]


@pytest.mark.newest
@pytest.mark.parametrize("positions", ["sincos", "rope"])
def test_a_network_in_half_precision_uses_the_fused_kernel(attention_calls, positions):
    calls = attention_calls("gpu", "9.0")
    net = DiT(channels=16, depth=1, num_heads=2, positions=positions, **TEXT, dtype=jnp.bfloat16)
    output_shape(net, (2, 4, 4, 1), context=jnp.ones((2, 3, 5)))
    output_shape(net.clone(implementation="xla"), (2, 4, 4, 1))
    assert [name for name, _ in calls] == ["cudnn", None, "xla", "xla"]


@pytest.fixture(scope="module")
def small():
    """A network with all conditions, its parameters, an input, its conditions, and the compiled call."""
    net = DiT(num_classes=3, dropout_rate=0.5, patch_size=(1, 2), **TEXT, **TINY)
    x = jax.random.normal(KEY, (3, 3, 4, 2))
    conditions = {
        "context": jax.random.normal(jax.random.key(1), (3, 4, 5)),
        "context_mask": jnp.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], bool),
    }
    call = jax.jit(net.apply)

    def apply(params, x, t, label=3, **conditions):
        """Broadcasts t and label, so that little is compiled."""
        return call(params, x, jnp.broadcast_to(jnp.float32(t), len(x)), jnp.broadcast_to(label, len(x)), **conditions)

    return net, perturbed(net, x), x, conditions, apply


@pytest.mark.newest
def test_the_initial_output_is_zero():
    net = DiT(num_classes=3, outputs=2, **TEXT, **TINY)
    x, context = jax.random.normal(KEY, (2, 4, 4, 3)), jnp.ones((2, 3, 5))
    y, params = jax.jit(functools.partial(net.init_with_output, context=context))(KEY, x, 0.5, 1)
    assert y.shape == (2, 4, 4, 6)
    assert not y.any()
    for name in ("modulation", "cross"):
        part = params["params"]["block_0"][name]
        assert not any(leaf.any() for leaf in jax.tree.leaves(part if name == "modulation" else part["out"]))


def test_an_example_depends_only_on_its_own_conditions(small):
    _, params, x, conditions, apply = small
    t, label = jnp.array([0.1, 0.5, 0.9]), jnp.array([0, 1, 3])
    y = apply(params, x, t, label, **conditions)
    other_context = {**conditions, "context": conditions["context"].at[0].add(1.0)}
    others = (
        apply(params, x, t.at[0].set(0.3), label, **conditions),
        apply(params, x, t, label.at[0].set(2), **conditions),
        apply(params, x, t, label, **other_context),
    )
    for other in others:
        assert float(jnp.abs(other[0] - y[0]).max()) > 1e-3
        np.testing.assert_allclose(other[1:], y[1:], atol=1e-5)
    one = {name: value[1:2] for name, value in conditions.items()}
    np.testing.assert_allclose(apply(params, x[1:2], t[1], label[1], **one)[0], y[1], atol=1e-5)


def test_no_label_is_the_null_label(small):
    net, params, x, conditions, apply = small
    y = apply(params, x, 0.5, 3, **conditions)
    np.testing.assert_array_equal(y, jax.jit(net.apply)(params, x, jnp.full(3, 0.5), None, **conditions))
    assert float(jnp.abs(y - apply(params, x, 0.5, 0, **conditions)).max()) > 1e-3


def test_masked_context_tokens_change_nothing(small):
    """Their content does not matter, and a fully masked context equals a call without context."""
    _, params, x, conditions, apply = small
    y = apply(params, x, 0.5, **conditions)
    unmasked = apply(params, x, 0.5, **{**conditions, "context_mask": jnp.ones((3, 4), bool)})
    assert float(jnp.abs(unmasked - y)[1:].max(axis=(1, 2, 3)).min()) > 1e-3
    other_content = {**conditions, "context": conditions["context"].at[1, 2:].set(7.0).at[2].set(-7.0)}
    np.testing.assert_allclose(apply(params, x, 0.5, **other_content), y, atol=1e-5)
    short = {name: value[:, :2] for name, value in conditions.items()}
    np.testing.assert_allclose(apply(params, x, 0.5, **short)[1:], y[1:], atol=1e-5)
    np.testing.assert_allclose(apply(params, x, 0.5)[2], y[2], atol=1e-5)


def test_an_example_with_a_fully_masked_context_has_a_finite_gradient(small):
    net, params, x, conditions, _ = small
    loss = lambda params, x, context: jnp.sum(net.apply(params, x, 0.5, **{**conditions, "context": context}) ** 2)
    grads = jax.jit(jax.grad(loss, (0, 1, 2)))(params, x, conditions["context"])
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert not grads[2][2].any()
    assert not grads[2][1, 2:].any()
    assert float(jnp.abs(grads[2][0]).min()) > 0


def test_dropout_depends_on_the_key_of_each_example(small):
    _, params, x, conditions, apply = small
    keys = jax.random.split(KEY, 3)
    y = apply(params, x, 0.5, 0, key=keys, **conditions)
    other_key = apply(params, x, 0.5, 0, key=keys.at[2].set(keys[0]), **conditions)
    np.testing.assert_allclose(other_key[:2], y[:2], atol=1e-5)
    assert float(jnp.abs(apply(params, x, 0.5, 0, **conditions) - y).max(axis=(1, 2, 3)).min()) > 1e-3
    assert float(jnp.abs(other_key[2] - y[2]).max()) > 1e-3


def test_bfloat16_computes_near_float32_with_float32_parameters(small):
    net, params, x, conditions, apply = small
    y = apply(params, x, 0.5, 0, **conditions)
    result = jax.jit(net.clone(dtype=jnp.bfloat16).apply)(params, x, 0.5, 0, **conditions)
    assert result.dtype == jnp.float32
    assert 0 < float(jnp.abs(result - y).max()) < 0.1 * float(jnp.abs(y).max())


@pytest.mark.slow
def test_remat_changes_no_number(small):
    """The names of the parameters, the value and the gradient are the same, with dropout."""
    net, params, x, conditions, _ = small
    keys = jax.random.split(jax.random.key(3), len(x))

    def value(net, params):
        return jnp.sum(net.apply(params, x, 0.5, 1, key=keys, **conditions) ** 2)

    remat = net.clone(remat=True)
    assert jax.tree.structure(jax.eval_shape(remat.init, KEY, x, 0.5)) == jax.tree.structure(params)
    result, expected = (jax.jit(jax.value_and_grad(lambda p, n=n: value(n, p)))(params) for n in (remat, net))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-4), result, expected)
    text = jax.jit(jax.grad(lambda p: value(remat, p))).lower(params).as_text()
    assert "optimization_barrier" in text  # it keeps XLA from merging the two computations


@pytest.mark.slow_cases(but=["none"])
@pytest.mark.parametrize("positions", ["sincos", "rope", "none"])
def test_one_set_of_parameters_fits_all_sizes(positions):
    """Without positions a shift of whole patches shifts the result; with them it does not."""
    net = DiT(positions=positions, **TINY)
    x = jax.random.normal(KEY, (2, 4, 6, 1))
    params, apply = perturbed(net, x), jax.jit(net.apply)
    for shape in ((2, 4, 6, 1), (2, 8, 2, 1)):
        x = jax.random.normal(KEY, shape)
        y, shifted = apply(params, x, 0.5), apply(params, jnp.roll(x, 2, 1), 0.5)
        assert y.shape == shape
        assert bool(jnp.isfinite(y).all())
        same = float(jnp.abs(jnp.roll(y, 2, 1) - shifted).max()) < 1e-4
        assert same == (positions == "none")


@pytest.mark.newest
@pytest.mark.parametrize(
    ("shape", "patch"),
    [((2, 9, 3), 3), ((2, 4, 6, 1), 2), ((2, 4, 6, 1), (4, 1)), ((1, 2, 6, 4, 2), (1, 2, 2)), ((2, 5, 3), None)],
)
def test_one_to_three_dimensions(shape, patch):
    net = DiT(patch_size=patch, **TINY)
    assert output_shape(net, shape) == shape
    assert output_shape(net.clone(outputs=2), shape) == (*shape[:-1], 2 * shape[-1])
    assert output_shape(net.clone(out_channels=7), shape) == (*shape[:-1], 7)


@pytest.fixture(scope="module")
def points():
    """A network on sets of points, its parameters, an input and the compiled call."""
    net = DiT(patch_size=None, num_classes=3, **TINY)
    x = jax.random.normal(KEY, (2, 7, 3))
    return net, perturbed(net, x), x, jax.jit(net.apply)


def test_the_output_permutes_with_the_points(points):
    _, params, x, apply = points
    order = np.random.default_rng(0).permutation(7)
    y = apply(params, x, 0.5, 1)
    np.testing.assert_allclose(apply(params, x[:, order], 0.5, 1), y[:, order], atol=1e-5)
    assert float(jnp.abs(apply(params, x.at[:, 0].add(1.0), 0.5, 1) - y)[:, 1:].max()) > 1e-3


def test_masked_points_change_nothing(points):
    """Outputs are those of the set without them, for any content, also NaN; outputs of masked points are 0."""
    _, params, x, apply = points
    mask = jnp.array([[1, 0, 1, 1, 0, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
    y = apply(params, x, 0.5, 1, mask=mask)
    present = np.array([0, 2, 3, 5, 6])
    np.testing.assert_allclose(y[0, present], apply(params, x[:1, present], 0.5, 1)[0], atol=1e-5)
    np.testing.assert_allclose(y[1], apply(params, x, 0.5, 1)[1], atol=1e-5)
    assert not y[0, np.array([1, 4])].any()
    for content in (9.0, jnp.nan):
        padded = jnp.where(mask[..., None] == 1, x, content)
        np.testing.assert_array_equal(apply(params, padded, 0.5, 1, mask=mask), y)
    grads = jax.jit(jax.grad(lambda x: apply(params, x, 0.5, 1, mask=mask.at[1].set(0)).sum()))(x)
    assert np.isfinite(grads).all()
    assert not grads[1].any()


@pytest.mark.parametrize(
    ("settings", "shape", "conditions", "message"),
    [
        ({}, (2, 8), {}, r"x must have shape \(B, \*space, C\) with 1 to 3 spatial axes, got \(2, 8\)"),
        ({}, (2, 8, 7, 1), {}, r"x must have sizes that are multiples of the patch \(2, 2\), got \(2, 8, 7, 1\)"),
        ({"patch_size": (2,)}, (2, 8, 8, 1), {}, r"patch_size must be an int or one for each of the 2 axes of x, got"),
        ({"patch_size": 0}, (2, 8, 8, 1), {}, "patch_size must be an int >= 1, got 0"),
        ({"patch_size": (2, -1)}, (2, 8, 8, 1), {}, "patch_size must be an int >= 1, got -1"),
        ({"patch_size": None}, (2, 8, 8, 1), {}, r"x must have shape \(B, n, C\) where patch_size is None, got"),
        ({"patch_size": None, "positions": "rope"}, (2, 8, 1), {}, "positions must be none where patch_size is None"),
        ({"positions": "learned"}, (2, 8, 8, 1), {}, "positions must be one of sincos, rope, none, got 'learned'"),
        ({"num_heads": 5}, (2, 8, 8, 1), {}, "num_heads must divide the 12 channels, got 5"),
        ({"depth": 0}, (2, 8, 8, 1), {}, "depth must be an int >= 1, got 0"),
        ({"outputs": 0}, (2, 8, 8, 1), {}, "outputs must be an int >= 1, got 0"),
        ({"mlp_ratio": 0.0}, (2, 8, 8, 1), {}, "mlp_ratio must be at least 1 / channels, got 0.0"),
        ({"dropout_rate": 1.0}, (2, 8, 8, 1), {}, r"dropout_rate must be in \[0, 1\), got 1.0"),
        ({"context_dim": 5}, (2, 8, 8, 1), {}, "context_dim must be None without cross_attention, got 5"),
        ({"position_grid": 0}, (2, 8, 8, 1), {}, "position_grid must be an int >= 1, got 0"),
        ({"position_grid": (4, 4, 4)}, (2, 8, 8, 1), {}, "position_grid must be an int or one for each of the 2 axes"),
        ({"patch_size": None, "position_grid": 4}, (2, 8, 1), {}, "position_grid must be None where there are no posi"),
        ({"channels": 9, "num_heads": 3}, (2, 8, 8, 1), {}, "channels must be even and at least 4 for positions on 2"),
        ({"num_heads": 4, "positions": "rope"}, (2, 8, 8, 1), {}, "channels of a head must be even and at least 4 for"),
        ({}, (2, 8, 8, 1), {"label": 0}, "label must be None where num_classes is None, got 0"),
        ({"num_classes": 3}, (2, 8, 8, 1), {"label": np.array([0, 4])}, r"label must be in \[0, 3\], got \[0, 4\]"),
        ({}, (2, 8, 8, 1), {"context": np.ones((2, 3, 4))}, "context must be None for a network without cross_atten"),
        (
            {"cross_attention": True},
            (2, 8, 8, 1),
            {},
            "context must be an array for a network with cross_attention and",
        ),
        (
            TEXT,
            (2, 8, 8, 1),
            {"context": np.ones((2, 3, 4))},
            r"context must have shape \(2, any, 5\), got",
        ),
        (
            TEXT,
            (2, 8, 8, 1),
            {"context": np.ones((2, 3, 5)), "context_mask": np.ones((2, 4))},
            r"context_mask must have shape \(2, 3\), got \(2, 4\)",
        ),
        (
            TEXT,
            (2, 8, 8, 1),
            {"context_mask": np.ones((2, 4))},
            "context_mask must be None without a context, got an array of shape",
        ),
        ({}, (2, 8, 8, 1), {"vector": np.ones((2, 4))}, "vector must be None for a network without vector_dim, got"),
        (
            {"vector_dim": 3},
            (2, 8, 8, 1),
            {"vector": np.ones((2, 4))},
            r"vector must have shape \(2, 3\), got \(2, 4\)",
        ),
        (
            {},
            (2, 8, 8, 1),
            {"mask": np.ones((2, 8))},
            "mask must be None unless x is a set of points",
        ),
        ({"patch_size": None}, (2, 8, 1), {"mask": np.ones(8)}, r"mask must have shape \(2, 8\), got \(8,\)"),
    ],
)
def test_bad_input_is_refused(settings, shape, conditions, message):
    net = DiT(**{**TINY, **settings})
    with pytest.raises(ValueError, match=message):
        output_shape(net, shape, **conditions)
