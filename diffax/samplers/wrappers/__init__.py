"""Wrappers: functions sampler -> sampler, each in its own file."""
