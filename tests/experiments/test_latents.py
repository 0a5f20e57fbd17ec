"""Diffusion in the latents of an autoencoder: what is trained on, what is refused, and all of it in one go."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from test_experiments import call

import diffax
from diffax.nn.autoencoding import kl_to_standard_normal, reparameterise
from diffax.training import Checkpoints, init_state, make_mesh
from experiments.configs import mnist5k_autoencoder, mnist5k_latent, smoke
from experiments.data import images
from experiments.data.datasets import open_dataset
from experiments.evaluation import bits
from experiments.models import autoencoder, build, latents, networks, objectives
from experiments.models.loading import load_model
from experiments.run import checks, opening, training

KEY = jax.random.key(0)


def settings(data_dir, folder=""):
    """The smoke config with a tiny autoencoder."""
    config = smoke.get_config()
    config.dataset.data_dir = str(data_dir)
    config.autoencoder.update({"channels": 4, "latent_channels": 2, "attention": False})
    config.latent.autoencoder, config.sampling.clip = str(folder), not folder
    config.train.compile_cache = False
    return config


def save(folder, config, params, model, step=1, **record):
    """A checkpoint as a run writes it."""
    data = {"range": [0.0, 16.0], "shape": [8, 8, 1], "length": 997, "autoencoder": None}
    record = {"model": model, "config": config.to_dict(), "data": data, "num_classes": 10} | record
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(step, init_state(KEY, params, build.optimizer(config)), record)
    return folder


def first_params(config, seed=0, size=8):
    """Of the autoencoder, with nothing left at zero."""
    net, rng = autoencoder.network(config, 10), np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: net.init(KEY, jnp.zeros((1, size, size, 1))))["params"]
    return jax.tree.map(lambda v: jnp.asarray(0.3 * rng.normal(size=v.shape), v.dtype), shapes)


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory):
    """The workdir of an autoencoder."""
    folder, config = tmp_path_factory.mktemp("autoencoder"), settings(data_dir)
    save(folder, config, first_params(config), autoencoder.KIND)
    found = {"step": 1, "digest": autoencoder.load(folder).digest, "std": 2.0, "images": 10}
    (folder / autoencoder.LATENTS).write_text(json.dumps(found))
    return folder


@pytest.fixture(scope="module")
def space(finished, data_dir):
    return latents.open_latents(settings(data_dir, finished), open_dataset("digits", str(data_dir)))


@pytest.fixture(scope="module")
def moments(space):
    """A jitted encoder: images -> (mean, log_variance)."""
    encode = space.trained.apply("encode")
    return lambda x: encode(space.trained.params, x)


def test_the_space_is_the_autoencoder_s(space, moments, finished):
    assert (space.shape, space.moments_shape, space.scale) == ((4, 4, 2), (4, 4, 4), 0.5)
    x = jax.random.normal(KEY, (3, 8, 8, 1))
    mean, log_variance = moments(x)
    found = latents.encoder(space)(np.asarray(x))
    np.testing.assert_allclose(found, jnp.concatenate([mean, log_variance], -1), atol=1e-5)
    np.testing.assert_allclose(latents.code(space, np.asarray(x[0])), 0.5 * mean[0], atol=1e-5)
    y = space.trained.net.apply({"params": space.trained.params}, mean, method="decode")
    generate = lambda params, keys, label: np.asarray(0.5 * mean)
    np.testing.assert_allclose(latents.decoded(generate, space)(None, None, None), y, atol=1e-5)
    assert latents.decoded(generate, None) is generate
    assert latents.code(None, x) is x
    assert space.record() == {
        "autoencoder": str(finished),
        "step": 1,
        "shape": [4, 4, 2],
        "digest": space.trained.digest,
        "scale": 0.5,
    }


def test_the_deviation_is_that_of_draws(space, moments):
    """Of all numbers of all latents, as `std` of NumPy on a million of them."""
    images = np.asarray(jax.random.normal(KEY, (250, 8, 8, 1)))
    mean, log_variance = (np.repeat(v, 100, 0) for v in moments(images))
    drawn = np.asarray(reparameterise(KEY, mean, log_variance))
    found = autoencoder.latent_std(space.trained, images, make_mesh())
    np.testing.assert_allclose(found, drawn.std(), rtol=5e-3)
    assert not np.isclose(found, np.std(mean), rtol=2e-2)  # without the variances it is another number


@pytest.mark.slow
def test_the_digest_knows_all_that_decides_the_latents(finished, data_dir, tmp_path):
    config = settings(data_dir)
    digest = autoencoder.load(finished).digest
    assert autoencoder.load(save(tmp_path / "a", config, first_params(config), autoencoder.KIND, 7)).digest == digest
    others = [save(tmp_path / "b", config, first_params(config, seed=1), autoencoder.KIND)]
    config.autoencoder.kl_weight = 0.5
    others.append(save(tmp_path / "c", config, first_params(config), autoencoder.KIND))
    assert len({digest, *(autoencoder.load(folder).digest for folder in others)}) == 3


def test_the_loss_is_that_of_scaled_draws(space, moments):
    """With an inner loss that gives back what it is given; a memory passes through."""
    x = np.asarray(jax.random.normal(KEY, (4, 8, 8, 1)))
    batch = {"image": jnp.asarray(latents.encoder(space)(x)), "label": jnp.arange(4)}
    keys = jax.random.split(KEY, 4)
    inner = objectives.Objective(lambda params, batch, keys, *past: (batch, keys, past), "memory", "update_memory")
    ours = latents.objective(inner, space)
    (given, given_keys, past), mean_and_log = ours.loss(None, batch, keys, 3), moments(x)
    z = reparameterise(diffax.random.fold_in(keys, latents.OF_THE_CODE), *mean_and_log)
    np.testing.assert_allclose(given["image"], 0.5 * z, atol=1e-5)
    assert (past, ours.memory, ours.update_memory) == ((3,), "memory", "update_memory")
    np.testing.assert_array_equal(given["label"], batch["label"])
    assert (given_keys == keys).all()
    again = ours.loss(None, batch, jax.random.split(jax.random.key(1), 4))[0]["image"]
    assert float(jnp.abs(again - given["image"]).min(axis=0).max()) > 1e-3  # each use draws anew
    assert latents.objective(inner, None) is inner


@pytest.mark.slow
def test_batches_are_the_same_from_memory_and_on_the_fly(finished, data_dir, tmp_path):
    """Moments of the images of the pixels' batches; a position of one is a position of the other."""
    runs = []
    for cache in (True, False):
        config = settings(data_dir, finished)
        config.latent.cache = cache
        runs.append(opening.prepare(config, tmp_path / str(cache), networks.network, "diffusion"))
    assert runs[0].shape == (4, 4, 2)
    assert runs[0].described["autoencoder"] == runs[0].latents.identity()
    plain = opening.prepare(settings(data_dir), tmp_path / "plain", networks.network, "diffusion")
    pixels, *ours = (next(run.data) for run in (plain, *runs))
    wanted = latents.encoder(runs[0].latents)(pixels["image"])
    for batch in ours:
        np.testing.assert_allclose(batch["image"], wanted, atol=1e-5)
        np.testing.assert_array_equal(batch["label"], pixels["label"])
    position = runs[0].data.get_state()
    third = [next(runs[0].data) for _ in range(2)][1]["image"]
    runs[1].data.set_state(position)
    np.testing.assert_allclose([next(runs[1].data) for _ in range(2)][1]["image"], third, atol=1e-5)
    assert isinstance(runs[1].data, latents.Encoded)
    assert not isinstance(runs[0].data, latents.Encoded)


