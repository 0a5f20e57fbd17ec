"""Functions sampler -> sampler, one a file."""
