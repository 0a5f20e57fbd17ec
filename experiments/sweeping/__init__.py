"""Sweeps: which runs there are, one after another or in one program, and what each leaves behind.

overrides   which runs: product, zipped, chain, seeds
definition  a sweep file -> runs, each with its config and an id that is a hash of it
settings    every setting of the kinds of runs beside those of `configs.default`
folder      what is on the disk: states, results, locks
provenance  what a result was computed by
traced      the floats of a config as arguments of a compiled program
together    several runs in one program
tasks       what a run is: training, sampling from a checkpoint, sampling from an oracle
worker      takes runs, one unit after another, until none is left
"""

from experiments.sweeping.overrides import chain, product, seeds, zipped

__all__ = ["chain", "product", "seeds", "zipped"]
