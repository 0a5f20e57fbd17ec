"""The U-Net: number of parameters, shapes, conditions, per-example dropout, precision."""

import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffax.nn import DiT, UNet
from diffax.nn.attention import Attention, AttentionBlock, CrossAttentionBlock, attend, with_implementation
from diffax.nn.interop import unet
from diffax.nn.layers import Norm, ResBlock, Residual, TimeEmbedding, double, dropout, halve, sinusoidal

KEY = jax.random.key(0)
SMALL = {"channels": 8, "channel_multipliers": (1, 2), "num_res_blocks": 1}
FOLDERS = Path(__file__).parent / "interop"


def count(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def nonzero_params(net, x, **kwargs):
    """Initial parameters plus noise, so that no parameter is zero."""
    params = jax.jit(net.init)(KEY, x, jnp.zeros(len(x)), **kwargs)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda p: p + 0.1 * rng.normal(size=p.shape).astype(p.dtype), params)


# name -> (network, shape of x, number of parameters, in millions if the paper gives no more digits). In ADM the null
# label adds 4 * channels parameters to the published number.
PUBLISHED = {
    "DDPM, CIFAR-10": (UNet.ddpm(), (32, 32, 3), 35_746_307),
    "ADM, ImageNet 64": (UNet.adm(), (64, 64, 3), 296),
    "Stable Diffusion 1.5": (UNet.stable_diffusion(), (64, 64, 4), 859_520_964),
    "Stable Diffusion 2.1": (UNet.stable_diffusion(context_dim=1024, head_channels=64), (64, 64, 4), 865_910_724),
    "ADM, ImageNet 128": (
        UNet.adm(channels=256, channel_multipliers=(1, 1, 2, 3, 4), num_res_blocks=2, attention_levels=(2, 3, 4)),
        (128, 128, 3),
        422,
    ),
    "ADM, ImageNet 256": (
        UNet.adm(channels=256, channel_multipliers=(1, 1, 2, 2, 4, 4), num_res_blocks=2, attention_levels=(3, 4, 5)),
        (256, 256, 3),
        554,
    ),
    "ADM, ImageNet 512": (
        UNet.adm(
            channels=256, channel_multipliers=(0.5, 1, 1, 2, 2, 4, 4), num_res_blocks=2, attention_levels=(4, 5, 6)
        ),
        (512, 512, 3),
        559,
    ),
    "DDPM, 256": (
        UNet.ddpm(channel_multipliers=(1, 1, 2, 2, 4, 4), attention_levels=(4,), dropout_rate=0.0),
        (256, 256, 3),
        114,
    ),
}
FAST = ("DDPM, CIFAR-10", "ADM, ImageNet 64", "Stable Diffusion 1.5")


@pytest.mark.newest
@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in PUBLISHED])
def test_networks_have_the_published_number_of_parameters(name):
    """Ho et al. 2020, appendix B; Dhariwal & Nichol 2021, table 4; the released weights of Stable Diffusion."""
    net, shape, published = PUBLISHED[name]
    params = jax.eval_shape(net.init, KEY, jnp.zeros((1, *shape)), jnp.zeros(1))
    size = count(params)
    assert published == (size if published > 1000 else round(size / 1e6))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("folder", "net"),
    [
        ("unet_cifar10", UNet.ddpm(out_channels=3, dropout_rate=0.0, norm=Norm(32, eps=1e-6))),
        ("unet_sd15", UNet.stable_diffusion(channels=32, context_dim=24, out_channels=4, norm=Norm(32))),
    ],
)
def test_constructors_equal_the_networks_of_diffusers_configs(folder, net):
    """google/ddpm-cifar10-32, and Stable Diffusion 1.5 at a tenth of its width, both with 32 groups."""
    assert unet.build(json.loads((FOLDERS / folder / "config.json").read_text())) == net


@pytest.mark.parametrize("net", [UNet.ddpm(), UNet.adm(), UNet.stable_diffusion()], ids=["ddpm", "adm", "sd"])
def test_published_networks_use_32_groups(net):
    assert {net.norm.num_groups(width) for width in net.widths} == {32}


def test_adm_has_the_settings_of_the_published_code():
    """guided-diffusion: timestep_embedding, --resblock_updown, --use_scale_shift_norm, --num_head_channels 64."""
    net = UNet.adm()
    assert net.time == TimeEmbedding(1000.0, shift=0, cos_first=True)
    assert net.residual == Residual("block", scale_shift=True)
    assert [net.attention.heads(width) for width in net.widths] == [3, 6, 9, 12]


