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


def shaken(net, x, **kwargs):
    """Parameters with nothing left at zero."""
    params = jax.jit(net.init)(KEY, x, jnp.zeros(len(x)), **kwargs)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda p: p + 0.2 * rng.normal(size=p.shape).astype(p.dtype), params)


def shapes(net, shape, **kwargs):
    return jax.eval_shape(lambda: net.init_with_output(KEY, jnp.ones(shape), 0.5, **kwargs)[0]).shape


@pytest.mark.slow_cases("L-458-458102816", "XL-675-675129632")
@pytest.mark.newest
@pytest.mark.parametrize(
    ("size", "millions", "published"),
    [("S", 33, 32_963_360), ("B", 130, 130_512_416), ("L", 458, 458_102_816), ("XL", 675, 675_129_632)],
)
def test_published_sizes(size, millions, published):
    """Peebles & Xie 2023, table 4: latents 32x32x4 in patches of 2, 1000 classes and none, learned sigma.

    Their code also counts the fixed positions, 256 tokens x D, among its parameters. Counted by hand, with D channels:
    a block has 4 D^2 + 4 D (attention), 8 D^2 + 5 D (feed-forward), 6 D^2 + 6 D (modulation).
    """
    net = DiT(**DIT_SIZES[size], patch_size=2, num_classes=1000, outputs=2)
    params = jax.eval_shape(net.init, KEY, jnp.zeros((1, 32, 32, 4)), jnp.zeros(1))
    d = net.channels
    embedding = (256 * d + d) + (d * d + d) + 1001 * d
    around = (16 * d + d) + (2 * d * d + 2 * d) + (32 * d + 32)
    assert count(params) + 256 * d == net.depth * (18 * d * d + 15 * d) + embedding + around + 256 * d == published
    assert abs(published / 1e6 - millions) < 0.6
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def numpy_sincos(places, dim):
    """One axis: sin and cos of p / 10000^(k / (dim / 2))."""
    out = np.asarray(places, np.float64)[:, None] / 10_000 ** (np.arange(dim // 2) / (dim / 2))
    return np.concatenate([np.sin(out), np.cos(out)], 1)


def test_sincos_is_the_published_formula():
    """MAE's and DiT's: of two axes, the half of the channels that comes first has the column."""
    rows, columns = (v.ravel() for v in np.meshgrid(np.arange(3), np.arange(5), indexing="ij"))
    expected = np.concatenate([numpy_sincos(columns, 8), numpy_sincos(rows, 8)], 1)
    np.testing.assert_allclose(sincos((3, 5), 16), expected, atol=1e-7)
    np.testing.assert_allclose(sincos((7,), 6), numpy_sincos(np.arange(7), 6), atol=1e-7)
    frames, rows, columns = (v.ravel() for v in np.meshgrid(*map(np.arange, (2, 3, 4)), indexing="ij"))
    expected = [numpy_sincos(columns, 6), numpy_sincos(rows, 4), numpy_sincos(frames, 4)]  # 7 frequencies on 3 axes
    np.testing.assert_allclose(sincos((2, 3, 4), 14), np.concatenate(expected, 1), atol=1e-7)


def test_positions_of_another_size():
    """They go on, or are spread over the grid of training."""
    small, large = sincos((3, 5), 8).reshape(3, 5, 8), sincos((4, 6), 8).reshape(4, 6, 8)
    np.testing.assert_array_equal(large[:3, :5], small)
    np.testing.assert_array_equal(sincos((4,), 8, base=4), sincos((4,), 8))
    np.testing.assert_allclose(sincos((8,), 8, base=4), numpy_sincos(np.arange(8) / 2, 8), atol=1e-7)
    np.testing.assert_allclose(rotary_angles((8,), 4, base=4)[:, 0], np.arange(8) / 2)


@pytest.mark.newest
def test_a_grid_of_training_for_each_axis():
    """3 x 2 in training, 6 x 8 now: places p / 2 on one axis and p / 4 on the other."""
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
def test_a_video_has_a_grid_of_training_for_each_axis(positions):
    """Of the grid at hand it is as without one; of another the result is another."""
    x = jax.random.normal(KEY, (1, 2, 4, 2, 1))
    net = DiT(patch_size=(1, 2, 1), positions=positions, **TINY)
    params = shaken(net, x)
    nets = (net.clone(position_grid=grid) for grid in (None, (2, 2, 2), (1, 2, 4)))
    y, same, other = (jax.jit(net.apply)(params, x, jnp.full(1, 0.5)) for net in nets)
    np.testing.assert_allclose(same, y, atol=1e-5)
    assert float(jnp.abs(other - y).max()) > 1e-3


def test_rotary_scores_depend_on_relative_positions_alone():
    """Of one vector everywhere the score of i and j is the sum of |pair k|^2 cos(w_k (i - j))."""
    vector = np.random.default_rng(0).normal(size=8).astype(np.float32)
    x = jnp.broadcast_to(jnp.asarray(vector), (1, 9, 1, 8))
    turned = rotate(x, rotary_angles((9,), 8))[0, :, 0]
    power = vector[:4] ** 2 + vector[4:] ** 2
    difference = np.arange(9)[:, None] - np.arange(9)
    expected = (power * np.cos(difference[..., None] / 10_000 ** (np.arange(4) / 4))).sum(-1)
    np.testing.assert_allclose(turned @ turned.T, expected, atol=1e-5)


def test_rotary_scores_on_two_and_three_axes():
    """Queries and keys that are the same everywhere: scores of all pairs with the same difference agree, others not."""
    for grid, dim in (((4, 5), 10), ((2, 3, 3), 8)):
        rng = np.random.default_rng(0)
        q, k = (
            jnp.broadcast_to(jnp.asarray(rng.normal(size=dim), jnp.float32), (1, np.prod(grid), 1, dim)) for _ in "qk"
        )
        angles = rotary_angles(grid, dim)
        scores = np.asarray(rotate(q, angles)[0, :, 0] @ rotate(k, angles)[0, :, 0].T)
        places = np.array(list(itertools.product(*map(range, grid))))
        seen = {}
        for i, j in itertools.product(range(len(places)), repeat=2):
            seen.setdefault(tuple(places[i] - places[j]), []).append(scores[i, j])
        assert len(seen) == np.prod([2 * n - 1 for n in grid])
        assert max(np.ptp(v) for v in seen.values()) < 1e-4
        assert np.diff(np.sort([np.mean(v) for v in seen.values()])).min() > 1e-4


@pytest.mark.parametrize(("grid", "patch"), [((3,), (2,)), ((2, 3), (2, 1)), ((2, 1, 3), (1, 3, 2))])
def test_tokens_are_put_back_where_their_patches_were_cut(grid, patch):
    space = [n * p for n, p in zip(grid, patch, strict=True)]
    x = np.random.default_rng(0).normal(size=(2, *space, 3))
    tokens = []
    for place in itertools.product(*map(range, grid)):
        window = tuple(slice(i * p, (i + 1) * p) for i, p in zip(place, patch, strict=True))
        tokens.append(x[(slice(None), *window)].reshape(2, -1))
    np.testing.assert_array_equal(_join(jnp.asarray(np.stack(tokens, 1)), grid, patch), x.astype(np.float32))


def test_attention_is_the_plain_formula():
    """softmax(q k / sqrt(d)) v by hand, in NumPy and float64."""
    q, k, v = (jax.random.normal(key, (2, n, 3, 4)) for key, n in zip(jax.random.split(KEY, 3), (5, 6, 6), strict=True))
    mask = jnp.array([[1, 1, 0, 1, 0, 1], [0, 1, 1, 1, 1, 1]], bool)
    for given in (None, mask):
        found = attend(q, k, v, given)
        scores = np.einsum("bnhd,bmhd->bhnm", *(np.asarray(a, np.float64) for a in (q, k))) / 2
        scores = scores if given is None else np.where(np.asarray(given)[:, None, None], scores, -np.inf)
        weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        np.testing.assert_allclose(found, np.einsum("bhnm,bmhd->bnhd", weights, np.asarray(v)), atol=1e-6)


@pytest.mark.newest
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN needs a GPU")
@pytest.mark.parametrize("mask", [None, [[1, 1, 0, 1, 0, 1], [0, 0, 0, 0, 0, 0]]])
def test_the_fused_kernel_is_xla_s_attention(mask):
    """In bfloat16, with its gradient."""
    parts = zip(jax.random.split(KEY, 3), (8, 6, 6), strict=True)
    qkv = tuple(jax.random.normal(key, (2, n, 3, 16), jnp.bfloat16) for key, n in parts)

    def value(implementation, *qkv):
        found = attend(*qkv, mask, implementation=implementation)
        return jnp.sum(found.astype(jnp.float32) ** 2), found

    fused, plain = (
        jax.jit(jax.grad(functools.partial(value, name), (0, 1, 2), has_aux=True))(*qkv) for name in ("cudnn", "xla")
    )
    for a, b in zip(jax.tree.leaves(fused), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), rtol=0.05, atol=0.05)


@pytest.fixture
def asked(monkeypatch):
    """What is asked of `jax.nn.dot_product_attention` on a device: (backend, compute capability) -> a list to come."""

    def pretend(backend, capability):
        found, device = [], type("Device", (), {} if capability is None else {"compute_capability": capability})
        monkeypatch.setattr(jax, "default_backend", lambda: backend)
        monkeypatch.setattr(jax, "local_devices", lambda: [device])

        def seen(q, k, v, *, mask=None, implementation=None):
            found.append((implementation, None if mask is None else mask.shape))
            return q

        monkeypatch.setattr(jax.nn, "dot_product_attention", seen)
        return found

    return pretend


@pytest.mark.newest
@pytest.mark.parametrize(
    ("backend", "capability", "dtype", "heads", "fused"),
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
def test_a_gpu_is_asked_for_its_fused_kernel_where_it_has_one(asked, backend, capability, dtype, heads, fused):
    """For self-attention without a mask; what is named is passed on, "cudnn" with a mask for each query."""
    found = asked(backend, capability)
    q, short, mask = jnp.ones((2, 4, 1, heads), dtype), jnp.ones((2, 3, 1, heads), dtype), jnp.ones((2, 4), bool)
    attend(q, q, q)
    attend(q, short, short)
    attend(q, q, q, mask)
    attend(q, q, q, implementation="xla")
    attend(q, q, q, mask, implementation="cudnn")
    assert found == [
        ("cudnn" if fused else None, None),
        (None, None),
        (None, (2, 1, 1, 4)),
        ("xla", None),
        ("cudnn", (2, 1, 4, 4)),
    ]


@pytest.mark.newest
@pytest.mark.parametrize("positions", ["sincos", "rope"])
def test_a_network_in_half_precision_gets_there(asked, positions):
    found = asked("gpu", "9.0")
    net = DiT(channels=16, depth=1, num_heads=2, positions=positions, **TEXT, dtype=jnp.bfloat16)
    shapes(net, (2, 4, 4, 1), context=jnp.ones((2, 3, 5)))
    shapes(net.clone(implementation="xla"), (2, 4, 4, 1))
    assert [name for name, _ in found] == ["cudnn", None, "xla", "xla"]


@pytest.fixture(scope="module")
def small():
    """A network of all conditions, its parameters, an input, its conditions, and the compiled call."""
    net = DiT(num_classes=3, dropout_rate=0.5, patch_size=(1, 2), **TEXT, **TINY)
    x = jax.random.normal(KEY, (3, 3, 4, 2))
    given = {
        "context": jax.random.normal(jax.random.key(1), (3, 4, 5)),
        "context_mask": jnp.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], bool),
    }
    call = jax.jit(net.apply)

    def apply(params, x, t, label=3, **given):
        """Broadcast, so that few shapes compile."""
        return call(params, x, jnp.broadcast_to(jnp.float32(t), len(x)), jnp.broadcast_to(label, len(x)), **given)

    return net, shaken(net, x), x, given, apply


