"""Loading and saving folders of diffusers: parts, files, variants, invalid folders."""

import json
import shutil

import jax
import numpy as np
import pytest
from test_interop import FOLDERS, load_fixture

from diffax.nn.interop import folder, weights


@pytest.mark.slow_cases(but=["<lambda>-1 problem: lora.a is unknown"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda params: {"params": {}}, r"params must fit the network, got \d+ problems: params.AttentionBlock_0"),
        (lambda params: params["params"], "params.conv_in.kernel is missing"),
        (lambda params: params | {"lora": {"a": np.zeros(3)}}, "1 problem: lora.a is unknown"),
        (lambda params: jax.tree.map(lambda v: v[..., :1], params), r"conv_in.bias must have shape \(8,\), got \(1,\)"),
        (lambda params: None, "params.conv_in.kernel is missing"),
    ],
)
def test_params_that_do_not_fit_the_network_are_not_saved(change, message, tmp_path):
    model = load_fixture("unet_plain")
    with pytest.raises(ValueError, match=message):
        folder.save_model(tmp_path / "new", change(model.params), model.config)
    assert not (tmp_path / "new").exists()


def test_an_interrupted_save_keeps_the_old_file(tmp_path, monkeypatch):
    model = load_fixture("unet_plain")
    folder.save_model(tmp_path, model.params, model.config)
    before = (tmp_path / folder.WEIGHTS).read_bytes()
    monkeypatch.setattr(
        "safetensors.numpy.save_file", lambda tensors, path, metadata: path.write_bytes(b"half") and 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        folder.save_model(tmp_path, jax.tree.map(lambda v: 2 * v, model.params), model.config)
    assert (tmp_path / folder.WEIGHTS).read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", folder.WEIGHTS]


@pytest.mark.slow_cases("bfloat16")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_read_and_written_as_float32(dtype, tmp_path):
    model = load_fixture("unet_plain")
    tensors = {
        key: value.astype(dtype) for key, value in weights.load_file(FOLDERS / "unet_plain" / folder.WEIGHTS).items()
    }
    shutil.copy(FOLDERS / "unet_plain" / "config.json", tmp_path)
    weights.save_file(tmp_path / folder.WEIGHTS, tensors)
    assert {str(value.dtype) for value in weights.load_file(tmp_path / folder.WEIGHTS).values()} == {dtype}
    result = folder.load(tmp_path)
    assert {leaf.dtype for leaf in jax.tree.leaves(result.params)} == {np.dtype("float32")}
    expected = jax.tree.map(lambda v: v.astype(dtype).astype(np.float32), model.params)
    jax.tree.map(np.testing.assert_array_equal, result.params, expected)
    folder.save_model(tmp_path / "saved", jax.tree.map(lambda v: v.astype(dtype), result.params), result.config)
    for key, value in weights.load_file(tmp_path / "saved" / folder.WEIGHTS).items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, tensors[key].astype(np.float32))


def write_sharded(path, infix=""):
    """Write unet_plain in two files with an index, with diffusers' file names; returns the path of the index."""
    path.mkdir()
    shutil.copy(FOLDERS / "unet_plain" / "config.json", path)
    tensors, weight_map = weights.load_file(FOLDERS / "unet_plain" / folder.WEIGHTS), {}
    for i in range(2):
        names = sorted(tensors)[i::2]
        file = f"diffusion_pytorch_model{infix}-0000{i + 1}-of-00002.safetensors"
        weights.save_file(path / file, {name: tensors[name] for name in names})
        weight_map |= dict.fromkeys(names, file)
    index = path / f"diffusion_pytorch_model.safetensors.index{infix}.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


def test_weights_in_several_files_are_loaded(tmp_path):
    expected = load_fixture("unet_plain").params
    index = write_sharded(tmp_path / "a")
    jax.tree.map(np.testing.assert_array_equal, folder.load(tmp_path / "a").params, expected)
    write_sharded(tmp_path / "b", ".fp16")
    jax.tree.map(np.testing.assert_array_equal, folder.load(tmp_path / "b", "fp16").params, expected)
    (tmp_path / "a" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"weights must have all files of .*, got no diffusion.*00002-of-00002"):
        folder.load(tmp_path / "a")
    for content, message in (
        ('{"weight_map": {"a": "../b.safetensors"}}', r"index of files in its own folder, got '\.\./b\.safetensors'"),
        ('{"weight_map": []}', "weights must have a valid index of files, got"),
        ('{"weight_map": {"a": 3}}', "weights must have a valid index of files, got"),
        ("nonsense", "weights must have a valid index of files, got"),
    ):
        index.write_text(content)
        with pytest.raises(ValueError, match=message):
            folder.load(tmp_path / "a")


