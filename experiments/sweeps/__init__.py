"""Sweeps: one file each, run by `experiments.sweep`."""
