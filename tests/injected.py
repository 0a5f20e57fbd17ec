"""Noise put in by hand: the law of whatever is affine in its noise, without Monte Carlo."""

import jax
import jax.numpy as jnp

import diffax


class Plain:
    """A schedule of few operations, quick to compile: variance-preserving, log-SNR from 8 down to -6."""

    def log_snr(self, t):
        return 8.0 - 14.0 * jnp.asarray(t)

    def inverse(self, log_snr):
        return (8.0 - log_snr) / 14.0

    def __call__(self, t):
        log_snr = self.log_snr(t)
        return diffax.Level(jnp.sqrt(jax.nn.sigmoid(log_snr)), jnp.sqrt(jax.nn.sigmoid(-log_snr)), log_snr)


def folds(monkeypatch, draw):
    """Keys become the tuple of all that was folded into them; draw(folds, like) is the noise."""

    def fold_in(key, data):
        return (*(key if isinstance(key, tuple) else ()), data)

    monkeypatch.setattr(diffax.random, "fold_in", fold_in)
    monkeypatch.setattr(diffax.random, "noise", draw)


def law(end, mean, covariance, num_rows, row, monkeypatch):
    """Mean and covariance of end(x), x (1, D) ~ N(mean, covariance), for an `end` affine in x and its noise.

    num_rows: how many draws of noise there are; row: folds -> which of them this is.
    """

    def run(x, table):
        folds(monkeypatch, lambda key, like: table[row(key)][None])
        x = end(x[None])[0]
        return x, x

    mean = jnp.asarray(mean)
    zeros = jnp.zeros((num_rows, len(mean)), mean.dtype)
    (of_x, of_noise), x = jax.jit(jax.jacfwd(run, (0, 1), has_aux=True))(mean, zeros)
    flat = of_noise.reshape(len(x), -1)
    return x, of_x @ covariance @ of_x.T + flat @ flat.T
