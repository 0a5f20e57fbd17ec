"""Rows of likelihoods, bounds, lattices and the learned grid."""

import jax.numpy as jnp
from golden_inputs import BATCH, DENOISER, DIMENSIONS, GAUSSIAN, MIXTURE, array, compiled, data, grid, key, times

import diffax
from diffax import training
from diffax.likelihood import _bound, _lattice, adaptive

SCHEDULES = {"cosine": lambda: diffax.Cosine(), "linear": lambda: diffax.Linear(), "flow": lambda: diffax.Flow()}
LATTICE = lambda: diffax.likelihood.Lattice(0.25, -4.0, 4.0)
SNAP = lambda x: jnp.round(x * 4) / 4
MOMENTS = lambda s: lambda x, t: diffax.Moments(DENOISER(MIXTURE(), s)(x, t), 0.5 + 0.25 * jnp.cos(x))
MEAN = lambda s: DENOISER(MIXTURE(), s)
OF_SCHEDULE = {
    "log_likelihood/exact": lambda s: diffax.log_likelihood(
        key("ll"), s, MEAN(s), data(), grid()[::-1], divergence="exact"
    ),
    "log_likelihood/rademacher": lambda s: diffax.log_likelihood(key("ll"), s, MEAN(s), data(), grid()[::-1], probes=3),
    "log_likelihood/gaussian": lambda s: diffax.log_likelihood(
        key("ll"), s, MEAN(s), data(), grid()[::-1], probe_distribution="gaussian"
    ),
    "variational_bound/small": lambda s: diffax.likelihood.variational_bound(key("vb"), s, MEAN(s), data(), grid()),
    "variational_bound/large": lambda s: diffax.likelihood.variational_bound(
        key("vb"), s, MEAN(s), data(), grid(), variance="large"
    ),
    "variational_bound/learned": lambda s: diffax.likelihood.variational_bound(
        key("vb"), s, MOMENTS(s), SNAP(data()), grid(), variance="learned", lattice=LATTICE()
    ),
    "continuous_bound": lambda s: diffax.likelihood.continuous_bound(key("cb"), s, MEAN(s), data(), times()),
    "continuous_bound/lattice": lambda s: diffax.likelihood.continuous_bound(
        key("cb"), s, MEAN(s), SNAP(data()), times(), lattice=LATTICE()
    ),
    "prior_term": lambda s: _bound.prior_term(s, data()),
    "learn_grid": lambda s: training.learn_grid(
        key("lg"),
        diffax.ddim(s),
        s,
        DENOISER(GAUSSIAN(), s),
        array("x", BATCH, DIMENSIONS),
        grid()[::2],
        target=data(),
        num_steps=3,
    ),
}
OTHERS = {
    "bits_per_dim": lambda: diffax.likelihood.bits_per_dim(array("log_prob", BATCH), 3, bin_width=0.25),
    "dequantize": lambda: diffax.likelihood.dequantize(key("dq"), SNAP(data()), LATTICE()),
    "decoder_log_prob": lambda: _lattice.decoder_log_prob(data(), 0.1 * data(), 0.4),
    "decoder_log_prob/lattice": lambda: _lattice.decoder_log_prob(SNAP(data()), 0.1 * data(), 0.4, LATTICE()),
    "gaussian_kl": lambda: _bound.gaussian_kl(data(), 0.4, 0.2 * data(), 0.7),
}
# The adaptive solver of diffrax needs compilation. Its steps follow an error estimate, so rounding may change them.
ODE = {
    "ode/integrate": lambda s: adaptive.solve(s, MEAN(s), array("x", BATCH, DIMENSIONS), (0.9, 0.1)),
    "ode/sample": lambda s: adaptive.solve_and_denoise(s, MEAN(s), array("x", BATCH, DIMENSIONS), (0.9, 0.1)),
}


def rows():
    """All rows of the group."""
    for schedule, make in SCHEDULES.items():
        for name, f in OF_SCHEDULE.items():
            yield f"{schedule}/{name}", lambda f=f, make=make: f(make())
    yield from OTHERS.items()
    for name, f in ODE.items():
        yield name, lambda f=f: compiled(lambda: f(SCHEDULES["cosine"]()).x)


ROWS = dict(rows())