@pytest.mark.newest
def test_the_first_answer_is_zero():
    net = DiT(num_classes=3, outputs=2, **TEXT, **TINY)
    x, context = jax.random.normal(KEY, (2, 4, 4, 3)), jnp.ones((2, 3, 5))
    y, params = jax.jit(functools.partial(net.init_with_output, context=context))(KEY, x, 0.5, 1)
    assert y.shape == (2, 4, 4, 6)
    assert not y.any()
    for name in ("modulation", "cross"):
        part = params["params"]["block_0"][name]
        assert not any(leaf.any() for leaf in jax.tree.leaves(part if name == "modulation" else part["out"]))


def test_an_example_depends_on_its_own_conditions_alone(small):
    _, params, x, given, apply = small
    t, label = jnp.array([0.1, 0.5, 0.9]), jnp.array([0, 1, 3])
    y = apply(params, x, t, label, **given)
    more = {**given, "context": given["context"].at[0].add(1.0)}
    others = (
        apply(params, x, t.at[0].set(0.3), label, **given),
        apply(params, x, t, label.at[0].set(2), **given),
        apply(params, x, t, label, **more),
    )
    for other in others:
        assert float(jnp.abs(other[0] - y[0]).max()) > 1e-3
        np.testing.assert_allclose(other[1:], y[1:], atol=1e-5)
    one = {name: value[1:2] for name, value in given.items()}
    np.testing.assert_allclose(apply(params, x[1:2], t[1], label[1], **one)[0], y[1], atol=1e-5)


