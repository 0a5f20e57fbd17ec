"""Array conditions of a data set: reading, units, augmentation, training, sampling and export."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import built, error_of_train, imported, opened, run, save_run, train
from sweeping_runs import command, write

import diffax
from diffax.pretrained import Units
from experiments.configs import own
from experiments.data import sources
from experiments.data.datasets import open_dataset
from experiments.data.pipeline import Augment, batches
from experiments.evaluation import bits
from experiments.model import Data
from experiments.run import loading
from experiments.run.inputs import opened as inputs_of

__all__ = ["command"]  # a fixture

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
FIELD = Units("float32", None, (0.0, 0.0), (1.0, 1.0), "field")


def place_of(condition):
    """The point (..., 2) of a condition (..., 1), which is about 250 +- 10."""
    return 5 + (condition - 250) * np.array([2.0, -1.0])


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A folder of data sets: fields conditioned on fields, points on numbers, pictures on vectors, sets of points."""
    folder = tmp_path_factory.mktemp("sets")
    field = RNG.normal([50, -3], [10, 2], (60, 8, 8, 2)).astype(np.float32)
    number = RNG.normal(250, 10, (400, 1))
    mask = np.arange(6) < RNG.integers(2, 7, (40, 1))
    height = np.where(mask, RNG.normal(7, 2, (40, 6)), 1e6)[..., None]
    arrays = {
        "fields": {"x": 100 + 3 * field[..., :1], "condition": field},
        "points": {"x": place_of(number).astype(np.float32), "condition": number[:, 0]},
        "pictures": {
            "x": RNG.integers(0, 255, (40, 4, 4, 1), np.uint8),
            "condition": RNG.normal(3, 2, (40, 3)),
            "label": np.arange(40) % 2,
        },
        "clouds": {"x": RNG.normal(size=(40, 6, 3)), "mask": mask, "condition": height},
    }
    for name, columns in arrays.items():
        np.savez(folder / f"{name}.npz", **columns)
        run("prepare", f"--name={name}", f"--arrays={folder / name}.npz", f"--data_dir={folder}")
    return folder


def config_of(sets, name, **changes):
    config = own.get_config()
    config.dataset.update({"name": name, "data_dir": str(sets), "batch_size": 8})
    config.network.update({"name": "mlp", "channels": 32, "depth": 1})
    config.train.update({"compile_cache": False, "num_steps": 2, "log_every": 2, "checkpoint_every": 2})
    config.sampling.num_steps = 4
    for path, value in changes.items():
        group, key = path.split("__")
        config[group][key] = value
    return config


# ---------------------------------------------------------------- data


