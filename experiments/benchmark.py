"""Measures the samplers, a training step, seeds in one program, or what the sampling loop costs around a network.

python -m experiments.benchmark samplers --out=DIR                          see `experiments.benchmarking.samplers`
python -m experiments.benchmark train --out=DIR                             see `experiments.benchmarking.train`
python -m experiments.benchmark seeds --out=DIR                             see `experiments.benchmarking.seeds`
python -m experiments.benchmark --config=experiments/configs/digits.py      see `experiments.benchmarking.loop`
"""

import importlib
import sys


def main() -> None:
    """Runs the one that is asked for; each has its own flags."""
    part = next((name for name in ("samplers", "train", "seeds") if name in sys.argv[1:]), "loop")
    importlib.import_module(f"experiments.benchmarking.{part}").run()


if __name__ == "__main__":
    main()
