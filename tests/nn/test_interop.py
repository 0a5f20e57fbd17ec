"""diffusers' U-Nets as `UNet`: the results equal those of PyTorch, in fixtures from interop/make_unet.py."""

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


def channels_last(x):
    """The array with its channels moved from axis 1 to the last axis."""
    return np.moveaxis(x, 1, -1)


def load_fixture(name):
    """The model of a fixture. A large fixture has no weights: `seeded.tensor` draws them, as for the PyTorch model."""
    if name in SMALL:
        return folder.load(FOLDERS / name)
    config = json.loads((FOLDERS / name / "config.json").read_text())
    net, shape = unet.build(config), (config["sample_size"],) * 2 + (config["in_channels"],)
    like = folder.shapes(net, shape)
    links = folder.links(config)
    shapes = jax.eval_shape(lambda: jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), like))
    zeros = weights.to_torch(jax.tree.map(lambda v: np.zeros(v.shape, v.dtype), shapes), links)
    tensors = {name: tensor(name, value.shape) for name, value in zeros.items()}
    return folder.Pretrained(net, weights.from_torch(tensors, links, like), config, shape)


def conditions_of(case):
    """The conditions of a case."""
    return {name: jnp.asarray(case[name]) for name in ("label", "context", "mask") if name in case}


@pytest.mark.slow_cases(but=["unet_adm"])
@pytest.mark.newest
@pytest.mark.parametrize("name", SMALL)
def test_small_networks_predict_as_pytorch(name):
    """The steps include the first and the last."""
    case, model = np.load(FOLDERS / name / "case.npz"), load_fixture(name)
    result = jax.jit(model.predict(**conditions_of(case)))(channels_last(case["x"]), (case["step"] + 1) / 1000)
    np.testing.assert_allclose(result, channels_last(case["y"]), atol=1e-4)
    assert np.std(case["y"]) > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_published_networks_predict_as_pytorch(name):
    """google/ddpm-cifar10-32 at its full width, Stable Diffusion 1.5 at a tenth of its width."""
    case, model = np.load(FOLDERS / name / "case.npz"), load_fixture(name)
    result = jax.jit(model.predict(**conditions_of(case)))(channels_last(case["x"]), (case["step"] + 1) / 1000)
    np.testing.assert_allclose(result, channels_last(case["y"]), atol=1e-4)


def test_the_config_of_ddpm_cifar10_has_the_published_number_of_parameters():
    config = json.loads((FOLDERS / "unet_cifar10" / "config.json").read_text())
    shapes = folder.shapes(unet.build(config), (32, 32, 3))
    assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes)) == 35_746_307


@pytest.mark.slow_cases(but=["unet_adm", "unet_plain"])
@pytest.mark.parametrize("name", SMALL)
def test_export_restores_the_file(name, tmp_path):
    """Names, shapes and bits are the same, and loading the export gives the same parameters."""
    model, original = load_fixture(name), weights.load_file(FOLDERS / name / folder.WEIGHTS)
    folder.save_model(tmp_path, model.params, model.config)
    written = weights.load_file(tmp_path / folder.WEIGHTS)
    assert written.keys() == original.keys()
    for key, value in original.items():
        np.testing.assert_array_equal(written[key], value)
    reloaded = folder.load(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, reloaded.params, model.params)
    assert json.loads((tmp_path / "config.json").read_text()) == model.config


@pytest.mark.slow
def test_ddim_samples_equal_those_of_the_pipeline():
    """20 steps of our sampler, with the schedule, grid, prediction kind and clipping of the folder."""
    case, model = np.load(FOLDERS / "unet_ddpm" / "case.npz"), load_fixture("unet_ddpm")
    schedule, kind, times, clip, end = model.scheduler
    assert (kind, clip, end) == ("eps", None, None)
    plain = diffax.denoiser(model.predict(), schedule, kind)

    @jax.jit
    def generate(x):
        samples = [
            diffax.sample(jax.random.key(0), diffax.ddim(schedule), denoise, x, times(20))
            for denoise in (plain, diffax.denoisers.clip_static(plain))
        ]
        return jnp.stack(samples)

    for result, name in zip(generate(channels_last(case["x"])), ("chain0", "chain1"), strict=True):
        np.testing.assert_allclose(result, channels_last(case[name]), atol=1e-3)


@pytest.mark.parametrize("which", ["unet_ddpm", "unet_sd"])
def test_a_model_saved_by_diffusers_predicts_as_in_diffusers(which, tmp_path):
    """Skipped without PyTorch and diffusers."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    config = json.loads((FOLDERS / which / "config.json").read_text())
    torch.manual_seed(3)
    original = getattr(diffusers, config["_class_name"]).from_config(config).eval()
    with torch.no_grad():
        for value in original.parameters():
            value.add_(0.1 * torch.randn_like(value))
    original.save_pretrained(tmp_path)
    case, model = np.load(FOLDERS / which / "case.npz"), folder.load(tmp_path)
    context = {"encoder_hidden_states": torch.tensor(case["context"])} if "context" in case else {}
    with torch.no_grad():
        expected = original(torch.tensor(case["x"]), torch.tensor(case["step"]), **context).sample.numpy()
    conditions = conditions_of(case)
    conditions.pop("mask", None)
    result = jax.jit(model.predict(**conditions))(channels_last(case["x"]), (case["step"] + 1) / 1000)
    np.testing.assert_allclose(result, channels_last(expected), atol=1e-4)
