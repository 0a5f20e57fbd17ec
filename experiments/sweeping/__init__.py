"""Sweeps: a queue of runs, each computed once, by any number of processes.

overrides   which runs there are: product, zipped, chain, seeds
definition  a sweep file -> runs, each with its config and an id that is a digest of it
settings    the settings of each kind of run
folder      the runs on disk: locks, states, results, what they were computed by
measuring   samples -> metrics, by config.evaluation
tasks       what the kinds of runs share
train_task  a run that trains, draws samples and measures them
sample_task a run that draws samples from a checkpoint and measures them
oracle_task a run that samples a mixture by its exact denoiser
worker      computes runs until none is left, in one process or several
"""

from experiments.sweeping.overrides import chain, product, seeds, zipped

__all__ = ["chain", "product", "seeds", "zipped"]
