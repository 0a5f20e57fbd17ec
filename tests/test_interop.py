"""diffusers' U-Nets as ours: the numbers of torch, from fixtures that interop/make_unet.py made."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop.seeded import tensor

import diffax
from diffax.nn.interop import folder, scheduler, unet, weights

FOLDERS = Path(__file__).parent / "interop"
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


@pytest.mark.newest
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
            for denoise in (plain, diffax.clip_static(plain))
        ]
        return jnp.stack(chains)

    for found, name in zip(generate(last(case["x"])), ("chain0", "chain1"), strict=True):
        np.testing.assert_allclose(found, last(case[name]), atol=1e-3)


def broken(tmp_path, change):
    """A copy of a fixture whose tensors are changed."""
    shutil.copytree(FOLDERS / "unet_plain", tmp_path / "copy")
    tensors = weights.load_file(tmp_path / "copy" / folder.WEIGHTS)
    change(tensors)
    weights.save_file(tmp_path / "copy" / folder.WEIGHTS, tensors)
    return tmp_path / "copy"


def test_weights_that_do_not_fit_are_listed(tmp_path):
    def change(tensors):
        tensors["conv_new.weight"] = tensors.pop("conv_in.weight")
        tensors["conv_out.weight"] = np.zeros((2, 8, 1, 1), np.float32)

    message = (
        r"the weights do not fit the network, 3 do not: conv_in.weight is missing; conv_new.weight is unknown; "
        r"conv_out.weight must be \(2, 8, 3, 3\), got \(2, 8, 1, 1\)"
    )
    with pytest.raises(ValueError, match=message):
        folder.load(broken(tmp_path, change))


def test_what_is_not_supported_is_listed():
    config = json.loads((FOLDERS / "unet_sd" / "config.json").read_text())
    config |= {"dual_cross_attention": True, "time_cond_proj_dim": 4, "brand_new": 1}
    message = r"dual_cross_attention = True \(known: False\); time_cond_proj_dim = 4 \(known: None\); brand_new = 1"
    with pytest.raises(ValueError, match=message):
        unet.build(config)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("unet_plain", {"up_block_types": ["UpBlock2D"] * 3}, "up_block_types must mirror down_block_types"),
        ("unet_plain", {"down_block_types": ["SkipDownBlock2D"] * 3}, "down_block_types must be of DownBlock2D"),
        ("unet_plain", {"downsample_padding": 2}, "downsample_padding must be 0 or 1, got 2"),
        ("unet_plain", {"resnet_time_scale_shift": "scale_shift"}, r"attn_norm_num_groups = None \(known: 4\)"),
        ("unet_sd", {"attention_head_dim": [2, 2]}, "attention_head_dim must give heads of one width"),
        ("unet_sd", {"layers_per_block": [1, 2]}, "layers_per_block must be one number"),
    ],
)
def test_bad_configs(name, changes, message):
    config = json.loads((FOLDERS / name / "config.json").read_text())
    with pytest.raises(ValueError, match=message):
        unet.build(config | changes)


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="folder must be one that diffusers saved"):
        folder.load(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "VQModel"}')
    with pytest.raises(ValueError, match=r"config.json must be that of a UNet2DModel or .*, got 'VQModel'"):
        folder.load(tmp_path)
    shutil.copy(FOLDERS / "unet_plain" / "config.json", tmp_path)
    with pytest.raises(ValueError, match=r"weights must be a safetensors file, got .*, which is not there"):
        folder.load(tmp_path)
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ValueError, match=r"weights must be safetensors, got diffusion_pytorch_model.bin"):
        folder.load(tmp_path)
    (tmp_path / folder.WEIGHTS).write_bytes(b"12345678nonsense")
    with pytest.raises(ValueError, match="weights must be a safetensors file, got"):
        folder.load(tmp_path)


STABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}


def test_a_scheduler_is_a_schedule_a_grid_and_a_kind():
    """Stable Diffusion's, with the alphas that its authors print."""
    found = scheduler.build(STABLE | {"clip_sample": False, "set_alpha_to_one": False, "_class_name": "PNDMScheduler"})
    assert (found.kind, found.clip, found.last) == ("eps", None, 1e-3)
    np.testing.assert_allclose(found.schedule(1.0).alpha ** 2, 0.0047, atol=5e-5)
    np.testing.assert_allclose(np.round(1000 * found.times(4) - 1), [751, 501, 251, 1])
    zero = scheduler.build({"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"} | STABLE)
    assert zero.schedule.zero_terminal_snr
    assert zero.kind == "v"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"thresholding": True, "use_karras_sigmas": True}, "thresholding = True .*; use_karras_sigmas = True"),
        ({"beta_schedule": "exp"}, "beta_schedule must be one of linear, scaled_linear, .*, got 'exp'"),
        ({"prediction_type": "flow"}, "prediction_type must be one of epsilon, sample, v_prediction, got 'flow'"),
    ],
)
def test_bad_schedulers(config, message):
    with pytest.raises(ValueError, match=message):
        scheduler.build(config)


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
