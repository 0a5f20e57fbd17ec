"""Feature extractors against torch's networks, and files of weights that must not run code, or do not fit."""

import functools
import io
import os
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.evaluation import classifier
from experiments.evaluation.batches import in_batches
from experiments.evaluation.extractors import convolutions, efficientnet, inception, of_classifier, pretrained
from experiments.evaluation.extractors.torch_file import load_tensors

FOLDER = Path(__file__).parents[1] / "nn" / "interop"
sys.path.insert(0, str(FOLDER))
from seeded import picture, with_norms  # noqa: E402

KNOWN = dict(np.load(FOLDER / "features.npz"))
PICTURES = np.stack([picture(i, 32, 3) for i in range(2)]).astype(np.float32)


def check(result, expected):
    """To 1e-4 of each image's largest feature."""
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


def test_efficientnet_is_torchs():
    x = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    result = applied(efficientnet.NETWORK, folded(efficientnet.NETWORK), x)
    check(result, KNOWN["efficientnet_seeded"])


def test_inception_is_torchs(inception_params):
    check(by_inception(inception_params), KNOWN["inception"])


def test_inception_at_its_own_size(inception_params):
    features = jax.jit(functools.partial(convolutions.features, inception.NETWORK))
    check(features(inception_params, PICTURES / 127.5 - 1)[:, ::16], KNOWN["inception_299"])


@pytest.mark.slow_cases("last")
@pytest.mark.parametrize("wrong", ["average", "last"])
def test_inception_with_wrong_pools_is_found_out(inception_params, monkeypatch, wrong):
    import flax.linen as nn

    if wrong == "average":
        monkeypatch.setattr(inception, "_average", lambda x: nn.avg_pool(x, (3, 3), padding="SAME"))
    else:
        right = nn.max_pool
        mean = lambda x, w, padding: nn.avg_pool(x, w, padding=padding, count_include_pad=False)
        monkeypatch.setattr(nn, "max_pool", lambda *args, **kwargs: (mean if kwargs else right)(*args, **kwargs))
    with pytest.raises(AssertionError):
        check(by_inception(inception_params), KNOWN["inception"])


def test_the_resize_of_tensorflow_1_to_the_bit():
    result = np.moveaxis(np.asarray(inception.resize(jnp.asarray(PICTURES[:1]), 299)), -1, 1)
    np.testing.assert_array_equal(result[..., ::23, ::23], KNOWN["resized"])


@pytest.mark.slow
def test_imagenet_weights_on_pictures_resized_by_pillow():
    pytest.importorskip(efficientnet.PACKAGE)
    extractor = pretrained("efficientnet_lite0")
    for (size, channels), expected in zip(((32, 3), (28, 1), (300, 3)), KNOWN["efficientnet_lite0"], strict=True):
        image = picture({32: 0, 28: 1, 300: 2}[size], size, channels)[None].astype(np.float32) / 127.5 - 1
        features = extractor.features(image)
        assert features.shape == (1, extractor.dimension)
        check(features[:, ::10], expected[None])


def test_images_of_two_channels():
    with pytest.raises(ValueError, match=r"images must have shape .* got \(2, 8, 8, 2\)"):
        convolutions.features(efficientnet.NETWORK, {}, jnp.zeros((2, 8, 8, 2)))


# Files


@pytest.mark.parametrize("name", ["torch_archive.pth", "torch_sequence.pth"])
def test_tensors_with_strides_offsets_and_a_shared_storage(name):
    result, expected = load_tensors(FOLDER / name), load_tensors(FOLDER / "torch_tensors.npz")
    assert list(result) == list(expected)
    for key, value in expected.items():
        np.testing.assert_array_equal(result[key], value)
        assert result[key].dtype == value.dtype
    assert not np.shares_memory(result["plain"], result["turned"])


class Code:
    def __reduce__(self):
        return os.mkdir, ("was_run",)


def archive(path, body):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", body)
        file.writestr("archive/data/0", np.arange(6, dtype=np.float32).tobytes())
    return path


def sequence(path, body):
    info = {"little_endian": True}
    path.write_bytes(b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, info)) + body)
    return path


@pytest.mark.parametrize("write", [archive, sequence])
def test_code_is_refused_by_name_and_not_run(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "bad.pth", pickle.dumps({"w": Code()}, 2))
    with pytest.raises(ValueError, match=r"it names posix\.mkdir, which is refused"):
        load_tensors(path)
    assert not Path("was_run").exists()
    for value in (np.float64, io.StringIO, getattr):
        with pytest.raises(ValueError, match=r"it names .*, which is refused"):
            load_tensors(write(path, pickle.dumps({"w": value}, 2)))


def tensor(sizes, strides, offset=0, length=6, dtype="FloatStorage", kind="storage"):
    """A pickle of {"w": a tensor}, by hand."""
    text = lambda s: b"X" + struct.pack("<I", len(s)) + s.encode()
    numbers = lambda values: b"(" + b"".join(b"I%d\n" % v for v in values) + b"t"
    storage = b"(" + text(kind) + b"ctorch\n" + dtype.encode() + b"\n" + text("0") + text("cpu") + b"I%d\nt" % length
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"QI%d\n" % offset
    return b"\x80\x02}" + text("w") + call + numbers(sizes) + numbers(strides) + b"\x89}tRs."


