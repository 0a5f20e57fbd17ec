"""Measures an accelerator, the samplers, a training step, seeds in one program, or the sampling loop around a network.

python -m experiments.benchmark accelerator --out=DIR                       see `experiments.benchmarks.accelerator`
python -m experiments.benchmark samplers --out=DIR                          see `experiments.benchmarks.samplers`
python -m experiments.benchmark train --out=DIR                             see `experiments.benchmarks.train`
python -m experiments.benchmark seeds --out=DIR                             see `experiments.benchmarks.seeds`
python -m experiments.benchmark --config=experiments/configs/digits.py      see `experiments.benchmarks.loop`
"""

import importlib
import sys

PARTS = ("samplers", "train", "seeds")


def main() -> None:
    """Run the part that the first argument names; each has its own flags."""
    part = sys.argv[1] if len(sys.argv) > 1 else ""
    if part == "accelerator":  # without absl, which its machine may lack
        importlib.import_module("experiments.benchmarks.accelerator.command").main(sys.argv[2:])
        return
    if part in PARTS:
        del sys.argv[1]
    importlib.import_module(f"experiments.benchmarks.{part if part in PARTS else 'loop'}").run()


if __name__ == "__main__":
    main()
