"""Data sets without TensorFlow, and the input pipeline."""

import sys

import numpy as np
import pytest
from commands import built
from mock_cifar10 import Cifar10

from diffax.pretrained import Units
from experiments.data.datasets import open_dataset
from experiments.data.pipeline import Augment, batches


@pytest.fixture(scope="module")
def digits(data_dir):
    return open_dataset("digits", str(data_dir))


def test_digits_are_those_of_scikit_learn(digits):
    from sklearn.datasets import load_digits

    images, labels = (
        np.concatenate(parts) for parts in zip(digits.arrays("train"), digits.arrays("test"), strict=True)
    )
    raw = load_digits()
    assert images.shape == (1797, 8, 8, 1)
    assert (images.min(), images.max()) == (-1, 1)
    assert np.bincount(labels).tolist() == np.bincount(raw.target).tolist()
    values = np.concatenate([np.round((images.reshape(1797, -1) + 1) * 8), labels[:, None]], 1)
    expected = np.concatenate([raw.data, raw.target[:, None]], 1)
    assert (values[np.lexsort(values.T)] == expected[np.lexsort(expected.T)]).all()
    assert (digits.num_classes, digits.shape, digits.units.range) == (10, (8, 8, 1), (0, 16))


def test_mnist5k(data_dir):
    dataset = open_dataset("mnist5k", str(data_dir))
    images, labels = dataset.arrays("test")
    assert images.shape == (2000, 28, 28, 1)
    assert len(dataset.source("train")) == 3000
    assert np.bincount(labels).min() > 150  # shuffled: the file is sorted by class
    assert len(dataset.source("test[:50%]")) == 1000


def test_tensorflow_was_never_loaded(digits):
    assert "tensorflow" not in sys.modules


def test_batches_cover_an_epoch_in_another_order_each_time(digits):
    stream = batches(digits, "test[:64]", 16, seed=0)
    epochs = [np.concatenate([b["x"] for b in (next(stream) for _ in range(4))]) for _ in range(2)]
    images = digits.arrays("test[:64]")[0].reshape(64, -1)
    order = lambda x: x.reshape(64, -1)[np.lexsort(x.reshape(64, -1).T)]
    for epoch in epochs:
        np.testing.assert_array_equal(order(epoch), order(images))
    assert not np.array_equal(epochs[0], epochs[1])
    assert next(stream)["index"].tolist() == list(range(16))


def test_the_position_is_restored_exactly(digits):
    stream = batches(digits, "train", 32, seed=1, augment=Augment(flip=True))
    for _ in range(40):  # past an epoch
        next(stream)
    state = stream.get_state()
    ahead = [next(stream) for _ in range(5)]
    again = batches(digits, "train", 32, seed=1, augment=Augment(flip=True), cache=True)
    again.set_state(state)
    for batch in ahead:
        for name, value in next(again).items():
            np.testing.assert_array_equal(value, batch[name])


def test_flips_mirror_half_of_the_images(digits):
    options = {"seed": 0}
    plain = next(batches(digits, "train", 500, **options))["x"]
    flipped = next(batches(digits, "train", 500, augment=Augment(flip=True), **options))["x"]
    same = (plain == flipped).all((1, 2, 3))
    mirrored = (plain[:, :, ::-1] == flipped).all((1, 2, 3))
    assert (same | mirrored).all()
    assert 180 < mirrored.sum() < 320


def augmented(x, seeds=200, **settings):
    """x augmented with the generators of several seeds: (N, *shape)."""
    (change,) = Augment(**settings).functions()
    return np.stack([change({"x": x}, np.random.default_rng(seed))["x"] for seed in range(seeds)])


def test_rolls_shift_periodic_axes_by_any_number_of_entries():
    x = np.arange(12.0).reshape(4, 3, 1)
    shifts = {tuple(map(int, row[:, 0, 0])) for row in augmented(x, roll=(0,))}
    assert shifts == {tuple(np.roll(x[:, 0, 0], n)) for n in range(4)}
    assert (augmented(x, roll=(0,)).argmin(2) == 0).all()  # the other axis is not shifted


def test_crops_shift_by_at_most_the_margin():
    x = np.arange(100.0).reshape(10, 10, 1)
    corners = {tuple(row[2, 2]) for row in augmented(x, crop=2)}
    assert corners == {(10.0 * (2 + i) + 2 + j,) for i in range(-2, 3) for j in range(-2, 3)}


