"""Noise replaced by known values: exact moments of functions that are affine in their noise, without Monte Carlo."""

import jax
import jax.numpy as jnp

import diffax


class LinearLogSNR:
    """A variance-preserving schedule that compiles quickly: log-SNR falls linearly from 8 to -6."""

    def log_snr(self, t):
        return 8.0 - 14.0 * jnp.asarray(t)

    def inverse(self, log_snr):
        return (8.0 - log_snr) / 14.0

    def __call__(self, t):
        log_snr = self.log_snr(t)
        return diffax.Level(jnp.sqrt(jax.nn.sigmoid(log_snr)), jnp.sqrt(jax.nn.sigmoid(-log_snr)), log_snr)


def replace_noise_by_folds(monkeypatch, draw):
    """Replace noise by draw(folds, like), where folds is the tuple of all values folded into the key."""

    def fold_in(key, data):
        return (*(key if isinstance(key, tuple) else ()), data)

    monkeypatch.setattr(diffax.random, "fold_in", fold_in)
    monkeypatch.setattr(diffax.random, "noise", draw)


def moments_from_gaussian_start(end, mean, covariance, num_rows, row, monkeypatch):
    """Mean and covariance of end(x) for x (1, D) ~ N(mean, covariance), where `end` is affine in x and its noise.

    num_rows: number of noise draws; row(folds): index of a draw, from the values folded into its key.
    """

    def run(x, table):
        replace_noise_by_folds(monkeypatch, lambda key, like: table[row(key)][None])
        x = end(x[None])[0]
        return x, x

    mean = jnp.asarray(mean)
    zeros = jnp.zeros((num_rows, len(mean)), mean.dtype)
    (jacobian_x, jacobian_noise), x = jax.jit(jax.jacfwd(run, (0, 1), has_aux=True))(mean, zeros)
    flat = jacobian_noise.reshape(len(x), -1)
    return x, jacobian_x @ covariance @ jacobian_x.T + flat @ flat.T
