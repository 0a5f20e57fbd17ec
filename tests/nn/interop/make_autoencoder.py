"""Makes the fixtures autoencoder_*: small diffusers models with random weights, inputs and the outputs of torch.

    python tests/nn/interop/make_autoencoder.py

This needs torch and diffusers (the fixtures are from torch 2.13.0 and diffusers 0.42.1). A folder holds the files of
`save_pretrained` and case.npz with x (B, C, H, W), mean and log_variance of its code, a code z and its image y.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

CASES = {
    "autoencoder_plain": ({"block_out_channels": (8, 16), "norm_num_groups": 4}, (12, 8)),
    "autoencoder_deep": (
        {"block_out_channels": (4, 6, 8), "norm_num_groups": 2, "layers_per_block": 2, "latent_channels": 3}
        | {"in_channels": 1, "out_channels": 1, "use_quant_conv": False, "use_post_quant_conv": False},
        (8, 16),
    ),
    "autoencoder_bare": (
        {"block_out_channels": (12, 8), "norm_num_groups": 1, "latent_channels": 8, "mid_block_add_attention": False}
        | {"in_channels": 4, "out_channels": 4, "use_post_quant_conv": False},
        (6, 6),
    ),
}


def full(config):
    """The config with the types of the blocks, one for each level."""
    levels = len(config["block_out_channels"])
    return {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "layers_per_block": 1,
        **config,
    }


def random_model(config, seed=0):
    """A model whose weights are all random: initial zeros and ones would hide errors."""
    torch.manual_seed(seed)
    model = AutoencoderKL(**full(config)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 10
            parameter.normal_(std=fan_in**-0.5)
            if "norm" in name and name.endswith("weight"):
                parameter += 1
    return model


def answers(model, space, batch=2, seed=0):
    """{x, mean, log_variance, z, y} as NumPy arrays."""
    rng, config = np.random.default_rng(seed), model.config
    x = rng.normal(size=(batch, config.in_channels, *space)).astype(np.float32)
    with torch.no_grad():
        code = model.encode(torch.tensor(x)).latent_dist
        z = rng.normal(size=tuple(code.mean.shape)).astype(np.float32)
        y = model.decode(torch.tensor(z)).sample
    return {"x": x, "mean": code.mean.numpy(), "log_variance": code.logvar.numpy(), "z": z, "y": y.numpy()}


def main():
    """Writes all folders."""
    for name, (config, space) in CASES.items():
        folder = Path(__file__).parent / name
        model = random_model(config)
        model.save_pretrained(folder)
        case = answers(model, space)
        np.savez_compressed(folder / "case.npz", **case)
        sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
        print(name, sizes, {key: float(np.std(value)) for key, value in case.items()})


if __name__ == "__main__":
    main()
