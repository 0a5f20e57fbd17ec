"""The text encoder: a block in NumPy, padding, empty captions, and training on captions."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffax
from diffax import training
from diffax.nn import Attention, DiT, UNet
from diffax.nn.attention import CrossAttentionBlock
from diffax.nn.layers import sinusoidal
from diffax.nn.text import Captioned, TextEncoder

KEY = jax.random.key(0)
TOKENS = jnp.array([[2, 5, 3, 0], [4, 0, 0, 0], [5, 3, 2, 1]])


def perturbed(params, scale=0.1):
    """The parameters plus noise, so that none is zero."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda p: p + scale * rng.normal(size=p.shape).astype(p.dtype), params)


@pytest.fixture(scope="module")
def encoder():
    """(module, parameters, the compiled call)"""
    module = TextEncoder(vocab_size=7, width=8, depth=1, num_heads=2)
    return module, perturbed(jax.jit(module.init)(KEY, TOKENS)), jax.jit(module.apply)


def norm(h, p):
    h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5)
    return h * p["scale"] + p["bias"]


def encode_in_numpy(params, tokens):
    """(m, 8) features of one caption without padding, by two heads."""
    p = jax.tree.map(lambda v: np.asarray(v, np.float64), params["params"])
    h = p["words"]["embedding"][tokens] + np.asarray(sinusoidal(np.arange(len(tokens)), 8, scale=1.0))
    u, attention = norm(h, p["norm_0_1"]), p["attention_0"]
    q, k, v = (u @ attention[name]["kernel"] for name in "qkv")
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        scores = q[:, part] @ k[:, part].T / 2
        weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        heads.append(weights @ v[:, part])
    h = h + np.concatenate(heads, -1) @ attention["out"]["kernel"] + attention["out"]["bias"]
    u = norm(h, p["norm_0_2"]) @ p["dense_0_1"]["kernel"] + p["dense_0_1"]["bias"]
    u = u * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3)))
    return norm(h + u @ p["dense_0_2"]["kernel"] + p["dense_0_2"]["bias"], p["norm"])


def test_the_encoder_equals_numpy_with_and_without_padding(encoder):
    _, params, apply = encoder
    features, mask = apply(params, TOKENS)
    np.testing.assert_array_equal(mask, TOKENS > 0)
    for row, length in enumerate((3, 1, 4)):
        np.testing.assert_allclose(
            features[row, :length], encode_in_numpy(params, np.asarray(TOKENS[row, :length])), atol=1e-5
        )
        assert not features[row, length:].any()


def test_the_order_of_words_matters(encoder):
    _, params, apply = encoder
    forwards, backwards = (apply(params, jnp.array([tokens]))[0][0] for tokens in ([2, 5], [5, 2]))
    assert float(jnp.abs(forwards - backwards[::-1]).max()) > 1e-2


@pytest.mark.parametrize(
    ("tokens", "settings", "message"),
    [
        (jnp.ones((2, 3)), {}, r"tokens must be ints of shape \(B, m\), got float32"),
        (jnp.ones(3, int), {}, r"tokens must be ints of shape \(B, m\), got int32 of shape \(3,\)"),
        (TOKENS, {"width": 9, "num_heads": 3}, "width must be even and at least 4, got 9"),
        (TOKENS, {"vocab_size": 0}, "vocab_size must be an int >= 1, got 0"),
        (np.array([[2, 7]]), {}, r"tokens must be in \[0, 7\), got \[\[2, 7\]\]"),
        (np.array([[-1, 2]]), {}, r"tokens must be in \[0, 7\), got \[\[-1, 2\]\]"),
        (TOKENS, {"num_heads": 3}, "num_heads must divide the 8 channels, got 3"),
    ],
)
def test_bad_input_is_refused(tokens, settings, message):
    module = TextEncoder(**{"vocab_size": 7, "width": 8, "num_heads": 2, **settings})
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: module.init(KEY, tokens))


class Network(nn.Module):
    """One block with cross-attention, which compiles faster than a U-Net."""

    @nn.compact
    def __call__(self, x, t, *, context, context_mask, key=None):
        t = jnp.broadcast_to(t, x.shape[:1])[:, None, None, None]
        h = CrossAttentionBlock(2)(nn.Dense(8)(jnp.concatenate([x, t + 0 * x], -1)), context, context_mask)
        return nn.Dense(1)(h)


@pytest.fixture(scope="module")
def captioned():
    """(module, parameters, x, the compiled call)"""
    module = Captioned(Network(), TextEncoder(vocab_size=7, width=8, depth=1, num_heads=2))
    x = jax.random.normal(KEY, (3, 4, 4, 1))
    params = jax.jit(module.init)(KEY, x, jnp.zeros(3))
    return module, params, x, jax.jit(module.apply)


def test_a_u_net_with_captions_has_the_parameters_of_both():
    network = UNet(channels=8, channel_multipliers=(1, 2), attention=Attention(context_dim=8))
    encoder = TextEncoder(vocab_size=7, width=8)
    x, context = jnp.zeros((3, 8, 8, 3)), jnp.zeros((3, 4, 8))
    both = jax.eval_shape(Captioned(network, encoder).init, KEY, x, 0.5, TOKENS)["params"]
    separate = jax.eval_shape(lambda: network.init(KEY, x, 0.5, context=context))["params"]
    assert jax.tree.map(jnp.shape, both["network"]) == jax.tree.map(jnp.shape, separate)
    separate = jax.eval_shape(encoder.init, KEY, TOKENS)["params"]
    assert jax.tree.map(jnp.shape, both["text"]) == jax.tree.map(jnp.shape, separate)


