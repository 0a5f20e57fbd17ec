"""Measure the time saved by training several seeds in one program instead of one command for each seed.

    python -m experiments.benchmark seeds --out=DIR [--networks=mlp,unet] [--ways=loop,vmap] [--seeds=8] [--steps=30]

Each time is the wall time of a whole command, `experiments.sweep` on digits with start, compilation and a few samples
at the end: once with all seeds, and once for each seed alone in a separate folder.

    ratio    seconds of the command with all seeds / sum of the seconds of the commands with one seed
    apart    largest |loss with all seeds / loss with one seed - 1| over seeds and steps
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments.run.command import launch, usage_errors
from experiments.run.workdir import check_writable

KNOWN = ("mlp", "unet")
NETWORKS = flags.DEFINE_list("networks", list(KNOWN), "Of mlp, unet: those of configs/digits.py but for the MLP.")
WAYS = flags.DEFINE_list("ways", ["loop", "vmap"], "Of loop, vmap.")
SEEDS = flags.DEFINE_integer("seeds", 8, "Number of seeds.", lower_bound=2)
STEPS = flags.DEFINE_integer("steps", 30, "Training steps of each.", lower_bound=1)
OUT = flags.DEFINE_string("out", "benchmark", "Folder for seeds.md and seeds.json.")

SWEEP = '''"""Seeds of digits."""
from experiments.configs import digits
from experiments.sweeping import seeds, settings

def get_config():
    config = settings.training(digits.get_config())
    config.network.name = {network!r}
    config.train.num_steps = {steps}
    config.train.log_every = 1
    config.sampling.num_steps = 4
    config.evaluation.num = 20
    config.evaluation.metrics = ("accuracy",)
    config.evaluation.classifier_steps = 1
    return config

def get_overrides():
    return seeds({seeds})
'''


def check(networks: list[str], ways: list[str]) -> None:
    """Raise `ValueError` for unknown names, or none."""
    for name, chosen, known in (("networks", networks, KNOWN), ("ways", ways, ("loop", "vmap"))):
        if not chosen or not set(chosen) <= set(known):
            raise ValueError(f"{name} must be among {', '.join(known)}, got {','.join(chosen)!r}")


def command(sweep: Path, folder: Path, *options: str) -> float:
    """Seconds of a whole command.

    Raises:
      RuntimeError: if it fails.
    """
    start = time.perf_counter()
    arguments = [sys.executable, "-m", "experiments.sweep", f"--sweep={sweep}", f"--workdir={folder}", *options]
    # With a shared cache the later commands would not compile.
    env = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    process = subprocess.run(arguments, capture_output=True, text=True, env=env)
    if process.returncode:
        raise RuntimeError(process.stderr[-500:])
    return time.perf_counter() - start


def losses(folder: Path) -> dict[int, np.ndarray]:
    """{seed: losses of all steps} of the runs in a folder."""
    result = {}
    for run in (folder / "runs").iterdir():
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        result[json.loads((run / "config.json").read_text())["seed"]] = np.array([line["loss"] for line in lines])
    return result


def measure(network: str, scratch: Path) -> list[dict[str, Any]]:
    """A row for each way: seconds of the separate commands and of the common one, their ratio, difference of losses."""
    sweep = scratch / f"{network}.py"
    sweep.write_text(SWEEP.format(network=network, steps=STEPS.value, seeds=SEEDS.value))
    alone, own = list[float](), dict[int, np.ndarray]()
    for seed in range(SEEDS.value):
        folder = scratch / f"{network}_{seed}"
        alone.append(command(sweep, folder, f"--only=config.seed={seed}", "--way=loop"))
        own |= losses(folder)
        print(f"{network}, seed {seed} alone: {alone[-1]:.1f} s", flush=True)
    rows = []
    for way in WAYS.value:
        folder = scratch / f"{network}_{way}"
        whole = command(sweep, folder, f"--way={way}", f"--group={SEEDS.value}")
        rows.append(row(network, way, alone, whole, own, losses(folder)))
        print(line(rows[-1]), flush=True)
    return rows


def row(network: str, way: str, alone: list[float], whole: float, own: Any, shared: Any) -> dict[str, Any]:
    """A row of results. alone: seconds of each separate command; own, shared: {seed: losses (steps,)}."""
    # Not Python's max, which may skip NaN.
    apart = np.max([np.abs(shared[seed] / own[seed] - 1) for seed in own])
    times = {"alone": alone, "one_program": whole, "ratio": whole / sum(alone)}
    return {"network": network, "way": way, **times, "apart": float(apart)}


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    times = f"{sum(row['alone']):.1f} | {row['one_program']:.1f} | {row['ratio']:.2f}"
    return f"| {row['network']} | {row['way']} | {len(row['alone'])} | {times} | {row['apart']:.1e} |"


def main(argv):
    """Measure and write the table."""
    del argv
    out = Path(OUT.value)
    with usage_errors():
        check(NETWORKS.value, WAYS.value)
        check_writable(out, "out")
    with tempfile.TemporaryDirectory() as scratch:
        rows = [row for network in NETWORKS.value for row in measure(network, Path(scratch))]
    device = f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}"
    head = [
        f"# {SEEDS.value} seeds of {STEPS.value} steps on digits, {device}, jax {jax.__version__}",
        "",
        "Seconds of the seeds' own commands are the sum over those that were run, each from its start to its end.",
        "",
        "| network | way | own commands run | their seconds | one command, s | ratio | losses apart, at most |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    (out / "seeds.md").write_text("\n".join([*head, *map(line, rows)]) + "\n")
    (out / "seeds.json").write_text(json.dumps({"device": device, "rows": rows}, indent=1) + "\n")
    print(f"{out / 'seeds.md'}")


def run() -> None:
    """The command."""
    launch(main)
