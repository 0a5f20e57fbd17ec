"""Exports: samples of a loaded model, kinds of models, damaged folders, and the methods of a loaded model."""

import dataclasses
import json
import pickle
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffax
from diffax import pretrained
from diffax.nn import lora
from diffax.nn.description import autoencoder_from_description
from diffax.pretrained import Diffusion, Latents, Sampling, Spec, Tokenizer

pytestmark = pytest.mark.newest
KEY = jax.random.key(0)
NETWORK = {"name": "mlp", "channels": 8, "depth": 1, "dropout_rate": 0.0, "time_scale": 1000.0, "dtype": "float32"}
AUTOENCODER = {
    "channels": 4, "channel_multipliers": [1, 2], "num_res_blocks": 1, "latent_channels": 2, "attention": False,
    "dtype": "float32", "sample_channels": 1,
}  # fmt: skip
TEXT = {"vocab_size": 6, "width": 8, "depth": 1, "num_heads": 2}


def diffusion(shape=(4, 4, 1), condition="label", network=None, **changes):
    """A small model, conditioned on 3 classes or on captions."""
    network = {
        **NETWORK,
        "num_classes": 3 if condition == "label" else None,
        "outputs": 1 + changes.get("learned_variance", False),
        "text": TEXT if condition == "tokens" else None,
        **(network or {}),
    }
    plain = Sampling(eta=None, guidance=1.5, interval=None, rescale=None, num_steps=4)
    fields = {"curve": Spec.of("cosine", {}), "sigma_data": 0.5, "sampling": plain, "prediction": "v", "time": "t"}
    fields |= {"num_classes": 3, "learned_variance": False}
    return Diffusion(network=json.dumps(network), condition=condition, shape=shape, **{**fields, **changes})


def random_params(model, seed=1):
    """Parameters without zeros."""
    return random_like(jax.eval_shape(model.init, KEY), seed)


def random_like(shapes, seed=1):
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(tree, [jnp.asarray(0.3 * rng.normal(size=v.shape), v.dtype) for v in leaves])


def saved(folder, model, params=None, **options):
    params = random_params(model) if params is None else params
    pretrained.save(folder, model, params, **{"step": 7, "units": pretrained.Units(range=(0.0, 16.0)), **options})
    return params


def test_a_saved_model_is_loaded_from_a_str_a_path_and_a_path_below_home(tmp_path, monkeypatch):
    model = diffusion()
    params = saved(tmp_path / "export", model, more={"config": {"seed": 1}})
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in (tmp_path / "export", str(tmp_path / "export"), "~/export"):
        loaded = pretrained.load(path)
        assert loaded.diffusion == model
        jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
    assert (loaded.step, loaded.units.range, loaded.words, loaded.shape) == (7, (0.0, 16.0), (), (4, 4, 1))
    keys = diffax.random.keys_at(KEY, jnp.arange(3))
    expected = jax.jit(model.generate)(params, keys, jnp.arange(3))
    np.testing.assert_allclose(loaded.sample(KEY, 3), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("curve", "changes"),
    [
        (Spec.of("linear", {"beta_max": 25.0, "beta_min": 0.2}), {}),
        (Spec.of("cosine_betas", {"num_steps": 10}, is_static=True), {"prediction": "eps", "learned_variance": True}),
        (Spec.of("learned", {}, is_static=True), {"time": "log_snr"}),
        (Spec.of("flow", {}), {"condition": "", "sampling": Sampling(0.5, 2.0, (0.1, 0.9), 0.7, sampler="ddim")}),
    ],
    ids=["parameters", "table", "learned", "sampling"],
)
def test_an_export_restores_each_specification(curve, changes, tmp_path):
    model = diffusion(curve=curve, **changes)
    params = saved(tmp_path / "export", model)
    loaded = pretrained.load(tmp_path / "export")
    assert loaded.diffusion == model
    level, expected = loaded.schedule(0.3), model.schedule(params)(0.3)
    np.testing.assert_array_equal((level.alpha, level.sigma), (expected.alpha, expected.sigma))


