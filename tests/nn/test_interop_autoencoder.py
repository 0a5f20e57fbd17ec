"""diffusers' AutoencoderKL as `Autoencoder`: the same moments and images, and an export restores the file."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffax.nn.interop import autoencoder, weights

FOLDER = Path(__file__).parents[1] / "nn" / "interop"
CASES = ("autoencoder_plain", "autoencoder_deep", "autoencoder_bare")
SD1 = {
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
ATTENTION = "encoder.mid_block.attentions.0"


def channels_last(x):
    """The array with its channels moved from axis 1 to the last axis."""
    return np.moveaxis(x, 1, -1)


def load(config, tensors, x):
    """The network of a config and its parameters."""
    net = autoencoder.build(config)
    like = jax.eval_shape(net.init, jax.random.key(0), channels_last(x))["params"]
    return net, weights.from_torch(weights.renamed(tensors), autoencoder.links(config), like)


def check(net, params, case, atol=1e-4):
    apply = jax.jit(net.apply, static_argnames="method")
    mean, log_variance = apply({"params": params}, channels_last(case["x"]), method="encode")
    np.testing.assert_allclose(mean, channels_last(case["mean"]), atol=atol)
    np.testing.assert_allclose(log_variance, channels_last(case["log_variance"]), atol=atol)
    y = apply({"params": params}, channels_last(case["z"]), method="decode")
    np.testing.assert_allclose(y, channels_last(case["y"]), atol=atol)


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """(config, tensors, inputs and expected results)."""
    folder = FOLDER / request.param
    config = json.loads((folder / "config.json").read_text())
    tensors = weights.load_file(folder / "diffusion_pytorch_model.safetensors")
    return config, tensors, dict(np.load(folder / "case.npz"))


@pytest.mark.slow_cases(but=["autoencoder_bare"])
def test_moments_and_images_equal_those_of_pytorch(case):
    config, tensors, arrays = case
    net, params = load(config, tensors, arrays["x"])
    check(net, params, arrays)
    assert min(arrays[name].std() for name in ("mean", "log_variance", "y")) > 0.3  # no result is small


def test_export_restores_the_tensors(case):
    config, tensors, arrays = case
    _, params = load(config, tensors, arrays["x"])
    exported = weights.to_torch(params, autoencoder.links(config))
    assert exported.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(exported[name], value, err_msg=name)


def test_names_from_before_2023_are_renamed():
    folder = FOLDER / CASES[0]
    tensors = weights.load_file(folder / "diffusion_pytorch_model.safetensors")
    old = dict(tensors)
    for half in ("encoder", "decoder"):
        module = f"{half}.mid_block.attentions.0"
        for old_name, name in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
            for leaf in ("weight", "bias"):
                old[f"{module}.{old_name}.{leaf}"] = old.pop(f"{module}.{name}.{leaf}")
    renamed = weights.renamed(old)
    assert renamed.keys() == tensors.keys() != old.keys()
    assert all(renamed[name] is tensors[name] for name in tensors)


@pytest.mark.newest
def test_the_autoencoder_of_stable_diffusion_1_has_the_published_parameters():
    """83,653,863 parameters, as counted by diffusers, in 248 tensors with the names of the published file."""
    net = autoencoder.build(SD1)
    x = jnp.zeros((1, 64, 64, 3))
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), x))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 83_653_863
    mean, _ = jax.eval_shape(lambda: net.init_with_output(jax.random.key(0), x, method="encode")[0])
    assert mean.shape == (1, 8, 8, 4)
    params = jax.tree.map(lambda v: np.broadcast_to(np.float32(0), v.shape), shapes)
    modules = {link.theirs for link in autoencoder.links(SD1)}
    assert len(modules) * 2 == len(jax.tree.leaves(params)) == 248
    assert {"quant_conv", f"{ATTENTION}.to_out.0", "decoder.up_blocks.2.resnets.0.conv_shortcut"} <= modules


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act_fn": "relu"}, "act_fn must be 'silu', got 'relu'"),
        ({"out_channels": 1}, "out_channels must be in_channels = 3, got 1"),
        ({"latents_mean": [0.0]}, "latents_mean must be None, got [0.0]"),
        (
            {"down_block_types": ["AttnDownEncoderBlock2D"] * 4},
            "down_block_types must be a list with each entry 'DownEnc",
        ),
        (
            {"up_block_types": ["UpDecoderBlock2D"]},
            "up_block_types must have 4 entries, as many as block_out_channels, got",
        ),
        ({"norm_num_groups": 3}, "norm_num_groups must divide the block_out_channels [128, 256, 512, 512], got 3"),
        ({"temporal": 2}, "temporal = 2 is unknown"),
    ],
)
def test_unsupported_configs_raise(change, message):
    with pytest.raises(ValueError, match=r"config\.json is not supported, 1 fault") as error:
        autoencoder.build(SD1 | change)
    assert message in str(error.value)


def test_missing_weights_raise(case):
    config, tensors, arrays = case
    incomplete = {name: value for name, value in tensors.items() if name != "encoder.conv_in.bias"}
    with pytest.raises(ValueError, match=r"got 1 problem: encoder.conv_in.bias is missing"):
        load(config, incomplete, arrays["x"])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_random_configs_agree_with_diffusers_in_both_directions(seed, tmp_path):
    """diffax loads a file of diffusers, and diffusers loads a file of diffax, with old and with current names."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    sys.path.insert(0, str(FOLDER))
    import make_autoencoder as make

    rng = np.random.default_rng(seed)
    groups = int(rng.integers(1, 4))
    config = make.full(
        {"block_out_channels": tuple(int(groups * v) for v in rng.integers(2, 6, rng.integers(1, 4)))}
        | {"norm_num_groups": groups, "layers_per_block": int(rng.integers(1, 3))}
        | {"latent_channels": int(rng.integers(1, 6)), "use_quant_conv": bool(seed % 2)}
    )
    model = make.random_model(config, seed)
    model.save_pretrained(tmp_path / "theirs")
    saved_config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    tensors = weights.load_file(tmp_path / "theirs" / "diffusion_pytorch_model.safetensors")
    arrays = make.answers(model, (8, 12), seed=seed)
    net, params = load(saved_config, tensors, arrays["x"])
    check(net, params, arrays)

    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "config.json").write_text(json.dumps(saved_config))
    exported = weights.to_torch(params, autoencoder.links(saved_config))
    old_names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for name, old_name in old_names.items() if seed < 2 else ():
        current, old = f"attentions.0.{name}.", f"attentions.0.{old_name}."
        exported = {key.replace(current, old): value for key, value in exported.items()}
    weights.save_file(tmp_path / "ours" / "diffusion_pytorch_model.safetensors", exported)
    reloaded = diffusers.AutoencoderKL.from_pretrained(tmp_path / "ours")
    for name, value in model.state_dict().items():
        assert torch.equal(reloaded.state_dict()[name], value), name
    check(*load(saved_config, exported, arrays["x"]), arrays)
