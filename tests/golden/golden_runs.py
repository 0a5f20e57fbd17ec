"""Golden runs: results of experiments, recorded before a refactoring that must not change them.

    python tests/golden/golden_runs.py --compare [--only NAME ...]     a table; exit status 1 if a run differs
    python tests/golden/golden_runs.py --write   [--only NAME ...]     record again, after an intended change

A training run is recorded as the losses of its log and a digest of its averaged parameters, a sweep as the metrics of
each of its runs. All of it takes a quarter of an hour on 2 cores. Digests hold for one machine and one version of JAX:
elsewhere, and where the compiler may order operations differently, the losses must agree to 1e-6 (relative).
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from orbax.checkpoint import v1 as ocp

FILE = Path(__file__).parent / "golden_runs.json"
ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-6
SPEED = ("steps_per_second", "images_per_second", "flops_per_second", "share_of_peak")
# Entries that depend on the machine, and entries that were added to the log after the runs were recorded.
LEFT_OUT = (*SPEED, "memory_per_device", "memory_of_process", "heldout", "learning_rate")

FEW = [
    "--config.train.num_steps=6",
    "--config.train.log_every=1",
    "--config.train.sample_every=6",
    "--config.train.checkpoint_every=3",
    "--config.dataset.batch_size=8",
]
NARROW = ["--config.network.channels=8", "--config.network.num_res_blocks=1"]
# name: (config, flags, name of the run that it starts from)
TRAINING = {
    "smoke": ("smoke", [], {}),
    "digits": (
        "digits",
        [
            "--config.train.num_steps=200",
            "--config.train.log_every=10",
            "--config.train.sample_every=200",
            "--config.train.checkpoint_every=100",
        ],
        {},
    ),
    "hybrid": ("digits_hybrid", [*FEW, *NARROW], {}),
    "vdm": ("digits_vdm", [*FEW, *NARROW], {}),
    "text": ("emoji_text", [*FEW, *NARROW], {}),
    "lora": ("smoke", [*FEW, "--config.lora.rank=2"], {"--config.lora.base": "smoke"}),
    "classifier": ("digits_classifier", [*FEW, *NARROW], {}),
    "autoencoder": ("mnist5k_autoencoder", [*FEW, "--config.autoencoder.channels=8"], {}),
    "latent": ("mnist5k_latent", [*FEW, *NARROW], {"--config.latent.autoencoder": "autoencoder"}),
}
SWEEPS = {
    "trained": """
from experiments.configs import smoke
from experiments.sweeping import product, seeds, settings

def get_config():
    config = settings.training(smoke.get_config())
    config.evaluation.num = 100
    config.evaluation.classifier_steps = 50
    return config

def get_overrides():
    return product({"config.prediction": ["v", "eps"]}, {"config.optimizer.learning_rate": [1e-3, 3e-3]}, seeds(2))
""",
    "oracle": """
from experiments.sweeping import chain, product, seeds, settings

def get_config():
    return settings.oracle()

def get_overrides():
    grids = {"config.grid": ["uniform", "karras"]}
    return chain(
        product({"config.sampler": ["ddim", "heun", "dpmpp_2m"]}, {"config.calls": [5, 10]}, grids, seeds(2)),
        product({"config.sampler": ["ddim"]}, {"config.eta": [0.3, 1.0]}, grids, seeds(2)),
    )
""",
    "drawn": """
from experiments.sweeping import product, seeds, settings

def get_config():
    config = settings.sampling()
    config.checkpoint = "CHECKPOINT"
    config.evaluation.num = 100
    config.evaluation.classifier_steps = 50
    return config

def get_overrides():
    return product(
        {"config.sampling.sampler": ["ddim", "heun"]}, {"config.sampling.guidance": [1.0, 1.5]}, seeds(2)
    )
