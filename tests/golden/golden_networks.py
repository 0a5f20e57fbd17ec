"""Rows of networks, in float32: the parameters after initialisation and the output at perturbed parameters.

A path of a parameter and its shape are a part of the name of its row; the value is its sum and its sum of squares. The
parameters are perturbed before the output is computed, since layers initialised to 0 would hide everything before them.
"""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
from golden_inputs import array, key

from diffax.nn import Attention, Norm, Residual, TimeEmbedding, lora
from diffax.nn.autoencoder import Autoencoder
from diffax.nn.autoencoding import autoencoder_loss, kl_to_standard_normal, reparameterise
from diffax.nn.dit import DiT
from diffax.nn.edm2 import EDM2, forced_weight_norm, normalised
from diffax.nn.mlp import MLP
from diffax.nn.text import Captioned, TextEncoder
from diffax.nn.unet import UNet

SMALL = {"channels": 8, "channel_multipliers": (1, 2), "num_res_blocks": 1}
TOKENS = {"channels": 16, "depth": 2, "num_heads": 2}
IMAGES = lambda: array("images", 2, 8, 8, 3)
POINTS = lambda: array("points", 2, 6, 3)
CONTEXT = lambda: {"context": array("context", 2, 5, 6), "context_mask": jnp.arange(5) < jnp.array([[3], [5]])}
LABELS = lambda: {"label": jnp.array([1, 4])}
KEYED = lambda: {"key": key("dropout")}
VECTOR = lambda: {"vector": array("vector", 2, 3)}
NONE = lambda: {}
CAPTIONS = lambda: {"tokens": jnp.array([[3, 7, 1, 0], [5, 2, 0, 0]])}
# name -> (network, x, the other inputs)
NETWORKS = {
    "unet-ddpm": (lambda: UNet(**SMALL), IMAGES, NONE),
    "unet-odd-levels": (lambda: UNet(**SMALL | {"num_res_blocks": 2}, attention=Attention((0, 1))), POINTS, NONE),
    "unet-adm": (
        lambda: UNet(
            **SMALL,
            residual=Residual("block", scale_shift=True),
            attention=Attention(head_channels=4),
            num_classes=5,
        ),
        IMAGES,
        LABELS,
    ),
    "unet-ncsnpp": (lambda: UNet(**SMALL, residual=Residual("block", scale_shift=True, rescale=2**0.5)), IMAGES, NONE),
    "unet-heads": (
        lambda: UNet(
            **SMALL,
            residual=Residual("conv_pad_after"),
            attention=Attention(num_heads=2),
            norm=Norm(4),
            time=TimeEmbedding(shift=0, cos_first=True),
        ),
        IMAGES,
        NONE,
    ),
    "unet-cross": (
        lambda: UNet(**SMALL, attention=Attention(num_heads=2, context_dim=6, depth=2), vector_dim=3),
        IMAGES,
        lambda: CONTEXT() | VECTOR(),
    ),
    "unet-labels-dropout": (
        lambda: UNet(**SMALL, attention=Attention(middle=False), num_classes=5, dropout_rate=0.3),
        IMAGES,
        lambda: LABELS() | KEYED(),
    ),
    "unet-learned-variance": (lambda: UNet(**SMALL, outputs=2, remat=True), IMAGES, NONE),
    "unet-image": (
        lambda: UNet(**SMALL, image_channels=2, out_channels=1),
        IMAGES,
        lambda: {"image": array("image", 2, 8, 8, 2)},
    ),
    "dit": (lambda: DiT(**TOKENS, num_classes=5, dropout_rate=0.2), IMAGES, lambda: LABELS() | KEYED()),
    "dit-rope": (lambda: DiT(**TOKENS, positions="rope", outputs=2), IMAGES, NONE),
    "dit-points": (
        lambda: DiT(**TOKENS, patch_size=None),
        POINTS,
        lambda: {"mask": jnp.arange(6) < jnp.array([[4], [6]])},
    ),
    "dit-cross": (
        lambda: DiT(**TOKENS, cross_attention=True, vector_dim=3, embed_each_block=True, attention_bias=False),
        IMAGES,
        lambda: CONTEXT() | VECTOR(),
    ),
    "edm2": (
        lambda: EDM2(**SMALL, attention_levels=(1,), head_channels=8, num_classes=5, dropout_rate=0.2),
        IMAGES,
        lambda: LABELS() | KEYED(),
    ),
    "mlp": (
        lambda: MLP(channels=16, depth=2, num_classes=5, dropout_rate=0.2),
        POINTS,
        lambda: LABELS() | KEYED(),
    ),
    "captioned": (
        lambda: Captioned(
            UNet(**SMALL, attention=Attention(context_dim=16), vector_dim=16), TextEncoder(vocab_size=9, width=16)
        ),
        IMAGES,
        CAPTIONS,
    ),
}
APPLY = lambda network, params, x, options: network.apply(params, x, jnp.array([0.2, 0.7]), **options)
INIT = lambda network, x, options: network.init(key("init"), x, 0.5, **options)
AUTOENCODERS = {
    "autoencoder": lambda: Autoencoder(**SMALL),
    "autoencoder-bare": lambda: Autoencoder(
        **SMALL, attention=False, pad_after=False, quant_conv=False, post_quant_conv=False
    ),
}
ENCODE = lambda network, params, x: network.apply(params, x, method="encode")
DECODE = lambda network, params, z: network.apply(params, z, method="decode")
AUTOENCODER_LOSS = lambda encode, decode, x: autoencoder_loss(key("ae"), encode, decode, x, kl_weight=0.1)
DRAW = {"reparameterise": lambda m, v: reparameterise(key("z"), m, v), "kl": kl_to_standard_normal}
TEXT = lambda: TextEncoder(vocab_size=9, width=16)
LORA_INIT = lambda params: lora.init(key("lora"), params, ["*kernel"], rank=2)
LORA_MERGE = lambda params, adapters: lora.merge(params, adapters, alpha=4.0)
LORA_COUNT = lora.count
NORMALISED, FORCED = normalised, forced_weight_norm