@pytest.mark.parametrize("kind", [pytest.param(UNet, marks=pytest.mark.slow), DiT])
def test_the_vector_condition_is_the_mean_of_the_words(kind):
    """The mean does not include padding."""
    settings = {
        UNet: {"channel_multipliers": (1, 2), "attention": Attention(num_heads=2, context_dim=8)},
        DiT: {"depth": 1, "num_heads": 2, "cross_attention": True, "context_dim": 8},
    }
    network = kind(channels=8, vector_dim=8, **settings[kind])
    encoder = TextEncoder(vocab_size=7, width=8, depth=1, num_heads=2)
    module, x = Captioned(network, encoder), jax.random.normal(KEY, (3, 4, 4, 1))

    @jax.jit
    def both(tokens):
        params = perturbed(module.init(KEY, x, 0.5, tokens))["params"]
        context, mask = encoder.apply({"params": params["text"]}, tokens)
        mean = jnp.stack([context[i, :count].mean(0) for i, count in enumerate((3, 1, 4))])
        conditions = {"context": context, "context_mask": mask}
        with_mean, with_zeros = (
            network.apply({"params": params["network"]}, x, 0.5, **conditions, vector=v) for v in (mean, 0 * mean)
        )
        return module.apply({"params": params}, x, 0.5, tokens), with_mean, with_zeros

    y, expected, with_zeros = both(TOKENS)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    assert jnp.abs(y - with_zeros).max() > 1e-3


def test_padding_changes_nothing(captioned):
    """The output of the network does not depend on the amount of padding."""
    _, params, x, apply = captioned
    params = perturbed(params)
    y = apply(params, x, 0.5, TOKENS)
    wider = jnp.concatenate([TOKENS, jnp.zeros((3, 5), int)], 1)
    np.testing.assert_allclose(apply(params, x, 0.5, wider), y, atol=1e-5)
    np.testing.assert_allclose(apply(params, x[1:2], 0.5, TOKENS[1:2, :1])[0], y[1], atol=1e-5)
    other = apply(params, x, 0.5, TOKENS.at[0, 3].set(6))  # caption 0 has one more word
    assert float(jnp.abs(other[0] - y[0]).max()) > 1e-4
    np.testing.assert_allclose(other[1:], y[1:], atol=1e-6)  # only the first example changes


def test_the_empty_caption_is_the_null_condition_and_finite(captioned):
    """A caption of zeros equals no caption. Gradients are finite, also in a batch with captions that are not empty."""
    module, params, x, apply = captioned
    params = perturbed(params)
    without_caption = apply(params, x, 0.5)
    assert jnp.isfinite(without_caption).all()
    np.testing.assert_allclose(apply(params, x, 0.5, jnp.zeros((3, 4), int)), without_caption, atol=1e-5)
    mixed = TOKENS.at[1].set(0)
    np.testing.assert_allclose(apply(params, x, 0.5, mixed)[1], without_caption[1], atol=1e-5)
    for tokens in (mixed, 0 * mixed):
        grads = jax.jit(jax.grad(lambda p, t: jnp.sum(module.apply(p, x, 0.5, t) ** 2)))(params, tokens)
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
        assert bool(grads["params"]["text"]["words"]["embedding"].any()) == bool(tokens.any())


@pytest.mark.slow
def test_training_learns_the_meaning_of_words(captioned):
    """Word 2 means white, 3 black, 5 before them negates. Near pure noise the image follows from the caption only."""
    module, params, _, _ = captioned
    rng = np.random.default_rng(0)
    captions = np.array([[2, 0], [3, 0], [5, 2], [5, 3]])
    brightness = np.array([1.0, -1.0, -1.0, 1.0], np.float32)
    schedule, optimizer = diffax.Cosine(), optax.adam(3e-3)

    def loss(params, batch, keys):
        def predict(x, t):
            return module.apply(params, x, t, batch["tokens"])

        t = jnp.full(len(batch["tokens"]), 0.95)
        return diffax.denoising_loss(keys, predict, schedule, "x0", batch["image"], t)

    def batch():
        index = rng.integers(4, size=16)
        image = np.broadcast_to(brightness[index, None, None, None], (16, 4, 4, 1))
        return {"image": image, "tokens": captions[index], "index": np.arange(16)}

    step = jax.jit(training.train_step(loss, optimizer, ema_decay=0.9))
    state = training.init_state(KEY, params, optimizer)
    for _ in range(150):
        state, _ = step(state, batch())
    measure = jax.jit(lambda batch: loss(state.params, batch, jax.random.key(1)).mean())
    test_batch = batch()
    wrong = {
        **test_batch,
        "tokens": np.where(test_batch["tokens"] == 2, 3, np.where(test_batch["tokens"] == 3, 2, test_batch["tokens"])),
    }
    empty = {**test_batch, "tokens": np.zeros_like(test_batch["tokens"])}
    right, wrong, empty = (float(measure(b)) for b in (test_batch, wrong, empty))
    assert right < 0.1 < 0.5 < empty
    assert wrong > 2.0