def prepare(config, folder, capsys, network=networks.network, model="diffusion"):
    """The line that `opening.prepare` ends with."""
    with pytest.raises(SystemExit) as stopped:
        opening.prepare(config, folder, network, model)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_bad_autoencoders_are_one_line(finished, data_dir, tmp_path, capsys):
    config = settings(data_dir)
    wrong = {
        "nowhere": tmp_path / "nowhere",
        "a diffusion model": save(tmp_path / "diffusion", config, {"w": jnp.ones(1)}, "diffusion"),
        "unfinished": save(tmp_path / "unfinished", config, first_params(config), autoencoder.KIND, 3),
        "went on": shutil.copytree(finished, tmp_path / "went_on"),
        "another shape": shutil.copytree(finished, tmp_path / "shape"),
    }
    save(wrong["went on"], config, first_params(config, seed=1), autoencoder.KIND, 2)
    shape = {"range": [0.0, 16.0], "shape": [4, 4, 1], "length": 997}
    save(wrong["another shape"], config, first_params(config, size=4), autoencoder.KIND, 2, data=shape)
    found = {"step": 2, "digest": autoencoder.load(wrong["another shape"]).digest, "std": 1.0}
    (wrong["another shape"] / autoencoder.LATENTS).write_text(json.dumps(found))
    for name, message in {
        "nowhere": "config.latent.autoencoder must be a run's workdir or an export, got",
        "a diffusion model": "config.latent.autoencoder must be a workdir of experiments.train_autoencoder, got",
        "unfinished": "latents.json is not there and the checkpoint of step 3: run experiments.train_autoencoder",
        "went on": "latents.json is of step 1 and the checkpoint of step 2",
        "another shape": "must be one of images (8, 8, 1), got",
    }.items():
        assert message in prepare(settings(data_dir, wrong[name]), tmp_path / "run", capsys), name
        assert not (tmp_path / "run").exists()
    assert "of (4, 4, 1)" in prepare(settings(data_dir, wrong["another shape"]), tmp_path / "run", capsys)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling.clip": True}, "config.sampling.clip must be False with config.latent.autoencoder = '/x'"),
        (
            {"loss.objective": "hybrid", "network.learned_variance": True, "loss.bin_width": 0.125},
            "config.loss.objective must be denoising with config.latent",
        ),
        ({"dataset.flip": True}, "config.latent.cache must be False with .* and config.dataset.flip, got True"),
        ({"autoencoder.channels": 0}, "config.autoencoder.channels must be >= 1, got 0"),
        ({"autoencoder.kl_weight": -1.0}, "config.autoencoder.kl_weight must be >= 0, got -1.0"),
        ({"autoencoder.reconstruction": "l3"}, "config.autoencoder.reconstruction must be one of squared, absolute"),
        ({"autoencoder.dtype": "f4"}, "config.autoencoder.dtype must be one of float32, bfloat16"),
    ],
)
def test_bad_settings(changes, message):
    config = smoke.get_config()
    config.latent.autoencoder, config.sampling.clip = "/x", False
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        checks.check_config(config, 1)


