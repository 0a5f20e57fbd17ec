"""Measures what it saves to train several seeds by one program instead of one after another by commands of their own.

    python -m experiments.benchmark seeds --out=DIR [--networks=mlp,unet] [--ways=loop,vmap] [--seeds=8] [--steps=30]

Each line is a whole command, `experiments.sweep` on digits with start, compilation and a few samples at the end, timed
by the clock on the wall: once with all seeds, and once for each seed alone in a folder of its own. A seed's losses by
the one program are compared with those of its own command.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags

from experiments.sweeping import together

NETWORKS = flags.DEFINE_list("networks", ["mlp", "unet"], "Of mlp, unet: those of configs/digits.py but for the MLP.")
WAYS = flags.DEFINE_list("ways", ["loop", "vmap"], f"Of {', '.join(together.NAMES)}.")
SEEDS = flags.DEFINE_integer("seeds", 8, "How many.", lower_bound=2)
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


def command(sweep: Path, folder: Path, *options: str) -> float:
    """Seconds of a whole command.

    Raises:
      RuntimeError: if it fails.
    """
    start = time.perf_counter()
    arguments = [sys.executable, "-m", "experiments.sweep", f"--sweep={sweep}", f"--workdir={folder}", *options]
    found = subprocess.run(arguments, capture_output=True, text=True)
    if found.returncode:
        raise RuntimeError(found.stderr[-500:])
    return time.perf_counter() - start


def losses(folder: Path) -> dict[int, np.ndarray]:
    """{seed: losses of all steps} of the runs in a folder."""
    found = {}
    for run in (folder / "runs").iterdir():
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        found[json.loads((run / "config.json").read_text())["seed"]] = np.array([line["loss"] for line in lines])
    return found


def measure(network: str, scratch: Path) -> list[dict[str, Any]]:
    """A row for each way: seconds of both, their ratio, the largest relative difference of the losses."""
    sweep = scratch / f"{network}.py"
    sweep.write_text(SWEEP.format(network=network, steps=STEPS.value, seeds=SEEDS.value))
    alone, own = 0.0, dict[int, np.ndarray]()
    for seed in range(SEEDS.value):
        folder = scratch / f"{network}_{seed}"
        alone += command(sweep, folder, f"--only=config.seed={seed}", "--way=loop")
        own |= losses(folder)
    rows = []
    for way in WAYS.value:
        folder = scratch / f"{network}_{way}"
        whole = command(sweep, folder, f"--way={way}", f"--group={SEEDS.value}")
        shared = losses(folder)
        apart = max(float(np.max(np.abs(shared[seed] / own[seed] - 1))) for seed in own)
        rows.append({"network": network, "way": way, "alone": alone, "one_program": whole, "apart": apart})
        print(line(rows[-1]), flush=True)
    return rows


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    values = f"{row['alone']:.1f} | {row['one_program']:.1f} | {row['one_program'] / row['alone']:.2f}"
    return f"| {row['network']} | {row['way']} | {values} | {row['apart']:.1e} |"


def main(argv):
    """Measures and writes the table."""
    del argv
    for way in WAYS.value:
        if way not in together.NAMES:
            raise app.UsageError(f"ways must be among {', '.join(together.NAMES)}, got {way!r}")
    with tempfile.TemporaryDirectory() as scratch:
        rows = [row for network in NETWORKS.value for row in measure(network, Path(scratch))]
    device = f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}"
    head = [
        f"# {SEEDS.value} seeds of {STEPS.value} steps on digits, {device}, jax {jax.__version__}",
        "",
        f"| network | way | {SEEDS.value} commands, s | one program, s | ratio | losses apart, at most |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    out = Path(OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    (out / "seeds.md").write_text("\n".join([*head, *map(line, rows)]) + "\n")
    (out / "seeds.json").write_text(json.dumps({"device": device, "rows": rows}, indent=1) + "\n")
    print(f"{out / 'seeds.md'}")


def run() -> None:
    """The command."""
    app.run(main)
