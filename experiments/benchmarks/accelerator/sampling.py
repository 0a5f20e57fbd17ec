"""Cost of the sampling loop beside that of diffusers, and images/s of a 50-call sampler around the CIFAR-10 U-Net.

overhead    milliseconds of 50 steps on 4 x 3 x 32 x 32 with a trivial denoiser, the least of several calls; diffusers'
            scheduler on the same device, in turn with ours, where torch and diffusers are installed
U-Net       DDIM with 50 calls of the 35.7M U-Net in bfloat16, at the largest batch that fits
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffax
from experiments.benchmarks import peer_rows, peers, speed
from experiments.benchmarks.accelerator import networks, steps
from experiments.benchmarks.accelerator.worker import Context, one_line
from experiments.benchmarks.rows import ROWS

COLUMNS = (
    ("ms", "ms", ".2f"),
    ("diffusers ms", "peer_ms", ".2f"),
    ("ratio", "ratio", ".3f"),
    ("batch", "batch", "d"),
    ("images/s", "images_per_s", ".1f"),
)
PEERS = ("diffusers DDIM", "diffusers DPM++2M", "diffusers UniPC-2", "diffusers Euler")
CALLS, BATCH = 50, 1024


def rows(context: Context) -> Iterator[dict[str, Any]]:
    """Rows of the overhead, then that of the U-Net."""
    for name in PEERS[:1] if context.quick else PEERS:
        try:
            yield {"name": f"{peer_rows.PEERS[name].ours}, trivial denoiser"} | overhead(
                name, 2 if context.quick else 10
            )
        except Exception as error:
            yield {"name": name, "error": one_line(error)}
    yield {"name": f"U-Net, DDIM, {CALLS} calls, bfloat16"} | images_per_second(context.quick)


def overhead(name: str, repeats: int) -> dict[str, Any]:
    """Times of our loop, and of diffusers' loop where it is installed."""
    peer = peer_rows.PEERS[name]
    ours, _ = speed.compiled(ROWS[peer.ours], diffax.Linear(), speed.STEPS)
    theirs = _torch_loop(peer) if "diffusers" in peers.libraries() else None
    best = {"ms": np.inf, "peer_ms": np.inf}
    for _ in range(repeats):
        for _ in range(speed.CALLS):
            best["ms"] = min(best["ms"], 1e3 * _seconds(ours))
        for _ in range(speed.CALLS if theirs else 0):
            run = theirs()  # type: ignore[misc]  # resets the scheduler; not timed
            best["peer_ms"] = min(best["peer_ms"], 1e3 * _seconds(run))
    if theirs is None:
        return {"ms": best["ms"], "note": "diffusers is not installed"}
    return best | {"ratio": best["ms"] / best["peer_ms"]}


def _torch_loop(peer: peer_rows.Peer) -> Callable[[], Callable[[], Any]]:
    """A function that prepares a run of the peer's loop; the run synchronises with the device."""
    import torch

    device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
    prepare = speed.loop_of(peer, device)

    def prepared():
        run = prepare()

        def wait():
            y = run()
            if device == "cuda":
                torch.cuda.synchronize()
            return y

        return wait

    return prepared


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def images_per_second(quick: bool) -> dict[str, Any]:
    """The U-Net at the largest batch that fits."""
    case, error = networks.case("ddpm", quick), {}
    for size in networks.batches(case.batch if quick else BATCH, steps.memory_limit()):
        try:
            return _sample(case, size, 5 if quick else CALLS)
        except Exception as failure:
            if not steps.out_of_memory(failure):
                raise
            error = {"batch": size, "error": f"batch {size} does not fit: {one_line(failure)}"}
    return error


def _sample(case: networks.Case, size: int, calls: int) -> dict[str, Any]:
    net, schedule = case.net.clone(dtype=jnp.bfloat16), diffax.Cosine()
    params = networks.random_params(net, case.shape)
    times = diffax.times.uniform_log_snr(schedule, calls, t_max=0.99, t_min=0.01)

    @jax.jit
    def generate(params, key):
        start, noise = jax.random.split(key)
        x = diffax.initial_noise(start, schedule, (size, *case.shape), times[0])
        denoise = diffax.denoiser(lambda x, t: net.apply({"params": params}, x, t), schedule, "v")
        return diffax.sample(noise, diffax.ddim(schedule), denoise, x, times)

    jax.block_until_ready(generate(params, jax.random.key(0)))
    seconds = [_seconds(lambda i=i: jax.block_until_ready(generate(params, jax.random.key(i)))) for i in range(1, 4)]
    return {"ms": 1e3 * float(np.median(seconds)), "batch": size, "images_per_s": size / float(np.median(seconds))}