def test_sizes_that_cannot_be_halved_and_kinds_that_know_no_latents(data_dir, tmp_path, capsys):
    config = settings(data_dir)
    config.autoencoder.channel_multipliers = (1, 1, 1, 1, 1)
    line = prepare(config, tmp_path, capsys, autoencoder.network, autoencoder.KIND)
    assert "x must have sizes that are multiples of 16, got (1, 8, 8, 1)" in line
    line = prepare(settings(data_dir, tmp_path), tmp_path, capsys, autoencoder.network, autoencoder.KIND)
    assert "config.latent.autoencoder must be '' for training" in line


def test_a_run_keeps_to_its_autoencoder(finished, space, data_dir, tmp_path, capsys):
    """By digest and scale, wherever it lies: another one, and pixels, are refused before anything is encoded."""
    config, run = settings(data_dir, finished), tmp_path / "run"
    data = {"range": [0.0, 16.0], "shape": [8, 8, 1], "length": 997, "autoencoder": space.identity()}
    save(run, config, {"w": jnp.ones(1)}, "diffusion", data=data)
    moved = shutil.copytree(finished, tmp_path / "moved")
    prepared = opening.prepare(settings(data_dir, moved), run, networks.network, "diffusion")
    assert prepared.latents.record()["autoencoder"] == str(moved)
    assert f"holds a run with the autoencoder {space.identity()}, got None" in prepare(settings(data_dir), run, capsys)
    other = json.loads((moved / autoencoder.LATENTS).read_text()) | {"std": 1.0}
    (moved / autoencoder.LATENTS).write_text(json.dumps(other))
    assert "'scale': 1.0}; choose another --workdir" in prepare(settings(data_dir, moved), run, capsys)