def test_settings_replace_the_published_ones():
    net = UNet.adm(channels=8, head_channels=4, num_classes=None, residual=Residual())
    assert (net.widths, net.num_classes, net.residual) == ([8, 16, 24, 32], None, Residual())
    assert net.attention == Attention((1, 2, 3), head_channels=4)


def test_networks_with_equal_settings_are_equal_and_have_equal_hashes():
    """A network can therefore be a static argument of jit."""
    nets = {UNet.ddpm(), UNet.ddpm(), UNet.ddpm(attention_levels=[1]), UNet.adm()}
    assert len(nets) == 2


CONDITIONED = {"attention": Attention(context_dim=5), "vector_dim": 3, "image_channels": 2}


@pytest.fixture(scope="module")
def conditioned():
    """A network with all kinds of blocks and conditions: (params, x, conditions, compiled apply)."""
    residual = Residual("block", scale_shift=True, rescale=2**0.5)
    attention = Attention(head_channels=4, context_dim=5)
    net = UNet(**SMALL, **CONDITIONED | {"attention": attention}, residual=residual)
    x = jax.random.normal(KEY, (3, 5, 6, 1))
    keys = jax.random.split(KEY, 3)
    conditions = {
        "context": jax.random.normal(keys[0], (3, 4, 5)),
        "context_mask": jnp.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], bool),
        "vector": jax.random.normal(keys[1], (3, 3)),
        "image": jax.random.normal(keys[2], (3, 5, 6, 2)),
    }
    params = nonzero_params(net, x)
    return params, x, conditions, jax.jit(net.apply)


@pytest.mark.newest
def test_each_condition_only_affects_its_own_example(conditioned):
    params, x, conditions, apply = conditioned
    y = apply(params, x, 0.5, **conditions)
    assert y.shape == x.shape
    for name in ("context", "vector", "image"):
        other = apply(params, x, 0.5, **{**conditions, name: conditions[name].at[0].add(1.0)})
        assert float(jnp.abs(other[0] - y[0]).max()) > 1e-3, name
        np.testing.assert_allclose(other[1:], y[1:], atol=1e-5)


def test_masked_tokens_have_no_effect(conditioned):
    """An example whose tokens are all masked has the same result as without a context."""
    params, x, conditions, apply = conditioned
    y = apply(params, x, 0.5, **conditions)
    context = conditions["context"].at[1, 2:].set(7.0).at[2].set(-7.0)
    np.testing.assert_allclose(apply(params, x, 0.5, **{**conditions, "context": context}), y, atol=1e-5)
    without_context = {**conditions, "context": None, "context_mask": None}
    np.testing.assert_allclose(apply(params, x, 0.5, **without_context)[2], y[2], atol=1e-5)
    shortened = {name: conditions[name][:, :2] for name in ("context", "context_mask")}
    np.testing.assert_allclose(apply(params, x, 0.5, **{**conditions, **shortened})[1:], y[1:], atol=1e-5)


TEXT = {"attention": Attention(context_dim=5)}
TOKENS = np.ones((2, 3, 5))


@pytest.mark.parametrize(
    ("settings", "conditions", "message"),
    [
        (
            {},
            {"context": np.ones((2, 3, 4))},
            r"context must be None for a network without context_dim, got shape \(2, 3, 4\)",
        ),
        ({"vector_dim": 3}, {"vector": np.ones((2, 4))}, r"vector must have shape \(2, 3\), got \(2, 4\)"),
        ({"image_channels": 1}, {"image": np.ones((2, 4, 4, 1))}, r"image must have shape \(2, 8, 8, 1\), got"),
        ({}, {"context_mask": np.ones((2, 3))}, "context_mask must be None without a context, got an array"),
        (TEXT, {"context_mask": np.ones((2, 3))}, "context_mask must be None without a context, got an array"),
        (
            TEXT,
            {"context": TOKENS, "context_mask": np.ones((1, 3))},
            r"context_mask must have shape \(2, 3\), got \(1, 3",
        ),
        (
            TEXT,
            {"context": TOKENS, "context_mask": np.ones((2, 4))},
            r"context_mask must have shape \(2, 3\), got \(2, 4",
        ),
        (TEXT, {"context": TOKENS[0]}, r"context must have shape \(2, any, 5\), got \(3, 5\)"),
    ],
)
def test_invalid_conditions_raise(settings, conditions, message):
    net = UNet(**{**SMALL, **settings})
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: net.init(KEY, jnp.ones((2, 8, 8, 1)), 0.5, **conditions))


