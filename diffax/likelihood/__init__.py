"""Likelihoods: exact by the probability-flow ODE, bounded by the ELBO; bits per dimension for data on a lattice.

log_likelihood       log-density by the probability-flow ODE on a step grid
adaptive             the same ODE by an adaptive solver   (needs diffrax: import diffax.likelihood.adaptive)
variational_bound    the evidence lower bound (ELBO) in discrete time, term by term
continuous_bound     the ELBO in continuous time
Lattice              data on a lattice, such as pixels: dequantize, bits_per_dim
"""

from diffax.likelihood._bound import Bound, continuous_bound, forward_posterior, variational_bound
from diffax.likelihood._flow import LogLikelihood, log_likelihood
from diffax.likelihood._lattice import Lattice, bits_per_dim, dequantize

__all__ = [
    "Bound",
    "Lattice",
    "LogLikelihood",
    "bits_per_dim",
    "continuous_bound",
    "dequantize",
    "forward_posterior",
    "log_likelihood",
    "variational_bound",
]