def test_sampling_finds_the_autoencoder_it_was_trained_with(finished, space, data_dir, tmp_path):
    record = space.record()
    assert latents.of_record(None) is None
    assert latents.of_record(record).identity() == space.identity()
    moved = shutil.copytree(finished, tmp_path / "moved")
    assert latents.of_record(record | {"autoencoder": "/gone"}, str(moved)).identity() == space.identity()
    config = settings(data_dir)
    other = save(tmp_path / "other", config, first_params(config, seed=1), autoencoder.KIND)
    for given, folder, message in (
        (record, str(other), r"autoencoder must be that of step 1 with digest .*, got .*other at step 1 with"),
        (record | {"autoencoder": "/gone"}, None, "autoencoder must be a run's workdir or an export, got /gone"),
        (None, str(finished), "autoencoder must not be given for a model of pixels"),
    ):
        with pytest.raises(ValueError, match=message):
            latents.of_record(given, folder)


def test_a_model_of_latents_knows_its_shape_and_has_no_bits(finished, space, data_dir, tmp_path):
    config = settings(data_dir, finished)
    params = jax.eval_shape(lambda: build.init_params(config, networks.network(config, 10), space.shape, KEY))
    params = jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), params)
    model = load_model(save(tmp_path, config, params, "diffusion", latent=space.record()))
    assert (model.shape, model.latent) == ((4, 4, 2), space.record())
    with pytest.raises(ValueError, match="checkpoint must be of a model of pixels to measure bits"):
        bits.check(model, (), (), bits.Settings())


def test_the_autoencoder_s_loss(finished, data_dir):
    """The published one, with a code drawn by the example's key."""
    config = settings(data_dir)
    config.autoencoder.update({"kl_weight": 0.3, "reconstruction": "absolute"})
    trained, x = autoencoder.load(finished), jax.random.normal(KEY, (3, 8, 8, 1))
    keys = jax.random.split(KEY, 3)
    found = jax.jit(autoencoder.loss(config, trained.net))(trained.params, {"image": x}, keys)
    y, mean, log_variance = trained.net.apply({"params": trained.params}, x, diffax.random.fold_in(keys, 0))
    known = jnp.abs(x - y).mean((1, 2, 3)) + 0.3 * kl_to_standard_normal(mean, log_variance) / 64
    np.testing.assert_allclose(found, known, rtol=1e-4)


def test_the_configs():
    for module, name in ((mnist5k_autoencoder, "train_autoencoder"), (mnist5k_latent, "train")):
        checks.check_config(module.get_config(), 1)
        for word in (f"python -m experiments.{name} ", "Hardware", "Time", "Metric"):
            assert word in module.__doc__
    config = mnist5k_autoencoder.get_config()
    shape = jax.eval_shape(
        lambda: autoencoder.network(config, 10).of(1).init_with_output(KEY, jnp.zeros((1, 28, 28, 1)))[0][1]
    ).shape
    assert shape == (1, 7, 7, 4)


