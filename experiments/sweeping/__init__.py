"""Sweeps: a queue of runs, each computed once, by any number of processes.

overrides   the overrides of runs: product, zipped, chain, seeds
definition  a sweep file -> runs, each with its config and an id, the digest of the config
settings    the settings of each kind of run
folder      the runs on disk: locks, states, results, provenance
measuring   samples -> metrics, by config.evaluation
tasks       the common types of the kinds of runs
train_task  a run that trains, draws samples and measures them
sample_task a run that draws samples from a checkpoint and measures them
oracle_task a run that samples a mixture by its exact denoiser
worker      computation of all runs in one process or several
"""

from experiments.sweeping.overrides import chain, product, seeds, zipped

__all__ = ["chain", "product", "seeds", "zipped"]
