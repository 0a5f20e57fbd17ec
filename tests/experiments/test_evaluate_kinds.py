"""`evaluate` on fields, signals, points and sets of points with masks, without a classifier."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import imported, run, save_run

import diffax
from diffax.pretrained import Units
from experiments.configs import own
from experiments.data.datasets import Dataset, open_dataset
from experiments.evaluation import bits, extractors
from experiments.evaluation.values import WIDTH, of_values, with_masks
from experiments.model import Data, build

evaluate, _ = imported("evaluate")
COUNT = 400


def fields(rng, count):
    """Smooth fields (8, 6, 2) with different units in the two channels."""
    noise = rng.normal(size=(count, 8, 6, 2))
    smooth = sum(np.roll(noise, (i, j), (1, 2)) for i in range(3) for j in range(3)) / 3
    return (smooth * [5, 200] + [280, 1e5]).astype(np.float32)


def masks(count, seed=0):
    """Masks of 2 to 7 points."""
    return np.arange(7) < np.random.default_rng(seed).integers(2, 8, (count, 1))


MAKE = {
    "fields": fields,
    "signals": lambda rng, count: np.cumsum(rng.normal(size=(count, 40, 1)), 1).astype(np.float32),
    "volumes": lambda rng, count: rng.normal(size=(count, 4, 4, 4, 1)).astype(np.float32),
    "places": lambda rng, count: rng.normal([100, 3], [3, 1], (count, 2)).astype(np.float32),
    "sets": lambda rng, count: rng.normal([5, -5, 0], 2, (count, 7, 3)).astype(np.float32),
    "pictures": lambda rng, count: rng.integers(0, 256, (count, 8, 8, 3), np.uint8),
}


def make(name, count=200, seed=1):
    return MAKE[name](np.random.default_rng(seed), count)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The folder of the prepared data sets; half of each set is the test split."""
    folder = tmp_path_factory.mktemp("kinds")
    for name in MAKE:
        np.savez(folder / f"{name}.npz", x=make(name, COUNT, 0), **({"mask": masks(COUNT)} if name == "sets" else {}))
        run("prepare", f"--name={name}", f"--arrays={folder / name}.npz", f"--data_dir={folder}", "--test=0.5")
    return folder


def save(folder, data, name, samples, mask=None):
    """Write a folder as `experiments.sample` does, in two shards, and return it."""
    folder.mkdir(exist_ok=True)
    more = {} if mask is None else {"masks": mask}
    for number, rows in enumerate((slice(0, 150), slice(150, None))):
        arrays = {"samples": samples, "labels": np.full(len(samples), -1), **more}
        np.savez(folder / f"shard_{number:05d}.npz", **{key: value[rows] for key, value in arrays.items()})
    dataset = {"name": name, "data_dir": str(data), "train_split": "train", "test_split": "test"}
    settings = {"num": len(samples), "shard_size": 150, "step": 1, "dataset": dataset | {"classifier_split": "test"}}
    settings["sampling"] = {"sampler": "none", "num_steps": 1, "guidance": 1.0}
    (folder / "settings.json").write_text(json.dumps(settings))
    return folder


def measured(folder, capsys, *more):
    capsys.readouterr()
    run("evaluate", f"--samples={folder}", *more)
    return json.loads((folder / "evaluation.json").read_text()), capsys.readouterr().out


@pytest.mark.parametrize("name", MAKE)
def test_metrics_of_real_data_are_near_the_floor_and_those_of_changed_data_are_above(data, tmp_path, capsys, name):
    real, mask = make(name), masks(200, 1) if name == "sets" else None
    result, text = measured(save(tmp_path / "real", data, name, real, mask), capsys)
    assert result["conditions"]["extractor"] == "values"
    assert "FD(values)" in text
    assert f"features              {of_values(open_dataset(name, str(data))).about}" in text
    worse = (
        real / 2
        if name == "pictures"
        else real.mean(0) + real.std(tuple(range(real.ndim - 1))) + (real - real.mean(0)) / 2
    )
    other, _ = measured(save(tmp_path / "worse", data, name, worse.astype(real.dtype), mask), capsys)
    for metric in ("fd", "sliced_wasserstein"):
        if name != "places":  # in two dimensions the distances have a large variance
            assert 0.5 < result["metrics"][metric] / result["floors"][metric] < 1.7
        assert result["metrics"][metric] < 0.25 * other["metrics"][metric]
        assert other["metrics"][metric] > 3 * other["floors"][metric]
    is_field = name in ("fields", "signals", "volumes")
    assert ("spectral_distance_db" in result["metrics"]) == is_field
    if is_field:
        assert other["metrics"]["spectral_distance_db"] == pytest.approx(20 * np.log10(2), abs=1)
        assert result["metrics"]["spectral_distance_db"] < 1
        assert result["floors"]["spectral_distance_db"] < 1