def test_a_variant_is_only_loaded_on_request(tmp_path):
    shutil.copytree(FOLDERS / "unet_plain", tmp_path / "copy")
    (tmp_path / "copy" / folder.WEIGHTS).rename(tmp_path / "copy" / "diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(ValueError, match=r"the folder has diffusion_pytorch_model.fp16.safetensors: pass variant="):
        folder.load(tmp_path / "copy")
    expected = load_fixture("unet_plain").params
    jax.tree.map(np.testing.assert_array_equal, folder.load(tmp_path / "copy", variant="fp16").params, expected)


def write_pipeline(path, vae="vae", **index):
    """Write the folder of a pipeline as Stable Diffusion's, with a model_index.json."""
    shutil.copytree(FOLDERS / "unet_sd", path / "unet")
    shutil.copytree(FOLDERS / "autoencoder_plain", path / vae)
    (path / "scheduler").mkdir()
    shutil.copy(FOLDERS / "unet_ddpm" / "scheduler_config.json", path / "scheduler")
    parts = {
        **{"unet": ["diffusers", "UNet2DConditionModel"], vae: ["diffusers", "AutoencoderKL"]},
        **{"scheduler": ["diffusers", "DDIMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"]},
        **{"tokenizer_2": ["transformers", "CLIPTokenizer"], "image_encoder": [None, None], "other": [None, None]},
    }
    text = json.dumps({"_class_name": "P", "requires_safety_checker": True} | parts | index)
    (path / "model_index.json").write_text(text)


@pytest.mark.slow_cases("vae")
@pytest.mark.parametrize("vae", ["vae", "vqvae"])
def test_a_pipeline_is_loaded_and_saved(vae, tmp_path):
    write_pipeline(tmp_path / "a", vae)
    model = folder.load(tmp_path / "a")
    assert model.shape == (6, 6, 4)
    assert model.scheduler.count == 1000
    assert model.autoencoder.config["_class_name"] == "AutoencoderKL"
    folder.save(tmp_path / "b", model)
    reloaded = folder.load(tmp_path / "b")
    jax.tree.map(np.testing.assert_array_equal, reloaded.params, model.params)
    jax.tree.map(np.testing.assert_array_equal, reloaded.autoencoder.params, model.autoencoder.params)
    assert reloaded.scheduler_config == model.scheduler_config
    assert (reloaded.config, reloaded.shape) == (model.config, model.shape)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda place: shutil.copytree(place / "unet", place / "movq"),
            r"folder must have only supported parts .*: movq is not",
        ),
        (lambda place: shutil.copytree(place / "vae", place / "vqvae"), "there are both vae and vqvae"),
        (lambda place: shutil.copytree(place / "unet", place / "transformer"), "there are both unet and transformer"),
        (lambda place: shutil.rmtree(place / "vae"), "vae is missing"),
        (lambda place: shutil.rmtree(place / "scheduler"), "scheduler is missing"),
        (
            lambda place: (place / "vae" / "config.json").write_text('{"_class_name": "VQModel"}'),
            "vae must be of class AutoencoderKL, got 'VQModel'",
        ),
        (
            lambda place: (place / "unet" / "config.json").write_text('{"_class_name": "UNet3DConditionModel"}'),
            "unet must be of class UNet2DModel or .*, got 'UNet3DConditionModel'",
        ),
        (lambda place: (place / "model_index.json").write_text("[]"), "model_index.json must be a JSON object"),
    ],
)
def test_a_pipeline_with_invalid_parts_raises(change, message, tmp_path):
    write_pipeline(tmp_path / "a")
    change(tmp_path / "a")
    with pytest.raises(ValueError, match=message):
        folder.load(tmp_path / "a")


def test_all_invalid_parts_are_listed(tmp_path):
    write_pipeline(tmp_path / "a", prior=["diffusers", "PriorTransformer"], bert=["x", "y"])
    shutil.rmtree(tmp_path / "a" / "vae")
    with pytest.raises(ValueError, match=r"bert is not supported; prior is not supported; vae is missing$"):
        folder.load(tmp_path / "a")


def test_a_pipeline_with_all_parts_in_one_folder_is_loaded(tmp_path):
    """google/ddpm-cifar10-32 has this form."""
    shutil.copytree(FOLDERS / "unet_ddpm", tmp_path / "a")
    index = {"_class_name": "DDPMPipeline", "scheduler": ["diffusers", "DDPM"], "unet": ["diffusers", "UNet2DModel"]}
    (tmp_path / "a" / "model_index.json").write_text(json.dumps(index))
    model = folder.load(tmp_path / "a")
    assert (model.shape, model.scheduler.count) == ((8, 8, 3), 1000)
    folder.save(tmp_path / "b", model)
    assert (tmp_path / "b" / "scheduler_config.json").exists()


def write_changed(tmp_path, change):
    """Write a copy of a fixture with changed tensors; returns its folder."""
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
        r"weights must fit the network, got 3 problems: conv_in.weight is missing; conv_new.weight is unknown; "
        r"conv_out.weight must have shape \(2, 8, 3, 3\), got \(2, 8, 1, 1\)"
    )
    with pytest.raises(ValueError, match=message):
        folder.load(write_changed(tmp_path, change))


def test_folders_without_a_supported_model_raise(tmp_path):
    with pytest.raises(ValueError, match="folder must be one that diffusers saved"):
        folder.load(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "VQModel"}')
    with pytest.raises(ValueError, match=r"_class_name of config.json must be one of UNet2DModel, .*, got 'VQModel'"):
        folder.load(tmp_path)
    shutil.copy(FOLDERS / "unet_plain" / "config.json", tmp_path)
    with pytest.raises(ValueError, match=r"weights must be a safetensors file, got .*, which does not exist"):
        folder.load(tmp_path)
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ValueError, match=r"weights must be safetensors, got diffusion_pytorch_model.bin"):
        folder.load(tmp_path)
    (tmp_path / folder.WEIGHTS).write_bytes(b"12345678nonsense")
    with pytest.raises(ValueError, match="weights must be a safetensors file, got"):
        folder.load(tmp_path)