def test_conditions_are_standardised_by_the_training_split(sets):
    dataset = open_dataset("fields", str(sets))
    assert dataset.condition == (8, 8, 2)
    train = dataset.conditions("train").astype(np.float64)
    np.testing.assert_allclose(dataset.condition_units.mean, train.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(dataset.condition_units.std, train.std((0, 1, 2)), rtol=1e-6)
    batch = next(batches(dataset, "train", 54, seed=0))
    np.testing.assert_allclose(batch["condition"].mean((0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(batch["condition"].std((0, 1, 2)), 0.5, rtol=1e-5)
    np.testing.assert_allclose(batch["condition"][..., :1], batch["x"], atol=1e-5)  # x is linear in this channel


def test_units_of_conditions_ignore_entries_outside_the_mask(sets):
    dataset = open_dataset("clouds", str(sets))
    assert dataset.condition == (6, 1)
    assert 6 < dataset.condition_units.mean[0] < 8


def test_a_number_for_each_example_or_position_is_one_channel():
    x = np.zeros((3, 4, 4, 2), np.float32)
    for condition, shape in ((np.arange(3), (1,)), (np.ones((3, 4, 4)), (4, 4, 1)), (np.ones((3, 4)), (4,))):
        source = sources.of_arrays(x, {"condition": condition})
        assert source.shapes["condition"] == source.example(0)["condition"].shape == shape


@pytest.mark.parametrize("change", [{"flip": True}, {"crop": 2}, {"roll": (0, 1)}])
def test_augmentation_moves_x_and_its_condition_alike(sets, change):
    dataset = open_dataset("fields", str(sets))
    plain, batch = (
        next(batches(dataset, "train", 54, seed=0, augment=augment)) for augment in (Augment(), Augment(**change))
    )
    assert batch["condition"].shape == (54, 8, 8, 2)
    assert np.abs(batch["x"] - plain["x"]).max() > 0.1
    np.testing.assert_allclose(batch["condition"][..., :1], batch["x"], atol=1e-5)


def test_augmentation_does_not_change_a_vector_condition(sets):
    dataset = open_dataset("pictures", str(sets))
    plain, batch = (next(batches(dataset, "train", 36, seed=0, augment=Augment(flip=on))) for on in (False, True))
    np.testing.assert_array_equal(batch["condition"], plain["condition"])
    assert np.abs(batch["x"] - plain["x"]).max() > 0.1


def test_augmentation_that_does_not_fit_the_condition_is_refused():
    points = Units("float32", None, (0.0, 0.0), (1.0, 1.0), "points")
    with pytest.raises(
        ValueError, match=r"config.dataset.rotate must be False for data with a condition, got .*\(3,\)"
    ):
        Augment(rotate=True).check((5, 2), points, (3,))
    with pytest.raises(ValueError, match=r"config.dataset.crop must be off for x \(8, 8, 1\) with .* \(4, 4, 1\)"):
        Augment(crop=1).check((8, 8, 1), FIELD, (4, 4, 1))


def test_records_keep_the_condition_and_old_records_have_none():
    data = Data((8, 8, 1), None, FIELD, condition=(8, 8, 2), condition_units=FIELD)
    record = json.loads(json.dumps(data.record()))
    assert Data.of(record) == data
    assert Data.of({key: record[key] for key in ("shape", "num_classes", "units")}) == Data((8, 8, 1), None, FIELD)


# ---------------------------------------------------------------- the model and its inputs


def test_batches_have_the_shapes_of_the_empty_batch(sets):
    for name, unused in (("fields", ""), ("pictures", " (labels are not used)")):
        inputs = inputs_of(config_of(sets, name), 1)
        batch, empty = next(inputs.read()), inputs.empty_batch(8)
        assert {key: (v.shape, v.dtype) for key, v in batch.items()} == {
            key: (v.shape, v.dtype) for key, v in empty.items()
        }
        size = "x".join(map(str, inputs.data.condition))
        assert f"with condition {size}{unused}: " in inputs.describe({})
        condition = inputs.examples("test", 3, None)["condition"]
        raw = inputs.dataset.conditions("test")
        np.testing.assert_array_equal(condition[0], inputs.data.condition_units.normalise(raw[0]))


def test_conditions_that_the_model_does_not_use_are_not_read(sets):
    inputs = inputs_of(config_of(sets, "points", network__conditional=False), 1)
    assert "condition" not in next(inputs.read())
    assert (inputs.data.condition, inputs.model.diffusion.condition) == (None, "")
    assert "(its conditions are not used)" in inputs.describe({})


def test_conditions_are_dropped_at_the_rate_p_uncond(sets):
    inputs = inputs_of(config_of(sets, "points", loss__p_uncond=0.5), 1)
    params = jax.tree.map(lambda v: v + 0.1, inputs.model.init(KEY))
    loss = jax.jit(inputs.model.objective().loss)
    x = jnp.ones((256, 2))
    batch = {"x": x, "label": jnp.zeros(256, int), "index": jnp.arange(256), "condition": jnp.ones((256, 1))}
    keys = jax.random.split(KEY, 256)
    ones, null = (loss(params, {**batch, "condition": c}, keys) for c in (jnp.ones((256, 1)), jnp.zeros((256, 1))))
    assert 90 < int((ones == null).sum()) < 166
    measured = {**batch, "u": jnp.linspace(0.01, 0.99, 256)}
    ones, null = (loss(params, {**measured, "condition": c}, keys) for c in (batch["condition"], jnp.zeros((256, 1))))
    assert (ones != null).all()  # conditions are not dropped in the held-out loss


def test_shapes_that_do_not_fit_are_refused():
    config = own.get_config()
    for shape, condition in (((8, 8, 1), (4, 4, 2)), ((4, 4, 2), (8, 8, 1))):  # the second case is in latents
        data = Data(shape, None, Units(), condition=condition, condition_units=FIELD)
        message = rf"config.network must fit .* condition must have shape \(D,\) or .*, got \({condition[0]}, "
        with pytest.raises(ValueError, match=message):
            built(config, data=data)
    with pytest.raises(ValueError, match=r"config.network.conditional must be False: .* has no labels or conditions"):
        built(config, data=Data((8, 8, 1), None, Units()))


def test_guidance_needs_a_null_condition(sets, tmp_path, capsys):
    config = config_of(sets, "points", loss__p_uncond=0.0, sampling__guidance=2.0)
    assert "config.sampling.guidance must be 1 without a null label" in error_of_train(config, tmp_path, capsys)


# ---------------------------------------------------------------- training, samples, export


@pytest.fixture(scope="module")
def trained(sets, tmp_path_factory):
    """Workdirs of two models of points: with the condition and without it."""
    folder = tmp_path_factory.mktemp("runs")
    every = {"train__log_every": 100, "train__checkpoint_every": 300, "train__heldout_every": 300}
    every |= {"train__num_steps": 300, "train__sample_every": 300, "dataset__batch_size": 32}
    for name, conditional in (("with", True), ("without", False)):
        config = config_of(sets, "points", network__conditional=conditional, **every)
        config.optimizer.update({"learning_rate": 5e-3, "ema_decay": 0.98})
        train(config, folder / name, devices=1, watch=imported("train")[0].watch)
    return folder


def test_a_condition_that_decides_x_lowers_the_loss(trained):
    losses = []
    for name in ("with", "without"):
        lines = [json.loads(line) for line in (trained / name / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["heldout"] for line in lines if "heldout" in line][-1])
        assert len(list((trained / name / "samples").glob("*.png"))) == 1
    assert losses[0] < losses[1] / 2


def test_samples_follow_the_conditions_of_the_test_split(trained, sets, tmp_path):
    run("sample", f"--checkpoint={trained / 'with'}", f"--out={tmp_path}", "--num=30", "--num_steps=10")
    shard = np.load(tmp_path / "shard_00000.npz")
    conditions = open_dataset("points", str(sets)).conditions("test[50%:]")
    np.testing.assert_array_equal(shard["conditions"], conditions[np.arange(30) % len(conditions)])
    error = shard["samples"] - place_of(shard["conditions"])
    assert np.sqrt((error**2).mean()) < 5  # the standard deviations are 20 and 10
    assert json.loads((tmp_path / "settings.json").read_text())["conditions"] == "test[50%:]"


def test_an_export_takes_conditions_in_their_own_units(trained, tmp_path):
    run("export", f"--checkpoint={trained / 'with'}", f"--out={tmp_path / 'export'}")
    model = diffax.load(tmp_path / "export").with_sampling(num_steps=10)
    conditions = np.linspace(235, 265, 16)[:, None]
    samples = model.denormalise(model.sample(KEY, 16, conditions))
    assert np.sqrt(((samples - place_of(conditions)) ** 2).mean()) < 5
    mean = np.asarray(model.condition_units.mean)
    np.testing.assert_allclose(model.sample(KEY, 16), model.sample(KEY, 16, mean), atol=1e-4)  # the default is the mean
    run("sample", f"--checkpoint={tmp_path / 'export'}", f"--out={tmp_path / 'out'}", "--num=3")
    assert np.load(tmp_path / "out" / "shard_00000.npz")["conditions"].shape == (3, 1)


def test_flags_that_contradict_array_conditions_are_refused(trained, tmp_path, capsys):
    for flag, message in (
        ("--labels=1", "labels must be empty for a model with array conditions, got 1"),
        ("--captions=red", "captions must be empty for a model without text, got red"),
        (f"--classifier={trained}", "classifier must not be used for a model with array conditions"),
    ):
        with pytest.raises(SystemExit):
            run("sample", f"--checkpoint={trained / 'with'}", f"--out={tmp_path / 'out'}", flag)
        assert message in capsys.readouterr().err


def test_adapters_are_trained_with_the_condition(trained, sets, tmp_path):
    config = config_of(sets, "points")
    config.lora.base = str(trained / "with")
    state = opened(config, tmp_path)
    assert next(iter(state.batches))["condition"].shape == (8, 1)
    assert state.record["data"]["condition"] == (1,)


@pytest.mark.slow_cases("clouds")
@pytest.mark.parametrize("name", ["points", "clouds"])
def test_sweeps_sample_with_the_conditions_and_masks_of_the_test_split(name, sets, tmp_path, command):
    network = {"name": {"points": "mlp", "clouds": "dit"}[name], "channels": 8, "depth": 1}
    network |= {"patch_size": 0, "positions": "none"}
    measured = {"num": 8, "batch_size": 8, "extractor": "values", "metrics": ("sliced_wasserstein",)}
    changes = f"""
        from experiments.configs import own
        config = settings.training(own.get_config())
        config.dataset.update({{"name": {name!r}, "data_dir": {str(sets)!r}, "batch_size": 8}})
        config.network.update({network})
        config.train.update({{"num_steps": 2, "log_every": 2, "checkpoint_every": 2}})
        config.sampling.num_steps = 3
        config.evaluation.update({measured})
    """
    train_file = write(tmp_path / "train.py", "None", changes, "seeds(1)")
    done = command(train_file, tmp_path / "trained", "--way=loop")
    assert done.status == 0, done.err
    (export,) = (tmp_path / "trained" / "runs").glob("*/export")
    changes = f"""
        config.checkpoint = {str(export)!r}
        config.calls = 3
        config.evaluation.update({measured})
    """
    sample_file = write(tmp_path / "sample.py", "settings.sampling()", changes, "seeds(1)")
    done = command(sample_file, tmp_path / "sampled")
    assert done.status == 0, done.err
    assert "sliced_wasserstein" in done.out


def test_bits_are_computed_by_the_conditional_denoiser(sets, tmp_path):
    config = config_of(sets, "pictures")
    inputs = inputs_of(config, 1)
    params = jax.tree.map(lambda v: v + 0.1, inputs.model.init(KEY))
    folder = save_run(tmp_path, config, params, data=inputs.data)
    model = loading.load(folder)
    settings = bits.Settings(num=2)
    dataset = open_dataset("pictures", str(sets))
    case = bits.open_case(model, dataset, (), settings)
    condition = dataset.condition_units.normalise(dataset.conditions("test[50%:]")[:2])
    denoise = model.model.diffusion.denoiser(params, condition)
    np.testing.assert_allclose(case.denoise(case.x0, 0.5), denoise(case.x0, 0.5), atol=1e-5)
    other = model.model.diffusion.denoiser(params, condition + 1)(case.x0, 0.5)
    assert np.abs(np.asarray(case.denoise(case.x0, 0.5)) - np.asarray(other)).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("fields", {"name": "unet", "channels": 8, "channel_multipliers": (1, 2), "attention_levels": ()}),
        ("clouds", {"name": "dit", "channels": 8, "patch_size": 0, "positions": "none"}),
    ],
)
def test_fields_and_sets_of_points_train_and_sample(sets, tmp_path, name, network):
    config = config_of(sets, name)
    config.network.update(network)
    train(config, tmp_path / "run", watch=imported("train")[0].watch)
    run("sample", f"--checkpoint={tmp_path / 'run'}", f"--out={tmp_path / 'out'}", "--num=6")
    shard = np.load(tmp_path / "out" / "shard_00000.npz")
    assert shard["conditions"].shape == (6, *open_dataset(name, str(sets)).condition)
    assert ("masks" in shard.files) == (name == "clouds")
