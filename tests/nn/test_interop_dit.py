"""diffusers' DiT as `DiT`: the results equal those of PyTorch, in fixtures from interop/make_dit.py."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from diffax.nn.interop import dit, weights

FOLDERS = Path(__file__).parents[1] / "nn" / "interop"
NAMES = ("dit_latent", "dit_deep", "dit_resized")
# DiT-XL/2 as a Transformer2DModel, the class name in older files; diffusers loads it as a DiTTransformer2DModel.
XL = {
    **{"_class_name": "Transformer2DModel", "_diffusers_version": "0.12.0.dev0", "activation_fn": "gelu-approximate"},
    **{"attention_bias": True, "attention_head_dim": 72, "cross_attention_dim": None, "dropout": 0.0},
    **{"in_channels": 4, "norm_elementwise_affine": False, "norm_num_groups": 32, "norm_type": "ada_norm_zero"},
    **{"num_attention_heads": 16, "num_embeds_ada_norm": 1000, "num_layers": 28, "num_vector_embeds": None},
    **{"only_cross_attention": False, "out_channels": 8, "patch_size": 2, "sample_size": 32},
    **{"upcast_attention": False, "use_linear_projection": False},
}


def channels_last(x):
    """The array with its channels moved from axis 1 to the last axis."""
    return np.moveaxis(x, 1, -1)


def shapes(net, x):
    return jax.eval_shape(net.init, jax.random.key(0), x, 0.5)["params"]


def apply(net, params, x, step, label):
    return jax.jit(net.apply)({"params": params}, channels_last(x), step / 1000, label)


def read(name):
    """(config, state dict, case) of a fixture."""
    folder = FOLDERS / name
    config = json.loads((folder / "config.json").read_text())
    return config, weights.load_file(folder / "diffusion_pytorch_model.safetensors"), np.load(folder / "case.npz")


@pytest.fixture(scope="module", params=NAMES)
def loaded(request):
    """(config, state dict, case, network, parameters) of each fixture."""
    config, tensors, case = read(request.param)
    net = dit.build(config)
    params = weights.from_torch(tensors, dit.links(config), shapes(net, channels_last(case["x"])))
    return config, tensors, case, net, params


@pytest.mark.slow_cases("dit_latent")
@pytest.mark.newest
def test_predictions_equal_those_of_pytorch(loaded):
    """The cases include the first step, the last step and the null label; no weight is zero."""
    _, tensors, case, net, params = loaded
    assert set(case["step"]) > {0, 999}
    assert net.num_classes in case["label"]
    assert all(np.abs(value).min() > 0 for value in tensors.values())
    y = apply(net, params, case["x"], case["step"], case["label"])
    np.testing.assert_allclose(y, channels_last(case["y"]), atol=1e-4)
    assert np.std(case["y"]) > 0.3


def test_two_attributes_give_the_predictions_of_the_published_code(loaded):
    """The frequencies and the epsilon of the norm are those of Peebles & Xie's code, in PyTorch and here."""
    _, _, case, net, params = loaded
    published = net.clone(time_shift=0, norm_eps=1e-6)
    y = apply(published, params, case["x"], case["step"], case["label"])
    np.testing.assert_allclose(y, channels_last(case["published"]), atol=1e-4)
    assert np.abs(case["published"] - case["y"]).max() > 0.1


def test_export_restores_the_tensors(loaded):
    """Names, shapes and bits are the same, and reading the export gives the same parameters."""
    config, tensors, _, _, params = loaded
    exported = weights.to_torch(params, dit.links(config))
    assert exported.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(exported[name], value)
        assert exported[name].dtype == value.dtype
    restored = weights.from_torch(exported, dit.links(config), params)
    jax.tree.map(np.testing.assert_array_equal, restored, params)


def test_weights_that_do_not_fit_are_listed():
    config, tensors, case = read("dit_deep")
    tensors["ema.decay"] = np.zeros(1)
    tensors["proj_out_2.bias"] = np.zeros(3)
    del tensors["transformer_blocks.1.attn1.to_q.weight"]
    message = (
        r"3 problems: ema.decay is unknown; proj_out_2.bias must have shape \(48,\), got \(3,\); "
        r"transformer_blocks.1.attn1.to_q.weight is missing$"
    )
    with pytest.raises(ValueError, match=message):
        weights.from_torch(tensors, dit.links(config), shapes(dit.build(config), channels_last(case["x"])))


def test_dit_xl_has_the_published_number_of_parameters():
    """675,129,632, which includes 256 x 1152 fixed positions and only one embedding of time and class."""
    net = dit.build(XL)
    params = shapes(net, np.zeros((1, 32, 32, 4), np.float32))
    sizes = {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in params.items()}
    assert sum(sizes.values()) - 27 * sizes["embed_0"] + 256 * 1152 == 675_129_632
    names = {link.theirs for link in dit.links(XL)}
    assert len(names) == 3 + 28 * 10
    assert {
        f"transformer_blocks.27.{name}" for name in ("ff.net.2", "norm1.emb.class_embedder.embedding_table")
    } <= names


def test_all_unsupported_fields_are_listed():
    config = {**XL, "dropout": 0.1, "norm_elementwise_affine": True, "cross_attention_dim": 768, "new_field": 3}
    message = (
        r"config.json is not supported, 4 faults: cross_attention_dim must be None, got 768; "
        r"dropout must be 0.0 or 0, got 0.1; norm_elementwise_affine must be False, got True; new_field = 3 is unknown$"
    )
    with pytest.raises(ValueError, match=message):
        dit.build(config)
    with pytest.raises(ValueError, match="num_embeds_ada_norm must be an int >= 1, got None"):
        dit.build({**XL, "num_embeds_ada_norm": None})


def test_missing_fields_have_the_defaults_of_diffusers():
    minimal = {name: value for name, value in XL.items() if name in ("_class_name", "out_channels")}
    assert dit.build(minimal) == dit.build(XL)


@pytest.mark.parametrize("patch", [1, 2])
def test_a_model_saved_by_diffusers_predicts_as_in_diffusers(patch, monkeypatch, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    monkeypatch.setattr(sys, "path", [str(FOLDERS), *sys.path])
    import make_dit

    config = {**make_dit.SHAPE, "in_channels": 2, "patch_size": patch, "sample_size": 6}
    model = make_dit.random_model(config, seed=patch)
    x, step, label = make_dit.inputs(config, (6, 6), batch=5, seed=patch)
    model.save_pretrained(tmp_path)
    saved_config = json.loads((tmp_path / "config.json").read_text())
    tensors = weights.load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    net = dit.build(saved_config)
    params = weights.from_torch(tensors, dit.links(saved_config), shapes(net, channels_last(x)))
    y = apply(net, params, x, step, label)
    np.testing.assert_allclose(y, channels_last(make_dit.answer(model, x, step, label)), atol=1e-4)
