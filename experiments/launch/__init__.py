"""Starts training on machines that are not this one, and takes it up again."""
