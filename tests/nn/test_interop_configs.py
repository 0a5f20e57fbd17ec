"""One error lists all faults of a config.json."""

import contextlib
import json

import pytest
from test_interop import FOLDERS

from diffax.nn.interop import autoencoder, dit, folder, unet


def test_all_unsupported_fields_are_listed():
    config = json.loads((FOLDERS / "unet_sd" / "config.json").read_text())
    config |= {"dual_cross_attention": True, "time_cond_proj_dim": 4, "brand_new": 1}
    message = (
        r"config.json is not supported, 3 faults: dual_cross_attention must be False, got True; "
        r"time_cond_proj_dim must be None, got 4; brand_new = 1 is unknown$"
    )
    with pytest.raises(ValueError, match=message):
        unet.build(config)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("unet_plain", {"up_block_types": ["UpBlock2D"] * 3}, "up_block_types must mirror down_block_types"),
        (
            "unet_plain",
            {"down_block_types": ["SkipDownBlock2D"] * 3},
            "down_block_types must be a list with each entry 'DownB",
        ),
        (
            "unet_plain",
            {"down_block_types": "DownBlock2D"},
            "down_block_types must be a list with .* got 'DownBlock2D'",
        ),
        ("unet_plain", {"downsample_padding": 2}, "downsample_padding must be 0 or 1, got 2"),
        ("unet_plain", {"resnet_time_scale_shift": "scale_shift"}, "attn_norm_num_groups must be norm_num_groups = 4"),
        ("unet_plain", {"upsample_type": "resnet"}, "upsample_type must be downsample_type = 'conv', got 'resnet'"),
        ("unet_plain", {"downsample_type": "resnet"}, "downsample_type must be 'resnet' with .*, got 'resnet'"),
        (
            "unet_plain",
            {"block_out_channels": [8, 8]},
            r"block_out_channels must have 3 entries, as many as .*, got \[8, 8\]",
        ),
        ("unet_plain", {"norm_num_groups": 3}, r"norm_num_groups must divide the block_out_channels .*, got 3"),
        ("unet_plain", {"in_channels": True}, "in_channels must be an int >= 1, got True"),
        ("unet_plain", {"sample_size": [4, 4, 4]}, "sample_size must be None, an int >= 1 or a list of two ints >= 1"),
        ("unet_plain", {"norm_eps": float("nan")}, "norm_eps must be a number > 0, got nan"),
        ("unet_sd", {"attention_head_dim": [2, 2]}, None),
        ("unet_sd", {"attention_head_dim": [2, 8]}, "attention_head_dim must divide the .* into heads of one"),
        ("unet_sd", {"attention_head_dim": 3}, r"attention_head_dim must divide the .* \[8, 16\] into heads"),
        ("unet_sd", {"attention_head_dim": [2]}, "attention_head_dim must divide the .* into heads of one"),
        (
            "unet_sd",
            {"attention_head_dim": None},
            "attention_head_dim must be an int >= 1, or a list with each entry an int >= 1, got None",
        ),
        ("unet_sd", {"layers_per_block": [1, 2]}, "layers_per_block must be a number or a list of equal numbers"),
    ],
)
def test_invalid_configs_raise(name, changes, message):
    config = json.loads((FOLDERS / name / "config.json").read_text())
    if message is None:
        assert unet.build(config | changes) == unet.build(config)
        return
    with pytest.raises(ValueError, match=message):
        unet.build(config | changes)


@pytest.mark.parametrize("name", ["unet_plain", "unet_sd", "autoencoder_plain", "dit_deep"])
def test_every_fault_of_a_config_is_listed(name, tmp_path):
    """`load`, `links` and `save_model` raise the same error. Values of any type raise no error but `ValueError`."""
    config = json.loads((FOLDERS / name / "config.json").read_text())
    wrong = {"in_channels": "x", "norm_num_groups": [], "norm_eps": "a", "out_channels": 0, "brand_new": 1}
    wrong = {key: value for key, value in wrong.items() if key in config or key == "brand_new"} | {"sample_size": "a"}
    missing = ["block_out_channels", "up_block_types"] if name.startswith("unet") else []
    bad = {key: value for key, value in config.items() if key not in missing} | wrong
    if name == "dit_deep":
        wrong.pop("norm_num_groups")  # any value is allowed
    (tmp_path / "config.json").write_text(json.dumps(bad))
    params = {"params": {}}
    calls = (lambda: folder.load(tmp_path), lambda: folder.links(bad), lambda: folder.save_model(tmp_path, params, bad))
    for call in calls:
        with pytest.raises(
            ValueError, match=f"config.json is not supported, {len(wrong) + len(missing)} faults"
        ) as error:
            call()
        assert all(key in str(error.value) for key in (*wrong, *missing))
    module = folder.CLASSES[config["_class_name"]]
    for key in config:
        for value in ("x", [], [1], ["x"], {}, -1, 0.5, None, True):
            if key != "_class_name":
                with contextlib.suppress(ValueError):
                    module.build(config | {key: value})


@pytest.mark.parametrize("content", ["[1]", '"x"', "3", "null"])
def test_a_config_other_than_a_json_object_raises(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config.json must be a JSON object, got"):
        folder.load(tmp_path)
    for module in (unet, dit, autoencoder):
        with pytest.raises(ValueError, match=r"config.json must be a JSON object, got"):
            module.build(json.loads(content))


def test_a_list_of_equal_numbers_is_the_same_as_one_number():
    """The levels have different widths."""
    config = json.loads((FOLDERS / "unet_sd15" / "config.json").read_text())
    listed = {"attention_head_dim": [8] * 4, "layers_per_block": [2] * 4, "cross_attention_dim": [24] * 4}
    assert unet.build(config | listed) == unet.build(config)