def test_no_label_is_the_null_label(small):
    net, params, x, given, apply = small
    y = apply(params, x, 0.5, 3, **given)
    np.testing.assert_array_equal(y, jax.jit(net.apply)(params, x, jnp.full(3, 0.5), None, **given))
    assert float(jnp.abs(y - apply(params, x, 0.5, 0, **given)).max()) > 1e-3


def test_tokens_that_are_not_there_change_nothing(small):
    """Those that are masked; and all of them is none, which is a call without context."""
    _, params, x, given, apply = small
    y = apply(params, x, 0.5, **given)
    every = apply(params, x, 0.5, **{**given, "context_mask": jnp.ones((3, 4), bool)})
    assert float(jnp.abs(every - y)[1:].max(axis=(1, 2, 3)).min()) > 1e-3
    far = {**given, "context": given["context"].at[1, 2:].set(7.0).at[2].set(-7.0)}
    np.testing.assert_allclose(apply(params, x, 0.5, **far), y, atol=1e-5)
    short = {name: value[:, :2] for name, value in given.items()}
    np.testing.assert_allclose(apply(params, x, 0.5, **short)[1:], y[1:], atol=1e-5)
    np.testing.assert_allclose(apply(params, x, 0.5)[2], y[2], atol=1e-5)


def test_an_example_without_any_token_has_a_finite_gradient(small):
    net, params, x, given, _ = small
    loss = lambda params, x, context: jnp.sum(net.apply(params, x, 0.5, **{**given, "context": context}) ** 2)
    grads = jax.jit(jax.grad(loss, (0, 1, 2)))(params, x, given["context"])
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert not grads[2][2].any()
    assert not grads[2][1, 2:].any()
    assert float(jnp.abs(grads[2][0]).min()) > 0


