"""The Quickstart's digits config, trained, sampled and scored by the public commands.

This item needs the packages of `diffax[experiments]`; otherwise its only row names the first missing package.
"""

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from experiments.benchmarks.accelerator.worker import Context

COLUMNS = (
    ("seconds", "seconds", ".0f"),
    ("steps/s", "steps_per_s", ".1f"),
    ("accuracy", "accuracy", ".4f"),
    ("FD", "fd", ".3f"),
    ("floor", "floor", ".3f"),
    ("passed", "passed", ""),
)
PACKAGES = ("absl", "ml_collections", "grain", "tensorflow_datasets", "sklearn", "matplotlib", "tensorboardX", "PIL")
QUICK = ("--config.network.name=mlp", "--config.network.channels=16", "--config.network.depth=1")
ACCURACY, RATIO = 0.97, 1.3  # the Quickstart's values, with a margin for another device's rounding


def rows(context: Context) -> Iterator[dict[str, Any]]:
    """A row for each command."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        yield {"name": "digits", "skipped": f"{missing[0]} is not installed"}
        return
    with TemporaryDirectory() as scratch:
        yield from commands(Path(scratch), context)


def commands(folder: Path, context: Context) -> Iterator[dict[str, Any]]:
    """train, sample, evaluate. Quick: a perceptron for a few steps, a few samples, a classifier of a few steps."""
    run, drawn = folder / "run", folder / "drawn"
    config = "smoke" if context.quick else "digits"
    smaller = QUICK if context.quick else ()
    seconds = _command(
        "train", f"--config=experiments/configs/{config}.py", f"--workdir={run}", *smaller, context=context
    )
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rates = [line["steps_per_second"] for line in lines if "steps_per_second" in line]
    yield {"name": "train", "seconds": seconds, "steps_per_s": max(rates, default=None)}
    number = "--num=100" if context.quick else "--num=1000"
    yield {
        "name": "sample",
        "seconds": _command("sample", f"--checkpoint={run}", f"--out={drawn}", number, context=context),
    }
    few = ("--allow_few", "--classifier_steps=2", "--repeats=2") if context.quick else ()
    seconds = _command("evaluate", f"--samples={drawn}", *few, context=context)
    scores = json.loads((drawn / "evaluation.json").read_text())
    accuracy, value, floor = scores["metrics"]["accuracy"], scores["metrics"]["fd"], scores["floors"]["fd"]
    row = {"name": "evaluate", "seconds": seconds, "accuracy": accuracy, "fd": value, "floor": floor}
    yield row if context.quick else row | {"passed": accuracy >= ACCURACY and value <= RATIO * floor}


def _command(name: str, *flags: str, context: Context) -> float:
    """Seconds of a whole command.

    Raises:
      RuntimeError: if it fails; the message has the last line of its log.
    """
    start = time.perf_counter()
    arguments = [sys.executable, "-m", f"experiments.{name}", *flags]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=max(context.left(), 1.0))
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise RuntimeError(f"experiments.{name} ended with status {done.returncode}: {last}")
    return time.perf_counter() - start
