"""The training step of diffusers' UNet2DModel of the same shape, in PyTorch, eager and compiled."""

import importlib.metadata
import time
from typing import Any

import numpy as np


def libraries() -> dict[str, str]:
    """Versions of torch and diffusers, {} unless both are installed."""
    try:
        return {name: importlib.metadata.version(name) for name in ("torch", "diffusers")}
    except importlib.metadata.PackageNotFoundError:
        return {}


def rows(name: str, network: Any, config: Any, repeats: int) -> list[dict[str, Any]]:
    """Rows of the table: none without the libraries, and without the compiled one if torch.compile fails."""
    if not libraries():
        return []
    result = [_row(name, network, config, repeats, compiled=False)]
    try:
        result.append(_row(name, network, config, repeats, compiled=True))
    except Exception as error:  # no C++ compiler, an unsupported Python
        print(f"torch.compile does not work here: {type(error).__name__}", flush=True)
    return result


def model_of(network: Any, config: Any) -> Any:
    """UNet2DModel with the widths, blocks, attention and dropout of the config."""
    from diffusers import UNet2DModel

    settings = config.network
    attends = [level in settings.attention_levels for level in range(len(settings.channel_multipliers))]
    return UNet2DModel(
        sample_size=network.shape[0],
        in_channels=network.shape[-1],
        out_channels=network.shape[-1],
        layers_per_block=settings.num_res_blocks,
        block_out_channels=tuple(settings.channels * m for m in settings.channel_multipliers),
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        attention_head_dim=None,
        norm_num_groups=settings.channels // 4,
        dropout=settings.dropout_rate,
    )


def _row(name, network, config, repeats, *, compiled):
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = model_of(network, config).to(device)
    average = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.optimizer.learning_rate, weight_decay=0.0)
    shape = (network.batch_size, network.shape[-1], *network.shape[:-1])
    images = torch.rand(shape, device=device) * 2 - 1
    forward = torch.compile(model) if compiled else model

    def step():
        t = torch.rand(len(images), device=device)
        angle = (0.5 * np.pi * t)[:, None, None, None]
        eps = torch.randn_like(images)
        x = torch.cos(angle) * images + torch.sin(angle) * eps
        target = torch.cos(angle) * eps - torch.sin(angle) * images
        loss = torch.mean((forward(x, 1000 * t).sample - target) ** 2)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, list(model.parameters()), 0.005)
        return loss.item()  # waits for the device

    start = time.perf_counter()
    step()
    first = time.perf_counter() - start
    step()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    median = float(np.median(times))
    return {
        "network": name,
        "what": "diffusers compiled" if compiled else "diffusers eager",
        "devices": 1,
        "dtype": "float32",
        "remat": False,
        "parameters": sum(p.numel() for p in model.parameters()),
        "batch": network.batch_size,
        "compile_s": first - median if compiled else None,
        "step_s": median,
        "step_range_s": [min(times), max(times)],
        "images_per_s": network.batch_size / median,
        "flops_per_s": None,
        "share_of_peak": None,
        "memory_bytes": None,
    }
