"""Diffusion in the latents of an autoencoder: latents and batches, invalid settings, and all commands in a row."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import DATA, built, error_of_train, opened, save_run, train
from PIL import Image
from test_experiments import call, metrics

import diffax
from diffax.nn.autoencoding import kl_to_standard_normal, reparameterise
from diffax.training import make_mesh
from experiments.configs import mnist5k_autoencoder, mnist5k_latent, smoke
from experiments.data.picture_files import load_picture
from experiments.evaluation import bits
from experiments.model import build
from experiments.models import autoencoder, latents, objectives
from experiments.run import loading

KEY = jax.random.key(0)


def settings(data_dir, folder="", model="diffusion"):
    """The smoke config with a tiny autoencoder."""
    config = smoke.get_config()
    config.model = model
    config.dataset.data_dir = str(data_dir)
    config.autoencoder.update({"channels": 4, "latent_channels": 2, "attention": False})
    config.latent.autoencoder, config.sampling.clip = str(folder), not folder
    config.train.compile_cache = False
    return config


def save(folder, data_dir, seed=0, step=1, kl_weight=None, data=DATA["digits"]):
    """Write the run of an autoencoder with random parameters, none of which is zero."""
    config = settings(data_dir, model="autoencoder")
    if kl_weight is not None:
        config.autoencoder.kl_weight = kl_weight
    rng, shapes = np.random.default_rng(seed), jax.eval_shape(build(config, data).init, KEY)
    params = jax.tree.map(lambda v: jnp.asarray(0.3 * rng.normal(size=v.shape), v.dtype), shapes)
    return save_run(folder, config, params, step, data)


def measured(folder, step=1, std=2.0):
    """Write latents.json as at the end of a run, and return the folder."""
    content = {"step": step, "digest": loading.load_latents(folder, 1.0).digest, "std": std, "images": 10}
    (folder / autoencoder.LATENTS).write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory):
    """The workdir of a finished run of an autoencoder."""
    return measured(save(tmp_path_factory.mktemp("autoencoder"), data_dir))


@pytest.fixture(scope="module")
def space(finished):
    return loading.load_latents(finished)


@pytest.fixture(scope="module")
def moments(space):
    """A jitted encoder: images -> (mean, log_variance)."""
    encode = space.model.apply("encode")
    return lambda x: encode(space.params, x)


def test_the_latent_space_has_the_shapes_scale_and_decoder_of_the_autoencoder(space, moments, finished):
    assert (space.shape, space.moments_shape, space.scale) == ((4, 4, 2), (4, 4, 4), 0.5)
    x = jax.random.normal(KEY, (3, 8, 8, 1))
    mean, log_variance = moments(x)
    result = space.encoder()(np.asarray(x))
    np.testing.assert_allclose(result, jnp.concatenate([mean, log_variance], -1), atol=1e-5)
    np.testing.assert_allclose(space.code(np.asarray(x[0])), 0.5 * mean[0], atol=1e-5)
    y = space.model.module.apply({"params": space.params}, mean, method="decode")
    generate = lambda params, keys, label: np.asarray(0.5 * mean)
    np.testing.assert_allclose(space.decoded(generate)(None, None, None), y, atol=1e-5)
    assert space.record() == {
        "autoencoder": str(finished),
        "step": 1,
        "shape": [4, 4, 2],
        "digest": space.digest,
        "scale": 0.5,
    }


def test_the_standard_deviation_of_latents_is_that_of_draws(space, moments):
    """Over all entries of all latents, against `std` of NumPy on a million entries."""
    images = np.asarray(jax.random.normal(KEY, (250, 8, 8, 1)))
    mean, log_variance = (np.repeat(v, 100, 0) for v in moments(images))
    drawn = np.asarray(reparameterise(KEY, mean, log_variance))
    result = autoencoder.latent_std(space.model, space.params, images, make_mesh())
    np.testing.assert_allclose(result, drawn.std(), rtol=5e-3)
    assert not np.isclose(result, np.std(mean), rtol=2e-2)  # the means alone have another deviation


@pytest.mark.slow
def test_the_digest_covers_the_network_and_its_parameters_only(space, data_dir, tmp_path):
    """The step and the weight of the KL divergence do not change a latent, so they do not change the digest."""
    digest = lambda folder: loading.load_latents(folder, 1.0).digest
    assert digest(save(tmp_path / "a", data_dir, step=7, kl_weight=0.5)) == space.digest
    assert digest(save(tmp_path / "b", data_dir, seed=1)) != space.digest


def test_the_loss_is_that_of_scaled_draws(space, moments):
    """The inner loss returns its arguments. The memory of the inner objective is passed on."""
    x = np.asarray(jax.random.normal(KEY, (4, 8, 8, 1)))
    batch = {"x": jnp.asarray(space.encoder()(x)), "label": jnp.arange(4)}
    keys = jax.random.split(KEY, 4)
    inner = objectives.Objective(lambda params, batch, keys, *past: (batch, keys, past), "memory", "update_memory")
    wrapped = latents.wrap(space, inner)
    (inner_batch, inner_keys, past), mean_and_log = wrapped.loss(None, batch, keys, 3), moments(x)
    z = reparameterise(diffax.random.fold_in(keys, latents.SALT), *mean_and_log)
    np.testing.assert_allclose(inner_batch["x"], 0.5 * z, atol=1e-5)
    assert (past, wrapped.memory, wrapped.update_memory) == ((3,), "memory", "update_memory")
    np.testing.assert_array_equal(inner_batch["label"], batch["label"])
    assert (inner_keys == keys).all()
    again = wrapped.loss(None, batch, jax.random.split(jax.random.key(1), 4))[0]["x"]
    assert float(jnp.abs(again - inner_batch["x"]).min(axis=0).max()) > 1e-3  # other keys give other draws
    assert latents.wrap(None, inner) is inner


@pytest.mark.slow
def test_batches_of_latents_are_the_same_with_and_without_the_cache(finished, space, data_dir, tmp_path):
    """They have the moments of the images in the batches of pixels, and a position is valid for both."""
    runs = []
    for cache in (True, False):
        config = settings(data_dir, finished)
        config.latent.cache = cache
        runs.append(opened(config, tmp_path / str(cache)))
    assert runs[0].record["latents"] == space.record()
    assert runs[0].record["identity"]["autoencoder"] == space.identity()
    streams, plain = [run.batches for run in runs], opened(settings(data_dir), tmp_path / "plain").batches
    pixels = next(plain)
    expected = space.encoder()(pixels["x"])
    for batches in streams:
        batch = next(batches)
        np.testing.assert_allclose(batch["x"], expected, atol=1e-5)
        np.testing.assert_array_equal(batch["label"], pixels["label"])
    position = streams[0].get_state()
    third = [next(streams[0]) for _ in range(2)][1]["x"]
    streams[1].set_state(position)
    np.testing.assert_allclose([next(streams[1]) for _ in range(2)][1]["x"], third, atol=1e-5)
    assert isinstance(streams[1], latents.Encoded)
    assert not isinstance(streams[0], latents.Encoded)


def test_bad_autoencoders_are_one_line(finished, data_dir, tmp_path, capsys):
    small, other = DATA["digits"]._replace(shape=(4, 4, 1)), shutil.copytree(finished, tmp_path / "went_on")
    diffusion = save_run(tmp_path / "diffusion", settings(data_dir), {"w": jnp.ones(1)})
    cases = {
        tmp_path / "nowhere": "config.latent.autoencoder must be a run's workdir or an export, got",
        diffusion: "config.latent.autoencoder must have a model of kind 'autoencoder', got",
        save(tmp_path / "unfinished", data_dir, step=3): "latents.json is not there and the checkpoint of step 3: run",
        save(other, data_dir, seed=1, step=2): "latents.json is of step 1 and the checkpoint of step 2",
        measured(save(tmp_path / "shape", data_dir, data=small)): "must be one of images (8, 8, 1), got",
    }
    for folder, message in cases.items():
        assert message in error_of_train(settings(data_dir, folder), tmp_path / "run", capsys)
        assert not (tmp_path / "run").exists()
    assert "of (4, 4, 1)" in error_of_train(settings(data_dir, tmp_path / "shape"), tmp_path / "run", capsys)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling.clip": True}, "config.sampling.clip must be False with latents"),
        (
            {"loss.objective": "hybrid", "network.learned_variance": True, "loss.bin_width": 0.125},
            "config.loss.objective must be denoising with latents",
        ),
        ({"dataset.flip": True}, "config.latent.cache must be False with latents and config.dataset.flip, got True"),
        ({"autoencoder.channels": 0}, "config.autoencoder.channels must be an int >= 1, got 0"),
        ({"autoencoder.kl_weight": -1.0}, "config.autoencoder.kl_weight must be >= 0, got -1.0"),
        ({"autoencoder.reconstruction": "l3"}, "config.autoencoder.reconstruction must be one of squared, absolute"),
        ({"autoencoder.dtype": "f4"}, "config.autoencoder.dtype must be one of float32, bfloat16"),
    ],
)
def test_bad_settings(changes, message):
    config = smoke.get_config()
    config.latent.autoencoder, config.sampling.clip = "/x", False
    config.update_from_flattened_dict(changes)
    if "autoencoder" in next(iter(changes)):
        config.model, config.latent.autoencoder = "autoencoder", ""
    with pytest.raises(ValueError, match=message):
        built(config)


def test_sizes_that_cannot_be_halved_and_models_that_do_not_support_latents_are_refused(data_dir, tmp_path, capsys):
    config = settings(data_dir, model="autoencoder")
    config.autoencoder.channel_multipliers = (1, 1, 1, 1, 1)
    line = error_of_train(config, tmp_path / "run", capsys)
    assert "config.autoencoder must fit examples of shape (8, 8, 1): x must have sizes that are multiples of 16" in line
    line = error_of_train(settings(data_dir, tmp_path, "autoencoder"), tmp_path / "run", capsys)
    assert "config.latent.autoencoder must be '' for config.model = 'autoencoder', got" in line


def test_a_run_accepts_only_its_own_autoencoder(finished, space, data_dir, tmp_path, capsys):
    """It is identified by digest and scale, not by path. Others are refused before images are encoded."""
    config, run = settings(data_dir, finished), tmp_path / "run"
    identity = opened(config, tmp_path / "new").record["identity"]
    save_run(run, config, {"w": jnp.ones(1)}, identity=identity)
    moved = shutil.copytree(finished, tmp_path / "moved")
    assert opened(settings(data_dir, moved), run).record["latents"]["autoencoder"] == str(moved)
    message = f"has a run whose autoencoder was {space.identity()} at step 1, got None"
    assert message in error_of_train(settings(data_dir), run, capsys)
    measured(moved, std=1.0)
    assert "'scale': 1.0}; choose another --workdir" in error_of_train(settings(data_dir, moved), run, capsys)


def latent_run(folder, data_dir, space):
    """Write the run of a model in latents whose parameters are 0, and return its folder."""
    config = settings(data_dir, space.folder)
    shapes = jax.eval_shape(build(config, DATA["digits"]._replace(shape=space.shape)).init, KEY)
    params = jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), shapes)
    return save_run(folder, config, params, latents=space.record())


def test_sampling_uses_the_autoencoder_of_the_training_run(finished, space, data_dir, tmp_path):
    trained = loading.load(latent_run(tmp_path / "run", data_dir, space))
    assert loading.latents_of(trained._replace(latents=None)) is None
    assert loading.latents_of(trained).identity() == space.identity()
    moved, missing = shutil.copytree(finished, tmp_path / "moved"), space.record() | {"autoencoder": "/gone"}
    assert loading.latents_of(trained._replace(latents=missing), str(moved)).identity() == space.identity()
    other = save(tmp_path / "other", data_dir, seed=1)
    for saved, folder, message in (
        (trained.latents, str(other), r"autoencoder must be that of step 1 with digest .*, got .*other at step 1 with"),
        (missing, None, "autoencoder must be a run's workdir or an export, got /gone"),
        (None, str(finished), "autoencoder must not be given for a model of pixels"),
    ):
        with pytest.raises(ValueError, match=message):
            loading.latents_of(trained._replace(latents=saved), folder)


def test_a_model_of_latents_has_the_shape_of_the_latents_and_no_bits(space, data_dir, tmp_path):
    trained = loading.load(latent_run(tmp_path, data_dir, space))
    assert (trained.model.diffusion.shape, trained.latents) == ((4, 4, 2), space.record())
    with pytest.raises(ValueError, match="checkpoint must be a model of pixels for bits"):
        bits.check(trained, (), (), bits.Settings())


def test_the_loss_of_the_autoencoder_is_the_published_one(space, data_dir):
    """The code of each example is drawn with its own key."""
    config = settings(data_dir, model="autoencoder")
    config.autoencoder.update({"kl_weight": 0.3, "reconstruction": "absolute"})
    model, x, keys = built(config), jax.random.normal(KEY, (3, 8, 8, 1)), jax.random.split(KEY, 3)
    result = jax.jit(model.objective().loss)(space.params, {"x": x}, keys)
    y, mean, log_variance = model.module.apply({"params": space.params}, x, diffax.random.fold_in(keys, 0))
    expected = jnp.abs(x - y).mean((1, 2, 3)) + 0.3 * kl_to_standard_normal(mean, log_variance) / 64
    np.testing.assert_allclose(result, expected, rtol=1e-4)


def test_the_configs_are_valid_and_documented():
    built(mnist5k_latent.get_config(), data=DATA["mnist5k"]._replace(shape=(7, 7, 4)))
    for module in (mnist5k_autoencoder, mnist5k_latent):
        for word in ("python -m experiments.train ", "Hardware", "Time", "Metric"):
            assert word in module.__doc__
    model = built(mnist5k_autoencoder.get_config())
    assert model.latent_shape(jax.eval_shape(model.init, KEY)) == (7, 7, 4)


@pytest.mark.slow
def test_end_to_end(data_dir, tmp_path):
    """Train both models, resume, sample, evaluate and export; another autoencoder is refused."""
    first, run, out = tmp_path / "autoencoder", tmp_path / "run", tmp_path / "drawn"
    smoke_flags = ("--config=experiments/configs/smoke.py", f"--config.dataset.data_dir={data_dir}")
    small = (*smoke_flags, "--config.autoencoder.channels=8", "--config.optimizer.warmup_steps=1")
    small = (*small, "--config.model=autoencoder")
    text = call("train", *small, f"--workdir={first}", "--config.train.num_steps=10")
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
    space = loading.latents_of(loading.load(run))
    data = DATA["digits"]
    shown = data.units.normalise(load_picture(picture, data))
    back = data.units.denormalise(space.decoded(lambda: space.code(shown)[None])())
    near = np.load(tmp_path / "near" / "shard_00000.npz")["samples"]
    assert np.abs(near.astype(int) - back).max() <= 1

    export = tmp_path / "export"
    call("export", f"--checkpoint={run}", f"--out={export}")
    moved = first.rename(tmp_path / "moved")
    again = tmp_path / "again"
    message = call("sample", f"--checkpoint={run}", f"--out={again}", "--num=20", ok=False)
    assert "autoencoder must be a run's workdir" in message
    call("sample", f"--checkpoint={export}", f"--out={again}", "--num=20")  # the export includes the autoencoder
    np.testing.assert_array_equal(np.load(again / "shard_00000.npz")["samples"], samples)
    call("sample", f"--checkpoint={export}", f"--out={tmp_path / 'other'}", "--num=20", f"--autoencoder={moved}")
    np.testing.assert_array_equal(np.load(tmp_path / "other" / "shard_00000.npz")["samples"], samples)

    lines = (moved / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["loss"] < json.loads(lines[0])["loss"]
    before = json.loads((moved / "latents.json").read_text())
    call("train", *small, f"--workdir={moved}")  # the run resumes at step 10 and ends at step 20
    after = json.loads((moved / "latents.json").read_text())
    assert (before["step"], after["step"]) == (10, 20)
    assert before["digest"] != after["digest"]
    message = call("sample", f"--checkpoint={run}", f"--out={again}", f"--autoencoder={moved}", ok=False)
    assert "autoencoder must be that of step 10" in message
    moved_flags = (*latent, f"--config.latent.autoencoder={moved}", f"--workdir={run}")
    assert "has a run whose autoencoder was" in call("train", *moved_flags, ok=False)


@pytest.mark.slow
def test_the_autoencoder_agrees_on_eight_devices(data_dir, tmp_path):
    """The losses agree to a relative 1e-5."""
    losses = []
    for form, count in (("pmap", 1), ("pmap", 8), ("fsdp", 8)):
        config = settings(data_dir, model="autoencoder")
        config.parallel = form
        config.train.update({"num_steps": 10, "log_every": 1, "sample_every": 1000, "checkpoint_every": 1000})
        workdir = train(config, tmp_path / f"{form}_{count}", count)
        losses.append([line["loss"] for line in metrics(workdir)])
    for others in losses[1:]:
        np.testing.assert_allclose(others, losses[0], rtol=1e-5)
