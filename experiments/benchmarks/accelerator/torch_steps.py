"""The training steps of `steps` in PyTorch, eager and compiled, in bfloat16, at the batch sizes measured there.

The step is the same: v-prediction, autocast to bfloat16 over float32 parameters, clipping, fused AdamW, EMA. ratio:
images/s of diffax over those of PyTorch, both measured in this run.
"""

import gc
import importlib.util
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from experiments.benchmarks.accelerator import networks
from experiments.benchmarks.accelerator.worker import Context, one_line

COLUMNS = (
    ("parameters", "parameters", ",d"),
    ("batch", "batch", "d"),
    ("step ms", "step_ms", ".1f"),
    ("images/s", "images_per_s", ".0f"),
    ("diffax / PyTorch", "ratio", ".2f"),
    ("memory GiB", "memory_gib", ".1f"),
    ("compile s", "compile_s", ".0f"),
)
NAMES = ("dit_b2", "ddpm", "dit_xl2", "edm2_xs")
CHUNKS, SECONDS = 5, 4.0
LEAST = {"eager": 10.0, "compiled": 40.0}


def rows(context: Context) -> Iterator[dict[str, Any]]:
    """A row for each network, eager, then compiled."""
    if importlib.util.find_spec("torch") is None:
        yield {"name": "PyTorch", "skipped": "torch is not installed"}
        return
    ours = {row["name"].split()[0]: row for row in context.earlier if row.get("dtype") == "bfloat16"}
    for name in NAMES:
        for way in ("eager", "compiled"):
            label = {"name": f"{name} bfloat16, {way}"}
            if name == "ddpm" and importlib.util.find_spec("diffusers") is None:
                yield label | {"skipped": "diffusers is not installed"}
            elif not context.quick and context.left() < LEAST[way]:
                yield label | {"skipped": f"{context.left():.0f} s were left"}
            else:
                yield label | fitting(name, way, context.quick, ours.get(name, {}))


def fitting(name: str, way: str, quick: bool, ours: dict[str, Any]) -> dict[str, Any]:
    """The measurement at our batch size, halved until it fits."""
    import torch

    case, error = networks.case(name, quick), {}
    size = ours.get("batch") or case.batch
    while size >= networks.SMALLEST:
        try:
            row = measure(name, case, size, way, quick)
            known = ours.get("images_per_s")
            return row | ({"ratio": known / row["images_per_s"]} if known else {})
        except torch.OutOfMemoryError as failure:
            error = {"batch": size, "error": f"batch {size} does not fit: {one_line(failure)}"}
            size //= 2
        except Exception as failure:  # for example, no compiler for this device
            return {"error": one_line(failure)}
    return error


def measure(name: str, case: networks.Case, size: int, way: str, quick: bool) -> dict[str, Any]:
    """One row."""
    import torch

    from experiments.benchmarks.accelerator import torch_networks

    device = "cuda" if torch.cuda.is_available() else "cpu"
    _forget(device)
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    layout = torch.contiguous_format if name.startswith("dit") else torch.channels_last  # for convolutions
    model = torch_networks.build(name, case.net, case.shape).to(device, memory_format=layout)
    forward = torch.compile(model, dynamic=False) if way == "compiled" else model
    step = step_of(model, forward, case, size, device, layout)
    start = time.perf_counter()
    step()
    wait(device)
    first = time.perf_counter() - start
    seconds = step_seconds(step, device, 0.2 if quick else SECONDS)
    median = float(np.median(seconds))
    memory = torch.cuda.max_memory_allocated() / networks.GIB if device == "cuda" else None
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "batch": size,
        "step_ms": 1e3 * median,
        "step_range_ms": [1e3 * min(seconds), 1e3 * max(seconds)],
        "images_per_s": size / median,
        "memory_gib": memory,
        "compile_s": first - median if way == "compiled" else None,
    }


def _forget(device: str) -> None:
    """Drop the programs and arrays of earlier measurements and reset the peak memory."""
    import torch

    torch._dynamo.reset()
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def step_of(
    model: Any, forward: Callable, case: networks.Case, size: int, device: str, layout: Any
) -> Callable[[], Any]:
    """A training step on one batch; it returns the loss on the device."""
    import torch

    average = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0, fused=device == "cuda")
    height, width, channels = case.shape
    images = torch.randn(size, channels, height, width, device=device).to(memory_format=layout)
    label = torch.arange(size, device=device) % (case.num_classes or 1)

    def step():
        t = torch.rand(size, device=device)
        angle = (0.5 * np.pi * t)[:, None, None, None]
        eps = torch.randn_like(images)
        x = torch.cos(angle) * images + torch.sin(angle) * eps
        target = torch.cos(angle) * eps - torch.sin(angle) * images
        with torch.autocast(device, torch.bfloat16):
            y = forward(x, t, label)
        loss = torch.mean((y.float() - target) ** 2)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, list(model.parameters()), 1e-4)
        return loss

    return step


def wait(device: str) -> None:
    """Wait until the device has finished all dispatched work."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def step_seconds(step: Callable[[], Any], device: str, seconds: float) -> list[float]:
    """As `steps.step_seconds`."""
    for _ in range(2):
        start = time.perf_counter()
        step()
        wait(device)
        single = time.perf_counter() - start
    count, times = max(1, round(seconds / CHUNKS / single)), []
    for _ in range(CHUNKS):
        start = time.perf_counter()
        for _ in range(count):
            step()
        wait(device)
        times.append((time.perf_counter() - start) / count)
    return times