def test_dropout_goes_by_example(small):
    _, params, x, given, apply = small
    keys = jax.random.split(KEY, 3)
    y = apply(params, x, 0.5, 0, key=keys, **given)
    again = apply(params, x, 0.5, 0, key=keys.at[2].set(keys[0]), **given)
    np.testing.assert_allclose(again[:2], y[:2], atol=1e-5)
    assert float(jnp.abs(apply(params, x, 0.5, 0, **given) - y).max(axis=(1, 2, 3)).min()) > 1e-3
    assert float(jnp.abs(again[2] - y[2]).max()) > 1e-3


def test_bfloat16_computes_near_float32_with_float32_parameters(small):
    net, params, x, given, apply = small
    y = apply(params, x, 0.5, 0, **given)
    short = jax.jit(net.clone(dtype=jnp.bfloat16).apply)(params, x, 0.5, 0, **given)
    assert short.dtype == jnp.float32
    assert 0 < float(jnp.abs(short - y).max()) < 0.1 * float(jnp.abs(y).max())


@pytest.mark.slow
def test_remat_changes_no_number(small):
    """The same parameters, by name, the same answer and gradient, with dropout."""
    net, params, x, given, _ = small
    keys = jax.random.split(jax.random.key(3), len(x))

    def value(net, params):
        return jnp.sum(net.apply(params, x, 0.5, 1, key=keys, **given) ** 2)

    again = net.clone(remat=True)
    assert jax.tree.structure(jax.eval_shape(again.init, KEY, x, 0.5)) == jax.tree.structure(params)
    ours, theirs = (jax.jit(jax.value_and_grad(lambda p, n=n: value(n, p)))(params) for n in (again, net))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-4), ours, theirs)
    text = jax.jit(jax.grad(lambda p: value(again, p))).lower(params).as_text()
    assert "optimization_barrier" in text  # what keeps XLA from merging the two computations


@pytest.mark.slow_cases(but=["none"])
@pytest.mark.parametrize("positions", ["sincos", "rope", "none"])
def test_one_set_of_parameters_fits_all_sizes(positions):
    """Without positions a shift of whole patches shifts the result; with them it does not."""
    net = DiT(positions=positions, **TINY)
    x = jax.random.normal(KEY, (2, 4, 6, 1))
    params, apply = shaken(net, x), jax.jit(net.apply)
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
    assert shapes(net, shape) == shape
    assert shapes(net.clone(outputs=2), shape) == (*shape[:-1], 2 * shape[-1])
    assert shapes(net.clone(out_channels=7), shape) == (*shape[:-1], 7)


