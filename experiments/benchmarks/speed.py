"""Compile time, time of a step, and overhead beside other libraries: float32, x of 4 x 3 x 32 x 32, a trivial denoiser.

Our loop is `integrate` over 50 steps, compiled; a peer's loop has 50 steps, after `set_timesteps`. They take turns in
one process, and the least of the repeats counts, since other load on the machine can only add time. Two schedules:
`linear`, and diffusers' table of 1,000 levels, interpolated.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffax
from experiments.benchmarks import peer_rows, peers
from experiments.benchmarks.rows import Row

SHAPE, STEPS, LONG = (4, 3, 32, 32), 50, 500
CALLS = 4  # in a row for each loop, because the first call finds the caches full of the other loop's data
SCHEDULES: dict[str, Callable[[], Any]] = {
    "linear": diffax.Linear,
    "table": lambda: diffax.from_betas(diffax.schedules.linear_betas(1000)),
}


def compiled(row: Row, schedule: Any, steps: int) -> tuple[Callable[[], Any], float]:
    """(a run of `steps` steps, seconds of tracing and compilation)."""
    x = jnp.asarray(np.random.RandomState(0).normal(size=SHAPE), jnp.float32)
    times, key = jnp.linspace(1.0, 0.001, steps + 1, dtype=jnp.float32), jax.random.key(0)

    def end(key, x, times):
        return diffax.integrate(key, row.build(schedule, 1.0), lambda x, t: 0.5 * x, x, times).x

    start = time.perf_counter()
    run = jax.jit(end).lower(key, x, times).compile()
    took = time.perf_counter() - start
    return lambda: jax.block_until_ready(run(key, x, times)), took


def least(run: Callable[[], Any], repeats: int) -> float:
    """Seconds of the fastest of CALLS * repeats calls."""
    seconds = []
    for _ in range(CALLS * repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def measure(name: str, row: Row, repeats: int, *, quick: bool = False) -> dict[str, Any]:
    """Compile seconds at 50 and 500 steps, and milliseconds of 50 steps on both schedules; `quick`: the first."""
    first, seconds = compiled(row, SCHEDULES["linear"](), STEPS)
    runs = [first] if quick else [first, compiled(row, SCHEDULES["table"](), STEPS)[0]]
    linear, *table = (least(run, repeats) for run in runs)
    return {
        "sampler": name,
        "compile_s": round(seconds, 3),
        "compile_s_500": None if quick else round(compiled(row, SCHEDULES["linear"](), LONG)[1], 3),
        "linear_ms": round(1e3 * linear, 3),
        "table_ms": None if quick else round(1e3 * table[0], 3),
        "us_a_step": round(1e6 * linear / STEPS, 2),
    }


def loop_of(peer: peer_rows.Peer, device: str = "cpu") -> Callable[[], Any]:
    """A peer's loop of 50 steps with a trivial denoiser. device: a name of torch."""
    import torch

    x = torch.as_tensor(np.random.RandomState(0).normal(size=SHAPE), dtype=torch.float32, device=device)
    if peer.library == "k-diffusion":
        rhos = np.exp(-np.asarray(diffax.Linear().log_snr(np.linspace(1.0, 0.001, STEPS + 1))) / 2).astype(np.float32)
        sample, settings = getattr(peers.k_sampling(), f"sample_{peer.name}"), dict(peer.settings)
        if (peer.stochastic and "dpmpp" in peer.name) or peer.name == "dpmpp_3m_sde":
            settings["noise_sampler"] = lambda sigma, sigma_next: torch.randn_like(x)

        def k_run():
            with torch.no_grad():
                return sample(
                    lambda x, sigma: 0.5 * x, x, torch.as_tensor(rhos, device=device), disable=True, **settings
                )

        return k_run
    instance = peers.scheduler(peer, peer.grids[-1] if peer.name == "DPMSolverSinglestep" else peer.grids[0])

    def prepared():
        instance.set_timesteps(STEPS, device=device)  # resets the state of the last run; not timed
        timesteps = instance.timesteps

        def run():
            y = x
            with torch.no_grad():
                for t in timesteps:
                    y = instance.step(0.5 * instance.scale_model_input(y, t), t, y, return_dict=False)[0]
            return y

        return run

    return prepared


def overhead(rows: dict[str, Row], repeats: int) -> list[dict[str, Any]]:
    """Our loop against each peer whose counterpart is among the rows: milliseconds and ratio, on both schedules."""
    results = []
    for name, peer in peer_rows.PEERS.items():
        if peer.library not in peers.libraries() or peer.ours not in rows or peer.name == "dpm_fast":
            continue
        theirs = loop_of(peer)
        ours = [compiled(rows[peer.ours], make(), STEPS)[0] for make in SCHEDULES.values()]
        best = [np.inf] * (1 + len(ours))
        for _ in range(repeats):
            for j, run in enumerate([theirs, *ours]):
                for _ in range(1 if best[j] > 0.1 and np.isfinite(best[j]) else CALLS):
                    ready = run() if j == 0 and peer.library == "diffusers" else run
                    start = time.perf_counter()
                    ready()
                    best[j] = min(best[j], time.perf_counter() - start)
        target = 1.0 if peer.stochastic else 0.1 if peer.library == "diffusers" else None
        linear, table = best[1] / best[0], best[2] / best[0]
        results.append(
            {
                "peer": name,
                "ours": peer.ours,
                "peer_ms": round(1e3 * best[0], 3),
                "linear_ms": round(1e3 * best[1], 3),
                "table_ms": round(1e3 * best[2], 3),
                "ratio_linear": round(linear, 4),
                "ratio_table": round(table, 4),
                "target": target,
                "met": None if target is None else bool(max(linear, table) <= target),
            }
        )
    return results
