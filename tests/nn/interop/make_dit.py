"""Makes the fixtures dit_*: small diffusers models with random weights, inputs and the outputs of torch.

    python tests/nn/interop/make_dit.py

This needs torch and diffusers (the fixtures are from torch 2.13.0 and diffusers 0.42.1). A folder holds the files of
`save_pretrained` and case.npz with x (B, C, H, W), step (B,), label (B,) and y, the output of the model. `published` is
the output of the same weights with the two constants in which the published DiT differs from diffusers (see
diffax/nn/interop/dit.py).
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import DiTTransformer2DModel

SHAPE = {"num_attention_heads": 2, "attention_head_dim": 6, "num_layers": 2, "num_embeds_ada_norm": 5}
CASES = {
    "dit_latent": ({**SHAPE, "in_channels": 4, "out_channels": 8, "patch_size": 2, "sample_size": 8}, (8, 8)),
    "dit_deep": (
        {**SHAPE, "num_attention_heads": 4, "attention_head_dim": 2, "num_layers": 3, "num_embeds_ada_norm": 11}
        | {"in_channels": 3, "patch_size": 4, "sample_size": 12, "attention_bias": False, "norm_eps": 1e-3},
        (12, 12),
    ),
    # The input is larger than sample_size, so diffusers spreads the positions over the grid of the config.
    "dit_resized": (
        {**SHAPE, "num_attention_heads": 1, "attention_head_dim": 20, "num_layers": 1, "num_embeds_ada_norm": 2}
        | {"in_channels": 1, "out_channels": 2, "patch_size": 1, "sample_size": 5},
        (7, 7),
    ),
}


def random_model(config, seed=0):
    """A model whose weights are all random: initial zeros would hide errors."""
    torch.manual_seed(seed)
    model = DiTTransformer2DModel(**config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 10
            parameter.normal_(std=fan_in**-0.5)
    return model


def inputs(config, space, batch=4, seed=0):
    """(x, step, label), including the first and the last step and the null label."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, config["in_channels"], *space)).astype(np.float32)
    step = np.concatenate([[0, 999], rng.integers(1, 999, batch - 2)])
    label = np.concatenate([[config["num_embeds_ada_norm"]], rng.integers(0, config["num_embeds_ada_norm"], batch - 1)])
    return x, step, label


def answer(model, x, step, label):
    """The output of the model as a NumPy array."""
    with torch.no_grad():
        return model(torch.tensor(x), torch.tensor(step), torch.tensor(label)).sample.numpy()


def publish(model):
    """The model with the frequencies of the time embedding and the epsilon of the norm of the published DiT."""
    for block in model.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
        block.norm3.eps = 1e-6
    return model


def main():
    """Writes all folders."""
    for name, (config, space) in CASES.items():
        folder = Path(__file__).parent / name
        model = random_model(config)
        model.save_pretrained(folder)
        x, step, label = inputs(config, space)
        case = {"x": x, "step": step, "label": label, "y": answer(model, x, step, label)}
        case["published"] = answer(publish(model), x, step, label)
        np.savez_compressed(folder / "case.npz", **case)
        sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
        print(name, sizes, float(np.std(case["y"])), float(np.abs(case["published"] - case["y"]).max()))


if __name__ == "__main__":
    main()