def test_a_flow_map_samples_by_jumps_and_gets_the_guidance_weight_as_an_input(tmp_path):
    few = {"second_time": True, "guidance_input": True, "time_scale": 1.0}
    plan = Sampling(0.0, 2.0, None, None, sampler="jump", grid="trailing", num_steps=2, clip=False)
    model = diffusion(network=few, sampling=plan)
    params = saved(tmp_path / "export", model)
    loaded = pretrained.load(tmp_path / "export")
    assert (loaded.diffusion.second_time, loaded.diffusion.guidance_input) == (True, True)
    schedule, label = diffax.Cosine(), jnp.array([0, 1, 2])

    def predict(x, t, s):
        return model.module.apply({"params": params}, x, t, label, s=s, weight=2.0)

    denoise = diffax.flow_maps.map_denoiser(predict, schedule, "v")
    times = jnp.array([1.0, 0.5])
    keys = diffax.random.keys_at(KEY, jnp.arange(3))
    x, steps = model.noise(params, keys, 1.0), diffax.random.fold_in(keys, 1)
    expected = diffax.sample(steps, diffax.flow_maps.jump(schedule), denoise, x, times)
    np.testing.assert_allclose(loaded.sample(KEY, 3), expected, atol=1e-5)
    assert jnp.abs(loaded.with_sampling(guidance=1.0).sample(KEY, 3) - expected).max() > 1e-3
    # With two arguments it is the denoiser of s = t, as other samplers need it.
    x, t = jnp.ones((3, 4, 4, 1)), jnp.array([0.2, 0.5, 0.9])
    np.testing.assert_allclose(loaded.denoiser(label)(x, t), denoise(x, t, t), atol=1e-5)
    np.testing.assert_allclose(loaded.denoiser(label)(x, t, 0 * t), denoise(x, t, 0 * t), atol=1e-5)


def test_guidance_of_a_flow_map_without_the_input_has_two_branches():
    plan = Sampling(0.0, 2.0, None, None, sampler="jump", grid="trailing", num_steps=1, clip=True)
    model = diffusion(network={"second_time": True, "time_scale": 1.0}, sampling=plan)
    params, label = random_params(model), jnp.array([0, 1])
    x, t, s = jnp.ones((2, 4, 4, 1)), jnp.array([0.9, 0.5]), jnp.array([0.3, 0.0])

    def branch(label):
        predict = lambda x, t, s: model.module.apply({"params": params}, x, t, label, s=s)
        return diffax.flow_maps.map_denoiser(predict, diffax.Cosine(), "v")(x, t, s)

    guided = branch(None) + 2 * (branch(label) - branch(None))
    expected = jnp.stack([guided[0], jnp.clip(guided[1], -1, 1)])  # clipping acts at s = 0 alone
    np.testing.assert_allclose(model.denoiser(params, label)(x, t, s), expected, atol=1e-5)


def test_samples_of_a_model_in_latents_are_decoded(tmp_path):
    net, model = autoencoder_from_description(AUTOENCODER), diffusion((2, 2, 2), "")
    params = random_like(jax.eval_shape(net.init, KEY, jnp.zeros((1, 4, 4, 1)))["params"])
    saved(tmp_path / "export", model, latents=Latents(json.dumps(AUTOENCODER), params, 0.5))
    loaded = pretrained.load(tmp_path / "export")
    codes = jax.jit(model.generate)(loaded.params, diffax.random.keys_at(KEY, jnp.arange(2)))
    samples = loaded.sample(KEY, 2)
    assert samples.shape == (2, 4, 4, 1)
    np.testing.assert_allclose(samples, net.apply({"params": params}, codes / 0.5, method="decode"), atol=1e-5)
    (tmp_path / "export" / "autoencoder.safetensors").unlink()
    with pytest.raises(ValueError, match=r"autoencoder.safetensors cannot be read \(No such file"):
        pretrained.load(tmp_path / "export")


def test_an_export_of_a_model_of_captions_contains_the_vocabulary(tmp_path):
    network = {"name": "dit", "patch_size": 2, "positions": "sincos", "num_heads": 2, "remat": False}
    model = diffusion(condition="tokens", network=network, num_classes=None)
    params = saved(tmp_path / "export", model, words=("red", "heart"), max_length=3)
    loaded = pretrained.load(tmp_path / "export")
    assert (loaded.words, loaded.max_length) == (("red", "heart"), 3)
    tokens = jnp.array([[2, 3, 0], [3, 0, 0]])
    expected = jax.jit(model.generate)(params, diffax.random.keys_at(KEY, jnp.arange(2)), tokens)
    samples = loaded.sample(KEY, 2, tokens)
    np.testing.assert_allclose(samples, expected, atol=1e-3)
    assert jnp.abs(samples - loaded.sample(KEY, 2, tokens[::-1])).max() > 1e-2