def test_a_tensor_is_a_part_of_its_storage(tmp_path):
    path = tmp_path / "w.pth"
    np.testing.assert_array_equal(load_tensors(archive(path, tensor((2, 2), (1, 3), 1)))["w"], [[1, 4], [2, 5]])
    for bad, message in (
        (tensor((2, 2), (1, 3), 2), "w must be a part of its storage of 6 numbers, got one up to 6"),
        (tensor((2,), (-1,), 3), r"w must be a part of its storage, got sizes \(2,\) and strides \(-1,\)"),
        (tensor((10**9,), (0,)), r"w must be a part of its storage, got sizes \(1000000000,\)"),
        (tensor((2,), (1, 1)), "w must be a part of its storage"),
        (tensor((2,), (1,), length=7), "storage 0 must have 28 bytes, got 24"),
        (tensor((2,), (1,), dtype="QInt8Storage"), r"it names torch\.QInt8Storage, which is refused"),
        (tensor((2,), (1,), kind="other"), "it has a storage of another kind"),
        (pickle.dumps({"w": 3}, 2), "it must hold tensors by name, got a int at 'w'"),
        (pickle.dumps([1], 2), "it must hold a dict of tensors, got a list"),
    ):
        with pytest.raises(ValueError, match=message):
            load_tensors(archive(path, bad))


@pytest.mark.parametrize("name", ["torch_archive.pth", "torch_sequence.pth", "torch_tensors.npz"])
def test_damaged_files_are_errors_of_one_kind(name, tmp_path):
    whole = (FOLDER / name).read_bytes()
    path = tmp_path / name
    for end in (0, 3, 40, len(whole) // 2, len(whole) - 9):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"weights must be a file of tensors, got .*torch_"):
            load_tensors(path)
    with pytest.raises(ValueError, match="which is not there"):
        load_tensors(tmp_path / "none.pth")


def test_weights_that_do_not_fit(tmp_path):
    right = tensors_of(efficientnet.NETWORK)
    path = tmp_path / "w.npz"

    def load(**changes):
        tensors = {k: v for k, v in (right | changes).items() if v is not None}
        np.savez(path, **tensors)
        return convolutions.fold(efficientnet.NETWORK, load_tensors(path))

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
        pretrained("inception_v3", str(path))
    with pytest.raises(ValueError, match="inception_v3 needs inception_weights=FILE"):
        pretrained("inception_v3")
    with pytest.raises(ValueError, match=r"extractor must be one of efficientnet_lite0, .* got 'vgg'"):
        pretrained("vgg")


def test_torchvisions_inception_is_not_the_one_of_fid():
    right = tensors_of(inception.NETWORK)
    convolutions.fold(inception.NETWORK, right | {"fc.weight": np.zeros((1008, 2048), np.float32)})
    with pytest.raises(ValueError, match=r"FID: fc.weight must be \(1008, 2048\), got \(1000, 2048\)$"):
        convolutions.fold(inception.NETWORK, right | {"fc.weight": np.zeros((1000, 2048), np.float32)})


# The classifier, and batches


@pytest.fixture(scope="module")
def digits():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60).astype(np.int32)
    return rng.uniform(-1, 1, (60, 8, 8, 1)).astype(np.float32) * 0.3 + labels[:, None, None, None] - 1, labels


class Images(NamedTuple):
    """A data set of these arrays in each split."""

    arrays: Callable
    name: str = "three"
    num_classes: int | None = 3


def test_a_classifier_is_trained_once_and_kept(digits, tmp_path):
    images, labels = digits
    path = tmp_path / "classifier.npz"
    options = {"split": "train", "num_steps": 30, "seed": 0, "path": path}
    trained = of_classifier(Images(lambda split: digits), **options)
    dataset = Images(lambda split: pytest.fail("trained again"))
    kept = of_classifier(dataset, **options)
    assert trained.digest == kept.digest
    result, features = kept.classify(images)
    np.testing.assert_array_equal(features, trained.features(images))
    assert features.shape == (60, trained.dimension) == (60, 64)
    assert np.mean(result == labels) > 0.9
    for other, changes, message in (
        (dataset, {"seed": 1}, r"has seed = 0, got 1"),
        (dataset._replace(num_classes=4), {}, r"has num_classes = 3, got 4"),
        (dataset._replace(name="other"), {}, r"has data = 'three train', got 'other train'"),
        (dataset, {"split": "test"}, r"has data = 'three train', got 'three test'"),
        (dataset, {"num_steps": 0}, "classifier_steps must be an int >= 1, got 0"),
        (dataset._replace(num_classes=None), {}, "needs a data set with labels"),
    ):
        with pytest.raises(ValueError, match=message):
            of_classifier(other, **(options | changes))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="classifier must be a file that was saved by training one"):
        of_classifier(dataset, **options)


def test_the_same_data_and_seed_train_the_same_classifier(digits):
    images, labels = digits
    first, second, other = (
        classifier.judge(classifier.train(images, labels, num_classes=3, num_steps=3, seed=seed))(images)
        for seed in (0, 0, 1)
    )
    for ours, theirs in zip(first, second, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert (first[1] != other[1]).any()


@pytest.mark.parametrize("count", [1, 5, 8, 13])
def test_batches_over_eight_devices(count):
    assert jax.device_count() == 8
    over = in_batches(lambda w, x: (x @ w, x.sum(1)), np.arange(6.0).reshape(3, 2), 5)
    x = np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32)
    product, total = over(x)
    np.testing.assert_allclose(product, x @ np.arange(6.0).reshape(3, 2), rtol=1e-5)
    np.testing.assert_allclose(total, x.sum(1), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="images must be at least one"):
        over(x[:0])