""",
}
STARTED_FROM = {"drawn": "smoke"}


def run(command: str, *flags: str) -> None:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    environment.setdefault("TFDS_DATA_DIR", str(Path(tempfile.gettempdir()) / "golden_data"))
    subprocess.run([sys.executable, "-m", f"experiments.{command}", *flags], cwd=ROOT, env=environment, check=True)


def digest(folder: Path) -> str:
    """A digest of the averaged parameters in the newest checkpoint of a run."""
    newest = max(
        (path for path in (folder / "checkpoints").iterdir() if path.name.isdecimal()), key=lambda p: int(p.name)
    )
    context = ocp.Context()
    with context:
        ema = ocp.load(newest)["ema"]
    result = hashlib.blake2b(digest_size=16)

    def add(tree: object, path: str) -> None:
        if isinstance(tree, dict):
            for name in sorted(tree):
                add(tree[name], f"{path}/{name}")
        else:
            leaf = np.ascontiguousarray(tree)
            result.update(f"{path} {leaf.dtype} {leaf.shape}".encode() + leaf.tobytes())

    add(ema, "")
    return result.hexdigest()


def train(name: str, folders: Path) -> dict:
    config, flags, bases = TRAINING[name]
    bases = [f"{flag}={folders / base}" for flag, base in bases.items()]
    folder = folders / name
    run("train", f"--config=experiments/configs/{config}.py", f"--workdir={folder}", *flags, *bases)
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    log = [{key: value for key, value in line.items() if not key.startswith(LEFT_OUT)} for line in lines]
    return {"log": log, "ema": digest(folder)}


def sweep(name: str, folders: Path) -> dict:
    path, folder = folders / f"{name}.py", folders / f"sweep_{name}"
    path.write_text(SWEEPS[name].replace("CHECKPOINT", str(folders / STARTED_FROM.get(name, ""))))
    way = [] if name == "oracle" else ["--way=loop"]
    run("sweep", f"--sweep={path}", f"--workdir={folder}", *way)
    results = {}
    for key, overrides in json.loads((folder / "sweep.json").read_text())["runs"].items():
        result = json.loads((folder / "runs" / key / "result.json").read_text())
        results[json.dumps(overrides)] = {**result["metrics"], **{f"floor {k}": v for k, v in result["floors"].items()}}
    return {"results": results}


def numbers(recorded: dict) -> dict[str, float]:
    """The numbers of a record by their paths."""
    if "log" in recorded:
        return {f"step {line['step']} {key}": value for line in recorded["log"] for key, value in line.items()}
    return {f"{run} {key}": value for run, row in recorded["results"].items() for key, value in row.items()}


def compared(before: dict, now: dict) -> tuple[str, bool]:
    """A line about the difference of two records, and whether it is small enough."""
    old, new = numbers(before), numbers(now)
    if old.keys() != new.keys():
        return f"other names: {sorted(old.keys() ^ new.keys())[:4]}", False
    worst, where = max((abs(new[key] - old[key]) / max(abs(old[key]), 1e-12), key) for key in old)
    bits = "the same bits" if before.get("ema") == now.get("ema") and worst == 0 else "other bits"
    return f"{bits}, {len(old)} numbers within {worst:.1e} ({where})", worst <= TOLERANCE


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--only", nargs="*", default=[*TRAINING, *SWEEPS])
    arguments = parser.parse_args()
    recorded = json.loads(FILE.read_text()) if FILE.exists() else {}
    status = 0
    with tempfile.TemporaryDirectory() as folders:
        needed = {base for name in arguments.only for base in TRAINING.get(name, (0, 0, {}))[2].values()}
        needed |= {STARTED_FROM[name] for name in arguments.only if name in STARTED_FROM}
        names = [n for n in [*TRAINING, *SWEEPS] if n in {*arguments.only, *needed}]
        for name in names:
            now = (train if name in TRAINING else sweep)(name, Path(folders))
            if arguments.write:
                recorded[name] = now
                FILE.write_text(json.dumps(recorded, indent=1) + "\n")
                continue
            text, is_equal = compared(recorded[name], now)
            status |= not is_equal
            print(f"GOLDEN {name:12} {'ok  ' if is_equal else 'FAIL'} {text}", flush=True)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