@pytest.mark.parametrize("dimensions", [2, 3])
def test_rotations_keep_distances_and_are_uniform(dimensions):
    x = np.eye(dimensions, dtype=np.float32)
    turned = augmented(x, seeds=2000, rotate=True)
    np.testing.assert_allclose(turned @ turned.transpose(0, 2, 1), np.broadcast_to(x, turned.shape), atol=1e-5)
    np.testing.assert_allclose(np.linalg.det(turned), 1, atol=1e-5)
    np.testing.assert_allclose(turned.mean(0), 0, atol=0.06)
    np.testing.assert_allclose((turned**2).mean(0), 1 / dimensions, atol=0.06)


@pytest.mark.parametrize(
    ("settings", "shape", "kind", "message"),
    [
        ({"crop": 8}, (8, 8, 1), "image", r"config.dataset.crop must be in \[0, 7\], got 8"),
        ({"roll": (2,)}, (8, 8, 1), "field", r"config.dataset.roll must name axes in \[0, 1\] of \(8, 8, 1\), got 2"),
        ({"flip": True}, (2,), "points", r"config.dataset.flip must be False for data of shape \(2,\), got True"),
        (
            {"rotate": True},
            (8, 8, 3),
            "field",
            "config.dataset.rotate must be False except for points",
        ),
    ],
)
def test_augmentation_that_does_not_fit_is_refused(settings, shape, kind, message):
    with pytest.raises(ValueError, match=message):
        Augment(**settings).check(shape, Units(kind=kind))


def test_a_name_may_contain_a_version(digits, data_dir):
    assert open_dataset("digits:1.0.0", str(data_dir)).shape == digits.shape
    with pytest.raises(ValueError, match=r"dataset\.name = 'digits:2\.0\.0' is not prepared in"):
        open_dataset("digits:2.0.0", str(data_dir))


def test_rotations_need_one_scale_for_all_axes():
    units = Units("float32", None, (0.0, 0.0), (1.0, 2.0), "points")
    with pytest.raises(
        ValueError, match=r"config.dataset.rotate needs one standard deviation for all axes, got \(1.0, 2.0\)"
    ):
        Augment(rotate=True).check((5, 2), units)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda d: open_dataset("celeb_a", d),
            "dataset.name = 'celeb_a' is not prepared in .*; to prepare it: python -m",
        ),
        (
            lambda d: open_dataset("digits", d).source("validation"),
            "split must be one of train, test .* got 'validation'",
        ),
        (lambda d: open_dataset("digits", d).source("test[:0]"), r"split .*'test\[:0\]'"),
        (
            lambda d: batches(open_dataset("digits", d), "test[:9]", 10, seed=0),
            r"batch_size must be at most the 9 examples of split 'test\[:9\]', got 10",
        ),
    ],
)
def test_bad_input(make, message, data_dir):
    with pytest.raises(ValueError, match=message):
        make(str(data_dir))


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["traced", "compiled"])
def test_one_step_of_the_cifar10_config_on_mock_data(tmp_path, compiled):
    import jax

    from diffax import training
    from experiments.configs import cifar10_ddpm

    Cifar10(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    dataset = open_dataset("cifar10", str(tmp_path))
    assert (dataset.units.range, dataset.shape) == ((0, 255), (32, 32, 3))
    config = cifar10_ddpm.get_config()
    config.dataset.batch_size = 2
    model = built(config)
    optimizer = model.optimizer.make()

    def first_state(key):
        return training.init_state(key, model.init(key), optimizer)

    step = training.train_step(model.objective().loss, optimizer, ema_decay=config.optimizer.ema_decay)
    batch = next(batches(dataset, "train", 2, seed=0, augment=Augment(flip=True)))
    state = jax.eval_shape(first_state, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) == 35_746_307
    if not compiled:
        after, metrics = jax.eval_shape(step, state, batch)
        assert metrics["loss"].shape == ()
        for u, v in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
            assert (u.shape, u.dtype) == (v.shape, v.dtype)
        return
    here = jax.devices()[:1]
    state = training.replicate(first_state(jax.random.key(0)), here)
    state, metrics = training.data_parallel(step, here)(state, batch)
    # The initial prediction is zero, so the loss is the mean square of eps.
    assert abs(float(metrics["loss"]) - 1) < 0.1
    assert int(state.step) == 1