def test_channels_are_reported_in_their_units(data, tmp_path, capsys):
    real = make("fields")
    result, text = measured(save(tmp_path / "out", data, "fields", real + np.float32([10, 0])), capsys)
    first, second = result["channels"]
    assert first["samples"] == pytest.approx([real[..., 0].mean() + 10, real[..., 0].std()], rel=1e-4)
    whole = make("fields", COUNT, 0)
    for i, channel in enumerate((first, second)):
        assert channel["test"] != channel["train"]
        means, deviations = np.mean([channel["test"], channel["train"]], 0)  # the two splits are halves
        assert means == pytest.approx(whole[..., i].mean(dtype=np.float64), rel=1e-6)
        assert deviations == pytest.approx(whole[..., i].std(dtype=np.float64), rel=0.01)
    assert f"channel_0             samples {first['samples'][0]:.6g} +- {first['samples'][1]:.4g}   test " in text
    assert result["metrics"]["fd"] > 3 * result["floors"]["fd"]


def test_padding_of_the_samples_changes_nothing(data, tmp_path, capsys):
    points, mask = make("sets"), masks(200, 1)
    result, _ = measured(save(tmp_path / "out", data, "sets", points, mask), capsys)
    inside = points[mask]
    for i, channel in enumerate(result["channels"]):
        assert channel["samples"] == pytest.approx([inside[:, i].mean(), inside[:, i].std()], rel=1e-3)
    padded = np.where(mask[..., None], points, np.float32(1e6))
    again, _ = measured(save(tmp_path / "out", data, "sets", padded, mask), capsys)
    assert again == result
    order = np.random.default_rng(0).permutation(7)
    other, _ = measured(save(tmp_path / "out", data, "sets", points[:, order], mask[:, order]), capsys)
    assert other["metrics"] == pytest.approx(result["metrics"], rel=1e-4)
    small = np.arange(7) < 2 * np.ones((200, 1))
    fewer, _ = measured(save(tmp_path / "out", data, "sets", points, small), capsys)
    assert fewer["metrics"]["fd"] > 3 * fewer["floors"]["fd"]


def test_fd_of_few_examples_is_left_out_and_the_report_says_so(data, tmp_path, capsys):
    folder = save(tmp_path / "out", data, "fields", make("fields", 20))
    result, text = measured(folder, capsys)
    assert set(result["metrics"]) == {"sliced_wasserstein", "spectral_distance_db"}
    assert f"left out              fd, which needs at least {WIDTH + 1} examples of each set" in text
    result, _ = measured(folder, capsys, "--allow_few", "--metrics=fd,kid")
    assert set(result["metrics"]) == {"fd", "kid"}


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("fields", ("--extractor=classifier",), "extractor must be one without labels, such as values, for 'fields'"),
        ("signals", ("--extractor=classifier",), "extractor must be values for examples of shape (40, 1), got 'cla"),
        ("sets", ("--extractor=efficientnet_lite0",), "extractor must be values for examples of shape (7, 3) with"),
        ("places", ("--metrics=accuracy",), "metric accuracy needs a judge"),
        ("places", ("--metrics=fd", "--data_dir=/tmp/none"), "dataset.name = 'places' is not prepared"),
    ],
)
def test_a_bad_extractor_or_metric_is_one_line(data, tmp_path, capsys, name, flags, message):
    folder = save(tmp_path / "out", data, name, make(name, 20), masks(20) if name == "sets" else None)
    assert refused(capsys, f"--samples={folder}", *flags).startswith(f"error: {message}")


def refused(capsys, *flags):
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        run("evaluate", *flags)
    output = capsys.readouterr()
    assert (ended.value.code, output.out, output.err.count("\n")) == (2, "", 1)
    return output.err


def test_samples_that_do_not_fit_are_one_line(data, tmp_path, capsys):
    folder = save(tmp_path / "out", data, "sets", make("sets"))
    error = refused(capsys, f"--samples={folder}")
    assert error == "error: masks of the samples must be of shape (7,), as those of the data, got None\n"
    folder = save(tmp_path / "out", data, "fields", make("fields")[:, :4])
    assert "samples must be examples of shape (8, 6, 2), got (4, 6, 2)" in refused(capsys, f"--samples={folder}")
    (folder / "shard_00001.npz").write_bytes(b"cut short")
    assert "lacks shard_00001.npz: run experiments.sample again" in refused(capsys, f"--samples={folder}")


# The extractor


def dataset_of(shape, kind, mask=None, classes=None):
    units = Units("float32", None, (0.0,) * shape[-1], (0.5,) * shape[-1], kind)
    return Dataset("made", None, "x", shape, units, classes, mask)


