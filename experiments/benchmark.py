"""Measure an accelerator, samplers, training steps, seeds in one program, paths, or the loop around a network.

python -m experiments.benchmark accelerator --out=DIR                       see `experiments.benchmarks.accelerator`
python -m experiments.benchmark samplers --out=DIR                          see `experiments.benchmarks.samplers`
python -m experiments.benchmark train --out=DIR                             see `experiments.benchmarks.train`
python -m experiments.benchmark seeds --out=DIR                             see `experiments.benchmarks.seeds`
python -m experiments.benchmark objectives                                  see `experiments.benchmarks.objectives`
python -m experiments.benchmark paths --checkpoints=DIR,DIR                 see `experiments.benchmarks.paths`
python -m experiments.benchmark --config=experiments/configs/digits.py      see `experiments.benchmarks.loop`
"""

import importlib
import sys

PARTS = ("samplers", "train", "seeds", "objectives", "paths")


def main() -> None:
    """Run the part named by the first argument; each part has its own flags."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name == "accelerator":  # its machine may lack absl, which is imported below
        importlib.import_module("experiments.benchmarks.accelerator.command").main(sys.argv[2:])
        return
    part = importlib.import_module(f"experiments.benchmarks.{name if name in PARTS else 'loop'}")
    from absl import flags

    flags.adopt_module_key_flags(part)
    if name in PARTS:
        # --help shows the key flags and the docstring of __main__.
        sys.modules["__main__"].__doc__ = part.__doc__
        del sys.argv[1]
    part.run()


if __name__ == "__main__":
    main()