def test_attention_without_tokens_is_zero_and_has_a_finite_gradient():
    """An example without tokens gets zeros; the other equals the softmax formula over its unmasked tokens."""
    q, k, v = (jax.random.normal(key, (2, 3, 1, 4)) for key in jax.random.split(KEY, 3))
    mask = jnp.array([[True, False, True], [False, False, False]])
    result = attend(q, k, v, mask)
    unmasked = np.array([0, 2])
    scores = np.einsum("nd,md->nm", q[0, :, 0], k[0, unmasked, 0]) / 2
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    np.testing.assert_allclose(result[0, :, 0], weights @ np.asarray(v)[0, unmasked, 0], atol=1e-6)
    assert not result[1].any()
    grads = jax.grad(lambda *a: attend(*a, mask).sum(), (0, 1, 2))(q, k, v)
    assert all(np.isfinite(g).all() for g in grads)


@pytest.mark.slow_cases(but=["block0"])
@pytest.mark.parametrize("block", [ResBlock(8), AttentionBlock(2), CrossAttentionBlock(2)], ids=lambda b: b.name)
def test_rescale_divides_the_sum_of_the_input_and_the_branch(block):
    x, key = jax.random.normal(KEY, (2, 3, 8)), jax.random.key(1)
    context = (jax.random.normal(key, (2, 4, 5)),) if isinstance(block, CrossAttentionBlock) else ()
    params = jax.tree.map(lambda p: p + 0.2, jax.jit(block.init)(KEY, x, *context))
    plain, divided = (jax.jit(block.clone(rescale=r).apply)(params, x, *context) for r in (1.0, 3.0))
    assert float(jnp.abs(plain - x).min(-1).max()) > 1e-2
    np.testing.assert_allclose(divided, (x + (plain - x)) / 3, rtol=1e-5, atol=1e-6)


@pytest.mark.newest
@pytest.mark.parametrize(("options", "attention"), [({}, AttentionBlock), (CONDITIONED, CrossAttentionBlock)])
def test_all_blocks_of_a_network_have_its_rescale(options, attention):
    calls = []

    def record(method, args, kwargs, context):
        calls.append((type(context.module), getattr(context.module, "rescale", None)))
        return method(*args, **kwargs)

    net = UNet(**SMALL, **options, residual=Residual("block", rescale=3.0))
    with nn.intercept_methods(record):
        jax.eval_shape(net.init, KEY, jnp.ones((1, 4, 4, 1)), 0.5)
    assert calls.count((ResBlock, 3.0)) == 10  # 2 in the encoder, 4 in the decoder, 2 in the middle, 2 between levels
    assert calls.count((attention, 3.0)) == 4
    assert {rescale for _, rescale in calls} == {3.0, None}


def test_halving_an_odd_size_averages_over_the_existing_entries():
    x = jnp.arange(5.0).reshape(1, 5, 1)
    np.testing.assert_array_equal(halve(x)[0, :, 0], [0.5, 2.5, 4.0])
    np.testing.assert_array_equal(double(halve(x), (5,))[0, :, 0], [0.5, 0.5, 2.5, 2.5, 4.0])


@pytest.fixture(scope="module")
def small():
    """A small conditional network, its parameters, an input, and the compiled apply."""
    net = UNet(num_classes=3, dropout_rate=0.5, **SMALL)
    x = jax.random.normal(KEY, (4, 7, 5, 1))
    params = nonzero_params(net, x)
    return net, params, x, jax.jit(net.apply)


def test_the_initial_prediction_is_zero():
    net = UNet(**SMALL)
    x = jax.random.normal(KEY, (2, 8, 8, 3))
    assert not jax.jit(lambda x: net.init_with_output(KEY, x, 0.5)[0])(x).any()


@pytest.mark.slow_cases("shape3")
@pytest.mark.newest
@pytest.mark.parametrize("shape", [(2, 28, 28, 1), (2, 7, 5, 2), (2, 9, 3), (1, 5, 6, 7, 1)])
def test_odd_sizes_and_one_to_three_dimensions_are_supported(shape):
    net = UNet(channels=8, channel_multipliers=(1, 1, 2), num_res_blocks=1, attention=Attention((2,)))
    x = jnp.ones(shape)
    out = jax.eval_shape(lambda: net.init_with_output(KEY, x, jnp.zeros(shape[0]))[0])
    assert out.shape == shape
    assert out.dtype == jnp.float32


