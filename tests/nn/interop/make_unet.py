"""Makes the fixtures unet_*: diffusers' U-Nets with random weights, inputs and the outputs of torch.

    python tests/nn/interop/make_unet.py
    python tests/nn/interop/make_unet.py --full

The second command writes no fixture. It saves the U-Net of Stable Diffusion 1.5 at full width with 860M random
parameters, loads it with `diffax.nn.interop.folder`, and prints the largest difference of the two outputs. It needs
16 GB of memory, 4 GB of disk, some minutes, and diffax beside torch. `--full unet_sd` does the same for another case.

Both need torch and diffusers (the fixtures are from torch 2.13.0 and diffusers 0.42.1). A folder holds the files of
`save_pretrained`, or for a large network config.json alone, with the weights of seeded.py; and case.npz with
x (B, C, H, W), step (B,), the conditions and y, the output. unet_ddpm also has the results of 20 DDIM steps of the
pipeline: `chain0`, and with clipping `chain1`.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel, UNet2DModel
from seeded import tensor

DDPM = {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    **{"attention_head_dim": None, "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1},
    **{"in_channels": 3, "out_channels": 3, "norm_eps": 1e-6},
}
ADM = {
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    **{"downsample_type": "resnet", "upsample_type": "resnet", "resnet_time_scale_shift": "scale_shift"},
    **{"norm_num_groups": 4, "attn_norm_num_groups": 4, "attention_head_dim": 4, "num_class_embeds": 5},
    **{"in_channels": 1, "out_channels": 2, "layers_per_block": 1, "block_out_channels": (8, 16), "sample_size": 6},
}
PLAIN = {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    **{"in_channels": 2, "out_channels": 2, "block_out_channels": (8, 8, 12), "attention_head_dim": 4},
    **{"norm_num_groups": 4, "layers_per_block": 1, "sample_size": 12},
}
SMALL_SD = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    **{"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1, "sample_size": 6},
    **{"cross_attention_dim": 6, "attention_head_dim": 2},
}
CASES = {
    "unet_ddpm": (UNet2DModel, DDPM | {"block_out_channels": (8, 16, 16, 16), "layers_per_block": 1}
                  | {"norm_num_groups": 4, "sample_size": 8}, False),
    "unet_adm": (UNet2DModel, ADM, False),
    "unet_plain": (UNet2DModel, PLAIN, False),
    # the config of google/ddpm-cifar10-32
    "unet_cifar10": (UNet2DModel, DDPM | {"block_out_channels": (128, 256, 256, 256), "sample_size": 32}, True),
    "unet_sd": (UNet2DConditionModel, SMALL_SD, False),
    "unet_sd2": (UNet2DConditionModel, SMALL_SD | {"attention_head_dim": (1, 2), "use_linear_projection": True}, False),
    "unet_sd_deep": (UNet2DConditionModel, SMALL_SD | {"transformer_layers_per_block": 2, "num_class_embeds": 4},
                     False),
    # Stable Diffusion 1.5 at a tenth of its width
    "unet_sd15": (UNet2DConditionModel, {"block_out_channels": (32, 64, 128, 128), "cross_attention_dim": 24}
                  | {"sample_size": 16}, True),
}  # fmt: skip


def random_model(kind, config):
    """A model whose weights are all random: initial zeros would hide errors."""
    model = kind(**config).eval()
    model.load_state_dict({name: torch.tensor(tensor(name, v.shape)) for name, v in model.state_dict().items()})
    return model


def inputs(config, batch=3, seed=0):
    """{x, step, ..}, including the first and the last step."""
    rng, size = np.random.default_rng(seed), config["sample_size"]
    case = {
        "x": rng.standard_normal((batch, config.get("in_channels", 4), size, size), np.float32),
        "step": np.array([0, 999, *rng.integers(1, 999, batch - 2)]),
    }
    if config.get("num_class_embeds"):
        case["label"] = rng.integers(0, config["num_class_embeds"], batch)
    if config.get("cross_attention_dim"):
        case["context"] = rng.standard_normal((batch, 5, config["cross_attention_dim"]), np.float32)
        case["mask"] = np.arange(5) < np.array([[5], [3], [1]])
    return case


def answer(model, case):
    """The output of the model as a NumPy array."""
    tensors = {name: torch.tensor(value) for name, value in case.items()}
    conditions = {"class_labels": tensors["label"]} if "label" in tensors else {}
    if "context" in tensors:
        conditions |= {"encoder_hidden_states": tensors["context"], "encoder_attention_mask": tensors["mask"]}
    with torch.no_grad():
        return model(tensors["x"], tensors["step"], **conditions).sample.numpy()


def chain(model, x, folder, clip):
    """The loop of the pipeline: 20 steps of DDIM. Where x0 is clipped, eps is computed from the clipped x0."""
    scheduler = DDIMScheduler(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, clip_sample=clip)
    scheduler.save_pretrained(folder)
    scheduler.set_timesteps(20)
    x = torch.tensor(x)
    with torch.no_grad():
        for step in scheduler.timesteps:
            x = scheduler.step(model(x, step).sample, step, x, use_clipped_model_output=clip).prev_sample
    return x.numpy()


def compare(kind, config, folder):
    """(largest difference of the outputs of torch and diffax from the same folder, std of the output)."""
    import jax

    from diffax.nn.interop import folder as folders

    model = random_model(kind, config)
    case = {name: value[:2] for name, value in inputs(dict(model.config)).items()}
    expected = answer(model, case)
    model.save_pretrained(folder)
    del model
    loaded = folders.load(folder)
    conditions = {name: jax.numpy.asarray(case[name]) for name in ("label", "context", "mask") if name in case}
    y = jax.jit(loaded.predict(**conditions))(np.moveaxis(case["x"], 1, -1), (case["step"] + 1) / 1000)
    return float(np.abs(np.asarray(y) - np.moveaxis(expected, 1, -1)).max()), float(expected.std())


def full(name=None):
    """Prints the result of `compare` for a case, or for Stable Diffusion 1.5 at full width."""
    stable = {"cross_attention_dim": 768, "sample_size": 64}
    kind, config, _ = CASES[name] if name else (UNet2DConditionModel, stable, True)
    with tempfile.TemporaryDirectory() as folder:
        difference, std = compare(kind, config, folder)
    print(f"{name or 'Stable Diffusion 1.5'}: largest difference {difference:.2g} of outputs with std {std:.2g}")


def main():
    """Writes all folders."""
    for name, (kind, config, large) in CASES.items():
        folder = Path(__file__).parent / name
        model = random_model(kind, config)
        model.save_config(folder) if large else model.save_pretrained(folder)
        case = inputs(dict(model.config) if large else config)
        case["y"] = answer(model, case)
        if name == "unet_ddpm":
            case |= {f"chain{clip:d}": chain(model, case["x"], folder, clip) for clip in (True, False)}
        np.savez_compressed(folder / "case.npz", **case)
        print(name, {path.name: path.stat().st_size for path in folder.iterdir()}, float(np.std(case["y"])))


if __name__ == "__main__":
    full(*sys.argv[2:]) if sys.argv[1:2] == ["--full"] else main()
