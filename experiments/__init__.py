"""Entrypoints that train, sample and evaluate. Not installed with the library."""