@pytest.mark.parametrize(
    ("settings", "shape", "label", "message"),
    [
        ({}, (2, 8), None, r"x must have shape \(B, \*space, C\)"),
        (
            {"channel_multipliers": (1, 1, 1, 1)},
            (2, 4, 4, 1),
            None,
            r"channel_multipliers must have at most 3 levels for x of shape \(2, 4, 4, 1\), got 4",
        ),
        ({}, (2, 8, 8, 1), 0, "label must be None where num_classes is None, got 0"),
        ({"num_classes": 3}, (2, 8, 8, 1), np.array([0, 4]), r"label must be in \[0, 3\], got \[0, 4\]"),
    ],
)
def test_invalid_shapes_and_labels_raise(settings, shape, label, message):
    net = UNet(**{**SMALL, **settings})
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: net.init(KEY, jnp.ones(shape), 0.5, label))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *((lambda n=n: Attention(**{n: 0}), f"{n} must be an int >= 1, got 0") for n in ("num_heads", "depth")),
        *(
            (lambda n=n: Attention(**{n: 0}), f"{n} must be an int >= 1, got 0")
            for n in ("head_channels", "context_dim")
        ),
        (lambda: Attention(num_heads=-1), "num_heads must be an int >= 1, got -1"),
        (lambda: Attention((-1,)), "levels must be an int >= 0, got -1"),
        (lambda: Attention(depth=2), "depth must be 1 where context_dim is None, got 2"),
        (lambda: Attention(implementation="flash"), "implementation must be one of xla, cudnn, got 'flash'"),
        (lambda: Norm(groups=0), "groups must be an int >= 1, got 0"),
        (lambda: Norm(eps=0.0), "eps must be > 0, got 0"),
        (lambda: TimeEmbedding(scale=0.0), "scale must be > 0, got 0"),
        (lambda: TimeEmbedding(shift=-1), "shift must be an int >= 0, got -1"),
        (lambda: Residual(rescale=0), "rescale must be > 0, got 0"),
        (lambda: Residual("pool"), "resample must be one of conv, conv_pad_after, block, got 'pool'"),
    ],
)
def test_invalid_specifications_raise(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        *(({name: 0}, f"{name} must be an int >= 1, got 0") for name in ("vector_dim", "outputs", "out_channels")),
        *(({name: -1}, f"{name} must be an int >= 0, got -1") for name in ("num_res_blocks", "image_channels")),
        ({"dropout_rate": 2}, r"dropout_rate must be in \[0, 1\), got 2"),
        ({"channels": 5}, "channels must be even and at least 4, got 5"),
        ({"channel_multipliers": ()}, r"channel_multipliers must give each level at least one channel, got \(\)"),
        ({"attention": Attention((2,))}, r"attention.levels must be in \[0, 2\), the levels of .*, got 2"),
        ({"attention": Attention(num_heads=3)}, "num_heads must divide the 16 channels, got 3"),
        ({"attention": Attention((), num_heads=3)}, "num_heads must divide the 16 channels, got 3"),  # the middle
        ({"attention": Attention(head_channels=3)}, "head_channels must divide the 16 channels, got 3"),
        ({"norm": Norm(3)}, "groups must divide the 8 channels, got 3"),
    ],
)
def test_invalid_settings_raise_in_the_constructor(setting, message):
    with pytest.raises(ValueError, match=message):
        UNet(**{**SMALL, **setting})


@pytest.mark.parametrize("net", [UNet(**SMALL), DiT(channels=8, num_heads=2, depth=1)], ids=["unet", "dit"])
def test_with_implementation_only_changes_the_implementation(net):
    changed = with_implementation(net, "xla")
    assert changed != net
    assert with_implementation(changed, None) == net
    assert with_implementation(nn.Dense(3), "xla") == nn.Dense(3)


def test_an_example_depends_only_on_its_own_time_and_label(small):
    _, params, x, apply = small
    t, label = jnp.array([0.1, 0.5, 0.5, 0.9]), jnp.array([0, 1, 2, 3])
    y = apply(params, x, t, label)
    np.testing.assert_allclose(apply(params, x, t[1], label[1])[1], y[1], atol=1e-5)
    for other in (apply(params, x, t.at[0].set(0.3), label), apply(params, x, t, label.at[0].set(2))):
        assert float(jnp.abs(other[0] - y[0]).max()) > 1e-3
        np.testing.assert_allclose(other[1:], y[1:], atol=1e-5)