@pytest.mark.slow
def test_end_to_end(data_dir, tmp_path):
    """Train both, go on after a stop, sample, evaluate; with another autoencoder nothing goes."""
    first, run, out = tmp_path / "autoencoder", tmp_path / "run", tmp_path / "drawn"
    smoke_flags = ("--config=experiments/configs/smoke.py", f"--config.dataset.data_dir={data_dir}")
    small = (*smoke_flags, "--config.autoencoder.channels=8", "--config.optimizer.warmup_steps=1")
    text = call("train_autoencoder", *small, f"--workdir={first}", "--config.train.num_steps=10")
    assert "autoencoder on digits 8x8x1" in text
    latent = (*smoke_flags, f"--config.latent.autoencoder={first}", "--config.sampling.clip=False")
    call("train", *latent, f"--workdir={run}", "--config.train.num_steps=10", devices=2)
    straight = tmp_path / "straight"
    call("train", *latent, f"--workdir={straight}", "--config.latent.cache=False")
    assert "restored step 10" in call("train", *latent, f"--workdir={run}", devices=2)
    assert (run / "samples" / "step_0000020.png").exists()
    losses = [
        [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (run, straight)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-4)

    call("sample", f"--checkpoint={run}", f"--out={out}", "--num=20")
    samples = np.load(out / "shard_00000.npz")["samples"]
    assert samples.shape == (20, 8, 8, 1)
    assert "FD(classifier)" in call("evaluate", f"--samples={out}", "--classifier_steps=30", "--allow_few")
    picture, levels = tmp_path / "digit.png", np.kron(samples[0, ..., 0], np.ones((4, 4))) * 15.9
    Image.fromarray(levels.astype(np.uint8)).save(picture)
    flags = (f"--out={tmp_path / 'near'}", "--num=4", f"--init_image={picture}", "--noise_level=0.001")
    call("sample", f"--checkpoint={run}", *flags)
    space = latents.of_record(load_model(run).latent)
    shown = images.load_picture(picture, (8, 8, 1))
    back = images.to_pixels(latents.decoder(space)(latents.code(space, shown)[None]), 0, 16)
    near = np.load(tmp_path / "near" / "shard_00000.npz")["samples"]
    assert np.abs(near.astype(int) - back).max() <= 1

    export = tmp_path / "export"
    call("export", f"--checkpoint={run}", f"--out={export}")
    moved = first.rename(tmp_path / "moved")
    again = tmp_path / "again"
    message = call("sample", f"--checkpoint={export}", f"--out={again}", "--num=20", ok=False)
    assert "autoencoder must be a run's workdir" in message
    call("sample", f"--checkpoint={export}", f"--out={again}", "--num=20", f"--autoencoder={moved}")
    np.testing.assert_array_equal(np.load(again / "shard_00000.npz")["samples"], samples)

    lines = (moved / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["loss"] < json.loads(lines[0])["loss"]
    before = json.loads((moved / "latents.json").read_text())
    call("train_autoencoder", *small, f"--workdir={moved}")  # it goes on to step 20
    after = json.loads((moved / "latents.json").read_text())
    assert (before["step"], after["step"]) == (10, 20)
    assert before["digest"] != after["digest"]
    message = call("sample", f"--checkpoint={run}", f"--out={again}", f"--autoencoder={moved}", ok=False)
    assert "autoencoder must be that of step 10" in message
    moved_flags = (*latent, f"--config.latent.autoencoder={moved}", f"--workdir={run}")
    assert "holds a run with the autoencoder" in call("train", *moved_flags, ok=False)


@pytest.mark.slow
def test_the_autoencoder_agrees_on_eight_devices(data_dir, tmp_path):
    """Every loss to 1e-5, relatively."""
    losses = []
    for form, count in (("pmap", 1), ("pmap", 8), ("fsdp", 8)):
        config = settings(data_dir)
        config.parallel = form
        config.train.update({"num_steps": 10, "log_every": 1, "sample_every": 1000, "checkpoint_every": 1000})
        run = opening.prepare(config, tmp_path / f"{form}_{count}", autoencoder.network, autoencoder.KIND)
        run = run._replace(mesh=make_mesh(jax.devices()[:count]))
        objective = objectives.Objective(autoencoder.loss(config, run.net.of(1)))
        training.train(run, objective, lambda *seen: {})
        lines = (run.workdir / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    for found in losses[1:]:
        np.testing.assert_allclose(found, losses[0], rtol=1e-5)
