"""Measures an accelerator, the samplers, a training step, seeds in one program, or the sampling loop around a network.

python -m experiments.benchmark accelerator --out=DIR                       see `experiments.benchmarks.accelerator`
python -m experiments.benchmark samplers --out=DIR                          see `experiments.benchmarks.samplers`
python -m experiments.benchmark train --out=DIR                             see `experiments.benchmarks.train`
python -m experiments.benchmark seeds --out=DIR                             see `experiments.benchmarks.seeds`
python -m experiments.benchmark --config=experiments/configs/digits.py      see `experiments.benchmarks.loop`
"""

import importlib
import sys


def main() -> None:
    """Runs the one that is asked for; each has its own flags."""
    if sys.argv[1:2] == ["accelerator"]:  # without absl, which its machine may lack
        importlib.import_module("experiments.benchmarks.accelerator.command").main(sys.argv[2:])
        return
    part = next((name for name in ("samplers", "train", "seeds") if name in sys.argv[1:]), "loop")
    importlib.import_module(f"experiments.benchmarks.{part}").run()


if __name__ == "__main__":
    main()