def test_captions_are_conditions_of_an_export(tmp_path):
    """`sample` and `denoiser` of a loaded model accept texts, without the package of experiments."""
    network = {"name": "dit", "patch_size": 2, "positions": "sincos", "num_heads": 2, "remat": False}
    saved(
        tmp_path / "export",
        diffusion(condition="tokens", network=network, num_classes=None),
        words=("red", "heart"),
        max_length=3,
    )
    loaded = pretrained.load(tmp_path / "export")
    encoded, tokens = loaded.encode(["Red heart!", "one heart"]), jnp.array([[2, 3, 0], [1, 3, 0]])
    np.testing.assert_array_equal(encoded, tokens)
    np.testing.assert_array_equal(loaded.sample(KEY, 2, encoded), loaded.sample(KEY, 2, tokens))
    x = jax.random.normal(KEY, (2, 4, 4, 1))
    np.testing.assert_array_equal(loaded.denoiser(encoded)(x, 0.4), loaded.denoiser(tokens)(x, 0.4))


CAPTIONS = ["Red heart", "blue HEART", "cat-face with heart eyes", "red circle"]


@pytest.mark.newest
def test_the_vocabulary_has_the_most_frequent_words_and_does_not_depend_on_the_order_of_captions():
    words = Tokenizer.of(CAPTIONS, 100, 4).words
    assert words == ["heart", "red", "blue", "cat", "circle", "eyes", "face", "with"]
    assert Tokenizer.of(CAPTIONS[::-1], 100, 4).words == words
    assert Tokenizer.of(CAPTIONS, 5, 4).words == words[:3]
    assert Tokenizer.split("Keycap: 10, o'clock — Ünïcode_x") == ["keycap", "10", "o", "clock", "ünïcode", "x"]


@pytest.mark.newest
def test_tokens_encode_padding_unknown_words_and_known_words():
    tokenizer = Tokenizer.of(CAPTIONS, 6, 4)
    tokens = tokenizer.encode(["red heart", "Blue cat", "", "heart heart heart heart heart", "!"])
    assert tokens.tolist() == [[3, 2, 0, 0], [4, 5, 0, 0], [0, 0, 0, 0], [2, 2, 2, 2], [0, 0, 0, 0]]
    assert tokens.dtype == np.int32
    assert tokenizer.encode(["green heart"]).tolist() == [[1, 2, 0, 0]]
    assert tokenizer.unknown(["green heart", "Green moon"]) == ["green", "moon"]


def test_merged_adapters_are_saved_as_parameters(tmp_path):
    model = diffusion()
    params = random_params(model)
    adapters = jax.tree.map(lambda v: v + 0.1, lora.init(KEY, params, ["*kernel"], rank=1))
    merged = lora.merge(params, adapters, alpha=2.0)
    saved(tmp_path / "export", model, merged)
    jax.tree.map(np.testing.assert_array_equal, pretrained.load(tmp_path / "export").params, merged)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained") / "export"
    saved(folder, diffusion())
    return folder


