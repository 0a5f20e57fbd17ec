"""Distances between two sets of features. Pure functions on host arrays, in float64."""

from diffax.metrics.frechet import frechet_distance

__all__ = ["frechet_distance"]
