"""`experiments.sample --from_diffusers`: runs of the command, and samples against DDIM in NumPy."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_experiments import call
from test_interop import FOLDERS

import diffax
from diffax.nn.interop import folder
from diffax.pretrained import folders
from experiments.configs import default
from experiments.models import diffusers_folder

SEED, STEPS = 5, 3
TABLE = {"_class_name": "DDIMScheduler", "num_train_timesteps": 1000, "timestep_spacing": "leading"}
LINEAR = TABLE | {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "set_alpha_to_one": True}
STABLE = TABLE | {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
# The networks have random weights. Their outputs are used as x0 or v, because as eps they would saturate every pixel.
PIXELS = LINEAR | {"prediction_type": "sample", "clip_sample": True, "clip_sample_range": 0.8}
CLASSES = LINEAR | {"prediction_type": "v_prediction", "clip_sample": False}
LATENTS = STABLE | {"prediction_type": "v_prediction", "clip_sample": False, "set_alpha_to_one": False}


def pipeline(place, scheduler, vae=None, **parts):
    """Write a pipeline of diffusers from fixtures, with this scheduler and these changes to the config of the VAE."""
    for part, fixture in parts.items():
        shutil.copytree(FOLDERS / fixture, place / part)
    if vae is not None:
        shutil.copytree(FOLDERS / "autoencoder_plain", place / "vae")
        edit(place / "vae" / "config.json", vae)
    (place / "scheduler").mkdir(exist_ok=True)
    (place / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return place


def edit(path, changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def by_hand(place, scheduler, num, branches, weight=1.0):
    """Decoded samples of DDIM (Song et al. 2021, eq. 12) in NumPy, in pixels, by the config of the scheduler.

    branches: the condition of the network and, unless weight is 1, its null condition.
    """
    model, count = folder.load(place), scheduler["num_train_timesteps"]
    first, last = scheduler["beta_start"], scheduler["beta_end"]
    betas = np.linspace(first, last, count)
    if scheduler["beta_schedule"] == "scaled_linear":
        betas = np.linspace(first**0.5, last**0.5, count) ** 2
    bar = np.cumprod(1 - betas)
    steps = (np.arange(STEPS) * (count // STEPS))[::-1] + scheduler.get("steps_offset", 0)
    ends = [*bar[steps[1:]], 1.0 if scheduler["set_alpha_to_one"] else bar[0]]
    keys = [jax.random.fold_in(jax.random.fold_in(jax.random.key(SEED), i), 0) for i in range(num)]
    streams = [diffax.random.stream(key, "initial_noise") for key in keys]
    noise = np.stack([jax.random.normal(key, model.shape) for key in streams]).astype(np.float64)
    network = jax.jit(lambda branch, x, t: model.predict(**branch)(x, t))
    x = np.sqrt(1 - bar[steps[0]]) * noise
    for step, after in zip(steps, ends, strict=True):
        alpha, sigma = np.sqrt(bar[step]), np.sqrt(1 - bar[step])
        outputs = [np.float64(network(branch, jnp.float32(x), (step + 1) / count)) for branch in branches]
        outputs = [y[..., : x.shape[-1]] for y in outputs]
        y = outputs[0] if weight == 1 else outputs[1] + weight * (outputs[0] - outputs[1])
        x0 = {"sample": y, "v_prediction": alpha * x - sigma * y}[scheduler["prediction_type"]]
        if scheduler["clip_sample"]:
            x0 = np.clip(x0, -scheduler["clip_sample_range"], scheduler["clip_sample_range"])
        eps = (x - alpha * x0) / sigma
        x = np.sqrt(after) * x0 + np.sqrt(1 - after) * eps
    if model.autoencoder is not None:
        vae = model.autoencoder
        z = jnp.float32(x / vae.config["scaling_factor"] + (vae.config["shift_factor"] or 0))
        x = np.float64(jax.jit(vae.network.apply, static_argnames="method")(vae.params, z, method="decode"))
    return np.round(np.clip(127.5 * (x + 1), 0, 255))


def drawn(place, out, *flags, **options):
    call(
        "sample",
        f"--from_diffusers={place}",
        f"--out={out}",
        f"--num_steps={STEPS}",
        f"--seed={SEED}",
        *flags,
        **options,
    )
    return np.load(out / "shard_00000.npz")


def check(shard, expected):
    """Assert equality up to the rounding of pixels, and that most pixels are not saturated."""
    samples = shard["samples"].astype(np.float64)
    assert ((expected > 0) & (expected < 255)).mean() > 0.5
    assert expected.std() > 10
    np.testing.assert_allclose(samples, expected, atol=1)


@pytest.fixture(scope="module")
def stable(tmp_path_factory):
    """(folder of a pipeline like Stable Diffusion, context (3, 6), null context (2, 6))."""
    place = tmp_path_factory.mktemp("stable")
    pipeline(place / "pipeline", LATENTS, {"scaling_factor": 0.7, "shift_factor": 0.3}, unet="unet_sd")
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((3, 6), np.float32), rng.standard_normal((2, 6), np.float32)
    for name, value in zip(("context", "null"), tokens, strict=True):
        np.save(place / f"{name}.npy", value)
    return place, *tokens


@pytest.mark.slow
def test_latents_guided_against_the_empty_prompt(stable, tmp_path):
    """With tokens of two prompts, a last step to the first alpha of the table, and scaled and shifted latents."""
    place, context, null = stable
    flags = (f"--context={place / 'context.npy'}", f"--null_context={place / 'null.npy'}", "--guidance=3", "--num=2")
    shard = drawn(place / "pipeline", tmp_path, *flags)
    branches = [{"context": jnp.broadcast_to(v, (2, *v.shape))} for v in (context, null)]
    check(shard, by_hand(place / "pipeline", LATENTS, 2, branches, 3.0))
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert settings["times"] == [0.668, 0.335, 0.002, 0.001]
    assert settings["sampling"]["grid"] == "from_diffusers"


@pytest.mark.slow
def test_pixels(tmp_path):
    """Without a condition. The samples do not depend on the batch size or the number of devices."""
    place = pipeline(tmp_path / "pipeline", PIXELS, unet="unet_ddpm")
    shard = drawn(place, tmp_path / "out", "--num=3")
    check(shard, by_hand(place, PIXELS, 3, [{}]))
    assert shard["labels"].tolist() == [-1, -1, -1]
    again = drawn(place, tmp_path / "again", "--num=3", "--batch_size=2", devices=2)
    np.testing.assert_allclose(again["samples"].astype(int), shard["samples"], atol=1)


@pytest.mark.slow
def test_classes_guided_against_the_null_label(tmp_path):
    place = pipeline(tmp_path / "pipeline", CLASSES, {"scaling_factor": 0.9}, transformer="dit_latent")
    shard = drawn(place, tmp_path / "out", "--num=3", "--labels=4,0", "--guidance=2")
    branches = [{"label": jnp.array([4, 0, 4])}, {"label": jnp.array([5, 5, 5])}]
    check(shard, by_hand(place, CLASSES, 3, branches, 2.0))
    assert shard["labels"].tolist() == [4, 0, 4]


@pytest.mark.slow
def test_classes_of_a_u_net(tmp_path):
    """The network has num_class_embeds classes, none of which is a null label."""
    place = pipeline(tmp_path / "pipeline", PIXELS, unet="unet_adm")
    shard = drawn(place, tmp_path / "out", "--num=3", "--labels=4,0")
    check(shard, by_hand(place, PIXELS, 3, [{"label": jnp.array([4, 0, 4])}]))
    shard = drawn(place, tmp_path / "all", "--num=6")
    assert shard["labels"].tolist() == [0, 1, 2, 3, 4, 0]


@pytest.mark.slow
def test_samples_of_changed_weights_are_not_added_to_old_samples(stable, tmp_path):
    """Changed weights, another null context, and guidance without a null context each raise an error of one line."""
    place = tmp_path / "pipeline"
    shutil.copytree(stable[0] / "pipeline", place)
    tokens = [f"--{flag}={stable[0] / name}.npy" for flag, name in (("context", "context"), ("null_context", "null"))]
    flags = (f"--from_diffusers={place}", f"--out={tmp_path / 'out'}", "--num=1", "--num_steps=1", "--guidance=2")
    assert "null_context must be" in call("sample", *flags, tokens[0], ok=False)
    call("sample", *flags, *tokens)
    other = f"--null_context={stable[0] / 'context.npy'}"
    assert "has samples with null_context = " in call("sample", *flags, tokens[0], other, ok=False)
    model = folder.load_model(place / "vae")
    folder.save_model(place / "vae", jax.tree.map(lambda v: v + 1e-3, model.params), model.config)
    assert "has samples with digest = " in call("sample", *flags, *tokens, ok=False)


@pytest.mark.slow_cases("parts1-expected1")
@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"unet": "unet_adm"}, (5, None)),
        ({"unet": "unet_sd_deep"}, (4, None)),
        ({"unet": "unet_sd"}, (None, None)),
        ({"transformer": "dit_latent"}, (5, 5)),
    ],
)
def test_classes_and_the_null_label(parts, expected, tmp_path):
    assert folders.labels(folder.load(pipeline(tmp_path, LINEAR, **parts))) == expected


def test_the_digest_covers_the_weights_and_the_configs(tmp_path):
    """It covers the weights and configs of the network, the autoencoder and the scheduler, but not the path."""

    def digest(model):
        return diffusers_folder.identity(model, tmp_path)["digest"]

    def shifted(model):
        return model._replace(params=jax.tree.map(lambda v: v + 1e-3, model.params))

    place = pipeline(tmp_path / "a", LATENTS, {"scaling_factor": 1.0}, unet="unet_sd")
    model, again = folder.load(place), folder.load(shutil.copytree(place, tmp_path / "b"))
    assert digest(again) == digest(model)
    vae = model.autoencoder
    others = (
        model,
        shifted(model),
        model._replace(autoencoder=shifted(vae)),
        model._replace(autoencoder=vae._replace(config=vae.config | {"scaling_factor": 1.1})),
        model._replace(config=model.config | {"norm_eps": 1e-6}),
        model._replace(scheduler_config=model.scheduler_config | {"beta_end": 0.013}),
    )
    assert len({digest(other) for other in others}) == len(others)


def sampling(**changes):
    config = default.get_config().sampling
    config.update(changes)
    return config


def source(place):
    """The source of samples as `experiments.sample` makes it, without classes."""
    return diffusers_folder.source(place, sampling(), None, lambda classes: None)


@pytest.mark.slow_cases(
    "parts0-files0-changes0-context must be a .npy file of \\\\(m, 6\\\\) embeddings .*, got none",
    "parts2-files2-changes2-null_context must have shape \\\\(m, 6\\\\), got",
    "parts3-files3-changes3-null_context must have shape \\\\(m, 6\\\\), got \\\\(2, 7\\\\)",
    "parts4-files4-changes4-context must be a .npy file, got .*nowhere",
)
@pytest.mark.parametrize(
    ("parts", "files", "changes", "message"),
    [
        ({"unet": "unet_sd"}, (None, None), {}, r"context must be a .npy file of \(m, 6\) embeddings .*, got none"),
        (
            {"unet": "unet_sd"},
            ("context", None),
            {"guidance": 3.0},
            r"null_context must be a .npy file .* where guidance is not 1, got none and guidance = 3.0",
        ),
        ({"unet": "unet_sd"}, ("context", "wide"), {"guidance": 3.0}, r"null_context must have shape \(m, 6\), got"),
        ({"unet": "unet_sd"}, ("context", "wide"), {}, r"null_context must have shape \(m, 6\), got \(2, 7\)"),
        ({"unet": "unet_sd"}, ("nowhere", None), {}, r"context must be a .npy file, got .*nowhere"),
        (
            {"unet": "unet_adm"},
            (None, None),
            {"guidance": 3.0},
            "guidance must be 1 for a network without a null label or a context, got 3.0",
        ),
        ({"unet": "unet_adm"}, (None, "context"), {}, "null_context must not be given to a network without one"),
        ({"unet": "unet_adm"}, (None, None), {"sampler": "ddpm_learned"}, "sampler must be one without learned"),
    ],
)  # fmt: skip
def test_bad_conditions(parts, files, changes, message, tmp_path):
    np.save(tmp_path / "context.npy", np.ones((3, 6)))
    np.save(tmp_path / "wide.npy", np.ones((2, 7)))
    loaded = folder.load(pipeline(tmp_path, LINEAR, **parts))
    paths = [name and str(tmp_path / f"{name}.npy") for name in files]
    with pytest.raises(ValueError, match=message):
        diffusers_folder.contexts(loaded, sampling(**changes), *paths)


@pytest.mark.slow_cases("parts0-lengths0")
@pytest.mark.parametrize(
    ("parts", "lengths"),
    [
        ({"unet": "unet_sd"}, (2, 3)),
        pytest.param({"unet": "unet_sd"}, (3, 3), marks=pytest.mark.slow),
        ({"transformer": "dit_latent"}, None),
    ],
)
def test_guidance_calls_the_network_once_a_step(parts, lengths, tmp_path, monkeypatch):
    """Against a call for each branch: for contexts of these lengths, or for a label of each example."""
    loaded = folder.load(pipeline(tmp_path, CLASSES, **parts))
    rng, schedule, times = (
        np.random.default_rng(1),
        loaded.scheduler.schedule,
        diffax.times.uniform_log_snr(loaded.scheduler.schedule, STEPS),
    )
    label, null = (jnp.array([4, 0]), 5) if lengths is None else (None, None)
    tokens = [rng.standard_normal((m, 6), np.float32) for m in lengths or ()] or [None, None]
    keys = jax.random.split(jax.random.key(SEED), 2)

    @jax.jit
    def by_two_calls(keys):
        def branch(label, context):
            f = loaded.predict(label, None if context is None else jnp.broadcast_to(context, (2, *context.shape)))
            return diffax.denoiser(lambda x, t: f(x, t)[..., : x.shape[-1]], schedule, loaded.scheduler.kind)

        denoise = diffax.classifier_free_guidance(branch(label, tokens[0]), branch(null, tokens[1]), 3.0)
        start, steps = diffax.random.fold_in(keys, 0), diffax.random.fold_in(keys, 1)
        x = diffax.initial_noise(start, schedule, (2, *loaded.shape), times[0])
        return diffax.sample(steps, diffax.ddim(schedule), denoise, x, times)

    expected, predict, calls = by_two_calls(keys), type(loaded).predict, []

    def counted(self, **condition):
        def f(x, t):
            jax.debug.callback(lambda: calls.append(len(x)))
            return predict(self, **condition)(x, t)

        return f

    monkeypatch.setattr(type(loaded), "predict", counted)
    generate = folders.generator(loaded, times, weight=3.0, context=tokens[0], null_context=tokens[1])
    np.testing.assert_allclose(generate(loaded.params, keys, label), expected, rtol=1e-4, atol=1e-5)
    jax.effects_barrier()
    assert calls == [4] * STEPS


def test_without_guidance_no_null_context_is_needed(stable):
    place, context, _ = stable
    loaded = folder.load(place / "pipeline")
    files = str(place / "context.npy"), str(place / "null.npy")
    for path in (None, files[1]):
        tokens, null = diffusers_folder.contexts(loaded, sampling(guidance=1.0), files[0], path)
        np.testing.assert_array_equal(tokens, context)
        assert null is None


def test_networks_with_wrong_numbers_of_channels_are_refused(tmp_path):
    """An inpainting U-Net, which has more input than output channels, and an autoencoder with other latents."""
    place = pipeline(tmp_path / "inpainting", LATENTS, unet="unet_sd")
    model = folder.load_model(place / "unet")
    wide = jax.tree.map(np.asarray, model.params)
    kernel = wide["params"]["conv_in"]["kernel"]
    wide["params"]["conv_in"]["kernel"] = np.concatenate([kernel, kernel, kernel[..., :1, :]], -2)
    folder.save_model(place / "unet", wide, model.config | {"in_channels": 9})
    with pytest.raises(ValueError, match=r"from_diffusers must .*: out_channels must be in_channels = 9, or .*, got 4"):
        source(place)
    other = pipeline(tmp_path / "other", LATENTS, {}, unet="unet_ddpm")
    with pytest.raises(ValueError, match=r"from_diffusers must .*: latent_channels must be in_channels = 3, got 4"):
        source(other)


def test_folders_without_a_model_or_a_scheduler_are_refused(tmp_path):
    for place, message in (
        (tmp_path, "folder must be one that diffusers saved, got"),
        (FOLDERS / "unet_plain", "from_diffusers must have a scheduler_config.json, got"),
    ):
        with pytest.raises(ValueError, match=message):
            source(place)


@pytest.mark.slow_cases(but=["flags0-either checkpoint or from_diffusers must be used, got None and None"])
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "either checkpoint or from_diffusers must be used, got None and None"),
        (("--checkpoint=a", "--null_context=a.npy"), "null_context is for --from_diffusers, got a.npy without it"),
        (("--from_diffusers=a", "--init_image=a.png"), "init_image is for --checkpoint, got a.png"),
    ],
)  # fmt: skip
def test_bad_input(flags, message, tmp_path):
    assert message in call("sample", *flags, f"--out={tmp_path / 'out'}", ok=False)
    assert not (tmp_path / "out").exists()
