"""diffusers' U-Nets as ours: the numbers of torch, from fixtures that interop/make_unet.py made."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop.seeded import tensor

import diffax
from diffax.nn.interop import folder, unet, weights

FOLDERS = Path(__file__).parents[1] / "nn" / "interop"
SMALL = ("unet_ddpm", "unet_adm", "unet_plain", "unet_sd", "unet_sd2", "unet_sd_deep")
LARGE = ("unet_cifar10", "unet_sd15")


def last(x):
    """Channels last."""
    return np.moveaxis(x, 1, -1)


def loaded(name):
    """The model of a fixture; of a large one with the weights that both sides draw alike."""
    place = FOLDERS / name
    if name in SMALL:
        return folder.load(place)
    config = json.loads((place / "config.json").read_text())
    net, shape = unet.build(config), (config["sample_size"],) * 2 + (config["in_channels"],)
    like = folder.shapes(net, shape)
    links = folder.links(config)
    shapes = jax.eval_shape(lambda: jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), like))
    theirs = weights.to_torch(jax.tree.map(lambda v: np.zeros(v.shape, v.dtype), shapes), links)
    drawn = {key: tensor(key, value.shape) for key, value in theirs.items()}
    return folder.Pretrained(net, weights.from_torch(drawn, links, like), config, shape)


def given(case):
    """The conditions of a case."""
    parts = {"label": "label", "context": "context", "mask": "mask"}
    return {ours: jnp.asarray(case[theirs]) for ours, theirs in parts.items() if theirs in case}


@pytest.mark.slow_cases(but=["unet_adm"])
@pytest.mark.newest
@pytest.mark.parametrize("name", SMALL)
def test_the_answer_is_torch_s(name):
    """At the first and the last step too."""
    case, model = np.load(FOLDERS / name / "case.npz"), loaded(name)
    found = jax.jit(model.predict(**given(case)))(last(case["x"]), (case["step"] + 1) / 1000)
    np.testing.assert_allclose(found, last(case["y"]), atol=1e-4)
    assert np.std(case["y"]) > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_the_answer_of_published_networks_is_torch_s(name):
    """google/ddpm-cifar10-32 as it is, Stable Diffusion 1.5 a tenth as wide."""
    case, model = np.load(FOLDERS / name / "case.npz"), loaded(name)
    found = jax.jit(model.predict(**given(case)))(last(case["x"]), (case["step"] + 1) / 1000)
    np.testing.assert_allclose(found, last(case["y"]), atol=1e-4)


def test_the_real_configuration_has_the_published_size():
    config = json.loads((FOLDERS / "unet_cifar10" / "config.json").read_text())
    shapes = folder.shapes(unet.build(config), (32, 32, 3))
    assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes)) == 35_746_307


@pytest.mark.slow_cases(but=["unet_adm", "unet_plain"])
@pytest.mark.parametrize("name", SMALL)
def test_export_gives_the_same_file(name, tmp_path):
    """Names, shapes and bits; and read again the same parameters."""
    model, original = loaded(name), weights.load_file(FOLDERS / name / folder.WEIGHTS)
    folder.save_model(tmp_path, model.params, model.config)
    written = weights.load_file(tmp_path / folder.WEIGHTS)
    assert written.keys() == original.keys()
    for key, value in original.items():
        np.testing.assert_array_equal(written[key], value)
    again = folder.load(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
    assert json.loads((tmp_path / "config.json").read_text()) == model.config


@pytest.mark.slow
def test_a_chain_of_ddim_is_the_pipeline_s():
    """20 steps from a folder: its schedule, grid, prediction and clipping, our sampler."""
    case, model = np.load(FOLDERS / "unet_ddpm" / "case.npz"), loaded("unet_ddpm")
    schedule, kind, times, clip, end = model.scheduler
    assert (kind, clip, end) == ("eps", None, None)
    plain = diffax.denoiser(model.predict(), schedule, kind)

    @jax.jit
    def generate(x):
        chains = [
            diffax.sample(jax.random.key(0), diffax.ddim(schedule), denoise, x, times(20))
            for denoise in (plain, diffax.denoisers.clip_static(plain))
        ]
        return jnp.stack(chains)

    for found, name in zip(generate(last(case["x"])), ("chain0", "chain1"), strict=True):
        np.testing.assert_allclose(found, last(case[name]), atol=1e-3)


@pytest.mark.parametrize("which", ["unet_ddpm", "unet_sd"])
def test_a_new_model_of_diffusers_itself(which, tmp_path):
    """Saved by it, loaded here; where torch is there."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    config = json.loads((FOLDERS / which / "config.json").read_text())
    torch.manual_seed(3)
    theirs = getattr(diffusers, config["_class_name"]).from_config(config).eval()
    with torch.no_grad():
        for value in theirs.parameters():
            value.add_(0.1 * torch.randn_like(value))
    theirs.save_pretrained(tmp_path)
    case, model = np.load(FOLDERS / which / "case.npz"), folder.load(tmp_path)
    more = {"encoder_hidden_states": torch.tensor(case["context"])} if "context" in case else {}
    with torch.no_grad():
        expected = theirs(torch.tensor(case["x"]), torch.tensor(case["step"]), **more).sample.numpy()
    conditions = given(case)
    conditions.pop("mask", None)
    found = jax.jit(model.predict(**conditions))(last(case["x"]), (case["step"] + 1) / 1000)
    np.testing.assert_allclose(found, last(expected), atol=1e-4)