def test_a_missing_label_is_the_null_label(small):
    _, params, x, apply = small
    np.testing.assert_array_equal(apply(params, x, 0.5), apply(params, x, 0.5, jnp.full(4, 3)))
    assert float(jnp.abs(apply(params, x, 0.5) - apply(params, x, 0.5, 0)).max()) > 1e-3


@pytest.mark.slow
def test_the_dropout_of_an_example_depends_only_on_its_own_key(small):
    _, params, x, apply = small
    keys = jax.random.split(KEY, 4)
    y = apply(params, x, 0.5, 0, key=keys)
    half = apply(params, x[:2], 0.5, 0, key=keys[:2])
    np.testing.assert_allclose(half, y[:2], atol=1e-5)
    assert float(jnp.abs(apply(params, x, 0.5, 0) - y).min(axis=(1, 2, 3)).max()) > 0
    with_others = apply(params, x, 0.5, 0, key=keys.at[3].set(keys[0]))
    np.testing.assert_allclose(with_others[:3], y[:3], atol=1e-5)


def test_dropout_preserves_the_mean():
    x = jnp.ones((8, 5000))
    y = dropout(jax.random.split(KEY, 8), x, 0.25)
    np.testing.assert_allclose(y.mean(1), 1, atol=0.05)
    np.testing.assert_allclose(np.unique(y), [0, 1 / 0.75], rtol=1e-6)
    assert len(np.unique(y, axis=0)) == 8
    assert dropout(None, x, 0.25) is x


def test_bfloat16_results_are_close_to_float32(small):
    net, params, x, apply = small
    y = apply(params, x, 0.5, 0)
    bfloat16 = jax.jit(net.clone(dtype=jnp.bfloat16).apply)(params, x, 0.5, 0)
    assert bfloat16.dtype == jnp.float32
    assert 0 < float(jnp.abs(bfloat16 - y).max()) < 0.1 * float(jnp.abs(y).max())


def test_the_sinusoidal_embedding_equals_that_of_ddpm():
    """Ho et al.'s code: sin and cos of step * 10000^(-k / (half - 1))."""
    step = np.array([0, 1, 500, 999])
    frequency = np.exp(-np.log(10_000) / 3 * np.arange(4))
    angles = step[:, None] * frequency
    expected = np.concatenate([np.sin(angles), np.cos(angles)], -1)
    np.testing.assert_allclose(sinusoidal(step / 1000, 8), expected, atol=1e-3)
    assert len(np.unique(np.round(sinusoidal(jnp.linspace(0, 1, 200), 8), 4), axis=0)) == 200


@pytest.mark.slow
def test_remat_preserves_parameters_predictions_and_gradients():
    """Dropout is active, and the names of the parameters are compared too."""
    x, t = jax.random.normal(KEY, (2, 4, 4, 1)), jnp.array([0.2, 0.7])
    net = UNet(channels=8, channel_multipliers=(1,), num_res_blocks=1, attention=Attention((0,)), dropout_rate=0.5)
    params = nonzero_params(net, x)
    remat_net = net.clone(remat=True)
    keys = jax.random.split(jax.random.key(3), len(x))

    def value(net, params):
        return jnp.sum(net.apply(params, x, t, key=keys) ** 2)

    shapes = jax.eval_shape(remat_net.init, KEY, x, t)
    assert jax.tree.structure(shapes) == jax.tree.structure(params)
    result, expected = (jax.jit(jax.value_and_grad(lambda p, n=n: value(n, p)))(params) for n in (remat_net, net))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5), result, expected)
    text = jax.jit(jax.grad(lambda p: value(remat_net, p))).lower(params).as_text()
    assert "optimization_barrier" in text  # it prevents XLA from merging the recomputation with the forward pass


def test_remat_supports_blocks_that_resample():
    """Sizes are odd, so that the doubling blocks need their `space`."""
    plain = UNet(channels=8, channel_multipliers=(1, 1, 1), num_res_blocks=1, attention=Attention(()))
    net = plain.clone(residual=Residual("block"))
    x = jnp.zeros((1, 5, 7, 1))
    shapes = [jax.eval_shape(n.init_with_output, KEY, x, 0.5) for n in (net, net.clone(remat=True))]
    assert shapes[0] == shapes[1]
    assert shapes[1][0].shape == x.shape