def named(params):
    """{path and shape: leaf} of a tree of parameters."""
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    return {f"{jax.tree_util.keystr(path, simple=True, separator='.')}{np.shape(v)}": v for path, v in flat}


def checksums(params):
    """{path and shape: (sum, sum of squares)}, in float64."""
    wide = {name: np.asarray(v, np.float64) for name, v in named(params).items()}
    return {name: np.array([v.sum(), np.square(v).sum()]) for name, v in wide.items()}


def perturbed(params):
    """The parameters plus 0.1 times normal noise that depends on the path."""

    def moved(path, leaf):
        seed = zlib.crc32(jax.tree_util.keystr(path).encode())
        noise = np.random.RandomState(seed).normal(size=np.shape(leaf)).astype(np.float32)
        return leaf + 0.1 * noise

    return jax.tree_util.tree_map_with_path(moved, params)


def network(make, x, options):
    """Checksums of the parameters, and the output."""
    with jax.disable_jit(False):
        net, x, options = make(), x(), options()
        params = jax.jit(lambda x: INIT(net, x, options))(x)
        return {
            "params": checksums(params),
            "output": jax.jit(lambda p, x: APPLY(net, p, x, options))(perturbed(params), x),
        }


def autoencoder(make):
    """The parameters, both halves and the loss of an autoencoder."""
    with jax.disable_jit(False):
        net, x = make(), IMAGES()
        params = jax.jit(net.init)(key("init"), x, key("draw"))

        @jax.jit
        def run(p):
            mean, log_variance = ENCODE(net, p, x)
            loss = AUTOENCODER_LOSS(lambda v: ENCODE(net, p, v), lambda z: DECODE(net, p, z), x)
            draws = {name: f(mean, log_variance) for name, f in DRAW.items()}
            return {"encode": (mean, log_variance), "decode": DECODE(net, p, mean), "loss": loss, **draws}

        return {"params": checksums(params), **run(perturbed(params))}


def text():
    """The text encoder alone."""
    with jax.disable_jit(False):
        net, tokens = TEXT(), CAPTIONS()["tokens"]
        params = jax.jit(net.init)(key("init"), tokens)
        return {"params": checksums(params), "output": jax.jit(net.apply)(perturbed(params), tokens)}


def parameters(name):
    """The parameters of a network of the table."""
    make, x, options = NETWORKS[name]
    with jax.disable_jit(False):
        return jax.jit(lambda x: INIT(make(), x, options()))(x())


def adapters():
    """LoRA: the adapters, the merged parameters and the count."""
    params = parameters("mlp")
    new = LORA_INIT(params)
    return {
        "adapters": checksums(new),
        "merged": checksums(LORA_MERGE(params, perturbed(new))),
        "count": LORA_COUNT(new),
    }


def weight_norm():
    """EDM2's normalisation of weights."""
    params = perturbed(parameters("edm2"))
    return {
        "normalised": checksums(NORMALISED(params)),
        "forced": checksums(FORCED(jax.tree.map(lambda v: 0.1 * v, params), params)),
    }


ROWS = {
    **{name: lambda row=row: network(*row) for name, row in NETWORKS.items()},
    **{name: lambda make=make: autoencoder(make) for name, make in AUTOENCODERS.items()},
    "text": text,
    "lora": adapters,
    "weight_norm": weight_norm,
}