def test_the_extractor_is_chosen_by_the_data():
    images = Dataset("made", None, "image", (8, 8, 1), Units(), ("a", "b"))
    assert extractors.default_of(images) == "classifier"
    for other in (
        images._replace(classes=None),
        dataset_of((8, 8, 1), "field", classes=("a", "b")),
        dataset_of((2,), "points", classes=("a", "b")),
        images._replace(mask=(8, 8)),
    ):
        assert extractors.default_of(other) == "values"


def test_few_values_are_used_as_features_and_many_are_projected():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 8, 8, 1)).astype(np.float32)
    few = of_values(dataset_of((8, 8, 1), "field"))
    np.testing.assert_array_equal(few.features(x), x.reshape(5, -1))
    many, again = (of_values(dataset_of((8, 8, 2), "field")) for _ in range(2))
    x = rng.normal(size=(5, 8, 8, 2)).astype(np.float32)
    z = many.features(x)
    assert z.shape == (5, many.dimension) == (5, WIDTH)
    np.testing.assert_array_equal(again.features(x), z)
    assert many.digest == again.digest
    assert len({of_values(dataset_of((n, 2), k)).digest for n in (40, 50) for k in ("field", "points")}) == 4


def test_features_ignore_entries_outside_the_mask():
    dataset = dataset_of((6, 4, 2), "field", mask=(6, 4))
    rng = np.random.default_rng(0)
    x, mask = rng.normal(size=(3, 6, 4, 2)).astype(np.float32), rng.random((3, 6, 4)) < 0.5
    other = np.where(mask[..., None], x, 7)
    extract = of_values(dataset)
    np.testing.assert_array_equal(extract.features(with_masks(x, mask)), extract.features(with_masks(other, mask)))
    each = of_values(dataset_of((6, 4, 2), "field", mask=(6, 4, 2)))  # a mask for each channel
    np.testing.assert_array_equal(
        each.features(with_masks(x, np.stack([mask, mask], -1))), extract.features(with_masks(x, mask))
    )
    points = of_values(dataset_of((6, 2), "points", mask=(6,)))
    x, mask = x[..., 0, :], np.arange(6) < np.array([[1], [3], [6]])
    z = points.features(with_masks(x, mask))
    assert z.shape == (3, points.dimension) == (3, WIDTH + 1)
    np.testing.assert_allclose(z[:, -1], [1 / 6, 1 / 2, 1], rtol=1e-6)


# Nats per dimension


def gaussian_case(x0, mask=None):
    """The case of the exact denoiser of independent entries N(0, 0.25)."""
    curve, data = diffax.Cosine(), diffax.analytic.Gaussian.from_covariance([0.0], 0.25)
    denoise = data.denoiser(curve)

    def every(x, t):
        return denoise(x.reshape(-1, 1), jnp.repeat(jnp.broadcast_to(t, len(x)), x[0].size)).reshape(x.shape)

    return bits.Case(curve, every, x0, None, (), 0.1, mask)


def test_the_bound_of_a_gaussian_is_its_entropy_with_and_without_masks():
    settings = bits.Settings(draws=120)
    x0 = 0.5 * jax.random.normal(jax.random.key(0), (64, 6, 2))
    mask = jnp.arange(6) < jnp.array([[2], [5], [6], [1]] * 16)
    entropy = lambda x: float(np.mean(x**2)) / 0.5 + 0.5 * np.log(2 * np.pi * 0.25)
    value = bits.in_continuous_time(jax.random.key(1), gaussian_case(x0), settings)
    assert set(value) == {"continuous"}
    assert value["continuous"]["nats"] == pytest.approx(entropy(x0), abs=0.05)
    inside = jnp.where(mask[..., None], x0, 1e3)
    value = bits.in_continuous_time(jax.random.key(1), gaussian_case(inside, mask), settings)
    mean = np.mean([entropy(np.asarray(x)[np.asarray(own)]) for x, own in zip(x0, mask, strict=True)])
    assert value["continuous"]["nats"] == pytest.approx(mean, abs=0.08)


def test_a_checkpoint_of_sets_has_nats_by_the_continuous_bound(data, tmp_path, capsys):
    dataset = open_dataset("sets", str(data))
    config = own.get_config()
    config.dataset.update({"name": "sets", "data_dir": str(data), "test_split": "test"})
    config.network.update({"name": "dit", "patch_size": 0, "positions": "none", "channels": 8, "conditional": False})
    described = Data(dataset.shape, None, dataset.units, dataset.mask)
    params = jax.jit(build(config, described).init)(jax.random.key(0))
    folder = save_run(tmp_path / "run", config, params, data=described)
    error = refused(capsys, f"--checkpoint={folder}", "--routes=vlb", "--num=8")
    assert error.startswith("error: routes must be continuous for data of type float32 with masks, got 'vlb'")
    run("evaluate", f"--checkpoint={folder}", "--num=8", "--draws=2")
    assert "nats per dimension of the normalised values" in capsys.readouterr().out
    (value,) = json.loads((folder / "bits.json").read_text())["routes"].values()
    assert np.isfinite(value["nats"])