@pytest.fixture(scope="module")
def loaded(folder):
    return pretrained.load(folder)


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def edit(**changes):
    def change(folder):
        content = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(content))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: flip(f / "model.safetensors"), "model.safetensors does not match its digest"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "model.safetensors does not match its digest"),
        (lambda f: (f / "model.safetensors").unlink(), "path must be a folder that experiments.export wrote, got"),
        (lambda f: (f / "config.json").unlink(), "path must be a folder that experiments.export wrote, got"),
        (lambda f: (f / "config.json").write_text("{"), "config.json must be that of an export"),
        (lambda f: (f / "config.json").write_text("[]"), "config.json must be that of an export"),
        (edit(step=8), "config.json does not match its digest"),
        (edit(format="diffax-3"), "config.json must have format 'diffax-2', got 'diffax-3': use the diffax that wrote"),
    ],
)
def test_a_damaged_folder_is_refused(damage, message, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    damage(copy)
    with pytest.raises(ValueError, match=message):
        pretrained.load(copy)


def test_an_export_does_not_replace_a_folder(folder):
    before = sorted(path.read_bytes() for path in folder.iterdir())
    with pytest.raises(ValueError, match="folder must not exist yet, got"):
        saved(folder, diffusion())
    assert sorted(path.read_bytes() for path in folder.iterdir()) == before
    assert [path.name for path in folder.parent.iterdir()] == ["export"]


def test_sample_i_depends_only_on_the_key_and_i(loaded):
    many, few = loaded.sample(KEY, 5, jnp.zeros(5, int)), loaded.sample(KEY, 2, 0)
    np.testing.assert_allclose(few, many[:2], atol=1e-5)
    alone = loaded.diffusion.generate(loaded.params, jax.random.fold_in(KEY, 4)[None], jnp.zeros(1, int))
    np.testing.assert_allclose(many[4:], alone, atol=1e-5)
    assert jnp.abs(many[0] - many[1]).max() > 1e-3
    assert jnp.abs(loaded.sample(jax.random.key(1), 2, 0) - few).max() > 1e-3
    jitted = jax.jit(lambda model, key: model.sample(key, 4))(loaded, KEY)
    np.testing.assert_allclose(jitted, loaded.sample(KEY, 4, jnp.array([0, 1, 2, 0])), atol=1e-5)  # classes in a cycle
    with pytest.raises(ValueError, match="n must be an int >= 1, got 0"):
        loaded.sample(KEY, 0)
    with pytest.raises(ValueError, match=r"captions must not be given to a model without a vocabulary, got \['red'\]"):
        loaded.encode(["red"])


def test_with_sampling_changes_only_the_sampling_settings(loaded):
    other = loaded.with_sampling(num_steps=8, sampler="heun", guidance=None)
    assert other.diffusion.sampling == dataclasses.replace(
        loaded.diffusion.sampling, num_steps=8, sampler="heun", guidance=None
    )
    assert other.params is loaded.params
    label, x = jnp.array([0, 1]), jax.random.normal(KEY, (2, 4, 4, 1))
    predict = loaded.diffusion.predict(loaded.params, label)
    plain = diffax.denoisers.clip_static(diffax.denoiser(predict, loaded.schedule, "v"))(x, 0.4)
    np.testing.assert_allclose(other.denoiser(label)(x, 0.4), plain, atol=1e-5)
    assert jnp.abs(loaded.denoiser(label)(x, 0.4) - plain).max() > 1e-4
    np.testing.assert_allclose(loaded.denoiser(label, weight=1.0)(x, 0.4), plain, atol=1e-5)


@pytest.mark.parametrize("condition", ["label", ""])
def test_a_model_without_a_null_label_is_not_guided(condition, tmp_path):
    """Models without a condition, and models trained without label dropout, have no null label."""
    saved(tmp_path / "export", diffusion(condition=condition), has_null=condition == "")
    loaded = pretrained.load(tmp_path / "export")
    message = "must be None for a model trained without a null label, got 2.0"
    with pytest.raises(ValueError, match=f"weight {message}"):
        loaded.denoiser(jnp.array([0]), weight=2.0)
    with pytest.raises(ValueError, match=f"guidance {message}"):
        loaded.with_sampling(guidance=2.0)
    assert loaded.with_sampling(guidance=None).denoiser(jnp.array([0]))(jnp.zeros((1, 4, 4, 1)), 0.4).shape[0] == 1


def test_samples_in_units_of_the_data_are_rounded_and_clipped(loaded):
    x = np.array([-1.2, -1.0, -0.99, 0.0, 0.06, 1.0, 1.7])
    pixels = loaded.denormalise(jnp.asarray(x))
    assert (pixels.tolist(), pixels.dtype) == ([0, 0, 0, 8, 8, 16, 16], np.uint8)


def test_a_specification_can_be_pickled_and_mapped(loaded):
    """Numbers are leaves, so that one program can map over guidance weights."""
    assert pickle.loads(pickle.dumps(loaded.diffusion)) == loaded.diffusion
    draw = jax.jit(jax.vmap(lambda weight: loaded.with_sampling(guidance=weight).sample(KEY, 2)))
    weights = jnp.array([1.5, 3.0])
    np.testing.assert_allclose(draw(weights)[0], loaded.sample(KEY, 2), atol=1e-5)
    assert jnp.abs(draw(weights)[1] - draw(weights)[0]).max() > 1e-4


# ---------------------------------------------------------------- units


def test_denormalise_inverts_normalise_for_integers_in_a_range():
    for low, high in ((0, 255), (0, 16)):
        units = pretrained.Units(range=(float(low), float(high)))
        stored = np.arange(low, high + 1, dtype=np.uint8)[:, None]
        np.testing.assert_array_equal(units.denormalise(units.normalise(stored)), stored)
        np.testing.assert_allclose(units.normalise(stored)[[0, -1], 0], [-1, 1])
        np.testing.assert_allclose(units.normalise(stored)[1] - units.normalise(stored)[0], units.bin_width, rtol=1e-6)


def test_denormalise_inverts_normalise_for_floats_and_their_standard_deviation_is_that_of_the_network():
    stored = (np.random.default_rng(0).normal(size=(10_000, 2)) * [2.0, 50.0] + [1e5, -3.0]).astype(np.float32)
    mean, std = (tuple(getattr(stored.astype(np.float64), name)(0)) for name in ("mean", "std"))
    units = pretrained.Units("float32", None, mean, std, "field")
    x = units.normalise(stored)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x.astype(np.float64).std(0), 0.5, rtol=1e-6)
    np.testing.assert_allclose(x.astype(np.float64).mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(units.denormalise(x), stored, rtol=1e-6, atol=1e-6 * std[1])
    assert units.bin_width == 0


def test_integers_without_a_range_are_rounded():
    units = pretrained.Units("int32", None, (10.0,), (4.0,), "points")
    assert units.denormalise(np.array([[0.06], [0.07]])).tolist() == [[10], [11]]


def test_units_are_restored_from_json():
    units = pretrained.Units("float32", None, (1.0, 2.0), (3.0, 4.0), "field", ("u", "v"), ("m/s", "m/s"))
    assert pretrained.Units.of(json.loads(json.dumps(dataclasses.asdict(units)))) == units
    with pytest.raises(ValueError, match="samples must be finite, got nan in sample 1"):
        units.denormalise(np.array([[0.0, 0.0], [np.nan, 0.0]]))


CONDITION_UNITS = pretrained.Units("float32", None, (250.0, 3.0), (10.0, 0.5), "field")


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    """(model with array conditions, its parameters, its export)."""
    model = diffusion(condition="array", network={"condition": {"shape": [2], "channels": 1}}, num_classes=None)
    folder = tmp_path_factory.mktemp("arrays") / "export"
    return model, saved(folder, model, condition_units=CONDITION_UNITS), folder


def test_array_conditions_are_in_the_units_of_the_data(conditional):
    model, params, folder = conditional
    loaded = pretrained.load(folder)
    assert loaded.condition_units == CONDITION_UNITS
    conditions = np.array([[240.0, 3.5], [260.0, 2.0], [250.0, 3.0]])
    keys = diffax.random.keys_at(KEY, jnp.arange(3))
    generate = jax.jit(model.generate)
    expected = generate(params, keys, CONDITION_UNITS.normalise(conditions))
    np.testing.assert_allclose(jax.jit(loaded.sample, static_argnums=1)(KEY, 3, conditions), expected, atol=1e-4)
    same = generate(params, keys, CONDITION_UNITS.normalise(conditions[[0, 0, 0]]))
    np.testing.assert_allclose(loaded.sample(KEY, 3, conditions[0]), same, atol=1e-4)  # one condition for all samples
    assert np.abs(same - expected)[1].max() > 1e-2
    x = jnp.ones((3, 4, 4, 1))
    denoised = model.denoiser(params, CONDITION_UNITS.normalise(conditions))(x, 0.5)
    np.testing.assert_allclose(loaded.denoiser(conditions)(x, 0.5), denoised, atol=1e-5)


def test_array_conditions_are_guided_against_their_mean(conditional):
    loaded = pretrained.load(conditional[2])
    x, condition, mean = jnp.ones((1, 4, 4, 1)), np.array([[240.0, 3.5]]), np.array([[250.0, 3.0]])
    plain, null, guided = (
        loaded.with_sampling(guidance=weight, clip=False).denoiser(value)(x, 0.5)
        for weight, value in ((1.0, condition), (1.0, mean), (3.0, condition))
    )
    np.testing.assert_allclose(guided, null + 3 * (plain - null), atol=1e-3)
    assert jnp.abs(guided - plain).max() > 1e-2


def test_array_conditions_that_do_not_fit_are_refused(conditional):
    loaded = pretrained.load(conditional[2])
    for call in (lambda: loaded.sample(KEY, 3, np.ones((3, 1))), lambda: loaded.denoiser(np.ones((3, 1)))):
        with pytest.raises(ValueError, match=r"label must have shape \(B, 2\), got \(3, 1\)"):
            call()
    without_null = dataclasses.replace(loaded, has_null=False)
    with pytest.raises(ValueError, match=r"label must be conditions \(3, 2\) for a model trained without a null one"):
        without_null.sample(KEY, 3)