@pytest.fixture(scope="module")
def points():
    """A network on sets of points, its parameters, an input and the compiled call."""
    net = DiT(patch_size=None, num_classes=3, **TINY)
    x = jax.random.normal(KEY, (2, 7, 3))
    return net, shaken(net, x), x, jax.jit(net.apply)


def test_the_result_moves_with_the_points(points):
    _, params, x, apply = points
    order = np.random.default_rng(0).permutation(7)
    y = apply(params, x, 0.5, 1)
    np.testing.assert_allclose(apply(params, x[:, order], 0.5, 1), y[:, order], atol=1e-5)
    assert float(jnp.abs(apply(params, x.at[:, 0].add(1.0), 0.5, 1) - y)[:, 1:].max()) > 1e-3


def test_points_that_are_not_there_change_nothing(points):
    """Whatever they hold; the others answer as a set without them, and their own answer is zero."""
    _, params, x, apply = points
    mask = jnp.array([[1, 0, 1, 1, 0, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
    y = apply(params, x, 0.5, 1, mask=mask)
    there = np.array([0, 2, 3, 5, 6])
    np.testing.assert_allclose(y[0, there], apply(params, x[:1, there], 0.5, 1)[0], atol=1e-5)
    np.testing.assert_allclose(y[1], apply(params, x, 0.5, 1)[1], atol=1e-5)
    assert not y[0, np.array([1, 4])].any()
    for content in (9.0, jnp.nan):
        padded = jnp.where(mask[..., None] == 1, x, content)
        np.testing.assert_array_equal(apply(params, padded, 0.5, 1, mask=mask), y)
    grads = jax.jit(jax.grad(lambda x: apply(params, x, 0.5, 1, mask=mask.at[1].set(0)).sum()))(x)
    assert np.isfinite(grads).all()
    assert not grads[1].any()


@pytest.mark.parametrize(
    ("settings", "shape", "given", "message"),
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
        ({"context_dim": 5}, (2, 8, 8, 1), {}, "context_dim must be given with cross_attention alone, got 5"),
        ({"position_grid": 0}, (2, 8, 8, 1), {}, "position_grid must be an int >= 1, got 0"),
        ({"position_grid": (4, 4, 4)}, (2, 8, 8, 1), {}, "position_grid must be an int or one for each of the 2 axes"),
        ({"patch_size": None, "position_grid": 4}, (2, 8, 1), {}, "position_grid must be None where there are no posi"),
        ({"channels": 9, "num_heads": 3}, (2, 8, 8, 1), {}, "channels must be even and at least 4 for positions on 2"),
        ({"num_heads": 4, "positions": "rope"}, (2, 8, 8, 1), {}, "channels of a head must be even and at least 4 for"),
        ({}, (2, 8, 8, 1), {"label": 0}, "label must be None where num_classes is None, got 0"),
        ({"num_classes": 3}, (2, 8, 8, 1), {"label": np.array([0, 4])}, r"label must be in \[0, 3\], got \[0, 4\]"),
        ({}, (2, 8, 8, 1), {"context": np.ones((2, 3, 4))}, "context was given to a network without it: set cross_att"),
        ({"cross_attention": True}, (2, 8, 8, 1), {}, "context must be given to a network with cross_attention, or"),
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
        ({}, (2, 8, 8, 1), {"vector": np.ones((2, 4))}, "vector was given to a network without it: set vector_dim"),
        (
            {"vector_dim": 3},
            (2, 8, 8, 1),
            {"vector": np.ones((2, 4))},
            r"vector must have shape \(2, 3\), got \(2, 4\)",
        ),
        ({}, (2, 8, 8, 1), {"mask": np.ones((2, 8))}, "mask was given to a network of patches of 2: it is for points"),
        ({"patch_size": None}, (2, 8, 1), {"mask": np.ones(8)}, r"mask must have shape \(2, 8\), got \(8,\)"),
    ],
)
def test_bad_input_is_refused(settings, shape, given, message):
    net = DiT(**{**TINY, **settings})
    with pytest.raises(ValueError, match=message):
        shapes(net, shape, **given)
