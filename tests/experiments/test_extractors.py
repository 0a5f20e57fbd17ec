"""Extractors: pretrained networks and the classifier by name, and batches on several devices."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import pytest

from diffax.nn import features
from diffax.nn.features import efficientnet
from experiments.evaluation import classifier
from experiments.evaluation.batches import in_batches
from experiments.evaluation.extractors import of_classifier, pretrained


@pytest.mark.slow
def test_a_pretrained_extractor_is_the_network_of_the_library():
    pytest.importorskip(efficientnet.PACKAGE)
    extractor, network = pretrained("efficientnet_lite0"), features.load("efficientnet_lite0")
    images = np.random.default_rng(0).uniform(-1, 1, (3, 16, 16, 1)).astype(np.float32)
    result = extractor.features(images)
    assert result.shape == (3, extractor.dimension) == (3, 1280)
    np.testing.assert_allclose(result, network.features(network.params, images), rtol=1e-4, atol=1e-5)


def test_names_and_files_of_pretrained_extractors():
    with pytest.raises(ValueError, match="extractor inception_v3 needs inception_weights=FILE"):
        pretrained("inception_v3")
    with pytest.raises(ValueError, match=r"extractor must be one of efficientnet_lite0, .* got 'vgg'"):
        pretrained("vgg")


@pytest.fixture(scope="module")
def digits():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60).astype(np.int32)
    return rng.uniform(-1, 1, (60, 8, 8, 1)).astype(np.float32) * 0.3 + labels[:, None, None, None] - 1, labels


class Images(NamedTuple):
    """A data set whose splits are given by `arrays`."""

    arrays: Callable
    name: str = "three"
    num_classes: int | None = 3


def test_a_classifier_is_trained_once_and_then_restored(digits, tmp_path):
    images, labels = digits
    path = tmp_path / "classifier.npz"
    options = {"split": "train", "num_steps": 30, "seed": 0, "path": path}
    trained = of_classifier(Images(lambda split: digits), **options)
    dataset = Images(lambda split: pytest.fail("trained again"))
    restored = of_classifier(dataset, **options)
    assert trained.digest == restored.digest
    result, features = restored.classify(images)
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
    with pytest.raises(ValueError, match="classifier must be a file saved by an earlier training"):
        of_classifier(dataset, **options)


def test_the_same_data_and_seed_train_the_same_classifier(digits):
    images, labels = digits
    first, second, other = (
        classifier.judge(classifier.train(images, labels, num_classes=3, num_steps=3, seed=seed))(images)
        for seed in (0, 0, 1)
    )
    for values, expected in zip(first, second, strict=True):
        np.testing.assert_array_equal(values, expected)
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
